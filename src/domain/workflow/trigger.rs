//! `on:`: what starts a run.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::domain::expr::Expr;

/// Everything that starts a run of a workflow.
#[derive(Debug, Clone, Default)]
pub struct Triggers {
    /// `schedule:`, one or several.
    pub schedules: Vec<Schedule>,
    /// `event:`, one or several.
    pub events: Vec<EventTrigger>,
    /// `manual:`; `refit trigger` works without it, then without inputs.
    pub inputs: BTreeMap<String, Input>,
}

/// A cron expression in a time zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// Five fields, as in crontab.
    pub cron: String,
    /// An IANA zone; UTC when absent.
    pub timezone: chrono_tz::Tz,
    /// What happens to ticks that were missed.
    pub catch_up: CatchUp,
}

/// What happens to ticks missed while no server ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CatchUp {
    /// One run, for the latest of them.
    #[default]
    Latest,
    /// One run each.
    All,
    /// None.
    None,
}

/// An event by name, with a condition on its data.
#[derive(Debug, Clone)]
pub struct EventTrigger {
    /// The event's name.
    pub name: String,
    /// `if:`, over `event`.
    pub condition: Option<Expr>,
    /// Events within this time of the last one make one run.
    pub debounce: Option<Duration>,
}

/// One input of `manual:`.
#[derive(Debug, Clone, PartialEq)]
pub struct Input {
    /// Its type.
    pub kind: InputKind,
    /// Whether it must be given.
    pub required: bool,
    /// Its value when it is not given.
    pub default: Option<serde_json::Value>,
}

/// The type of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InputKind {
    /// Text.
    String,
    /// A number.
    Number,
    /// true or false.
    Boolean,
}
