//! A crash during the recovery from a crash: the first process dies after each of its writes, the second after each
//! of those that it makes then.
//!
//! Only after: a death before a write is a death after the one that was made before it.

use super::inbox::Inbox;
use super::stories::endings::{Cancelled, Refused};
use super::story::{Database, Story, from};
use super::{every_death, prepared, tell, tell_calmly};
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
        let after = |write: Write| (write, When::After);
        pairs.extend(recovery.trace().into_iter().map(|second| vec![after(first.clone()), after(second)]));
    }
    assert!(pairs.len() > 40, "only {} pairs", pairs.len());

    every_death(&prepared, story, &calm, &inbox, &pairs);
}

#[test]
fn a_refused_model_never_serves_whatever_writes_it_dies_at_twice() {
    every_pair(&Refused, None);
}

#[test]
fn a_cancelled_run_takes_its_canary_back_whatever_writes_it_dies_at_twice() {
    every_pair(&Cancelled, Some("request_cancel"));
}
