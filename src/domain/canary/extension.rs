//! More time for a canary: its evidence goes on, under the same alpha and beta.
//! Both hold at any number of looks, so when people stop, and whether they look
//! on because of what they saw, costs nothing.

use chrono::TimeDelta;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::super::Timestamp;
use super::super::workflow::units::{LONGEST, format_duration};
use super::{CanaryRecord, CanaryState};

/// How often a canary is given more time: each is kept with the evidence of its moment.
const MOST_EXTENSIONS: usize = 50;

/// More time that somebody gave a canary.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Extension {
    /// Who gave it.
    pub by: String,
    /// When.
    pub at: Timestamp,
    /// How much, in milliseconds.
    pub more_ms: i64,
    /// When an undecided canary was to be inconclusive before.
    pub before: Option<Timestamp>,
    /// When it is since; none of a workflow that sets none.
    pub deadline: Option<Timestamp>,
    /// Why, if they said so.
    pub reason: Option<String>,
    /// The canary as it was shown at that moment, with its evidence.
    pub evidence: Value,
}

/// More time as somebody asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MoreTime {
    /// How much.
    pub more: TimeDelta,
    /// Who asks.
    pub by: String,
    /// Why, if they said so.
    pub reason: Option<String>,
}

/// Why a canary gets no more time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum NotExtended {
    /// Everybody has it already.
    #[error("it was promoted and bakes: there is nothing left to decide")]
    Bakes,
    /// It is over.
    #[error("it has ended: {reason}")]
    Ended {
        /// How.
        reason: String,
    },
    /// Its run is.
    #[error("its run has ended")]
    RunEnded,
    /// No time at all.
    #[error("no time is no more time")]
    Nothing,
    /// Together with what it was given before.
    #[error("it would have more than ten years")]
    TooLong,
    /// Together with how often it was given more before.
    #[error("it was given more time {MOST_EXTENSIONS} times, which is the most: promote it or take it back")]
    TooOften,
}

impl Extension {
    /// How much.
    pub fn more(&self) -> TimeDelta {
        TimeDelta::milliseconds(self.more_ms)
    }

    /// `24h by ana: a slow week`.
    pub fn words(&self) -> String {
        let more = format_duration(self.more().to_std().unwrap_or_default());
        let why = self.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        format!("{more} by {}{why}", self.by)
    }
}

impl CanaryRecord {
    /// The extension that it gets when it is asked for at `now`: from its deadline on, or from now on when that is past.
    ///
    /// # Errors
    /// It is promoted or over, or it would have too much time.
    pub fn extended(&self, asked: &MoreTime, now: Timestamp) -> Result<Extension, NotExtended> {
        match self.state {
            CanaryState::Watching => {}
            CanaryState::Baking => return Err(NotExtended::Bakes),
            CanaryState::Promoted | CanaryState::RolledBack => {
                return Err(NotExtended::Ended { reason: self.reason.clone() });
            }
        }
        if self.extensions.len() >= MOST_EXTENSIONS {
            return Err(NotExtended::TooOften);
        }
        if asked.more <= TimeDelta::zero() {
            return Err(NotExtended::Nothing);
        }
        let longest = TimeDelta::from_std(LONGEST).unwrap_or(TimeDelta::MAX);
        let all = self.more_since(self.started_at).checked_add(&asked.more);
        if all.is_none_or(|all| all > longest) {
            return Err(NotExtended::TooLong);
        }
        // One that is shown carries none of those before: each is kept once.
        let shown = CanaryRecord { extensions: vec![], ..self.clone() };
        Ok(Extension {
            by: asked.by.clone(),
            at: now,
            more_ms: asked.more.num_milliseconds(),
            before: self.deadline,
            deadline: self.deadline.map(|deadline| deadline.max(now) + asked.more),
            reason: asked.reason.clone(),
            evidence: serde_json::to_value(shown.view()).unwrap_or(Value::Null),
        })
    }

    /// All the time that it was given at `since` and later.
    pub fn more_since(&self, since: Timestamp) -> TimeDelta {
        let later = self.extensions.iter().filter(|extension| extension.at >= since);
        later.fold(TimeDelta::zero(), |sum, extension| sum + extension.more())
    }

    /// Its deadline as it was at `at`.
    pub fn deadline_at(&self, at: Timestamp) -> Option<Timestamp> {
        let later = self.extensions.iter().find(|extension| extension.at > at);
        later.map_or(self.deadline, |extension| extension.before)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::because::Evidence;
    use super::super::tests::errors;
    use super::*;

    fn more(hours: i64) -> MoreTime {
        MoreTime {
            more: TimeDelta::hours(hours),
            by: "ana".to_owned(),
            reason: Some("a slow week".to_owned()),
        }
    }

    fn with(record: &CanaryRecord, extension: Extension) -> CanaryRecord {
        let extensions = record.extensions.iter().cloned().chain([extension.clone()]).collect();
        CanaryRecord { deadline: extension.deadline, extensions, ..record.clone() }
    }

    #[test]
    fn extensions_add_up_and_one_that_comes_late_counts_from_then() {
        let record = errors();
        let deadline = record.started_at + TimeDelta::hours(24);
        let record = CanaryRecord { deadline: Some(deadline), ..record };
        let first = record.extended(&more(24), deadline - TimeDelta::hours(1)).expect("extended");
        assert_eq!(first.deadline, Some(deadline + TimeDelta::hours(24)));
        assert_eq!(first.words(), "1d by ana: a slow week");
        assert_eq!(first.evidence["verdict"], "inconclusive");
        let record = with(&record, first);
        let late = deadline + TimeDelta::hours(30);
        let record = with(&record, record.extended(&more(2), late).expect("extended"));
        assert_eq!(record.deadline, Some(late + TimeDelta::hours(2)), "from when it was asked for");
        assert_eq!(record.more_since(record.started_at), TimeDelta::hours(26));
        assert_eq!(record.more_since(late), TimeDelta::hours(2));
        assert_eq!(record.deadline_at(record.started_at), Some(deadline));
        assert_eq!(record.deadline_at(late - TimeDelta::hours(1)), Some(deadline + TimeDelta::hours(24)));
        assert_eq!(record.deadline_at(late), record.deadline);
    }

    #[test]
    fn what_is_decided_gets_no_more_time_and_nobody_gets_too_much() {
        let record = errors();
        let now = record.started_at;
        let refused = |state, hours| {
            let record = CanaryRecord { state, reason: "promoted by hand".to_owned(), ..record.clone() };
            record.extended(&more(hours), now).expect_err("refused")
        };
        assert_eq!(refused(CanaryState::Baking, 1), NotExtended::Bakes);
        let ended = NotExtended::Ended { reason: "promoted by hand".to_owned() };
        assert_eq!(refused(CanaryState::Promoted, 1), ended);
        assert_eq!(refused(CanaryState::Watching, 0), NotExtended::Nothing);
        assert_eq!(refused(CanaryState::Watching, 24 * 3661), NotExtended::TooLong);
        let long = with(&record, record.extended(&more(24 * 3000), now).expect("extended"));
        assert_eq!(long.extended(&more(24 * 1000), now), Err(NotExtended::TooLong), "together");
    }

    #[test]
    fn nobody_is_given_more_time_for_ever_in_small_pieces() {
        let mut record = errors();
        for _ in 0..MOST_EXTENSIONS {
            let extension = record.extended(&more(1), record.started_at).expect("extended");
            record = with(&record, extension);
        }
        let refused = record.extended(&more(1), record.started_at).expect_err("refused");
        assert_eq!(
            refused.to_string(),
            "it was given more time 50 times, which is the most: promote it or take it back"
        );
    }

    #[test]
    fn a_change_keeps_who_gave_more_time_and_not_what_was_known_each_time() {
        let record = errors();
        let record = with(&record, record.extended(&more(1), record.started_at).expect("extended"));
        let kept = Evidence::of(&record).view().expect("in this form").extensions.remove(0);
        assert_eq!(kept, Extension { evidence: Value::Null, ..record.extensions[0].clone() });
        assert_ne!(record.extensions[0].evidence, Value::Null);
    }
}
