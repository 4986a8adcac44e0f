//! Tokens are in headers, and nowhere else: not in what refit says at its loudest, not in its errors, its
//! database, its messages or its addresses, whatever the vendors answer. They show what they were sent, too.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};

use chrono::TimeDelta;
use refit::clock::ManualClock;
use refit::domain::run::{Outcome, Run, RunStatus};
use tracing_subscriber::fmt::MakeWriter;

use super::place::{Place, QUICK};
use crate::support::faults::Fault;
use crate::support::instance::Instance;
use crate::support::vercel_blob::VercelBlob;
use crate::support::world::start;
use crate::support::{resend, slack, vercel};

/// What is written to the log.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'w> MakeWriter<'w> for Log {
    type Writer = Self;

    fn make_writer(&'w self) -> Self {
        self.clone()
    }
}

/// Everything that must not be seen, by whose it is.
fn secrets() -> BTreeMap<&'static str, String> {
    let blob = VercelBlob::token();
    let secret = blob.rsplit('_').next().expect("the secret part").to_owned();
    [
        ("blob", secret),
        ("vercel", vercel::TOKEN.to_owned()),
        ("resend", resend::KEY.to_owned()),
        ("slack", slack::TOKEN.to_owned()),
    ]
    .into()
}

/// Whose secrets are in `bytes`.
fn leaks(bytes: &[u8]) -> Vec<&'static str> {
    let text = String::from_utf8_lossy(bytes);
    let found = secrets().into_iter().filter(|(_, secret)| text.contains(secret.as_str()));
    found.map(|(whose, _)| whose).collect()
}

/// Files below `dir` that hold a secret; the team's own `.secrets` may.
fn scan(dir: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).expect("readable") {
        let path = entry.expect("readable").path();
        if path.ends_with(".secrets") || path.is_symlink() {
            continue;
        }
        if path.is_dir() {
            scan(&path, found);
        } else {
            let leaks = leaks(&std::fs::read(&path).expect("readable"));
            found.extend((!leaks.is_empty()).then(|| format!("{}: {leaks:?}", path.display())));
        }
    }
}

async fn finish(refit: &Instance) -> Run {
    let run = refit.retrain(&[]).await;
    for _ in 0..200 {
        let seen = refit.settle(run).await;
        refit.show().await;
        let outbox = refit.engine.store.outbox_of(run).await.expect("readable");
        let told = outbox.iter().all(|entry| entry.sent_at.is_some() || entry.dead);
        if seen.status == RunStatus::Finished && told {
            return seen;
        }
        refit.clock.advance(TimeDelta::minutes(1));
    }
    panic!("the run never ended: {:#?}", refit.engine.store.attempts(run).await);
}

/// What each vendor says instead of an answer: with the token in it, as a proxy that shows what it was sent.
fn echoes(place: &Place, status: u16) {
    let of = secrets();
    let said = |whose: &str| format!("{{\"error\":\"you sent Bearer {}\"}}", of[whose]);
    let code = format!("you_sent_{}", VercelBlob::token());
    let blob = &place.blob;
    blob.fault(blob.on(blob.refused(status, &code), |call| call.op.writes()).once());
    place.vercel.server.fault_after(0, Fault::Answer(status, vec![], said("vercel")));
    place.resend.server.next(Fault::Answer(status, vec![], said("resend")));
    place.slack.server.next(Fault::Answer(status, vec![], said("slack")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_in_no_log_error_database_message_or_address() {
    let log = Log::default();
    let loudest = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_ansi(false);
    let loudest = loudest.with_writer(log.clone()).try_init();
    loudest.expect("the only one that listens: each test is a process of its own");
    let place = Place::new(false, QUICK).await;
    place.edit("workflows/retrain.yaml", &[("attempts: 3", "attempts: 9")]);
    place.race_until("2026-11-20", &["--starters", "2"]);
    let database = place.root().join("refit.db").display().to_string();
    let clock = Arc::new(ManualClock::starting_at(start()));
    let refit = Instance::on(place.root(), &database, clock).await;
    let mut errors = vec![];

    // What passes: it is tried again.
    echoes(&place, 500);
    let first = finish(&refit).await;
    assert_eq!(first.outcome, Some(Outcome::Promoted), "{:?}", first.reason);
    place.blob.fault(place.blob.on(Fault::LostAnswer, |call| call.op.writes()).once());
    place.vercel.server.fault_after(0, Fault::Cut);
    place.resend.server.next(Fault::Cut);
    place.slack.server.next(Fault::Torn);

    // What does not: nobody may do anything any more.
    for status in [401, 403] {
        echoes(&place, status);
        let refused = finish(&refit).await;
        assert_eq!(refused.outcome, Some(Outcome::Failed), "{:?}", refused.reason);
        errors.extend(refused.reason);
    }
    for target in refit.engine.services.targets.values() {
        place.vercel.server.fault_after(0, Fault::Answer(403, vec![], vercel::TOKEN.to_owned()));
        errors.push(target.check().await.expect_err("refused").to_string());
    }

    let store = &refit.engine.store;
    for run in refit.runs().await {
        for entry in store.outbox_of(run.id).await.expect("readable") {
            errors.extend(entry.last_error.clone());
            errors.push(format!("{entry:?}"));
        }
        errors.push(format!("{:?}", store.attempts(run.id).await.expect("readable")));
    }
    store.retire_worker(refit.engine.worker).await.expect("retires");
    store.close().await;

    let mut found = vec![];
    scan(place.root(), &mut found);
    let mut look = |what: &str, text: String| {
        let leaks = leaks(text.as_bytes());
        found.extend((!leaks.is_empty()).then(|| format!("{what}: {leaks:?} in {}", excerpt(&text, &leaks))));
    };
    errors.iter().for_each(|error| look("an error", error.clone()));
    place.resend.mails().iter().for_each(|mail| look("a mail", mail.to_string()));
    place.slack.messages().iter().for_each(|message| look("a message", format!("{message:?}")));
    let seen = place.resend.server.seen().into_iter().chain(place.slack.server.seen());
    seen.for_each(|seen| look("a request", format!("{} {}", seen.line, seen.body)));
    place.vercel.server.asked().into_iter().for_each(|line| look("an address", line));
    let log = String::from_utf8_lossy(&log.0.lock().unwrap()).into_owned();
    log.lines().for_each(|line| look("the log", line.to_owned()));
    assert!(found.is_empty(), "{} leaks: {:#?}", found.len(), &found[..found.len().min(20)]);

    // All of it was there to be found: the loudest level, errors with what was sent masked, and both messages.
    assert!(log.contains(" TRACE ") && log.contains(" DEBUG "), "{} bytes of log", log.len());
    let masked = errors.iter().filter(|error| error.contains("***")).count();
    assert!(masked > 2, "{masked} of {errors:#?}");
    assert!(!place.resend.mails().is_empty(), "{:?}", place.resend.server.seen());
    assert!(!place.slack.messages().is_empty(), "{:?}", place.slack.server.seen());
}

/// The part of `text` around a leak.
fn excerpt(text: &str, leaks: &[&str]) -> String {
    let at = leaks.iter().filter_map(|whose| text.find(&secrets()[whose])).min().unwrap_or_default();
    text.chars().skip(text[..at].chars().count().saturating_sub(120)).take(240).collect()
}
