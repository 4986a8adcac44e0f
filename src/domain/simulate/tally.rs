//! What policies came to, side by side.

use serde::Serialize;

use super::play::{Ending, Played, Stopped, play};
use super::policy::{Policy, measures};
use super::{Missing, Past, Setting};

/// One policy in numbers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Tally {
    /// The policy.
    pub policy: String,
    /// Promotions of versions that were better in the weeks that followed.
    pub good: usize,
    /// Of versions that were worse.
    pub bad: usize,
    /// Of versions that were neither.
    pub even: usize,
    /// Versions that were better and not promoted.
    pub missed: usize,
    /// Versions that the data check or the gate refused.
    pub rejected: usize,
    /// Canaries that were taken back by the evidence.
    pub rolled_back: usize,
    /// Canaries that did not decide.
    pub held: usize,
    /// The mean absolute error of all rows that were served.
    pub error: f64,
    /// How much larger it is than had every version been promoted, as a part of that.
    pub vs_always: f64,
    /// Than had none.
    pub vs_never: f64,
    /// Than had exactly the better ones: the regret.
    pub regret: f64,
    /// Its decisions, oldest first.
    pub decisions: Vec<super::Decided>,
}

/// Plays `policies` and what they are measured against; all missing scores at once, when some are.
///
/// # Errors
/// Scores that are missing, or errors that are no numbers.
pub fn tally(policies: &[Policy], past: &Past, setting: Setting) -> Result<Vec<Tally>, Stopped> {
    let measures = measures();
    let mut missing = vec![];
    let mut all = vec![];
    for policy in measures.iter().chain(policies) {
        match play(policy, past, setting) {
            Ok(played) => all.push(played),
            Err(Stopped::Missing(Missing(more))) => missing.extend(more),
            Err(Stopped::Invalid(error)) => return Err(Stopped::Invalid(error)),
        }
    }
    if !missing.is_empty() {
        missing.sort_unstable();
        missing.dedup();
        return Err(Stopped::Missing(Missing(missing)));
    }
    let [always, never, hindsight] = std::array::from_fn(|place| mean(&all[place]));
    let row = |played: &Played| {
        let error = mean(played);
        let against = |other: f64| if other > 0.0 { error / other - 1.0 } else { 0.0 };
        Tally {
            error,
            vs_always: against(always),
            vs_never: against(never),
            regret: against(hindsight),
            ..counted(played, setting.worth)
        }
    };
    // Those who know nothing or everything come last.
    let (measures, policies) = all.split_at(measures.len());
    Ok(policies.iter().chain(measures).map(row).collect())
}

fn mean(played: &Played) -> f64 {
    if played.rows == 0 { 0.0 } else { played.error / played.rows as f64 }
}

fn counted(played: &Played, worth: f64) -> Tally {
    let count = |wanted: &dyn Fn(Ending, f64) -> bool| {
        let decisions = played.decisions.iter();
        decisions.filter(|decided| wanted(decided.ending, decided.improvement.unwrap_or(0.0))).count()
    };
    let promoted = |ending: Ending| ending == Ending::Promoted;
    let refused = |ending: Ending| matches!(ending, Ending::Rejected | Ending::RolledBack | Ending::Held);
    Tally {
        policy: played.policy.clone(),
        good: count(&|ending, improvement| promoted(ending) && improvement > worth),
        bad: count(&|ending, improvement| promoted(ending) && improvement < -worth),
        even: count(&|ending, improvement| promoted(ending) && improvement.abs() <= worth),
        missed: count(&|ending, improvement| refused(ending) && improvement > worth),
        rejected: count(&|ending, _| ending == Ending::Rejected),
        rolled_back: count(&|ending, _| ending == Ending::RolledBack),
        held: count(&|ending, _| ending == Ending::Held),
        error: 0.0,
        vs_always: 0.0,
        vs_never: 0.0,
        regret: 0.0,
        decisions: played.decisions.clone(),
    }
}
