//! A canary played through with the tables and tests that will decide: what a
//! forecast goes by where tables wait for requests.
//!
//! A table is drawn as a whole: the arms' requests are Poisson processes, so
//! the time until each has enough of them is a gamma variate, and what comes
//! meanwhile a Poisson or binomial one. The work is then that of the tables,
//! which are few, and not that of the requests, which may be any number.

use chrono::TimeDelta;
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use rand_distr::{Binomial, Distribution, Gamma, Poisson};

use super::super::Timestamp;
use super::super::stats::{Arm, InvalidInput, Table};
use super::super::verdict::Verdict;
use super::super::workflow::step::{Compare, OnlineMetric, Stage};
use super::forecast::Expected;
use super::minutes::MinTable;
use super::replay::{Replay, ReplayMinute};

/// Up to this many tables a canary is played through.
const FEW_TABLES: f64 = 200.0;
/// Times that it is, at most: a chance is then known to 7 points.
const RUNS: f64 = 200.0;
/// Tables that are judged for one forecast, about: a fraction of a second.
const TABLES: f64 = 150_000.0;
/// What a table costs whose interval is needed, as a multiple of one without.
const INTERVAL: f64 = 6.0;
const SEED: u64 = 0x7265_6669_7400_0001;
/// A table closes after this many minutes at the latest.
const A_DAY: f64 = 1440.0;

/// Canaries to be played.
pub(super) struct Play<'p> {
    start: Replay,
    stages: &'p [Stage],
    minutes: f64,
    expected: Expected,
    min_table: MinTable,
    /// Times each canary is played.
    pub(super) runs: u32,
    /// Tables that were judged.
    pub(super) judged: u64,
}

/// How one ended, and after how many minutes.
pub(super) type End = (Verdict, f64);

/// How long a table waits for its requests at `share`: at least a minute, at most a day.
pub(super) fn table_minutes(share: f64, per_minute: f64, min_table: MinTable) -> f64 {
    let wait = |requests: u64, share: f64| requests as f64 / (share * per_minute);
    let longer = wait(min_table.canary, share).max(wait(min_table.stable, 1.0 - share));
    longer.clamp(1.0, A_DAY)
}

impl<'p> Play<'p> {
    /// `cases` canaries over `minutes`; none where tables do not wait, or there are too many of them.
    ///
    /// # Errors
    /// A rule with a margin or limit that has no meaning.
    pub(super) fn of(
        rules: &Compare,
        stages: &'p [Stage],
        minutes: f64,
        expected: Expected,
        min_table: MinTable,
        cases: usize,
    ) -> Result<Option<Self>, InvalidInput> {
        let rates = rules.rules.iter().filter(|rule| rule.metric != OnlineMetric::AbsError).cloned();
        let rules = Compare { rules: rates.collect(), ..rules.clone() };
        // Every table comes closed.
        let closed = MinTable { canary: 0, stable: 0 };
        let start = Replay::new(rules, closed, Some(expected.dispersion))?.without_interval();
        let mut play = Self { start, stages, minutes, expected, min_table, runs: 0, judged: 0 };
        let (mut tables, mut began, mut waits) = (0.0, 0.0, false);
        for (share, until) in play.legs() {
            let wait = table_minutes(share, play.per_minute(), min_table);
            tables += (until - began) / wait;
            began = until;
            waits |= wait > 1.0;
        }
        if !waits || tables > FEW_TABLES {
            return Ok(None);
        }
        let per_table = if play.start.has_intervals() { INTERVAL } else { 1.0 };
        let runs = TABLES / (per_table * tables.max(1.0) * cases.max(1) as f64);
        play.runs = runs.clamp(1.0, RUNS) as u32;
        Ok(Some(play))
    }

    fn per_minute(&self) -> f64 {
        self.expected.requests_per_day / A_DAY
    }

    /// Shares of traffic, each with the minute at which it ends.
    fn legs(&self) -> Vec<(f64, f64)> {
        let (mut legs, mut until) = (vec![], 0.0);
        for (place, stage) in self.stages.iter().enumerate() {
            let last = place + 1 == self.stages.len();
            until = if last { self.minutes } else { until + stage.min_time.as_secs_f64() / 60.0 };
            legs.push((stage.share.fraction(), until.min(self.minutes)));
        }
        legs
    }

    /// How canaries end that have `ratio` times the errors; a pass counts from `earliest` on.
    pub(super) fn all(&mut self, ratio: f64, earliest: f64) -> Result<Vec<End>, InvalidInput> {
        (0..self.runs)
            .map(|run| self.once(ratio, earliest, Xoshiro256PlusPlus::seed_from_u64(SEED + u64::from(run))))
            .collect()
    }

    fn once(
        &mut self,
        ratio: f64,
        earliest: f64,
        mut random: Xoshiro256PlusPlus,
    ) -> Result<End, InvalidInput> {
        let (mut replay, mut at) = (self.start.clone(), 0.0);
        let mut ended = (Verdict::Inconclusive, self.minutes);
        for (share, until) in self.legs() {
            while at < until {
                let drawn = self.draw(share, until - at, &mut random);
                at += drawn.minutes;
                let minute = self.filled(&drawn, at, ratio, &mut random)?;
                self.judged += 1;
                let verdict = replay.minute(&minute)?;
                if verdict != ended.0 {
                    ended = (verdict, at);
                }
                if verdict == Verdict::Fail || (verdict == Verdict::Pass && at >= earliest) {
                    return Ok(ended);
                }
            }
        }
        Ok(ended)
    }

    /// The next table, or what is open when no more than `left` minutes of this share are left.
    fn draw(&self, share: f64, left: f64, random: &mut Xoshiro256PlusPlus) -> Drawn {
        let canary = Waiting::draw(self.min_table.canary, share * self.per_minute(), random);
        let stable = Waiting::draw(self.min_table.stable, (1.0 - share) * self.per_minute(), random);
        // A look closes it, and looks are a minute apart.
        let minutes = canary.reached.max(stable.reached).ceil().clamp(1.0, A_DAY);
        let closed = minutes <= left;
        let minutes = minutes.min(left);
        // Arms of an open table are never compared; what the canary did counts by itself.
        let stable = if closed { stable.until(minutes, random) } else { 0 };
        Drawn { canary: canary.until(minutes, random), stable, minutes }
    }

    fn filled(
        &self,
        drawn: &Drawn,
        at: f64,
        ratio: f64,
        random: &mut Xoshiro256PlusPlus,
    ) -> Result<ReplayMinute, InvalidInput> {
        let Expected { error_rate, slow_share, .. } = self.expected;
        let mut arm = |requests: u64, rate: f64| Arm::new(requests, binomial(requests, rate, random));
        Ok(ReplayMinute {
            at: Timestamp::UNIX_EPOCH + TimeDelta::seconds((60.0 * at) as i64),
            errors: Table {
                canary: arm(drawn.canary, (error_rate * ratio).min(1.0))?,
                stable: arm(drawn.stable, error_rate)?,
            },
            slow: Table { canary: arm(drawn.canary, slow_share)?, stable: arm(drawn.stable, slow_share)? },
            pairs: vec![],
        })
    }
}

/// Requests of both arms in so many minutes.
struct Drawn {
    canary: u64,
    stable: u64,
    minutes: f64,
}

/// An arm that waits for its requests.
struct Waiting {
    enough: u64,
    per_minute: f64,
    /// The minute at which it has them.
    reached: f64,
}

impl Waiting {
    fn draw(enough: u64, per_minute: f64, random: &mut Xoshiro256PlusPlus) -> Self {
        // Only no requests at all have no such distribution.
        let wait = Gamma::new(enough as f64, per_minute.recip());
        Self { enough, per_minute, reached: wait.map_or(0.0, |wait| wait.sample(random)) }
    }

    /// Requests until `minute`: uniform over the wait before it has enough, Poisson after it.
    fn until(&self, minute: f64, random: &mut Xoshiro256PlusPlus) -> u64 {
        if minute < self.reached {
            return binomial(self.enough.saturating_sub(1), minute / self.reached, random);
        }
        let more = Poisson::new((minute - self.reached) * self.per_minute);
        self.enough + more.map_or(0, |more| more.sample(random) as u64)
    }
}

fn binomial(n: u64, chance: f64, random: &mut Xoshiro256PlusPlus) -> u64 {
    Binomial::new(n, chance).map_or(0, |count| count.sample(random))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arm_that_waits_has_the_requests_of_a_poisson_process() {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(7);
        // Before it has enough, about then, and long after.
        for minute in [5.0, 40.0, 200.0] {
            let draws = 20_000;
            let counts: Vec<f64> = (0..draws)
                .map(|_| Waiting::draw(10, 0.25, &mut random).until(minute, &mut random) as f64)
                .collect();
            let mean = counts.iter().sum::<f64>() / f64::from(draws);
            let variance = counts.iter().map(|count| (count - mean).powi(2)).sum::<f64>() / f64::from(draws);
            let expected = 0.25 * minute;
            let error = (expected / f64::from(draws)).sqrt();
            assert!((mean - expected).abs() < 4.0 * error, "{minute}: {mean}, expected {expected}");
            assert!((variance / expected - 1.0).abs() < 0.06, "{minute}: {variance}, expected {expected}");
        }
    }

    #[test]
    fn an_arm_that_waits_for_nothing_has_it_at_once() {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(7);
        let waiting = Waiting::draw(0, 0.25, &mut random);
        assert_eq!((waiting.reached, waiting.until(0.0, &mut random)), (0.0, 0));
    }
}
