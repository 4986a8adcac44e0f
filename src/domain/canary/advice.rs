//! What the controller would make of a version that has no traffic, by its
//! prediction errors alone.

use std::collections::BTreeMap;

use chrono::TimeDelta;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::super::Timestamp;
use super::super::evidence::{PairedError, minute_of};
use super::super::verdict::Verdict;
use super::analysis::Analysis;
use super::labels::Ripening;
use super::look::{Decision, decide};
use super::{CanaryRecord, News};

/// How far the pairs of errors of a version without traffic were read, and the analysis they went into.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ErrorsRead {
    analysis: Value,
    /// Pairs up to this number were read.
    through: i64,
    /// All looks up to this one were played.
    until: Option<Timestamp>,
}

/// Pairs of errors, as they are asked for by [`ErrorsRead`].
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ErrorNews {
    /// After [`ErrorsRead::through`], by number.
    pub new: Vec<PairedError>,
    /// What [`ErrorsRead::ripening`] asked for.
    pub aged: Vec<PairedError>,
}

impl ErrorsRead {
    /// The number of the last pair that was read.
    pub fn through(&self) -> i64 {
        self.through
    }

    /// Pairs that were read before their request was old enough and count by `now`, where a rule has a label horizon.
    pub fn ripening(&self, record: &CanaryRecord, now: Timestamp) -> Option<Ripening> {
        let (horizon, from) = (record.label_horizon()?, self.until?);
        let until = self.end(now) - horizon;
        Some(Ripening { read: self.through, after: Some((from - horizon, 0)), until, minutes: (from, from) })
    }

    /// The last look that is played at `now`: the minute after it still runs.
    fn end(&self, now: Timestamp) -> Timestamp {
        let end = minute_of(now).unwrap_or(now);
        self.until.map_or(end, |until| until.max(end))
    }
}

/// The canary as the controller would know it at `now`, had it gone out: a look at the end of each minute in which
/// pairs of errors came to count since it began. The scale of the errors is learnt from the first of them.
///
/// It goes on where `before` ended: what was concluded once is not concluded anew from other blocks. How often it is
/// gone on with does not matter.
pub fn by_errors(
    record: &CanaryRecord,
    before: &ErrorsRead,
    news: ErrorNews,
    now: Timestamp,
) -> (CanaryRecord, ErrorsRead) {
    let mut unseen = CanaryRecord { analysis: before.analysis.clone(), ..record.clone() };
    let mut after = before.clone();
    let looks = looks(record, &mut after, news, now);
    let played = play(&mut unseen, looks, now);
    match played.and_then(|analysis| serde_json::to_value(analysis).map_err(|error| error.to_string())) {
        Ok(analysis) => {
            unseen.analysis.clone_from(&analysis);
            after.analysis = analysis;
            (unseen, after)
        }
        Err(why) => {
            unseen.verdict = Verdict::Error;
            unseen.reason = format!("the analysis cannot go on: {why}");
            (unseen, before.clone())
        }
    }
}

/// Pairs by the look that reads them, in the order in which they come to count.
fn looks(
    record: &CanaryRecord,
    read: &mut ErrorsRead,
    news: ErrorNews,
    now: Timestamp,
) -> BTreeMap<Timestamp, Vec<PairedError>> {
    let (from, end) = (read.until.unwrap_or(Timestamp::MIN_UTC), read.end(now));
    let horizon = record.label_horizon();
    let grown = |pair: &PairedError| pair.served_at.zip(horizon).map(|(served_at, age)| served_at + age);
    let mut looks: BTreeMap<Timestamp, Vec<PairedError>> = BTreeMap::new();
    let mut take = |mut pair: PairedError| {
        let counts = grown(&pair).map_or(pair.at, |grown| pair.at.max(grown));
        // One that was late to be kept, or whose process had a clock that is ahead, is read by the next look there is.
        let look = minute_of(counts).map_or(end, |minute| minute + TimeDelta::minutes(1)).clamp(from, end);
        let began = pair.at >= record.started_at;
        (pair.at, pair.served_at) = (counts.min(end), None);
        if began {
            looks.entry(look).or_default().push(pair);
        }
    };
    for pair in news.aged {
        if pair.seq <= read.through && grown(&pair).is_some_and(|grown| from <= grown && grown < end) {
            take(pair);
        }
    }
    // What came in the minute that still runs is left to the next round, with all that came after it.
    for pair in news.new.into_iter().take_while(|pair| pair.at < end || pair.at > now) {
        read.through = read.through.max(pair.seq);
        // A younger one comes of age later.
        if grown(&pair).is_none_or(|grown| grown < end) {
            take(pair);
        }
    }
    read.until = Some(end);
    looks
}

fn play(
    unseen: &mut CanaryRecord,
    looks: BTreeMap<Timestamp, Vec<PairedError>>,
    now: Timestamp,
) -> Result<Analysis, String> {
    let mut analysis = Analysis::of(unseen)?;
    let mut seq = analysis.paired_cursor;
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
