//! Truth takes its time. A request counts once it is as old as the label
//! horizon, whether its truth was quick or slow, and those that have none by
//! then are counted: a canary that loses more of them than the stable version
//! is not comparable with it.

use std::collections::BTreeMap;

use chrono::TimeDelta;
use serde::{Deserialize, Serialize};

use super::super::Timestamp;
use super::super::evidence::{LabelCounts, LabelMinute, PairedError, minute_of};
use super::super::stats::InvalidInput;
use super::super::stats::split::LOG_E_WRONG;
use super::CanaryRecord;
use super::blocks::Closing;
use super::minutes::{CLOSES_AFTER, Counts, MinTable, OpenTable, arm};
use super::rules::RateTest;

/// The margin of a test that never accepts: it is asked only whether the canary loses more.
const MARGIN: f64 = 1.5;

/// What came of age since the last look, to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ripening {
    /// Pairs up to this number were read before their request was old enough, and are read again.
    pub read: i64,
    /// Requests up to this one, by time and number, count; none before the first look.
    pub after: Option<(Timestamp, i64)>,
    /// Requests served until then are old enough.
    pub until: Timestamp,
    /// Minutes in which all requests are old enough and none was counted yet: from, to before.
    pub minutes: (Timestamp, Timestamp),
}

/// What [`Ripening`] asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Ripe {
    /// Pairs of errors that were read before, by time of their request and number.
    pub pairs: Vec<PairedError>,
    /// The last request, by time and number, whose pair is among them if it has one.
    pub through: (Timestamp, i64),
    /// Minutes of both versions.
    pub minutes: Vec<LabelMinute>,
    /// All minutes before this are among them.
    pub before: Timestamp,
}

impl Ripe {
    /// Whether everything that was `wanted` is in it.
    pub fn is_all(&self, wanted: &Ripening) -> bool {
        self.through >= (wanted.until, i64::MAX)
    }
}

/// Requests of a canary and of the stable version beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Labelled {
    /// The version on canary.
    pub canary: LabelCounts,
    /// The version it is compared with.
    pub stable: LabelCounts,
}

/// Requests without truth.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Labels {
    /// Pairs of requests up to this one, by time and number, count.
    aged: Option<(Timestamp, i64)>,
    /// Minutes before this were counted.
    before: Timestamp,
    /// Its errors are the requests without truth.
    pub(super) rate: RateTest,
    open: OpenTable,
    /// When the share changed, while requests from before it come of age.
    changes: Vec<Timestamp>,
}

impl Labels {
    pub(super) fn new(began: Timestamp) -> Result<Self, InvalidInput> {
        Ok(Self {
            aged: None,
            before: began,
            rate: RateTest::new(MARGIN, None)?,
            open: OpenTable::default(),
            changes: vec![],
        })
    }

    /// What to read at `now`, when pairs were read up to `read`.
    pub(super) fn ripening(&self, horizon: TimeDelta, read: i64, now: Timestamp) -> Ripening {
        let until = now - horizon;
        let closed = minute_of(until - CLOSES_AFTER).map_or(self.before, |last| last + TimeDelta::minutes(1));
        Ripening { read, after: self.aged, until, minutes: (self.before, closed.max(self.before)) }
    }

    /// Whether the pair is of a request that is old enough; one that nobody served has no age.
    pub(super) fn counts(&self, pair: &PairedError) -> bool {
        pair.served_at.is_none_or(|served_at| Some((served_at, pair.seq)) <= self.aged)
    }

    /// Requests up to `through` are old enough; returns those of `pairs` that were not before.
    pub(super) fn age<'p>(
        &mut self,
        pairs: &'p [PairedError],
        through: (Timestamp, i64),
    ) -> impl Iterator<Item = &'p PairedError> {
        let before = self.aged;
        self.aged = before.max(Some(through));
        pairs
            .iter()
            .filter(move |pair| pair.served_at.is_some_and(|served_at| Some((served_at, pair.seq)) > before))
    }

    /// The canary has another share from now on: its requests before and after are not counted in one table.
    pub(super) fn share_changed(&mut self, at: Timestamp) {
        self.changes.push(at);
    }

    /// Counts minutes whose requests are old enough, each once.
    pub(super) fn count(&mut self, record: &CanaryRecord, minutes: &[LabelMinute], before: Timestamp) {
        let mut arms: BTreeMap<Timestamp, (Counts, Counts)> = BTreeMap::new();
        for minute in minutes.iter().filter(|it| it.minute >= self.before && it.minute < before) {
            let (canary, stable) = arms.entry(minute.minute).or_default();
            let side = if minute.version == record.version {
                canary
            } else if minute.version == record.champion {
                stable
            } else {
                continue;
            };
            let errors = minute.predicted.saturating_sub(minute.labelled);
            side.add(Counts { n: minute.predicted, errors, ..Counts::default() });
        }
        for (at, (canary, stable)) in arms {
            self.rate.see_canary(arm(canary.n, canary.errors));
            self.rate.see_stable(arm(stable.n, stable.errors));
            let end = at + TimeDelta::minutes(1);
            if self.changes.iter().any(|change| *change > at && *change < end) {
                continue;
            }
            if self.changes.iter().any(|change| *change <= at && self.open.began_before(*change)) {
                self.open = OpenTable::default();
            }
            self.open.add(at, canary, stable);
            if let Some(closed) = self.open.close(end, MinTable::default()) {
                self.rate.observe(&closed.errors);
            }
        }
        self.before = self.before.max(before);
        // One change before the open table's first minute is all that is still needed of the past.
        let counted = self.before;
        let last = self.changes.iter().copied().filter(|change| *change < counted).max();
        self.changes.retain(|change| *change >= counted || Some(*change) == last);
    }

    /// The canary is shown to lose more of its truths.
    pub(super) fn are_lost(&self) -> bool {
        self.rate.test.log_e_worse() >= LOG_E_WRONG
    }
}

impl CanaryRecord {
    /// How old a request must be to count where truth is needed; none when each counts as its truth arrives. Of the
    /// rules only the one on prediction errors has an age: a metric has one rule, so no rule waits for another's.
    pub(super) fn label_horizon(&self) -> Option<TimeDelta> {
        let longest = self.rules.rules.iter().map(|rule| rule.label_horizon).max()?;
        TimeDelta::from_std(longest).ok().filter(|horizon| *horizon > TimeDelta::zero())
    }

    /// A truth counts from when it arrived, and not before its request is old enough.
    pub(super) fn counts_since(&self, pair: &PairedError) -> Timestamp {
        match (pair.served_at, self.label_horizon()) {
            (Some(served_at), Some(horizon)) => pair.at.max(served_at + horizon),
            (Some(_) | None, _) => pair.at,
        }
    }

    /// Pairs in the order in which they came to count, each with when that was.
    pub(super) fn as_they_count<'p>(&self, pairs: &'p [PairedError]) -> Vec<(Timestamp, &'p PairedError)> {
        let mut pairs: Vec<_> = pairs.iter().map(|pair| (self.counts_since(pair), pair)).collect();
        if self.label_horizon().is_some() {
            pairs.sort_by_key(|(at, pair)| (*at, pair.seq));
        }
        pairs
    }

    /// What tells that a block of this canary's pairs, and of those before it, gets no more.
    pub(super) fn closing(&self) -> Closing {
        if self.label_horizon().is_some() { Closing::Quiet } else { Closing::Next }
    }
}
