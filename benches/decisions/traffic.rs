//! Requests that never were.

use std::f64::consts::TAU;

use rand::rngs::Xoshiro256PlusPlus;
use rand_distr::{Distribution, Geometric, Poisson};
use refit::domain::stats::{Arm, Table};

use crate::Failure;

/// Minutes that are simulated: a day.
pub const DAY: u32 = 1440;
/// The mean size of a cluster of errors: one client that tries again.
const CLUSTER: f64 = 3.0;
/// Half an hour in which three of ten requests fail, whoever serves them.
const OUTAGE: (std::ops::Range<u32>, f64) = (600..630, 0.3);

/// What the requests are like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Weather {
    /// One rate, independent requests, 10 % for the canary.
    Calm,
    /// Day and night (traffic and errors, by half each), an outage, 10 %, 25 %, 50 % for the canary.
    Drift,
    /// Errors come in clusters of three on average, within an arm and a minute.
    Clustered,
}

/// Traffic of both arms.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Traffic {
    pub per_minute: f64,
    /// Errors per request of the stable arm.
    pub base: f64,
    /// Of the canary, as a ratio.
    pub ratio: f64,
    pub weather: Weather,
}

impl Traffic {
    pub fn share(&self, minute: u32) -> f64 {
        match self.weather {
            Weather::Calm | Weather::Clustered => 0.1,
            Weather::Drift => [0.1, 0.25, 0.5][(minute * 3 / DAY).min(2) as usize],
        }
    }

    /// Both arms in a minute.
    pub fn minute(&self, minute: u32, random: &mut Xoshiro256PlusPlus) -> Result<Table, Failure> {
        let share = self.share(minute);
        Ok(Table {
            canary: self.arm(minute, share, self.ratio, random)?,
            stable: self.arm(minute, 1.0 - share, 1.0, random)?,
        })
    }

    /// A minute before the canary: the stable version has everything.
    pub fn before(&self, minute: u32, random: &mut Xoshiro256PlusPlus) -> Result<Table, Failure> {
        Ok(Table { stable: self.arm(minute, 1.0, 1.0, random)?, ..Table::default() })
    }

    fn arm(
        &self,
        minute: u32,
        share: f64,
        ratio: f64,
        random: &mut Xoshiro256PlusPlus,
    ) -> Result<Arm, Failure> {
        let (mut requests, mut rate) = (self.per_minute * share, (self.base * ratio).min(1.0));
        if self.weather == Weather::Drift {
            let hour = TAU * f64::from(minute) / f64::from(DAY);
            requests *= 1.0 + 0.5 * hour.sin();
            rate = if OUTAGE.0.contains(&minute) { OUTAGE.1 } else { rate * (1.0 + 0.5 * hour.cos()) };
        }
        let errors = match self.weather {
            Weather::Calm | Weather::Drift => poisson(requests * rate, random)?,
            Weather::Clustered => {
                let mut errors = 0;
                let more = Geometric::new(CLUSTER.recip())?;
                for _ in 0..poisson(requests * rate / CLUSTER, random)? {
                    errors += 1 + more.sample(random);
                }
                errors
            }
        };
        // Errors and successes are independent: their sum is a Poisson count of which each fails by chance.
        Ok(Arm::new(errors + poisson(requests * (1.0 - rate), random)?, errors)?)
    }
}

pub fn poisson(mean: f64, random: &mut Xoshiro256PlusPlus) -> Result<u64, Failure> {
    if mean <= 0.0 {
        return Ok(0);
    }
    Ok(Poisson::new(mean)?.sample(random) as u64)
}
