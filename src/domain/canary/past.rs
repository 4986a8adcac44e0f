//! What was counted of a canary, as minutes that [`super::Replay`] reads: to ask
//! what other limits would have decided.

use std::collections::BTreeMap;

use chrono::{DurationRound as _, TimeDelta};

use super::super::Timestamp;
use super::super::evidence::{EvidenceMinute, PairedError};
use super::super::stats::Table;
use super::super::workflow::step::OnlineMetric;
use super::analysis::{Analysis, is_cold};
use super::minutes::{LATENCY_BUCKETS, arm, sum};
use super::rules::RuleTest;
use super::{CanaryRecord, ReplayMinute};

/// A canary's minutes, from when it went out to its end.
#[derive(Debug, Clone, PartialEq)]
pub struct Past {
    /// In order; minutes without anything are left out.
    pub minutes: Vec<ReplayMinute>,
    /// Requests over the frozen threshold are counted: there was one, and a rule on latency.
    pub latency: bool,
    /// A rule is on prediction errors.
    pub pairs: bool,
    /// How much more the stable arm's errors vary than independent requests would, as it was learnt until the last look.
    pub phi: Option<f64>,
}

impl Past {
    /// Puts the counts of both versions and their pairs side by side. The mean errors of a named block are one pair, in
    /// the minute of its last one: one block is one bet. Late rows are in the minutes that they belong to.
    ///
    /// # Errors
    /// What is stored of the canary is not an analysis of its rules, in words.
    pub fn of(
        record: &CanaryRecord,
        counted: &[EvidenceMinute],
        pairs: &[PairedError],
    ) -> Result<Self, String> {
        let analysis = Analysis::of(record)?;
        let is_in = |at: Timestamp| at >= record.started_at && record.ended_at.is_none_or(|end| at < end);
        let mut minutes = BTreeMap::new();
        for counted in counted.iter().filter(|counted| is_in(counted.minute)) {
            let minute = minutes.entry(counted.minute).or_insert_with(|| empty(counted.minute));
            let errors = arm(counted.counts.n, counted.counts.errors);
            let slow = match analysis.slow_above {
                Some(edge)
                    if counted.latency.len() == LATENCY_BUCKETS && !is_cold(record, counted.minute) =>
                {
                    arm(sum(&counted.latency), sum(&counted.latency[edge + 1..]))
                }
                Some(_) | None => arm(0, 0),
            };
            if counted.version == record.version {
                (minute.errors.canary, minute.slow.canary) = (errors, slow);
            } else if counted.version == record.champion {
                (minute.errors.stable, minute.slow.stable) = (errors, slow);
            }
        }
        for (at, pair) in bets(pairs.iter().filter(|pair| is_in(pair.at))) {
            let at = at.duration_trunc(TimeDelta::minutes(1)).unwrap_or(at);
            minutes.entry(at).or_insert_with(|| empty(at)).pairs.push(pair);
        }
        let has = |metric| record.rules.rules.iter().any(|rule| rule.metric == metric);
        Ok(Self {
            minutes: minutes.into_values().collect(),
            latency: has(OnlineMetric::LatencySlowShare) && analysis.slow_above.is_some(),
            pairs: has(OnlineMetric::AbsError),
            phi: analysis.tests.iter().find_map(|test| match test {
                RuleTest::Rate(rate) => Some(rate.dispersion.phi()),
                RuleTest::Mean(_) => None,
            }),
        })
    }
}

fn empty(at: Timestamp) -> ReplayMinute {
    ReplayMinute { at, errors: Table::default(), slow: Table::default(), pairs: vec![] }
}

/// Each pair without a block, and each block's means, with the time of the last truth in it.
fn bets<'a>(pairs: impl Iterator<Item = &'a PairedError>) -> Vec<(Timestamp, (f64, f64))> {
    let mut bets = vec![];
    let mut blocks: BTreeMap<&str, (Timestamp, f64, f64, f64)> = BTreeMap::new();
    for pair in pairs {
        match pair.block.as_deref() {
            None => bets.push((pair.at, (pair.canary, pair.stable))),
            Some(block) => {
                let (at, canary, stable, n) = blocks.entry(block).or_insert((pair.at, 0.0, 0.0, 0.0));
                *at = pair.at.max(*at);
                *n += 1.0;
                // Running means: a sum of large errors may be infinite.
                *canary += (pair.canary - *canary) / *n;
                *stable += (pair.stable - *stable) / *n;
            }
        }
    }
    bets.extend(blocks.into_values().map(|(at, canary, stable, _)| (at, (canary, stable))));
    bets
}
