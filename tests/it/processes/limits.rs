//! A trainer that knows no limits, in a real run.

use super::project::{Project, each_once, mark};
use crate::support::small_disk::SmallDisk;
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
    limits: {{ log: 12MB }}
    run: |
      setsid sh -c 'trap \"\" TERM; exec sleep 1000.{mark}' >/dev/null 2>&1 </dev/null &
      (setsid sh -c 'setsid sleep 2000.{mark} & sleep 3000.{mark}' &)
      yes 'epoch 1: loss 0.5' | head -c 250000000
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

#[test]
fn a_trainer_that_fills_the_disk_of_the_database_fails_and_the_next_run_goes_well() {
    let project = Project::sqlite();
    // Without the right to mount, the connection's and the attempt's own tests stand for this one.
    let Some(_disk) = SmallDisk::mount(project.dir.path().to_owned(), 16) else { return };
    project.write("refit.toml", "");
    let workflow = |name: &str, line: &str| {
        let text = format!(
            "name: {name}\nmodel: m\ndefaults: {{ retry: {{ attempts: 1 }} }}\nsteps:\n  - {{ id: train, run: '{line}' }}\n"
        );
        project.write(&format!("workflows/{name}.yaml"), &text);
    };
    workflow("greedy", "head -c 100000000 /dev/zero > $REFIT_OUT/model");
    workflow("modest", "head -c 1000000 /dev/zero > $REFIT_OUT/model");
    let greedy = project.command(&["trigger", "greedy", "--follow"]).output().unwrap();
    let said = String::from_utf8_lossy(&greedy.stderr);
    assert_eq!(greedy.status.code(), Some(1), "{said}");
    assert!(said.contains("No space left on device") && said.contains("is full"), "{said}");
    project.says(&["trigger", "modest", "--follow"]);
    let runs = project.says(&["run", "ls"]);
    assert!(!runs.contains("running"), "{runs}");
}
