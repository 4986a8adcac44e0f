//! `uses: shadow`: a predict command, run on champion and canary over rows as
//! their truth arrives, whoever served them. The pairs of errors are evidence of
//! the canary like those that an app reports; the app changes nothing.
//!
//! In a mode that does not act nothing is on canary. The rows are scored all the
//! same, and the step says what they would decide.
//!
//! A row counts once, however often it is read: what was scored is in the
//! database before the step sleeps again.

mod known;
mod predict;
mod replay;
mod rows;
mod unseen;

use chrono::TimeDelta;
use serde::{Deserialize, Serialize};

use super::canary::{CanaryOutput, Rollout};
use super::context::{Sleep, StepContext, StepError, StepResult, to_json};
use super::run::guarded::Paths;
use super::wait::{self, EndedBy, Waiting, span};
use crate::domain::Timestamp;
use crate::domain::canary::{CanaryRecord, ErrorsRead};
use crate::domain::evidence::{ScoredRow, ScoredRows};
use crate::domain::run::FailureKind;
use crate::domain::words::number;
use crate::domain::workflow::step::Shadow;
use known::{Known, mark};
pub(super) use replay::{Replayed, replay};
use rows::{Choice, Row, Rows};
pub use unseen::Conclusion;

/// Rows of one round; the rest has another one right after.
const MOST_ROWS: usize = 10_000;
/// Rounds that are made up for when the time is over, at most.
const LAST_ROUNDS: usize = 20;

/// What the step kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShadowOutput {
    /// When it began.
    pub since: Timestamp,
    /// Why it ended.
    pub ended_by: EndedBy,
    /// Rows that it added to the evidence.
    pub rows: u64,
    /// What they say of a version that has no traffic, because `mode` is not `act`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<Conclusion>,
}

/// What the step leaves for itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct State {
    since: Timestamp,
    /// The next round.
    next: Timestamp,
    rows: u64,
    /// Rounds that failed in a row.
    failures: u32,
    /// See [`ShadowOutput::advice`].
    #[serde(default)]
    advice: Option<Conclusion>,
    /// How far the pairs were read that it was concluded from.
    #[serde(default)]
    concluded: ErrorsRead,
    /// Which rows are in the evidence.
    #[serde(default)]
    known: Known,
}

impl State {
    fn beginning(now: Timestamp) -> Self {
        Self {
            since: now,
            next: now,
            rows: 0,
            failures: 0,
            advice: None,
            concluded: ErrorsRead::default(),
            known: Known::default(),
        }
    }
}

/// Scores what is new, when it is time to, and goes to sleep.
pub async fn run(spec: &Shadow, ctx: &StepContext<'_>) -> Result<StepResult, StepError> {
    let now = ctx.clock.now();
    let mut state = match ctx.resume {
        None => State::beginning(now),
        Some(resume) => State::deserialize(resume)
            .map_err(|error| StepError::permanent(format!("cannot read how far it was: {error}")))?,
    };
    let Some((_, started)) = ctx.latest_output::<CanaryOutput>() else {
        return Err(StepError::permanent("no canary step ran before this one"));
    };
    let over = |state: &State, ended_by| {
        let State { since, rows, advice, .. } = state.clone();
        StepResult::done(ShadowOutput { since, ended_by, rows, advice })
    };
    let advised = started.rollout == Rollout::Advised;
    let canary = match ctx.ledger.canary().await? {
        None if advised => unseen::canary(state.since, state.advice.as_ref(), &started, ctx),
        canary => canary,
    };
    let Some(canary) = canary else { return over(&state, EndedBy::NoCanary) };
    let waiting = wait::look(&spec.wait, state.since, Some(&canary), ctx)?;
    if let Waiting::Over(ended_by @ (EndedBy::CanaryEnded | EndedBy::NoCanary)) = waiting {
        return over(&state, ended_by);
    }
    // Over is over only when all rows that have their truth by then were scored.
    let rounds = match &waiting {
        Waiting::Over(_) if state.failures > 0 && now < state.next => return sleep(&state, state.next),
        Waiting::Over(_) => LAST_ROUNDS,
        Waiting::Until(_) => usize::from(now >= state.next),
    };
    let mut left = false;
    for _ in 0..rounds {
        match round(spec, ctx, &canary, &mut state.known).await {
            Ok(Round { added, more }) => {
                state.rows += added;
                state.failures = 0;
                state.next = if more { now } else { now + span(spec.every) };
                left = more;
            }
            Err(error) => {
                put_off(error, &mut state, spec, ctx)?;
                return match waiting {
                    Waiting::Over(_) => sleep(&state, state.next),
                    Waiting::Until(until) => sleep(&state, until.min(state.next)),
                };
            }
        }
        if !left {
            break;
        }
    }
    if advised && rounds > 0 {
        let before = (state.advice.take(), &state.concluded);
        // A minute is read once it is over; after the last round there is no other to read what it brought.
        let until = match waiting {
            Waiting::Over(_) => ctx.clock.now() + TimeDelta::minutes(1),
            Waiting::Until(_) => ctx.clock.now(),
        };
        let (advice, concluded) = unseen::conclude(before, &canary, until, ctx).await?;
        (state.advice, state.concluded) = (Some(advice), concluded);
    }
    match waiting {
        Waiting::Over(ended_by) => {
            if left {
                ctx.log.note("its time is over: rows that are left in the source are not scored");
            }
            over(&state, ended_by)
        }
        Waiting::Until(until) => sleep(&state, until.min(state.next)),
    }
}

fn sleep(state: &State, until: Timestamp) -> Result<StepResult, StepError> {
    let resume = to_json(state)?;
    Ok(StepResult::Sleep(Sleep { until: Some(until), resume, held: false, promoted: false, tell: None }))
}

/// A source that is away for an hour of many days fails no run: `retry` counts rounds that fail in a row.
fn put_off(
    error: StepError,
    state: &mut State,
    spec: &Shadow,
    ctx: &StepContext<'_>,
) -> Result<(), StepError> {
    let StepError::Failed { failure, retry_after } = &error else { return Err(error) };
    match failure.kind {
        FailureKind::Permanent => return Err(error),
        FailureKind::Transient | FailureKind::Timeout => {}
    }
    let now = ctx.clock.now();
    let policy = ctx.workflow.step(ctx.step).map(|step| step.retry).unwrap_or_default();
    state.failures += 1;
    let Some(again) = policy.next_attempt(state.failures, now, *retry_after, 0.5) else {
        let message = format!("{} rounds in a row failed; the last: {}", state.failures, failure.message);
        return Err(StepError::permanent(message));
    };
    state.next = again.min(now + span(spec.every)).max(now + TimeDelta::seconds(1));
    ctx.log.note(&format!("this round failed and is tried again: {}", failure.message));
    Ok(())
}

/// What a round came to.
struct Round {
    added: u64,
    more: bool,
}

async fn round(
    spec: &Shadow,
    ctx: &StepContext<'_>,
    canary: &CanaryRecord,
    known: &mut Known,
) -> Result<Round, StepError> {
    let paths = Paths::prepare(ctx, Some("rows"))?;
    let known = known.catch_up(canary, ctx).await?;
    let (from, until) = (canary.started_at, ctx.clock.now());
    // A truth from before may have been trained on, and one from the future is none yet.
    let is_new = move |row: &Row| {
        row.actual.is_some() && row.at > from && row.at <= until && !known.contains(&mark(&row.id))
    };
    let rows = rows::fetch(&spec.rows, ctx, &paths, Choice::First(MOST_ROWS), is_new).await?;
    if rows.rows.is_empty() {
        return Ok(Round { added: 0, more: false });
    }
    let predicted = predict::both(&spec.command, ctx, &rows, (&canary.champion, &canary.version)).await?;
    let scored = ScoredRows {
        stable: canary.champion.clone(),
        canary: canary.version.clone(),
        rows: errors(&rows, &predicted),
        at: ctx.clock.now(),
    };
    let added = ctx.ledger.add_scored(&scored).await?;
    ctx.log.note(&summary(&scored.rows));
    Ok(Round { added, more: rows.more })
}

/// Absolute errors of both, of the rows whose truth is known; `predicted` is champion and candidate by row.
fn errors(rows: &Rows, predicted: &[(f64, f64)]) -> Vec<ScoredRow> {
    let scored = rows.rows.iter().zip(predicted).filter_map(|(row, (champion, candidate))| {
        let actual = row.actual?;
        let (stable, canary) = ((champion - actual).abs(), (candidate - actual).abs());
        Some(ScoredRow {
            id: row.id.clone(),
            block: row.block.clone(),
            served_at: row.served_at,
            truth: actual,
            stable,
            canary,
        })
    });
    scored.collect()
}

/// Mean errors of both in one sentence.
fn summary(rows: &[ScoredRow]) -> String {
    let mean = |of: fn(&ScoredRow) -> f64| rows.iter().map(of).sum::<f64>() / rows.len().max(1) as f64;
    format!(
        "{} new rows with their truth: mean absolute error {}, the champion's {}",
        rows.len(),
        number(mean(|row| row.canary)),
        number(mean(|row| row.stable))
    )
}
