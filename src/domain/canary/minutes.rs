//! Minutes of both arms on their way into tables: each is read once it is
//! closed, and rows that come later are read as what they add.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use chrono::TimeDelta;
use serde::{Deserialize, Serialize};

use super::super::Timestamp;
use super::super::evidence::EvidenceMinute;
use super::super::stats::{Arm, Table};

/// Latency buckets of a minute.
pub const LATENCY_BUCKETS: usize = 64;

/// Upper edges of the latency buckets in milliseconds, ten to a decade from 0.5 ms to 13 minutes; the last
/// bucket is open. A latency on an edge is in the bucket below it.
pub static LATENCY_EDGES_MS: LazyLock<[f64; LATENCY_BUCKETS - 1]> =
    LazyLock::new(|| std::array::from_fn(|i| 0.5 * 10f64.powf(i as f64 / 10.0)));

/// The bucket of a latency.
pub fn latency_bucket(milliseconds: f64) -> usize {
    LATENCY_EDGES_MS.partition_point(|edge| *edge < milliseconds)
}

/// Rows of a minute count in it when they come this soon after its end.
pub(super) const CLOSES_AFTER: TimeDelta = TimeDelta::seconds(60 + 90);
/// Rows are filed under minutes up to 10 minutes old: after this, nothing is added to a minute.
const FINAL_AFTER: TimeDelta = TimeDelta::minutes(15);
/// A table that small traffic keeps open closes after this at the latest.
const OPEN_AT_MOST: TimeDelta = TimeDelta::hours(24);

/// Requests of both arms that close a table: counts, never errors, so that closing says nothing of the
/// outcome. 0 and 0 closes one a minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MinTable {
    /// Of the canary.
    pub canary: u64,
    /// Of the stable arm.
    pub stable: u64,
}

impl Default for MinTable {
    fn default() -> Self {
        Self { canary: 2, stable: 10 }
    }
}

impl MinTable {
    fn reached(self, table: &OpenTable) -> bool {
        table.canary.n >= self.canary && table.stable.n >= self.stable
    }
}

/// Requests of one arm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Counts {
    pub(super) n: u64,
    pub(super) errors: u64,
    /// With a latency, since there is a threshold.
    pub(super) timed: u64,
    /// Above the threshold.
    pub(super) slow: u64,
}

impl Counts {
    pub(super) fn add(&mut self, other: Self) {
        self.n = self.n.saturating_add(other.n);
        self.errors = self.errors.saturating_add(other.errors);
        self.timed = self.timed.saturating_add(other.timed);
        self.slow = self.slow.saturating_add(other.slow);
    }

    /// What is new since `before`; a count that went back adds nothing.
    fn since(self, before: Self) -> Self {
        Self {
            n: self.n.saturating_sub(before.n),
            errors: self.errors.saturating_sub(before.errors),
            timed: self.timed.saturating_sub(before.timed),
            slow: self.slow.saturating_sub(before.slow),
        }
    }
}

/// One arm in one minute, as it stands.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
struct Standing {
    n: u64,
    errors: u64,
    /// Empty once read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    latency: Vec<u64>,
    /// What was read of it.
    read: Counts,
}

impl Standing {
    fn counts(&self, slow_above: Option<usize>) -> Counts {
        let (timed, slow) = match slow_above {
            Some(edge) if self.latency.len() == LATENCY_BUCKETS => {
                (sum(&self.latency), sum(&self.latency[edge + 1..]))
            }
            Some(_) | None => (self.read.timed, self.read.slow),
        };
        Counts { n: self.n, errors: self.errors, timed, slow }
    }
}

/// A count no table can hold, such as more errors than requests, is no evidence.
pub(super) fn arm(n: u64, e: u64) -> Arm {
    Arm::new(n, e).unwrap_or_default()
}

pub(super) fn sum(counts: &[u64]) -> u64 {
    counts.iter().fold(0, |sum, count| sum.saturating_add(*count))
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
struct Minute {
    canary: Standing,
    stable: Standing,
    /// It was closed and read; whatever comes now is late.
    read: bool,
    /// It was read before there was a latency threshold: its latencies stay out of the test.
    untimed: bool,
}

/// What a closed minute adds.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Arrived {
    pub(super) minute: Timestamp,
    /// The minute was read before; these came after.
    pub(super) late: bool,
    pub(super) canary: Counts,
    pub(super) stable: Counts,
    /// Latencies of the stable arm, on time.
    pub(super) stable_latency: Vec<u64>,
}

/// Which arm a minute is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Canary,
    Stable,
}

/// Minutes that are open or may still change.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct Intake {
    minutes: BTreeMap<Timestamp, Minute>,
}

impl Intake {
    /// Takes in a minute as it stands now; the same one twice is one.
    pub(super) fn absorb(&mut self, side: Side, news: EvidenceMinute) {
        let minute = self.minutes.entry(news.minute).or_default();
        let standing = match side {
            Side::Canary => &mut minute.canary,
            Side::Stable => &mut minute.stable,
        };
        standing.n = news.counts.n;
        standing.errors = news.counts.errors;
        standing.latency = news.latency;
    }

    /// What the first closed minute from `from` to before `to` adds that was not read yet. `slow_above`: the
    /// edge above which a request is slow.
    pub(super) fn next(
        &mut self,
        (from, to): (Timestamp, Timestamp),
        now: Timestamp,
        slow_above: Option<usize>,
    ) -> Option<Arrived> {
        let closed =
            self.minutes.range_mut(from..to.max(from)).take_while(|(at, _)| **at + CLOSES_AFTER <= now);
        for (at, minute) in closed {
            let late = minute.read;
            minute.untimed |= !late && slow_above.is_none();
            let edge = slow_above.filter(|_| !minute.untimed);
            let (canary, stable) = (minute.canary.counts(edge), minute.stable.counts(edge));
            let latency = std::mem::take(&mut minute.stable.latency);
            minute.canary.latency.clear();
            let new = Arrived {
                minute: *at,
                late,
                canary: canary.since(minute.canary.read),
                stable: stable.since(minute.stable.read),
                stable_latency: if late { vec![] } else { latency },
            };
            (minute.canary.read, minute.stable.read, minute.read) = (canary, stable, true);
            if new.canary != Counts::default() || new.stable != Counts::default() {
                return Some(new);
            }
        }
        None
    }

    /// Drops what is before `at`.
    pub(super) fn forget_before(&mut self, at: Timestamp) {
        self.minutes = self.minutes.split_off(&at);
    }

    /// Minutes that were read and can no longer change, oldest first: requests of the canary and of the
    /// stable arm.
    pub(super) fn retire(&mut self, now: Timestamp) -> Vec<(Timestamp, u64, u64)> {
        let mut retired = vec![];
        self.minutes.retain(|at, minute| {
            let keep = !minute.read || *at + FINAL_AFTER > now;
            if !keep {
                retired.push((*at, minute.canary.n, minute.stable.n));
            }
            keep
        });
        retired
    }
}

/// A table that waits until both arms have enough requests to say something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct OpenTable {
    canary: Counts,
    stable: Counts,
    since: Option<Timestamp>,
}

/// A table of each rate that is tested.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Closed {
    pub(super) errors: Table,
    pub(super) slow: Table,
}

impl OpenTable {
    pub(super) fn add(&mut self, minute: Timestamp, canary: Counts, stable: Counts) {
        self.canary.add(canary);
        self.stable.add(stable);
        self.since.get_or_insert(minute);
    }

    /// Whether it holds anything from before `at`.
    pub(super) fn began_before(&self, at: Timestamp) -> bool {
        self.since.is_some_and(|since| since < at)
    }

    /// The table, when it has enough requests or was open long enough at `at`.
    pub(super) fn close(&mut self, at: Timestamp, enough: MinTable) -> Option<Closed> {
        let since = self.since?;
        (enough.reached(self) || at - since >= OPEN_AT_MOST).then(|| std::mem::take(self).closed())
    }

    /// Both as one table, when neither is enough by itself and both together are: arms that report at
    /// different times would otherwise never meet.
    pub(super) fn close_together(&mut self, other: &mut Self) -> Option<Closed> {
        let mut both = *self;
        both.canary.add(other.canary);
        both.stable.add(other.stable);
        MinTable::default().reached(&both).then(|| {
            (*self, *other) = (Self::default(), Self::default());
            both.closed()
        })
    }

    fn closed(self) -> Closed {
        let (c, s) = (self.canary, self.stable);
        Closed {
            errors: Table { canary: arm(c.n, c.errors), stable: arm(s.n, s.errors) },
            slow: Table { canary: arm(c.timed, c.slow), stable: arm(s.timed, s.slow) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_rise_and_every_latency_has_a_bucket() {
        assert!(LATENCY_EDGES_MS.is_sorted());
        for (latency, bucket) in [(0.0, 0), (0.5, 0), (0.6, 1), (1e9, LATENCY_BUCKETS - 1)] {
            assert_eq!(latency_bucket(latency), bucket, "{latency} ms");
        }
    }
}
