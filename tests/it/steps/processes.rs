//! Nothing of a command outlives its step, however it ends.
#![cfg(target_os = "linux")]

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use refit::domain::workflow::step::Limits;
use refit::steps::context::StepError;

use crate::support::steps::{Bench, command, failure, is_running};

/// A trainer that starts a daemon in a session of its own, both deaf to SIGTERM, and never ends.
fn stubborn(mark: &str) -> String {
    format!(
        r#"trap '' TERM
        setsid sh -c 'trap "" TERM; exec sleep 1000.{mark}' >/dev/null 2>&1 </dev/null &
        (setsid sh -c 'setsid sleep 2000.{mark} & sleep 3000.{mark}' &)
        echo started; while :; do sleep 4000.{mark}; done"#
    )
}

fn mark() -> String {
    // `sleep` takes it as part of a number.
    format!("{:09}", uuid::Uuid::new_v4().as_u128() % 1_000_000_000)
}

/// Waits for a state of other processes, which nobody announces.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < until, "{what}");
        std::thread::yield_now();
    }
}

#[tokio::test]
async fn a_cancelled_command_leaves_nothing_running() {
    let bench = Bench::new("train");
    let mark = mark();
    let spec = command(&stubborn(&mark));
    let step = bench.run_command(&spec);
    let cancel = async {
        bench.log.says("started").await;
        assert!(is_running(&mark));
        bench.cancel.cancel();
    };
    let (result, ()) = tokio::join!(step, cancel);
    assert_eq!(result, Err(StepError::Interrupted));
    assert!(!is_running(&mark), "something is left running");
}

#[tokio::test]
async fn a_daemon_does_not_outlive_a_command_that_succeeds() {
    let bench = Bench::new("train");
    let mark = mark();
    let spec = command(&format!("setsid sleep 1000.{mark} >/dev/null 2>&1 & echo done"));
    bench.run_command(&spec).await.expect("succeeds");
    assert!(!is_running(&mark));
    assert!(bench.log.notes().contains("1 processes that the command had left running were ended"));
}

#[tokio::test]
async fn a_step_that_is_dropped_leaves_nothing_running() {
    let bench = Bench::new("train");
    let mark = mark();
    let spec = command(&stubborn(&mark));
    tokio::select! {
        result = bench.run_command(&spec) => panic!("it never ends: {result:?}"),
        () = bench.log.says("started") => {}
    }
    tokio::task::spawn_blocking(move || eventually("all ended", || !is_running(&mark))).await.expect("ended");
}

#[tokio::test]
async fn a_guard_that_is_killed_takes_its_command_along() {
    let bench = Bench::new("train");
    let mark = mark();
    let spec = command(&format!("echo $PPID > guard; {}", stubborn(&mark)));
    let step = bench.run_command(&spec);
    let kill = async {
        bench.log.says("started").await;
        let file = bench.project("guard");
        eventually("the guard's number", || {
            std::fs::read_to_string(&file).is_ok_and(|text| text.ends_with('\n'))
        });
        let guard = std::fs::read_to_string(&file).expect("written");
        Command::new("kill").args(["-9", guard.trim()]).status().expect("kill");
    };
    let (result, ()) = tokio::join!(step, kill);
    assert!(failure(result).contains("the process guard was killed"));
    eventually("all ended", || !is_running(&mark));
}

const MARK: &str = "REFIT_TEST_MARK";

/// Not a test by itself: the process that the next test kills.
#[tokio::test]
#[ignore = "started by a_refit_that_is_killed_leaves_nothing_running"]
async fn a_refit_that_trains() {
    let mark = std::env::var(MARK).expect("a mark");
    let bench = Bench::new("train");
    let _ = bench.run_command(&command(&stubborn(&mark))).await;
}

#[test]
fn a_refit_that_is_killed_leaves_nothing_running() {
    let mark = mark();
    let mut refit = Command::new(std::env::current_exe().expect("this program"))
        .args(["steps::processes::a_refit_that_trains", "--exact", "--ignored"])
        .env(MARK, &mark)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    eventually("the trainer runs", || {
        ["1000", "2000", "3000", "4000"].iter().all(|number| is_running(&format!("{number}.{mark}")))
    });
    refit.kill().expect("SIGKILL");
    refit.wait().expect("reaped");
    eventually("all ended", || !is_running(&mark));
}

#[tokio::test]
async fn memory_is_limited_over_all_processes_together() {
    let bench = Bench::new("train");
    let mark = mark();
    let half = "import sys,time; x = bytearray(90_000_000); time.sleep(1000)";
    let spec = refit::domain::workflow::step::Run {
        limits: Limits { memory: Some(120_000_000), ..Limits::default() },
        ..command(&format!("python3 -c '{half}' {mark} & setsid python3 -c '{half}' {mark}"))
    };
    let message = failure(bench.run_command(&spec).await);
    assert!(message.contains("bytes of memory; `limits: memory` allows 120000000"), "{message}");
    assert!(!is_running(&mark));
}

#[tokio::test]
async fn a_flood_of_log_is_kept_up_to_its_limit_and_counted() {
    let bench = Bench::new("train");
    let spec = command("head -c 200000000 /dev/zero | tr '\\0' x; echo; yes | head -c 50000000 >&2");
    bench.run_command(&spec).await.expect("succeeds");
    assert_eq!(bench.log.bytes.load(std::sync::atomic::Ordering::Relaxed), 64 * 1024 * 1024);
    let dropped = 250_000_001 - 64 * 1024 * 1024;
    assert!(bench.log.notes().contains(&format!("{dropped} bytes of log")), "{}", bench.log.notes());
}
