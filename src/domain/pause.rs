//! A workflow whose last two versions were both turned down is not started by
//! itself any more: something changed, and a third training will not mend it.
//! It goes on once a person has started it.

use super::Timestamp;
use super::id::RunId;
use super::run::Outcome;

/// A run, as far as this asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Judged {
    /// Its id.
    pub run: RunId,
    /// How it ended, once it did.
    pub outcome: Option<Outcome>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// A person started it.
    pub by_hand: bool,
}

/// Why a workflow is not started by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pause {
    /// Since when.
    pub since: Option<Timestamp>,
    /// The two runs that were turned down, oldest first, and how.
    pub runs: [(RunId, Outcome); 2],
}

impl Pause {
    /// Whether the workflow is paused after these runs of it, newest first. What failed, was cancelled or had nothing to
    /// do says nothing of the model and is passed over.
    pub fn after(runs: impl IntoIterator<Item = Judged>) -> Option<Self> {
        let mut newest: Option<(Judged, Outcome)> = None;
        for run in runs {
            match run.outcome {
                Some(outcome @ (Outcome::Rejected | Outcome::RolledBack)) => match newest {
                    None => newest = Some((run, outcome)),
                    Some((last, how)) => {
                        return Some(Self {
                            since: last.ended_at,
                            runs: [(run.run, outcome), (last.run, how)],
                        });
                    }
                },
                Some(Outcome::Promoted | Outcome::Succeeded | Outcome::CancelledAfterPromotion) => {
                    return None;
                }
                None | Some(Outcome::Skipped | Outcome::Failed | Outcome::Cancelled) => {
                    if newest.is_none() && run.by_hand {
                        return None;
                    }
                }
            }
        }
        None
    }

    /// Why, in a sentence without its end.
    pub fn reason(&self) -> String {
        let word = |outcome| match outcome {
            Outcome::Rejected => "rejected",
            Outcome::RolledBack
            | Outcome::Promoted
            | Outcome::Succeeded
            | Outcome::CancelledAfterPromotion
            | Outcome::Skipped
            | Outcome::Failed
            | Outcome::Cancelled => "rolled back",
        };
        match self.runs.map(|(_, outcome)| word(outcome)) {
            [first, second] if first == second => format!("the last two versions were {first}"),
            [first, second] => format!("the last two versions were turned down: {first}, then {second}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs oldest first, as `(outcome, by hand)`.
    fn after(runs: &[(Option<Outcome>, bool)]) -> Option<String> {
        let judged = |(outcome, by_hand): &(Option<Outcome>, bool)| Judged {
            run: RunId::generate(),
            outcome: *outcome,
            ended_at: None,
            by_hand: *by_hand,
        };
        Pause::after(runs.iter().rev().map(judged)).map(|pause| pause.reason())
    }

    const REJECTED: (Option<Outcome>, bool) = (Some(Outcome::Rejected), false);
    const ROLLED_BACK: (Option<Outcome>, bool) = (Some(Outcome::RolledBack), false);

    #[test]
    fn two_that_were_turned_down_in_a_row_pause_and_a_good_one_between_does_not() {
        assert_eq!(after(&[REJECTED]), None);
        assert_eq!(after(&[REJECTED, REJECTED]).as_deref(), Some("the last two versions were rejected"));
        assert_eq!(
            after(&[REJECTED, ROLLED_BACK]).as_deref(),
            Some("the last two versions were turned down: rejected, then rolled back")
        );
        for good in [Outcome::Promoted, Outcome::Succeeded, Outcome::CancelledAfterPromotion] {
            assert_eq!(after(&[REJECTED, (Some(good), false), ROLLED_BACK]), None);
            assert_eq!(after(&[REJECTED, ROLLED_BACK, (Some(good), true)]), None);
        }
    }

    #[test]
    fn what_says_nothing_of_the_model_is_passed_over() {
        for neutral in [None, Some(Outcome::Failed), Some(Outcome::Skipped), Some(Outcome::Cancelled)] {
            assert!(after(&[REJECTED, (neutral, false), ROLLED_BACK, (neutral, false)]).is_some());
        }
    }

    #[test]
    fn a_run_that_a_person_started_since_ends_it_until_that_one_is_turned_down_too() {
        for outcome in [None, Some(Outcome::Failed), Some(Outcome::Promoted)] {
            assert_eq!(after(&[REJECTED, REJECTED, (outcome, true)]), None, "{outcome:?}");
        }
        assert!(after(&[REJECTED, REJECTED, (Some(Outcome::Rejected), true)]).is_some());
        assert!(after(&[(None, true), REJECTED, REJECTED]).is_some(), "it was before");
    }
}
