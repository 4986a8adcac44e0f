//! `refit notify …`.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand};

/// `refit notify`.
#[derive(Debug, Subcommand)]
pub enum NotifyCommand {
    /// Show messages, with example facts or those of a run
    Preview(Preview),
    /// Send a test message through a notifier of refit.toml
    Test(NotifyTest),
}

/// `refit notify preview`.
#[derive(Debug, Clone, ClapArgs)]
pub struct Preview {
    /// The kind, such as `promoted` or `rolled_back`; all kinds when not given.
    pub kind: Option<String>,
    /// The form.
    #[arg(long, value_enum, default_value_t = Channel::Mail)]
    pub channel: Channel,
    /// With the facts of this run: an id, the beginning or end of one, or `last`.
    #[arg(long)]
    pub run: Option<String>,
    /// As they come in the mode of this workflow; in `act` when not given.
    #[arg(long, value_name = "NAME", conflicts_with = "run")]
    pub workflow: Option<String>,
    /// Write files here.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Write files and open the first.
    #[arg(long, conflicts_with = "out")]
    pub open: bool,
}

/// The form of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Channel {
    /// Text and HTML.
    Mail,
    /// Slack's blocks.
    Slack,
    /// The log.
    Console,
}

/// `refit notify test`.
#[derive(Debug, Clone, ClapArgs)]
pub struct NotifyTest {
    /// The notifier, as refit.toml calls it.
    pub name: String,
    /// A mail address to send to; may be given several times. Those of the first workflow that names any when not given.
    #[arg(long)]
    pub to: Vec<String>,
}
