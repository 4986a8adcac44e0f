//! A trainer that knows no limits, in a real run.

use super::project::{Project, each_once, mark};
use crate::support::steps::is_running;

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_log_and_a_daemon_leave_a_run_that_ended() {
    let project = Project::sqlite();
    let mark = mark();
    project.write(
        "workflows/wild.yaml",
        &format!(
            "
name: wild
model: m
steps:
  - id: train
    run: |
      setsid sh -c 'trap \"\" TERM; exec sleep 1000.{mark}' >/dev/null 2>&1 </dev/null &
      (setsid sh -c 'setsid sleep 2000.{mark} & sleep 3000.{mark}' &)
      yes 'epoch 1: loss 0.5' | head -c 50000000
      echo the end >&2
"
        ),
    );
    let server = project.serve().ready();
    let run = project.trigger("wild");
    let attempts = project.await_success(&[run]).await.remove(0);
    each_once(&attempts, &["train"]);
    assert!(!is_running(&mark), "something is left running");
    assert!(server.resident_megabytes() < 150, "{} MB", server.resident_megabytes());
    let log = project.says(&["run", "logs", "last"]);
    assert!(log.len() > 10_000_000, "{} bytes", log.len());
    assert!(log.contains("that the command had left running were ended"), "{}", &log[log.len() - 1000..]);
}
