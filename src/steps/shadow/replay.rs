//! The last logged inputs through both versions, before a canary whose traffic
//! says too little: how far their predictions differ, and, where the truth is
//! known, whether the candidate's errors are larger.

use super::rows::{self, Choice};
use super::{errors, predict};
use crate::domain::canary::paired_errors;
use crate::domain::id::VersionName;
use crate::domain::words::number;
use crate::domain::workflow::step::{CompareRule, Shadow};
use crate::steps::context::{StepContext, StepError};
use crate::steps::run::guarded::Paths;

/// Inputs that are replayed, the newest.
const INPUTS: usize = 1_000;

/// What a replay showed.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::steps) struct Replayed {
    /// In plain words with numbers.
    pub(in crate::steps) sentences: Vec<String>,
    /// The candidate's errors are shown to be larger.
    pub(in crate::steps) is_worse: bool,
}

/// Replays. That the candidate is worse is shown wrongly with probability at most `alpha`.
pub(in crate::steps) async fn replay(
    spec: &Shadow,
    ctx: &StepContext<'_>,
    (champion, candidate): (&VersionName, &VersionName),
    rule: &CompareRule,
    alpha: f64,
) -> Result<Replayed, StepError> {
    let paths = Paths::prepare(ctx, Some("rows"))?;
    let now = ctx.clock.now();
    let rows = rows::fetch(&spec.rows, ctx, &paths, Choice::Newest(INPUTS), move |row| row.at <= now).await?;
    if rows.rows.is_empty() {
        let sentence = "nothing was replayed: no inputs are logged".to_owned();
        return Ok(Replayed { sentences: vec![sentence], is_worse: false });
    }
    let predicted = predict::both(&spec.command, ctx, &rows, (champion, candidate)).await?;
    let mut sentences = vec![differences(&predicted)];
    let scored = errors(&rows, &predicted);
    let tested = paired_errors(&scored, rule).map_err(|error| StepError::permanent(error.to_string()))?;
    let Some(tested) = tested else {
        sentences.push(format!(
            "the truth of {} of them is known, which is too little to compare the errors",
            scored.len()
        ));
        return Ok(Replayed { sentences, is_worse: false });
    };
    let is_worse = tested.log_e_worse >= -alpha.ln();
    let conclusion = if is_worse {
        format!("the candidate's are larger, wrongly so in at most {} % of cases", number(100.0 * alpha))
    } else {
        "they are not shown to be larger".to_owned()
    };
    sentences.push(format!(
        "over {} blocks whose truth is known the candidate's mean absolute error is {}, the champion's {}: {conclusion}",
        tested.blocks,
        number(tested.means.0),
        number(tested.means.1)
    ));
    if !is_worse {
        sentences.push("these rows may have been trained on, which favours the candidate".to_owned());
    }
    Ok(Replayed { sentences, is_worse })
}

/// How far the predictions of both are apart; there is at least one row.
fn differences(predicted: &[(f64, f64)]) -> String {
    let mut apart: Vec<f64> =
        predicted.iter().map(|(champion, candidate)| (candidate - champion).abs()).collect();
    apart.sort_unstable_by(f64::total_cmp);
    let changed = apart.iter().filter(|apart| **apart > 0.0).count();
    let mean = apart.iter().sum::<f64>() / apart.len() as f64;
    let scale = predicted.iter().map(|(champion, _)| champion.abs()).sum::<f64>() / apart.len() as f64;
    let share = if scale > 0.0 {
        format!(" ({} % of a prediction)", number(100.0 * mean / scale))
    } else {
        String::new()
    };
    format!(
        "the last {} inputs through both: {changed} predictions differ, by {} on average{share}, at most {}",
        apart.len(),
        number(mean),
        number(apart.last().copied().unwrap_or_default())
    )
}
