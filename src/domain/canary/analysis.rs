//! The state of an analysis: what was read, and the tests it went into.

use chrono::TimeDelta;
use serde::{Deserialize, Serialize};

use super::super::Timestamp;
use super::super::evidence::{EvidenceMinute, PairedError};
use super::super::stats::split::LOG_E_WRONG;
use super::super::stats::{InvalidInput, SplitTest, Table};
use super::super::workflow::step::{CompareRule, OnlineMetric};
use super::super::workflow::units::BasisPoints;
use super::CanaryRecord;
use super::blocks::{Blocks, Clip};
use super::forecast::{Expected, Forecast};
use super::labels::{Labelled, Labels, Ripe, Ripening};
use super::minutes::{Arrived, Counts, Intake, LATENCY_BUCKETS, MinTable, OpenTable, Side, arm, sum};
use super::rules::{self, RuleTest};

/// How far back the stable arm is read before a canary.
pub const HISTORY: TimeDelta = TimeDelta::hours(24);
/// How far back the stable version's errors are read before a canary.
pub const ERROR_HISTORY: TimeDelta = TimeDelta::days(28);
/// Latencies this soon after the start are a cold start, not evidence.
const WARM_UP: TimeDelta = TimeDelta::minutes(5);
/// The time before the start whose latencies set the threshold, if there are enough.
const LATENCY_WINDOW: TimeDelta = TimeDelta::hours(1);
/// Latencies that set a threshold.
const LATENCIES: u64 = 200;
/// The share of slow requests the threshold aims at.
const SLOW_SHARE: f64 = 0.05;
/// What must be known of the stable version before a canary to say what the canary can show.
const SEEN_AT_LEAST: TimeDelta = TimeDelta::hours(1);
const REQUESTS_AT_LEAST: u64 = 20;
/// Apps learn of a share within this time; the split is judged after it.
const SPLIT_SETTLES: TimeDelta = TimeDelta::minutes(5);
/// Requests expected of a canary that has not been heard of, and of one that has, at which silence is
/// no chance: `exp(-9)` once, `exp(-20)` over the many times it could happen.
const SILENT_AT: (f64, f64) = (9.0, 20.0);
/// A sender may batch for this long before a row of the canary is missed.
const SILENT_FOR: TimeDelta = TimeDelta::minutes(10);

/// The analysis of one canary, stored in [`CanaryRecord::analysis`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Analysis {
    /// The newest change of a minute that was read.
    pub cursor: i64,
    /// The newest pair of errors that was read.
    pub paired_cursor: i64,
    /// The history before the canary was read and what comes from it is frozen.
    pub frozen: bool,
    /// The look that wrote this.
    pub looked_at: Option<Timestamp>,
    /// Its traffic was stopped, and why.
    pub stopped: Option<String>,
    /// It was said once that no evidence comes.
    pub told_no_data: bool,
    /// It was said once that truths are missing.
    #[serde(default)]
    pub told_labels: bool,
    pub(super) tests: Vec<RuleTest>,
    pub(super) share: BasisPoints,
    pub(super) slow_above: Option<usize>,
    pub(super) clip: Clip,
    pub(super) split: Option<SplitTest>,
    pub(super) blocks: Blocks,
    pub(super) canary: Counts,
    pub(super) stable: Counts,
    /// Minutes with evidence, and the newest.
    pub(super) minutes: u64,
    pub(super) newest: Option<Timestamp>,
    /// Since the share was set.
    pub(super) canary_in_stage: u64,
    share_since: Timestamp,
    intake: Intake,
    stable_latency: Vec<u64>,
    stable_blocks: Blocks,
    open: OpenTable,
    late: OpenTable,
    quiet: Quiet,
    /// Where a rule has a label horizon.
    #[serde(default)]
    pub(super) labels: Option<Labels>,
    /// Where none has: what is known by the last look.
    #[serde(default)]
    pub(super) labelled: Option<Labelled>,
    /// What the canary can show, from the traffic before it.
    #[serde(default)]
    pub(super) forecast: Option<String>,
    /// It will probably not conclude.
    #[serde(default)]
    pub(super) underpowered: bool,
}

/// A minute of the stable arm before the canary.
struct HistoryMinute {
    minute: Timestamp,
    n: u64,
    errors: u64,
    latency: Vec<u64>,
}

/// Stable requests since the canary was last heard of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Quiet {
    heard: bool,
    stable: u64,
    since: Option<Timestamp>,
}

/// What is new since the last look.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct News {
    /// Minutes of both versions after [`Analysis::cursor`].
    pub minutes: Vec<EvidenceMinute>,
    /// Pairs of errors after [`Analysis::paired_cursor`].
    pub pairs: Vec<PairedError>,
    /// Until [`Analysis::frozen`]: errors of the stable version before the canary, oldest first.
    pub stable_errors: Vec<PairedError>,
    /// What [`Analysis::ripening`] asked for.
    pub ripe: Option<Ripe>,
    /// Requests since the canary went out, of both versions, where no rule has a label horizon.
    pub labelled: Option<Labelled>,
    /// There is more than one look reads: nothing is concluded yet.
    pub more: bool,
    /// The share that the release gives the canary, and since when; the stage's when absent.
    pub share: Option<(BasisPoints, Timestamp)>,
}

impl Analysis {
    /// The analysis of a canary that goes out.
    ///
    /// # Errors
    /// A rule with a margin or limit that has no meaning.
    pub fn new(record: &CanaryRecord) -> Result<Self, InvalidInput> {
        let tests = record.rules.rules.iter().map(RuleTest::new).collect::<Result<_, _>>()?;
        let share = record.stage_share();
        Ok(Self {
            cursor: 0,
            paired_cursor: 0,
            frozen: false,
            looked_at: None,
            stopped: None,
            told_no_data: false,
            told_labels: false,
            tests,
            share,
            slow_above: None,
            clip: Clip::default(),
            split: SplitTest::new(share.fraction()).ok(),
            blocks: Blocks::default(),
            canary: Counts::default(),
            stable: Counts::default(),
            minutes: 0,
            newest: None,
            canary_in_stage: 0,
            share_since: record.started_at,
            intake: Intake::default(),
            stable_latency: vec![],
            stable_blocks: Blocks::default(),
            open: OpenTable::default(),
            late: OpenTable::default(),
            quiet: Quiet::default(),
            labels: record.label_horizon().map(|_| Labels::new(record.started_at)).transpose()?,
            labelled: None,
            forecast: None,
            underpowered: false,
        })
    }

    /// The analysis as it was stored; a new one for a canary that was never looked at.
    ///
    /// # Errors
    /// What is stored is not an analysis of these rules, in words.
    pub fn of(record: &CanaryRecord) -> Result<Self, String> {
        if record.analysis.is_null() {
            return Self::new(record).map_err(|error| error.to_string());
        }
        let analysis = Self::deserialize(&record.analysis).map_err(|error| error.to_string())?;
        if analysis.tests.len() != record.rules.rules.len() {
            return Err("it is of other rules".to_owned());
        }
        Ok(analysis)
    }

    /// Whether requests without truth are only counted: no rule says how long one takes.
    pub fn counts_labels(&self) -> bool {
        self.labels.is_none()
    }

    /// What came of age since the last look and has to be read for this one, where a rule has a label horizon.
    pub fn ripening(&self, record: &CanaryRecord, now: Timestamp) -> Option<Ripening> {
        let labels = self.labels.as_ref()?;
        Some(labels.ripening(record.label_horizon()?, self.paired_cursor, now))
    }

    /// Reads what is new.
    pub(super) fn read(
        &mut self,
        record: &CanaryRecord,
        news: &News,
        now: Timestamp,
    ) -> Result<(), InvalidInput> {
        self.absorb(record, news);
        if !news.more {
            if !self.frozen {
                self.freeze(record, now);
            }
            self.follow_share(record, news);
            self.count(record, now);
            if let (Some(labels), Some(ripe)) = (&mut self.labels, &news.ripe) {
                labels.count(record, &ripe.minutes, ripe.before);
            }
            self.bet(record, now)?;
        }
        self.looked_at = Some(now);
        Ok(())
    }

    fn absorb(&mut self, record: &CanaryRecord, news: &News) {
        self.labelled = news.labelled.or(self.labelled);
        for minute in &news.minutes {
            self.cursor = self.cursor.max(minute.seq);
            let side = if minute.version == record.version {
                Side::Canary
            } else if minute.version == record.champion {
                Side::Stable
            } else {
                continue;
            };
            let first = if self.frozen { record.started_at } else { record.started_at - HISTORY };
            if minute.minute >= first {
                self.intake.absorb(side, minute.clone());
            }
        }
        if !self.frozen {
            let (from, until) = (record.started_at - ERROR_HISTORY, record.started_at);
            for (at, error) in record.as_they_count(&news.stable_errors) {
                if from <= at && at < until {
                    self.stable_blocks.add(error, at);
                }
            }
        }
        let mut counts = vec![];
        if let (Some(labels), Some(ripe)) = (&mut self.labels, &news.ripe) {
            counts.extend(labels.age(&ripe.pairs, ripe.through));
        }
        for pair in &news.pairs {
            if pair.seq > self.paired_cursor {
                self.paired_cursor = pair.seq;
                counts.extend(self.labels.as_ref().is_none_or(|labels| labels.counts(pair)).then_some(pair));
            }
        }
        for pair in counts.into_iter().filter(|pair| pair.at >= record.started_at) {
            self.blocks.add(pair, record.counts_since(pair));
        }
    }

    /// Learns from the time before the canary what the tests need to know beforehand.
    fn freeze(&mut self, record: &CanaryRecord, now: Timestamp) {
        let (mut from, mut history) = (Timestamp::MIN_UTC, vec![]);
        while let Some(arrived) = self.intake.next((from, record.started_at), now, None) {
            from = arrived.minute + TimeDelta::seconds(1);
            history.push(HistoryMinute {
                minute: arrived.minute,
                n: arrived.stable.n,
                errors: arrived.stable.errors,
                latency: arrived.stable_latency,
            });
        }
        self.intake.forget_before(record.started_at);
        let window = record.started_at - LATENCY_WINDOW;
        self.slow_above = threshold(history.iter().filter(|minute| minute.minute >= window))
            .or_else(|| threshold(history.iter()));
        if self.slow_above.is_none() {
            self.stable_latency = added(history.iter());
        }
        for (test, rule) in self.tests.iter_mut().zip(&record.rules.rules) {
            let RuleTest::Rate(rate) = test else { continue };
            for minute in &history {
                let arm = match (rule.metric, self.slow_above) {
                    (OnlineMetric::ErrorRate, _) => arm(minute.n, minute.errors),
                    (OnlineMetric::LatencySlowShare, Some(edge))
                        if minute.latency.len() == LATENCY_BUCKETS =>
                    {
                        arm(sum(&minute.latency), sum(&minute.latency[edge + 1..]))
                    }
                    (OnlineMetric::LatencySlowShare | OnlineMetric::AbsError, _) => continue,
                };
                rate.dispersion.observe(arm);
            }
        }
        let forecast = self.foresee(record, &history);
        self.underpowered = forecast.as_ref().is_some_and(|forecast| forecast.advice().is_some());
        self.forecast = forecast.map(|forecast| forecast.sentence());
        for block in std::mem::take(&mut self.stable_blocks).past(record.started_at, record.closing()) {
            self.clip.learn(&block);
        }
        self.clip.freeze();
        self.frozen = true;
    }

    /// What the canary can show at the traffic that was there before it; none when too little is known of it.
    fn foresee(&self, record: &CanaryRecord, history: &[HistoryMinute]) -> Option<Forecast> {
        let deadline = record.deadline?;
        let seen = record.started_at - history.first()?.minute;
        let requests = history.iter().fold(0_u64, |sum, minute| sum.saturating_add(minute.n));
        let errors = history.iter().fold(0_u64, |sum, minute| sum.saturating_add(minute.errors));
        if seen < SEEN_AT_LEAST || requests < REQUESTS_AT_LEAST {
            return None;
        }
        let phi = self.tests.iter().find_map(|test| match test {
            RuleTest::Rate(rate) => Some(rate.dispersion.phi()),
            RuleTest::Mean(_) => None,
        });
        let expected = Expected {
            requests_per_day: requests as f64 / seen.as_seconds_f64() * 86_400.0,
            // None among so many is not none at all.
            error_rate: (errors as f64 + 0.5) / (requests as f64 + 1.0),
            slow_share: SLOW_SHARE,
            dispersion: phi?.max(1.0),
        };
        let hours = (deadline - record.started_at).as_seconds_f64() / 3600.0;
        Forecast::reckoned(&record.rules, &record.stages, hours, expected).ok()
    }

    /// A change of the share closes nothing and discards what is open: its arms are not comparable.
    fn follow_share(&mut self, record: &CanaryRecord, news: &News) {
        let (share, since) = news.share.unwrap_or((record.stage_share(), record.stage_since));
        if share == self.share {
            return;
        }
        self.share = share;
        self.share_since = since.max(self.share_since);
        if let Some(labels) = &mut self.labels {
            labels.share_changed(self.share_since);
        }
        self.canary_in_stage = 0;
        self.quiet = Quiet { heard: self.quiet.heard, ..Quiet::default() };
        let kept = self.split.as_mut().is_some_and(|split| split.change_share(share.fraction()).is_ok());
        if !kept {
            self.split = SplitTest::new(share.fraction()).ok();
        }
    }

    fn count(&mut self, record: &CanaryRecord, now: Timestamp) {
        let (mut from, mut new_share) = (record.started_at, true);
        while let Some(arrived) = self.intake.next((from, Timestamp::MAX_UTC), now, self.slow_above) {
            from = arrived.minute + TimeDelta::seconds(1);
            self.see(record, &arrived);
            // Minutes before the change belong to the tables before it.
            if arrived.minute < self.share_since {
                if arrived.minute + TimeDelta::minutes(1) > self.share_since {
                    continue;
                }
            } else if std::mem::take(&mut new_share) && self.open.began_before(self.share_since) {
                self.open = OpenTable::default();
            }
            self.tabulate(record, &arrived);
        }
        if self.late.began_before(self.share_since) {
            self.late = OpenTable::default();
        }
        if let Some(closed) = self.open.close_together(&mut self.late) {
            rules::observe(&mut self.tests, &record.rules.rules, &closed);
        }
        for (minute, canary, stable) in self.intake.retire(now) {
            if let Some(split) = &mut self.split
                && minute >= self.share_since + SPLIT_SETTLES
            {
                split.observe(&Table { canary: arm(canary, 0), stable: arm(stable, 0) }, 1.0);
            }
        }
    }

    /// What counts whether or not a table can be made of it.
    fn see(&mut self, record: &CanaryRecord, arrived: &Arrived) {
        self.canary.add(arrived.canary);
        self.stable.add(arrived.stable);
        self.minutes += u64::from(!arrived.late);
        self.newest = self.newest.max(Some(arrived.minute));
        if arrived.minute >= self.share_since {
            self.canary_in_stage = self.canary_in_stage.saturating_add(arrived.canary.n);
        }
        if arrived.canary.n > 0 {
            self.quiet = Quiet { heard: true, ..Quiet::default() };
        } else if arrived.minute >= self.share_since {
            self.quiet.stable = self.quiet.stable.saturating_add(arrived.stable.n);
            self.quiet.since.get_or_insert(arrived.minute);
        }
        if self.slow_above.is_none() && !arrived.stable_latency.is_empty() {
            self.stable_latency.resize(LATENCY_BUCKETS, 0);
            for (sum, count) in self.stable_latency.iter_mut().zip(&arrived.stable_latency) {
                *sum = sum.saturating_add(*count);
            }
            self.slow_above = edge(&self.stable_latency);
        }
        let (canary, stable) = counted(record, arrived);
        rules::see(&mut self.tests, &record.rules.rules, canary, stable);
    }

    fn tabulate(&mut self, record: &CanaryRecord, arrived: &Arrived) {
        let (canary, stable) = counted(record, arrived);
        let table = if arrived.late { &mut self.late } else { &mut self.open };
        table.add(arrived.minute, canary, stable);
        if let Some(closed) = table.close(arrived.minute + TimeDelta::minutes(1), MinTable::default()) {
            rules::observe(&mut self.tests, &record.rules.rules, &closed);
        }
    }

    fn bet(&mut self, record: &CanaryRecord, now: Timestamp) -> Result<(), InvalidInput> {
        for block in self.blocks.close(now, record.closing()) {
            let Some(clip) = self.clip.bound() else {
                self.clip.learn(&block);
                self.clip.freeze();
                continue;
            };
            rules::bet(&mut self.tests, &record.rules.rules, clip, &block)?;
        }
        Ok(())
    }

    /// The stable arm reports and the canary does not: how many requests were expected of it.
    pub(super) fn silent(&self) -> Option<f64> {
        let share = self.share.fraction();
        let expected = self.quiet.stable as f64 * share / (1.0 - share);
        let limit = if self.quiet.heard { SILENT_AT.1 } else { SILENT_AT.0 };
        let long =
            self.quiet.since.zip(self.newest).is_some_and(|(since, newest)| newest - since >= SILENT_FOR);
        (share > 0.0 && share < 1.0 && long && expected >= limit).then_some(expected)
    }

    /// There is evidence of the canary: requests at its share, or, where no rule is on requests, bets on its errors.
    pub(super) fn heard(&self, record: &CanaryRecord) -> bool {
        let rules = &record.rules.rules;
        let bets = || self.tests.iter().any(|test| matches!(test, RuleTest::Mean(mean) if mean.blocks > 0));
        rules.is_empty()
            || self.canary_in_stage > 0
            || (!rules.iter().any(CompareRule::is_on_requests) && bets())
    }

    /// The split is shown to be wrong, and by a factor of 2: the share that was seen.
    pub(super) fn split_wrong(&self) -> Option<f64> {
        let split = self.split.as_ref()?;
        let (seen, share) = (split.seen_share()?, self.share.fraction());
        let far = seen < 0.5 * share || seen > 2.0 * share;
        (far && split.log_e() >= LOG_E_WRONG).then_some(seen)
    }

    /// Nothing was reported for so long that something must be wrong: at least 10 minutes, and 20 times
    /// the usual distance of minutes with evidence.
    pub(super) fn no_data(&self, record: &CanaryRecord, now: Timestamp) -> bool {
        let newest = self.newest.map_or(record.started_at, |newest| newest.max(record.started_at));
        let usual = (newest - record.started_at) / i32::try_from(self.minutes.max(1)).unwrap_or(i32::MAX);
        let bets = self.tests.iter().any(|test| matches!(test, RuleTest::Mean(mean) if mean.blocks > 0));
        let silent = now - newest > SILENT_FOR + TimeDelta::minutes(3) && now - newest > usual * 20;
        // What only prediction errors decide waits for truth, and may wait long.
        !bets && record.rules.rules.iter().any(CompareRule::is_on_requests) && silent
    }
}

/// Whether latencies of this minute are those of a cold start.
pub(super) fn is_cold(record: &CanaryRecord, minute: Timestamp) -> bool {
    minute < record.started_at + WARM_UP
}

/// What counts of a minute: latencies of the first minutes are cold starts.
fn counted(record: &CanaryRecord, arrived: &Arrived) -> (Counts, Counts) {
    let (mut canary, mut stable) = (arrived.canary, arrived.stable);
    if is_cold(record, arrived.minute) {
        for arm in [&mut canary, &mut stable] {
            (arm.timed, arm.slow) = (0, 0);
        }
    }
    (canary, stable)
}

fn added<'a>(minutes: impl Iterator<Item = &'a HistoryMinute>) -> Vec<u64> {
    let mut total = vec![0_u64; LATENCY_BUCKETS];
    for minute in minutes {
        for (sum, count) in total.iter_mut().zip(&minute.latency) {
            *sum = sum.saturating_add(*count);
        }
    }
    total
}

fn threshold<'a>(minutes: impl Iterator<Item = &'a HistoryMinute>) -> Option<usize> {
    edge(&added(minutes))
}

/// The edge with a share of slow requests nearest to the wanted one, if there are enough latencies.
fn edge(latency: &[u64]) -> Option<usize> {
    let total = sum(latency);
    if total < LATENCIES {
        return None;
    }
    let distance = |edge: &usize| (sum(&latency[edge + 1..]) as f64 / total as f64 - SLOW_SHARE).abs();
    (0..LATENCY_BUCKETS - 1).min_by(|a, b| distance(a).total_cmp(&distance(b)))
}
