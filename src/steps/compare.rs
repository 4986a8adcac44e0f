//! `uses: compare`: what the watching came to, and what follows from it. The
//! rules are the controller's from the first look on; nothing is computed twice.

use serde::{Deserialize, Serialize};

use super::canary::{CanaryOutput, Rollout};
use super::context::{StepContext, StepError, StepResult};
use super::shadow::ShadowOutput;
use crate::domain::Timestamp;
use crate::domain::because::Evidence;
use crate::domain::canary::{CanaryRecord, CanaryState};
use crate::domain::verdict::Verdict;
use crate::domain::workflow::step::{Compare, OnInconclusive};

/// What the step kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CompareOutput {
    /// What the evidence says.
    pub verdict: Verdict,
    /// What follows.
    pub decision: Decision,
    /// Why, in plain words with numbers.
    pub reason: String,
    /// What was known of the canary when it was decided; none where there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<Evidence>,
}

/// What follows from a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// Everybody gets it.
    Promote,
    /// Nobody gets it.
    RollBack,
    /// A human decides.
    Hold,
}

/// What follows from `verdict` under `policy`.
pub fn decide(verdict: Verdict, policy: OnInconclusive) -> Decision {
    match (verdict, policy) {
        (Verdict::Pass, _) => Decision::Promote,
        (Verdict::Fail, _) => Decision::RollBack,
        (Verdict::Inconclusive, OnInconclusive::Promote) => Decision::Promote,
        (Verdict::Inconclusive, OnInconclusive::RollBack) => Decision::RollBack,
        // An analysis that could not be made is never a reason to promote.
        (Verdict::Inconclusive, OnInconclusive::Hold) | (Verdict::Error, _) => Decision::Hold,
    }
}

/// The policy for what is undecided: none decides in the time that people gave a canary.
pub fn policy(canary: &CanaryRecord, written: OnInconclusive, now: Timestamp) -> OnInconclusive {
    let has_time = !canary.extensions.is_empty() && canary.deadline.is_some_and(|deadline| now < deadline);
    if has_time { OnInconclusive::Hold } else { written }
}

/// Reads the verdict and applies the policy.
pub async fn run(spec: &Compare, ctx: &StepContext<'_>) -> Result<StepResult, StepError> {
    let Some((_, started)) = ctx.latest_output::<CanaryOutput>() else {
        return Err(StepError::permanent("no canary step ran before this one"));
    };
    let output = match started.rollout {
        Rollout::FirstVersion => CompareOutput {
            verdict: Verdict::Pass,
            decision: Decision::Promote,
            reason: "first version: there is no champion to compare with".to_owned(),
            evidence: None,
        },
        Rollout::Advised => {
            let advice = ctx.latest_output::<ShadowOutput>().and_then(|(_, shadow)| shadow.advice);
            let verdict = advice.as_ref().map_or(Verdict::Inconclusive, |advice| advice.verdict);
            let mut reason = "mode is not act: the version had no traffic".to_owned();
            if let Some(advice) = advice {
                reason.push_str(&format!("; the rows that both predicted: {}", advice.reason));
            }
            CompareOutput { verdict, decision: decide(verdict, spec.on_inconclusive), reason, evidence: None }
        }
        Rollout::OnCanary => {
            let canary = ctx
                .ledger
                .canary()
                .await?
                .ok_or_else(|| StepError::permanent("the canary of this run is not recorded"))?;
            let verdict = match canary.state {
                CanaryState::RolledBack => Verdict::Fail,
                CanaryState::Baking | CanaryState::Promoted => Verdict::Pass,
                CanaryState::Watching => canary.verdict,
            };
            let decision = decide(verdict, policy(&canary, spec.on_inconclusive, ctx.clock.now()));
            let evidence = Some(Evidence::of(&canary));
            let reason = match (verdict, decision) {
                (Verdict::Inconclusive, Decision::Promote) => {
                    format!("{}; `on_inconclusive: promote` decides", canary.reason)
                }
                (Verdict::Inconclusive, Decision::RollBack) => {
                    format!("{}; `on_inconclusive: roll_back` decides", canary.reason)
                }
                (Verdict::Inconclusive, Decision::Hold)
                | (Verdict::Pass | Verdict::Fail | Verdict::Error, _) => canary.reason,
            };
            CompareOutput { verdict, decision, reason, evidence }
        }
    };
    StepResult::done(output)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_decides_what_the_evidence_does_not_and_no_policy_promotes_without_an_analysis() {
        let policies = [OnInconclusive::Hold, OnInconclusive::Promote, OnInconclusive::RollBack];
        let of = |verdict| policies.map(|policy| decide(verdict, policy));
        assert_eq!(of(Verdict::Inconclusive), [Decision::Hold, Decision::Promote, Decision::RollBack]);
        assert_eq!(of(Verdict::Pass), [Decision::Promote; 3]);
        assert_eq!(of(Verdict::Fail), [Decision::RollBack; 3]);
        assert_eq!(of(Verdict::Error), [Decision::Hold; 3]);
    }
}
