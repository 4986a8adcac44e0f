//! Before a canary that will probably not conclude goes out: the last logged
//! inputs through both versions, and a human who decides.

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::domain::run::Outcome;
use crate::domain::workflow::step::{CompareRule, OnlineMetric, Role, Shadow, WhenUnderpowered};
use crate::domain::workflow::{Moment, StepKind};
use crate::steps::approve::{Answer, answer, refused};
use crate::steps::context::{CanaryOpening, Sleep, StepContext, StepError, StepResult, to_json};
use crate::steps::shadow::{Replayed, replay};

/// What the step waits with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Asked {
    /// What the canary can show.
    forecast: String,
    /// What the replay showed, a sentence each.
    #[serde(default)]
    replay: Vec<String>,
}

/// What stands between the canary and its start, if anything does.
pub(super) async fn before_start(
    opening: &CanaryOpening,
    ctx: &StepContext<'_>,
) -> Result<Option<StepResult>, StepError> {
    if let Some(resume) = ctx.resume {
        let asked = Asked::deserialize(resume)
            .map_err(|error| StepError::permanent(format!("cannot read what was asked: {error}")))?;
        return match answer(ctx.signals, ctx.step) {
            Answer::Approved(signal) => {
                ctx.log.note(&format!("{} approved the canary", signal.actor));
                Ok(None)
            }
            Answer::Rejected(signal) => Ok(Some(refused(signal))),
            Answer::None => ask(&asked, false).map(Some),
        };
    }
    let replays = match opening.rules.when_underpowered {
        WhenUnderpowered::Hold => return Ok(None),
        WhenUnderpowered::Approve => false,
        WhenUnderpowered::Replay => true,
    };
    let Some(foreseen) = ctx.ledger.foresee(opening).await?.filter(|foreseen| foreseen.underpowered) else {
        return Ok(None);
    };
    ctx.log.note(&foreseen.sentence);
    let mut asked = Asked { forecast: foreseen.sentence, replay: vec![] };
    if replays {
        let found = replayed(opening, ctx).await?;
        for sentence in &found.sentences {
            ctx.log.note(sentence);
        }
        if found.is_worse {
            let reason = format!("the replay of logged inputs refused it: {}", found.sentences.join("; "));
            return Ok(Some(StepResult::End {
                outcome: Outcome::Rejected,
                reason,
                output: json!({"version": opening.version, "forecast": asked.forecast, "replay": found.sentences}),
            }));
        }
        asked.replay = found.sentences;
    }
    ask(&asked, true).map(Some)
}

async fn replayed(opening: &CanaryOpening, ctx: &StepContext<'_>) -> Result<Replayed, StepError> {
    let shadow = ctx.workflow.steps.iter().find_map(|step| match &step.kind {
        StepKind::Shadow(shadow) => Some(shadow),
        _ => None,
    });
    let Some(shadow): Option<&Shadow> = shadow else {
        let sentence = "nothing was replayed: there is no `shadow` step whose command could".to_owned();
        return Ok(Replayed { sentences: vec![sentence], is_worse: false });
    };
    let rules = &opening.rules;
    let rule = rules.rules.iter().find(|rule| rule.metric == OnlineMetric::AbsError);
    let decides = rule.is_some_and(|rule| rule.role == Role::Gating);
    let rule = rule.cloned().unwrap_or_else(|| CompareRule::of(OnlineMetric::AbsError));
    let versions = (&opening.champion, &opening.version);
    let mut found = replay(shadow, ctx, versions, &rule, rules.alpha).await?;
    // A rule that only observes, and one that nobody wrote, refuse nothing.
    found.is_worse &= decides;
    Ok(found)
}

fn ask(asked: &Asked, first: bool) -> Result<StepResult, StepError> {
    let reason = format!("the canary will probably not conclude: {}", asked.forecast);
    let facts = json!({"reason": reason, "rules": asked.replay});
    Ok(StepResult::Sleep(Sleep {
        until: None,
        resume: to_json(asked)?,
        held: false,
        promoted: false,
        tell: first.then_some((Moment::NeedsApproval, facts)),
    }))
}
