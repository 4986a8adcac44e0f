//! Processes that work on one run each, and are gone when it has ended: `trigger --follow` without a server.

use super::project::Project;

async fn each_follower_works_on_its_own_run(project: Project) {
    project.write(
        "workflows/retrain.yaml",
        "
name: retrain
model: m
steps: [{ id: train, run: 'echo ran >> train; while [ ! -e go ]; do sleep 0.02; done' }]
",
    );
    let follow = || project.start(project.command(&["trigger", "retrain", "--follow"]));
    let mut first = follow();
    project.await_lines("train", 1);
    let mut second = follow();
    second.await_log("waits for run");
    let status = project.says(&["status"]);
    assert!(status.contains("no server is running: once the processes that work now are done"), "{status}");
    project.write("go", "");
    assert!(first.ended().success(), "{}", first.log());
    assert!(second.ended().success(), "{}", second.log());
    assert_eq!(project.lines("train").len(), 2);
    let status = project.says(&["status"]);
    assert!(status.contains("no server is running: nothing is started"), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_follower_works_on_its_own_run_on_sqlite() {
    each_follower_works_on_its_own_run(Project::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_follower_works_on_its_own_run_on_postgres() {
    each_follower_works_on_its_own_run(Project::postgres().await).await;
}
