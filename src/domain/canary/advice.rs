//! What the controller would make of a version that has no traffic, by its
//! prediction errors alone.

use std::collections::BTreeMap;

use chrono::TimeDelta;
use serde_json::Value;

use super::super::Timestamp;
use super::super::evidence::{PairedError, minute_of};
use super::super::verdict::Verdict;
use super::analysis::Analysis;
use super::look::{Decision, decide};
use super::{CanaryRecord, News};

/// The canary as the controller would know it at `now`, had it gone out: a look at the end of each minute in which
/// pairs of errors came to count since it began. The scale of the errors is learnt from the first of them.
///
/// A later `now` goes on where an earlier one ended: what was concluded once is not concluded anew from other blocks.
pub fn by_errors(record: &CanaryRecord, pairs: Vec<PairedError>, now: Timestamp) -> CanaryRecord {
    let mut unseen = CanaryRecord { analysis: Value::Null, ..record.clone() };
    let played = play(&mut unseen, looks(record, pairs, now), now);
    match played.and_then(|analysis| serde_json::to_value(analysis).map_err(|error| error.to_string())) {
        Ok(analysis) => unseen.analysis = analysis,
        Err(why) => {
            unseen.verdict = Verdict::Error;
            unseen.reason = format!("the analysis cannot go on: {why}");
        }
    }
    unseen
}

/// Pairs by the look that reads them, in the order in which they come to count.
fn looks(
    record: &CanaryRecord,
    pairs: Vec<PairedError>,
    now: Timestamp,
) -> BTreeMap<Timestamp, Vec<PairedError>> {
    let mut looks: BTreeMap<Timestamp, Vec<PairedError>> = BTreeMap::new();
    for mut pair in pairs.into_iter().filter(|pair| pair.at >= record.started_at) {
        let served_at = pair.served_at.take();
        pair.at = served_at.zip(record.label_horizon()).map_or(pair.at, |(at, age)| pair.at.max(at + age));
        let look = minute_of(pair.at).map(|minute| minute + TimeDelta::minutes(1));
        if let Some(look) = look.filter(|look| *look <= now) {
            looks.entry(look).or_default().push(pair);
        }
    }
    looks
}

fn play(
    unseen: &mut CanaryRecord,
    looks: BTreeMap<Timestamp, Vec<PairedError>>,
    now: Timestamp,
) -> Result<Analysis, String> {
    let mut analysis = Analysis::of(unseen)?;
    let mut seq = 0;
    for (at, mut pairs) in looks {
        pairs.sort_by_key(|pair| (pair.at, pair.seq));
        for pair in &mut pairs {
            seq += 1;
            pair.seq = seq;
        }
        // What was complete before is bet on before more is read, whoever looked in between.
        for pairs in [vec![], pairs] {
            if reads(unseen, &mut analysis, pairs, at)? {
                return Ok(analysis);
            }
        }
    }
    reads(unseen, &mut analysis, vec![], now)?;
    Ok(analysis)
}

/// One look; whether it would take the canary back.
fn reads(
    unseen: &mut CanaryRecord,
    analysis: &mut Analysis,
    pairs: Vec<PairedError>,
    at: Timestamp,
) -> Result<bool, String> {
    let news = News { pairs, ..News::default() };
    analysis.read(unseen, &news, at).map_err(|error| error.to_string())?;
    let decision = decide(unseen, analysis, &news, at, &mut None);
    Ok(matches!(decision, Decision::RollBack { .. }))
}
