//! A crash during the recovery from a crash: the first process dies after each of its writes, the second after each
//! of those that it makes then.
//!
//! Only after: a death before a write is a death after the one that was made before it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::process::{self, Fate, Inbox};
use super::{Database, Story, comes_by_time, prepared, tell};
use crate::support::crash::{Crash, When, Write};

/// Every pair whose first crash is at `from` or later; at any write when that is absent.
fn every_pair(story: Story, from: Option<&str>) {
    let inbox = Inbox::open();
    let prepared = prepared(Database::Sqlite, story, &inbox);
    let counted = Crash::never();
    let (_, calm) = tell(&prepared, story, &[&counted], &inbox);
    assert_eq!(calm.outcome, Some(story.outcome()), "{calm:#?}");
    let mut firsts = counted.trace();
    if let Some(name) = from {
        firsts.drain(..firsts.iter().position(|write| write.name == name).expect("there"));
    }
    let dies = |write: &Write| Crash::at(write.clone(), When::After);
    let mut pairs = vec![];
    for first in firsts {
        let recovery = Crash::never();
        let (_, proof) = tell(&prepared, story, &[&dies(&first), &recovery], &inbox);
        assert_eq!(calm.difference(&proof), None, "died after {first}");
        pairs.extend(recovery.trace().into_iter().map(|second| (first.clone(), second)));
    }
    assert!(pairs.len() > 40, "only {} pairs", pairs.len());

    let (next, wrong) = (AtomicUsize::new(0), Mutex::new(vec![]));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some((first, second)) = pairs.get(next.fetch_add(1, Ordering::SeqCst)) {
                    let crashes = [&dies(first), &dies(second)];
                    let told = catch_unwind(AssertUnwindSafe(|| tell(&prepared, story, &crashes, &inbox)));
                    let by_time = comes_by_time(first) || comes_by_time(second);
                    let problem = match told {
                        Ok((Fate::Ended, _)) if !by_time => Some("was never reached".to_owned()),
                        Ok((_, proof)) => calm.difference(&proof),
                        Err(panic) => Some(process::words_of(panic.as_ref())),
                    };
                    let problem =
                        problem.map(|problem| format!("died after {first}, then after {second}: {problem}"));
                    wrong.lock().unwrap().extend(problem);
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{} of {} pairs:\n{}", wrong.len(), pairs.len(), wrong.join("\n"));
}

#[test]
fn a_refused_model_never_serves_whatever_writes_it_dies_at_twice() {
    every_pair(Story::Refused, None);
}

#[test]
fn a_cancelled_run_takes_its_canary_back_whatever_writes_it_dies_at_twice() {
    every_pair(Story::Cancelled, Some("request_cancel"));
}
