//! A crash during the recovery from a crash: the first process dies after each of its writes, the second after each
//! of those that it makes then.
//!
//! Only after: a death before a write is a death after the one that was made before it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::inbox::Inbox;
use super::process;
use super::stories::endings::{Cancelled, Refused};
use super::story::{Database, Story, from};
use super::{prepared, tell, tell_calmly};
use crate::support::crash::{Crash, When, Write};

/// Every pair whose first crash is at `begin` or later; at any write when that is absent.
fn every_pair(story: &dyn Story, begin: Option<&str>) {
    let inbox = Inbox::open();
    let prepared = prepared(Database::Sqlite, story, &inbox);
    let (calm, mut firsts) = tell_calmly(&prepared, story, &inbox);
    if let Some(name) = begin {
        firsts = from(name, firsts);
    }
    let dies = |write: &Write| Crash::at(write.clone(), When::After);
    let mut pairs = vec![];
    for first in firsts {
        let recovery = Crash::never();
        let told = tell(&prepared, story, &[&dies(&first), &recovery], &inbox);
        assert_eq!(calm.proof.difference(&told.proof), None, "died after {first}");
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
                    let problem = match told {
                        Ok(told) => told.problem(story, &calm, &[first, second]),
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
    every_pair(&Refused, None);
}

#[test]
fn a_cancelled_run_takes_its_canary_back_whatever_writes_it_dies_at_twice() {
    every_pair(&Cancelled, Some("request_cancel"));
}
