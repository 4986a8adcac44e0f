//! One row of the table: many days of one kind of traffic.

use chrono::TimeDelta;
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use refit::domain::Timestamp;
use refit::domain::canary::{MinTable, Replay, ReplayMinute};
use refit::domain::stats::Table;
use refit::domain::verdict::Verdict;
use refit::domain::workflow::step::{Compare, CompareRule, Margin, OnlineMetric};
use serde::Serialize;

use crate::Failure;
use crate::peers::{Flagger, Naive, Oracle, Peeking};
use crate::traffic::{DAY, Traffic, Weather};

pub const ALPHA: f64 = 0.05;
pub const STRICT: f64 = 0.01;
pub const BETA: f64 = 0.05;
/// Evidence for what is not true that comes back from here to its limit does so once in 10^8 days (Ville):
/// the rest of the day is not computed.
const HOPELESS: f64 = -16.0;
/// Minutes of the stable arm before the canary.
const HISTORY: u32 = 720;

/// A kind of traffic.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    place: u64,
    pub traffic: Traffic,
}

/// How one rule fared over all runs.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Ends {
    /// Share of the runs in which it rolled back.
    pub rollback: f64,
    /// Median canary requests until then; none when most runs did not.
    pub median: Option<f64>,
    /// Mean canary requests until then or the end of the day.
    pub mean: f64,
}

/// A row as measured.
#[derive(Debug, Clone, Serialize)]
pub struct Measured {
    pub name: String,
    pub requests_per_minute: f64,
    pub base: f64,
    pub canary: String,
    pub ratio: f64,
    pub runs: usize,
    pub refit: Ends,
    pub refit_strict: Ends,
    pub oracle: Ends,
    pub naive: Ends,
    pub flagger: Ends,
    pub peeking: Ends,
    /// Share of the runs in which the evidence "not 1.5x worse" (or 2x, where the canary is) reached its limit.
    pub promoted: f64,
    /// The median minute of it.
    pub promoted_at: Option<f64>,
    /// The margin tested.
    pub margin: f64,
    /// Mean delay over the oracle's; none under the null.
    pub delay: Option<f64>,
}

/// All rows, in the order of the table.
pub fn all() -> Vec<Row> {
    let mut rows = vec![];
    for per_minute in [1000.0, 100.0] {
        for base in [0.001, 0.01, 0.05] {
            let calm = [1.0, 1.5, 2.0, 5.0].map(|ratio| (ratio, Weather::Calm));
            for (ratio, weather) in calm.into_iter().chain([(1.0, Weather::Drift), (1.0, Weather::Clustered)])
            {
                let place = rows.len() as u64;
                rows.push(Row { place, traffic: Traffic { per_minute, base, ratio, weather } });
            }
        }
    }
    rows
}

pub fn rules(alpha: f64, margin: f64) -> Compare {
    let rule = CompareRule { margin: Margin::Ratio(margin), ..CompareRule::of(OnlineMetric::ErrorRate) };
    Compare { rules: vec![rule], alpha, beta: BETA, ..Compare::without_rules() }
}

pub fn minute(at: u32, errors: Table) -> ReplayMinute {
    let at = Timestamp::UNIX_EPOCH + TimeDelta::minutes(at.into());
    ReplayMinute { at, errors, slow: Table::default(), pairs: vec![] }
}

/// When each rule rolled back, in canary requests and minutes.
#[derive(Debug, Clone, Copy, Default)]
struct Run {
    requests: f64,
    refit: Option<f64>,
    strict: Option<f64>,
    oracle: Option<f64>,
    naive: Option<f64>,
    flagger: Option<f64>,
    peeking: Option<f64>,
    promoted_at: Option<f64>,
}

impl Row {
    pub fn measure(self, runs: usize) -> Result<Measured, Failure> {
        let days = (0..runs).map(|run| self.day(run as u64)).collect::<Result<Vec<_>, _>>()?;
        let traffic = self.traffic;
        let ends = |end: fn(&Run) -> Option<f64>| {
            let delays: Vec<f64> = days.iter().map(|day| end(day).unwrap_or(day.requests)).collect();
            let found: Vec<f64> = days.iter().map(|day| end(day).unwrap_or(f64::INFINITY)).collect();
            Ends {
                rollback: share(days.iter().filter(|day| end(day).is_some()).count(), runs),
                median: median(found),
                mean: delays.iter().sum::<f64>() / runs as f64,
            }
        };
        let (refit, oracle) = (ends(|day| day.refit), ends(|day| day.oracle));
        let canary = match (traffic.weather, traffic.ratio) {
            (Weather::Calm, 1.0) => "equal".to_owned(),
            (Weather::Calm, ratio) => format!("{ratio}x"),
            (Weather::Drift, _) => "equal, drift, outage, 10-25-50 %".to_owned(),
            (Weather::Clustered, _) => "equal, clustered errors".to_owned(),
        };
        let promoted = days.iter().map(|day| day.promoted_at.unwrap_or(f64::INFINITY)).collect();
        Ok(Measured {
            name: "decisions".to_owned(),
            requests_per_minute: traffic.per_minute,
            base: traffic.base,
            canary,
            ratio: traffic.ratio,
            runs,
            delay: (traffic.ratio > 1.0).then(|| refit.mean / oracle.mean),
            refit,
            refit_strict: ends(|day| day.strict),
            oracle,
            naive: ends(|day| day.naive),
            flagger: ends(|day| day.flagger),
            peeking: ends(|day| day.peeking),
            promoted: share(days.iter().filter(|day| day.promoted_at.is_some()).count(), runs),
            promoted_at: median(promoted),
            margin: self.margin(),
        })
    }

    /// The margin that this canary is worse by, where there is a test of it.
    fn margin(&self) -> f64 {
        if self.traffic.ratio == 2.0 { 2.0 } else { 1.5 }
    }

    fn day(&self, run: u64) -> Result<Run, Failure> {
        let mut random = Xoshiro256PlusPlus::seed_from_u64((self.place << 32) | run);
        let traffic = &self.traffic;
        let plain = MinTable::default();
        let mut refit = Replay::new(rules(ALPHA, self.margin()), plain, None)?.without_interval();
        for at in DAY - HISTORY..DAY {
            refit.learn(&minute(at, traffic.before(at, &mut random)?));
        }
        let (mut flagger, mut naive, mut peeking) =
            (Flagger::default(), Naive::default(), Peeking::default());
        let mut oracle = Oracle::new((traffic.base * traffic.ratio).min(1.0), traffic.base);
        let (mut day, mut settled) = (Run::default(), false);
        for at in 0..DAY {
            let table = traffic.minute(at, &mut random)?;
            day.requests += table.canary.n() as f64;
            let now = day.requests;
            let end = |place: &mut Option<f64>, rolls_back: bool| {
                if rolls_back {
                    place.get_or_insert(now);
                }
            };
            end(&mut day.oracle, traffic.ratio > 1.0 && oracle.rolls_back(&table, traffic.share(at), ALPHA));
            end(&mut day.naive, naive.rolls_back(at, &table));
            end(&mut day.flagger, flagger.rolls_back(&table));
            end(&mut day.peeking, peeking.rolls_back(&table));
            if settled {
                continue;
            }
            refit.minute(&minute(at, table))?;
            let evidence = refit.evidence();
            end(&mut day.refit, evidence.verdict == Verdict::Fail);
            end(&mut day.strict, evidence.log_e_worse >= -STRICT.ln());
            if evidence.log_e_ni >= -BETA.ln() {
                day.promoted_at.get_or_insert(f64::from(at + 1));
            }
            let rolled_back = day.refit.is_some() && day.strict.is_some();
            let proved = day.promoted_at.is_some();
            settled = (rolled_back || (traffic.ratio == 1.0 && evidence.log_e_worse < HOPELESS))
                && (proved || (traffic.ratio >= self.margin() && evidence.log_e_ni < HOPELESS));
        }
        Ok(day)
    }
}

pub fn share(count: usize, runs: usize) -> f64 {
    count as f64 / runs as f64
}

/// `None` when the median run never got there.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().filter(|value| value.is_finite())
}
