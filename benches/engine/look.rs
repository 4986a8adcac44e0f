//! A look at a canary with much traffic: what was read goes into the tests, and
//! the record is made as it is stored.

use std::time::{Duration, Instant};

use chrono::TimeDelta;
use refit::domain::Timestamp;
use refit::domain::canary::{CanaryRecord, CanaryState, LATENCY_BUCKETS, News, latency_bucket, look};
use refit::domain::evidence::{EvidenceMinute, MinuteCounts};
use refit::domain::id::{CanaryId, Generation, RunId};
use refit::domain::verdict::Verdict;
use refit::domain::workflow::step::{Compare, CompareRule, Margin, OnlineMetric, Role, Stage};
use refit::domain::workflow::units::BasisPoints;
use serde_json::Value;

use crate::Failure;

/// Requests a minute.
pub const REQUESTS: u64 = 1_000_000;
/// What each look tests.
pub const METRICS: [OnlineMetric; 2] = [OnlineMetric::ErrorRate, OnlineMetric::LatencySlowShare];
const LOOKS: i64 = 300;

/// How long each of many looks took.
pub fn looks() -> Result<Vec<Duration>, Failure> {
    let start: Timestamp = "2026-03-01T12:00:00Z".parse()?;
    let mut record = canary(start)?;
    let mut took = vec![];
    let before = (-120..0).flat_map(|at| minute(start, at)).collect::<Result<Vec<_>, _>>()?;
    record = look(&record, &News { minutes: before, ..News::default() }, start).record;
    for at in 0..LOOKS {
        let minutes = minute(start, at).into_iter().collect::<Result<Vec<_>, _>>()?;
        let news = News { minutes, ..News::default() };
        let begin = Instant::now();
        record = look(&record, &news, start + TimeDelta::minutes(at + 3)).record;
        took.push(begin.elapsed());
    }
    if record.verdict == Verdict::Fail {
        return Err("equal versions were judged unequal".into());
    }
    Ok(took)
}

/// Both arms in one minute: 1 % errors, 4 % slow, a little up and down.
fn minute(start: Timestamp, at: i64) -> Vec<Result<EvidenceMinute, Failure>> {
    let arm = |version: &str, n: u64| {
        let sway = u64::try_from((at * 7919).rem_euclid(200))?;
        let mut latency = vec![0; LATENCY_BUCKETS];
        latency[latency_bucket(30.0)] = n - n / 25;
        latency[latency_bucket(900.0)] = n / 25;
        Ok(EvidenceMinute {
            version: version.parse()?,
            minute: start + TimeDelta::minutes(at),
            seq: at + 1000,
            counts: MinuteCounts { n, errors: n / 100 + n * sway / 1_000_000, timed: n },
            latency,
        })
    };
    vec![arm("2", REQUESTS / 10), arm("1", REQUESTS - REQUESTS / 10)]
}

fn canary(start: Timestamp) -> Result<CanaryRecord, Failure> {
    let rule = |metric| CompareRule {
        at: Default::default(),
        metric,
        margin: Margin::Ratio(1.5),
        acceptable_below: None,
        never_above: None,
        label_horizon: Duration::ZERO,
        weight: None,
        role: Role::Gating,
    };
    Ok(CanaryRecord {
        id: CanaryId::generate(),
        run: RunId::generate(),
        model: "m".parse()?,
        target: "production".parse()?,
        version: "2".parse()?,
        champion: "1".parse()?,
        generation: Generation(1),
        stages: vec![Stage { share: BasisPoints(1000), min_time: Duration::from_secs(86_400) }],
        stage: 0,
        stage_since: start,
        rules: Compare { rules: METRICS.map(rule).to_vec(), ..Compare::without_rules() },
        started_at: start,
        deadline: None,
        state: CanaryState::Watching,
        bake_until: None,
        verdict: Verdict::Inconclusive,
        reason: String::new(),
        analysis: Value::Null,
        next_look_at: start,
        ended_at: None,
    })
}
