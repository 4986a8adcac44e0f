//! `refit freeze` and `refit unfreeze`.

use std::time::Duration;

use clap::Args as ClapArgs;

use crate::domain::Timestamp;
use crate::domain::expect::parse_timestamp;
use crate::domain::workflow::units;

/// `refit freeze`.
#[derive(Debug, Clone, ClapArgs)]
#[command(after_help = WHAT_IT_DOES)]
pub struct Freeze {
    /// The model; every model when not given.
    pub model: Option<String>,
    /// When it begins, such as `2026-11-27` or `2026-11-27T08:00`; at once when not given.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub from: Option<Timestamp>,
    /// When it is over by itself; without an end, `refit unfreeze` ends it.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub until: Option<Timestamp>,
    /// How long it lasts instead: `12h`, `3d`.
    #[arg(long = "for", value_name = "TIME", value_parser = units::parse_duration, conflicts_with = "until")]
    pub lasts: Option<Duration>,
    /// Why: everybody who waits is told.
    #[arg(long, alias = "why", value_parser = super::said, required_unless_present = "list")]
    pub reason: Option<String>,
    /// Show the freezes there were and are, newest first; change nothing.
    #[arg(long, conflicts_with_all = ["from", "until", "lasts", "reason"])]
    pub list: bool,
}

/// `refit unfreeze`.
#[derive(Debug, Clone, ClapArgs)]
#[command(after_help = WHAT_UNFREEZE_DOES)]
pub struct Unfreeze {
    /// A model, or the id of a freeze; the freezes of every model when not given.
    #[arg(value_name = "MODEL | ID")]
    pub which: Option<String>,
}

const WHAT_IT_DOES: &str = r#"While a freeze is in force, no version becomes the one that serves everybody: runs wait at
their `promote` step, and `refit promote` is refused unless it says --despite-freeze.
Runs train, are gated and go on canary; every way back stays open: rollbacks by evidence
and by hand, withdrawn and undone canaries, cancelled runs.
Freezes may overlap; nothing is promoted until the last is over. The same freeze again
(model, begin, end and reason) changes nothing; --for again, later, freezes for so long
from then on.
A date is its beginning; a time without a zone is UTC. A begin may be up to 48 hours past,
or that of a freeze of the same model (or of every model) that is not over: so that one is
extended."#;

const WHAT_UNFREEZE_DOES: &str = r#"`refit unfreeze` lifts the freezes of every model, `refit unfreeze MODEL` those that name
the model, each also those to come; the other kind stays. Where nothing is left to lift,
nothing is changed. `refit freeze --list` shows who froze and lifted what."#;

/// A date or a time.
fn moment(text: &str) -> Result<Timestamp, String> {
    let to_the_minute = || parse_timestamp(&format!("{text}:00"));
    parse_timestamp(text).or_else(to_the_minute).ok_or_else(|| {
        "write a date or a time, such as `2026-11-27`, `2026-11-27T08:00` (UTC) or `2026-11-27T08:00:00+01:00`"
            .to_owned()
    })
}
