//! Little traffic: tables that wait for their requests.

use std::f64::consts::TAU;

use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use refit::domain::canary::{MinTable, Replay};
use refit::domain::stats::{Arm, Table};
use refit::domain::verdict::Verdict;
use serde::Serialize;

use crate::Failure;
use crate::row::{ALPHA, median, minute, rules, share};
use crate::traffic::{DAY, poisson};

/// Days until such a canary must be decided.
const DAYS: u32 = 7;

/// A kind of canary at a traffic.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    place: u64,
    per_day: f64,
    base: f64,
    canary: Canary,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Canary {
    Equal,
    FailsEverything,
}

/// A case as measured.
#[derive(Debug, Clone, Serialize)]
pub struct Measured {
    pub name: String,
    pub requests_per_day: f64,
    pub base: f64,
    pub canary: String,
    pub runs: usize,
    /// Share of the runs that were rolled back within a week.
    pub rollback: f64,
    /// Median hours until then.
    pub hours: Option<f64>,
    /// The same with plain minutes in place of tables that wait.
    pub rollback_plain: f64,
    pub hours_plain: Option<f64>,
    pub fails_everything: bool,
}

pub fn all() -> Vec<Case> {
    let mut cases = vec![];
    for per_day in [50.0, 200.0, 1000.0] {
        for base in [0.01, 0.1] {
            for canary in [Canary::Equal, Canary::FailsEverything] {
                cases.push(Case { place: 1000 + cases.len() as u64, per_day, base, canary });
            }
        }
    }
    cases
}

impl Case {
    pub fn measure(self, runs: usize) -> Result<Measured, Failure> {
        let mut found = [vec![], vec![]];
        for run in 0..runs {
            let tables = [MinTable::default(), MinTable { canary: 0, stable: 0 }];
            for (hours, min_table) in found.iter_mut().zip(tables) {
                hours.push(self.week(run as u64, min_table)?);
            }
        }
        let [tables, plain] = found;
        let rolled_back = |hours: &[f64]| share(hours.iter().filter(|hours| hours.is_finite()).count(), runs);
        Ok(Measured {
            name: "small traffic".to_owned(),
            requests_per_day: self.per_day,
            base: self.base,
            canary: match self.canary {
                Canary::Equal => "equal".to_owned(),
                Canary::FailsEverything => "fails every request".to_owned(),
            },
            runs,
            rollback: rolled_back(&tables),
            rollback_plain: rolled_back(&plain),
            hours: median(tables),
            hours_plain: median(plain),
            fails_everything: self.canary == Canary::FailsEverything,
        })
    }

    /// Hours until it is rolled back. Both traffic and errors swing by nine tenths and by half between day
    /// and night, and the canary goes out at a random hour.
    fn week(&self, run: u64, min_table: MinTable) -> Result<f64, Failure> {
        let mut random = Xoshiro256PlusPlus::seed_from_u64((self.place << 32) | run);
        let start = (run * 379 % u64::from(DAY)) as u32;
        let mut replay = Replay::new(rules(ALPHA, 1.5), min_table, None)?.without_interval();
        // A day before the canary, of the stable version alone, as the controller reads it.
        for at in 0..(DAYS + 1) * DAY {
            let hour = TAU * f64::from(at + start) / f64::from(DAY);
            let requests = self.per_day / f64::from(DAY) * (1.0 + 0.9 * hour.sin());
            let rate = self.base * (1.0 + 0.5 * hour.cos());
            let mut arm = |share: f64, rate: f64| {
                let errors = poisson(requests * share * rate, &mut random)?;
                let fine = poisson(requests * share * (1.0 - rate), &mut random)?;
                Ok::<_, Failure>(Arm::new(errors + fine, errors)?)
            };
            let Some(at) = at.checked_sub(DAY) else {
                replay.learn(&minute(at, Table { stable: arm(1.0, rate)?, ..Table::default() }));
                continue;
            };
            let canary_rate = if self.canary == Canary::Equal { rate } else { 1.0 };
            let table = Table { canary: arm(0.1, canary_rate)?, stable: arm(0.9, rate)? };
            if replay.minute(&minute(at, table))? == Verdict::Fail {
                return Ok(f64::from(at + 1) / 60.0);
            }
        }
        Ok(f64::INFINITY)
    }
}
