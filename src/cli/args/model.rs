//! `refit model …`.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand};

use super::Paper;
use crate::domain::id::{ModelName, TargetName};

/// `refit model`.
#[derive(Debug, Subcommand)]
pub enum ModelCommand {
    /// List versions, newest first
    Ls {
        /// Of this model.
        model: Option<ModelName>,
    },
    /// Show one version: files, metrics, where it came from, who changed what
    #[command(allow_missing_positional = true)]
    Show(OneVersion),
    /// Compare two versions: metrics, files, where they came from
    Diff {
        /// The version, or `champion`, `canary`, `previous`.
        one: String,
        /// The other one; the champion when not given.
        #[arg(default_value = "champion")]
        other: String,
        /// The model; the only one when not given.
        #[arg(long)]
        model: Option<ModelName>,
    },
    /// Read every file of a version and compare it with the manifest
    #[command(allow_missing_positional = true)]
    Verify(OneVersion),
    /// Download a version to a directory, verified, whole or not at all
    #[command(allow_missing_positional = true)]
    Pull {
        /// Which.
        #[command(flatten)]
        which: OneVersion,
        /// The directory; it must not be there, be empty, or have the same files. `./VERSION` when not given.
        #[arg(long, value_name = "DIR")]
        to: Option<PathBuf>,
    },
    /// Write a model card: what the version is, how it was judged, where it came from (Markdown)
    #[command(allow_missing_positional = true)]
    Card {
        /// Which.
        #[command(flatten)]
        which: OneVersion,
        /// A file to write; stdout when not given.
        #[arg(long, value_name = "FILE")]
        to: Option<PathBuf>,
    },
    /// Keep a version whatever its age
    #[command(allow_missing_positional = true)]
    Pin(Change),
    /// Take a pin off
    #[command(allow_missing_positional = true)]
    Unpin(Change),
    /// Mark a version bad, so that no rollback chooses it, or good again
    #[command(allow_missing_positional = true)]
    Mark {
        /// Which.
        #[command(flatten)]
        change: Change,
        /// No rollback chooses it.
        #[arg(long, conflicts_with = "good", required_unless_present = "good")]
        bad: bool,
        /// A rollback may choose it again.
        #[arg(long)]
        good: bool,
    },
    /// Write what one change of a release did, why, and what was known: also of one that was made by hand
    Receipt {
        /// The generation it made, as `refit model history` has it; the newest when not given.
        generation: Option<i64>,
        /// The model; the only one when not given.
        #[arg(long)]
        model: Option<ModelName>,
        /// The target; the only one of the model when not given.
        #[arg(long)]
        target: Option<TargetName>,
        /// How it is written.
        #[command(flatten)]
        paper: Paper,
    },
    /// Who changed what, when and why: releases, pins, marks, deletions
    History {
        /// Of this model.
        model: Option<ModelName>,
        /// How many changes.
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
    },
}

/// A version of a model.
#[derive(Debug, Clone, ClapArgs)]
pub struct OneVersion {
    /// The model; the only one when not given.
    pub model: Option<ModelName>,
    /// The version, or `champion`, `canary`, `previous`.
    #[arg(required = true)]
    pub version: String,
}

/// A change of a version.
#[derive(Debug, Clone, ClapArgs)]
pub struct Change {
    /// Which.
    #[command(flatten)]
    pub which: OneVersion,
    /// Why, for the history.
    #[arg(long, value_parser = super::said)]
    pub why: Option<String>,
}
