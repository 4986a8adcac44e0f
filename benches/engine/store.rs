//! The store's share: checkpoints without an engine around them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use refit::clock::{Clock, SystemClock};
use refit::store::{Checkpoint, Store};
use serde_json::json;

use crate::Failure;

#[path = "../../tests/it/store/make.rs"]
#[expect(dead_code, reason = "shared with the tests, which use all of it")]
mod make;

/// The first step began with the claim, the others with the checkpoint before.
fn begun_in(parent: Option<String>, checkpoint: Checkpoint) -> Checkpoint {
    match parent {
        Some(parent) => make::after(&parent, checkpoint),
        None => checkpoint,
    }
}

/// Checkpoints per second over so many runs at once; each ends one step and starts the next.
pub async fn checkpoints_per_second(
    store: &Arc<dyn Store>,
    runs: usize,
    time: Duration,
) -> Result<f64, Failure> {
    let clock = SystemClock;
    let worker = make::worker(store, clock.now()).await;
    let mut held = Vec::new();
    for _ in 0..runs {
        let run = make::run(store, clock.now()).await;
        held.push(make::claim(store, run, worker, clock.now()).await);
    }
    let done = Arc::new(AtomicU64::new(0));
    let begin = Instant::now();
    let loops = held.into_iter().map(|claim| {
        let (store, done) = (Arc::clone(store), Arc::clone(&done));
        tokio::spawn(async move {
            let (mut parent, mut last) = (None, "a".to_owned());
            for step in 0_u64.. {
                if begin.elapsed() >= time {
                    break;
                }
                let next = format!("s{step}");
                let output = json!({"mae": 512.25, "rows": 20_000, "note": "about a hundred bytes of output of a step, like this"});
                let checkpoint = make::next_step(&claim, &last, &next, output, clock.now());
                store.checkpoint(begun_in(parent, checkpoint)).await?;
                done.fetch_add(1, Ordering::Relaxed);
                (parent, last) = (Some(last), next);
            }
            store.checkpoint(begun_in(parent, make::finish(&claim, &last, clock.now()))).await
        })
    });
    for ended in futures::future::join_all(loops).await {
        ended??;
    }
    store.retire_worker(worker).await?;
    Ok(done.load(Ordering::Relaxed) as f64 / begin.elapsed().as_secs_f64())
}
