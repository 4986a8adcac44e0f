//! What a look costs.

use std::time::Instant;

use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use refit::domain::canary::{MinTable, Replay};
use serde::Serialize;

use crate::Failure;
use crate::row::{ALPHA, minute, rules};
use crate::traffic::{Traffic, Weather};

const REQUESTS: f64 = 1e6;
const LOOKS: u32 = 200;

/// One minute's look at a metric, its interval included.
#[derive(Debug, Clone, Serialize)]
pub struct Measured {
    pub name: String,
    pub requests_per_minute: f64,
    pub looks: u32,
    pub median_ms: f64,
    pub worst_ms: f64,
}

pub fn measure() -> Result<Measured, Failure> {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(1);
    let traffic = Traffic { per_minute: REQUESTS, base: 0.02, ratio: 1.0, weather: Weather::Drift };
    let mut replay = Replay::new(rules(ALPHA, 1.5), MinTable::default(), None)?;
    let mut times = vec![];
    for at in 0..LOOKS {
        // The outage, with hundreds of thousands of errors, is among them.
        let table = traffic.minute(500 + at, &mut random)?;
        let begin = Instant::now();
        replay.minute(&minute(at, table))?;
        let evidence = replay.evidence();
        times.push(begin.elapsed().as_secs_f64() * 1000.0);
        std::hint::black_box(evidence);
    }
    times.sort_unstable_by(f64::total_cmp);
    Ok(Measured {
        name: "look".to_owned(),
        requests_per_minute: REQUESTS,
        looks: LOOKS,
        median_ms: times[times.len() / 2],
        worst_ms: times[times.len() - 1],
    })
}
