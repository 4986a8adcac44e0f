//! A version that nobody sees, because `mode` is not `act`: what its errors would
//! decide if it were on canary.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::domain::Timestamp;
use crate::domain::canary::{CanaryRecord, CanaryState, ErrorNews, ErrorsRead, by_errors};
use crate::domain::id::{CanaryId, Generation};
use crate::domain::verdict::Verdict;
use crate::domain::workflow::StepKind;
use crate::domain::workflow::step::Compare;
use crate::steps::canary::{CanaryOutput, compare_rules};
use crate::steps::context::{StepContext, StepError};

/// What the rows came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Conclusion {
    /// What the evidence says.
    pub verdict: Verdict,
    /// Why, in plain words with numbers.
    pub reason: String,
}

/// The canary that `mode: act` would have sent out at `since`, after what was concluded of it so far; none where
/// nothing serves that it could be compared with.
pub(super) fn canary(
    since: Timestamp,
    advice: Option<&Conclusion>,
    started: &CanaryOutput,
    ctx: &StepContext<'_>,
) -> Option<CanaryRecord> {
    let rules = ctx.workflow.steps.iter().find_map(|step| {
        let StepKind::Canary(canary) = &step.kind else { return None };
        compare_rules(canary, ctx.workflow)
    });
    let (verdict, reason) = advice
        .map_or((Verdict::Inconclusive, String::new()), |advice| (advice.verdict, advice.reason.clone()));
    // One that fails would be taken back at once.
    let state = if verdict == Verdict::Fail { CanaryState::RolledBack } else { CanaryState::Watching };
    Some(CanaryRecord {
        id: CanaryId::generate(),
        run: ctx.run.id,
        model: ctx.run.model.clone(),
        target: started.target.clone(),
        version: started.version.clone(),
        champion: started.champion.clone()?,
        generation: Generation(0),
        stages: vec![],
        stage: 0,
        stage_since: since,
        rules: rules.unwrap_or_else(Compare::without_rules),
        started_at: since,
        // The step's own: what its last round brings still counts.
        deadline: None,
        state,
        bake_until: None,
        verdict,
        reason,
        analysis: Value::Null,
        next_look_at: since,
        ended_at: None,
        extensions: vec![],
    })
}

/// What all rows until `now` say, read on from where it was read to before. A canary that passed passes still, unless it
/// fails.
pub(super) async fn conclude(
    (before, read): (Option<Conclusion>, &ErrorsRead),
    canary: &CanaryRecord,
    now: Timestamp,
    ctx: &StepContext<'_>,
) -> Result<(Conclusion, ErrorsRead), StepError> {
    let (stable, version) = (&canary.champion, &canary.version);
    let aged = match read.ripening(canary, now) {
        Some(wanted) => ctx.ledger.came_of_age(stable, version, wanted).await?,
        None => vec![],
    };
    let new = ctx.ledger.scored(stable, version, read.through()).await?;
    let (looked, read) = by_errors(canary, read, ErrorNews { new, aged }, now);
    let conclusion = Conclusion { verdict: looked.verdict, reason: looked.reason };
    let conclusion = match before {
        Some(passed) if passed.verdict == Verdict::Pass && conclusion.verdict != Verdict::Fail => passed,
        Some(_) | None => {
            ctx.log.note(&format!("mode is not act; the rows so far: {}", conclusion.reason));
            conclusion
        }
    };
    Ok((conclusion, read))
}
