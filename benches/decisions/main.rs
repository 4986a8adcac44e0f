//! How often the canary analysis is wrong, and how long it takes to be right:
//! `cargo bench --bench decisions [-- RUNS]` (1,000 a row when not given). One
//! JSON line a row on stdout, and the tables of `docs/decisions.md`.
//!
//! The product's own code decides (`domain::canary::Replay`: the tables, tests
//! and limits of the controller). Beside it, on the same requests: a test that
//! knows both rates, one look after a day, failed checks as Flagger counts
//! them, and a z-test at every look. Seeds are fixed: the same figures every time.

mod latency;
mod peers;
mod report;
mod row;
mod small;
mod traffic;

use std::collections::VecDeque;
use std::io::Write as _;
use std::sync::{Mutex, PoisonError};

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let runs = std::env::args().skip(1).find_map(|word| word.parse().ok()).unwrap_or(1000);
    let look = latency::measure()?;
    let rows = parallel(row::all(), |row| row.measure(runs))?;
    let small = parallel(small::all(), |case| case.measure(runs))?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(&look)?)?;
    for row in &rows {
        writeln!(out, "{}", serde_json::to_string(row)?)?;
    }
    for case in &small {
        writeln!(out, "{}", serde_json::to_string(case)?)?;
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/decisions.md");
    report::write(path.as_ref(), runs, &look, &rows, &small)?;
    let missed = report::missed(&rows, &small, &look);
    for miss in &missed {
        writeln!(out, "{}", serde_json::json!({"missed": miss}))?;
    }
    Ok(())
}

/// `work` of every case, on all cores, in the order of the cases.
fn parallel<C: Send, R: Send>(
    cases: Vec<C>,
    work: impl Fn(C) -> Result<R, Failure> + Sync,
) -> Result<Vec<R>, Failure> {
    let count = cases.len();
    let queue: Mutex<VecDeque<_>> = Mutex::new(cases.into_iter().enumerate().collect());
    let done = Mutex::new(Vec::with_capacity(count));
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some((place, case)) = next else { return };
                    let result = work(case);
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((place, result));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(place, _)| *place);
    done.into_iter().map(|(_, result)| result).collect()
}
