//! A canary without traffic of its own: a batch model, compared only by what a
//! predict command says of rows as their truth arrives.

use std::sync::Arc;

use chrono::TimeDelta;
use refit::domain::release::ReleaseActor;
use refit::domain::run::{Outcome, RunStatus, SignalKind};
use refit::engine::Engine;

use super::crash::process::on_a_runtime;
use super::on_both;
use super::rollout::*;
use crate::support::crash::{Crash, When, Write};
use crate::support::world::{World, start, turn};

/// Version 2 of the model multiplies by what `factor` says.
const BATCH: &str = r#"
name: retrain
model: m
mode: act
defaults: { retry: { attempts: 1 } }
steps:
  - id: train
    run: 'mkdir -p out && rm -f out/* && cp factor out/model.json'
    outputs: { from: out, files: "*.json" }
  - { id: publish, uses: publish, with: { store: models, version: counter } }
  - { id: canary, uses: canary, with: { target: production, stages: [10%, 50%], compare: compare } }
  - id: shadow
    uses: shadow
    with:
      run: |
        factor=$(cat "$REFIT_MODEL/model.json"); case "$factor" in [0-9]) ;; *) factor=1 ;; esac
        awk -F, -v f="$factor" 'BEGIN { print "id,prediction" } NR > 1 { print $1 "," f * $3 }' \
            "$REFIT_ROWS" > "$REFIT_PREDICTIONS"
      from: { file: rows.csv }
      until: "canary.verdict != 'inconclusive'"
      at_most: 5d
  - { id: compare, uses: compare, with: { rules: [{ metric: abs_error, worse_by_at_most: 50% }], when_underpowered: hold } }
  - { id: promote, uses: promote }
"#;

/// Two hundred rows whose truth is 0 and became known this hour: a model is as wrong as it predicts.
fn rows(world: &World) {
    use refit::clock::Clock;
    let at = world.clock.now().format("%FT%TZ");
    let rows = (0..200).map(|row| format!("r{row},{at},{},0\n", 1 + row % 9));
    world.write("rows.csv", &format!("id,at,x,actual\n{}", rows.collect::<String>()));
}

/// Version 1 serves, and 2, which multiplies by `factor`, is on canary; rows arrive while nobody looks.
async fn out(world: &World, factor: u8) -> Arc<Engine> {
    let engine = world.process(&Crash::never()).await;
    serving(world, &engine).await;
    world.write("factor", &factor.to_string());
    world.write("rows.csv", "id,at,x,actual\n");
    let run = world.trigger(&engine, BATCH).await;
    reach(world, &engine, run, TimeDelta::minutes(1), |run| run.status == RunStatus::Waiting).await;
    assert_eq!(shown(world), (Some("1".to_owned()), Some("2".to_owned())));
    world.pass(TimeDelta::minutes(30));
    rows(world);
    engine
}

async fn outcome(world: &World, engine: &Arc<Engine>) -> (Option<Outcome>, String) {
    let run = retrain(engine).await;
    let ended = ended(world, engine, run).await;
    let pairs =
        engine.store.paired_errors(&model(), &version("2"), &version("1"), 0, 1000).await.expect("read");
    assert_eq!(pairs.len(), 200, "each row once");
    (ended.outcome, ended.reason.unwrap_or_default())
}

async fn retrain(engine: &Arc<Engine>) -> refit::domain::id::RunId {
    let name = "retrain".parse().expect("a name");
    super::crash::process::run_of(engine, &name).await.expect("a run")
}

#[tokio::test]
async fn a_batch_model_that_is_worse_is_rolled_back() {
    on_both(async |world| {
        let engine = out(&world, 4).await;
        let (outcome, reason) = outcome(&world, &engine).await;
        assert_eq!(outcome, Some(Outcome::RolledBack), "{reason}");
        assert!(reason.contains("canary mean error 20.1, stable 5.02: worse over 150 blocks"), "{reason}");
        assert_eq!(shown(&world), serves("1"));
    })
    .await;
}

#[test]
fn a_batch_model_that_is_no_worse_is_promoted_whatever_its_processes_die_of() {
    for crash in [
        None,
        Some((Write { name: "add_scored".to_owned(), nth: 0 }, When::Before)),
        Some((Write { name: "add_scored".to_owned(), nth: 0 }, When::After)),
        Some((Write { name: "checkpoint".to_owned(), nth: 0 }, When::Before)),
    ] {
        let world = World::sqlite();
        on_a_runtime(async { leave(&out(&world, 1).await).await });
        if let Some((write, when)) = crash.clone() {
            let crash = Crash::at(write, when);
            on_a_runtime(async {
                let engine = world.process(&crash).await;
                world.pass(TimeDelta::hours(1));
                let run = retrain(&engine).await;
                tokio::select! {
                    biased;
                    () = crash.died() => {}
                    _ = ended(&world, &engine, run) => panic!("it lives on"),
                }
            });
        }
        let (outcome, reason) = on_a_runtime(async {
            let engine = world.process(&Crash::never()).await;
            engine.store.reap(refit::clock::Clock::now(&*world.clock)).await.expect("reaps");
            outcome(&world, &engine).await
        });
        assert_eq!(outcome, Some(Outcome::Promoted), "{crash:?}: {reason}");
        assert_eq!(shown(&world), serves("2"));
    }
}

/// What refit says it would have done with 2, which multiplies by `factor`, when nobody sees it and refit is away for
/// some time after the rows came.
async fn advice(source: &str, factor: u8, away: TimeDelta) -> String {
    let world = World::sqlite();
    let engine = world.process(&Crash::never()).await;
    serving(&world, &engine).await;
    world.write("factor", &factor.to_string());
    world.write("rows.csv", "id,at,x,actual\n");
    let told = "mode: advise\nnotify: [{ on: [succeeded], console: true }]\n";
    let run = world.trigger(&engine, &source.replace("mode: act\n", told)).await;
    reach(&world, &engine, run, TimeDelta::minutes(1), |run| run.status == RunStatus::Waiting).await;
    world.pass(TimeDelta::minutes(30));
    rows(&world);
    world.pass(away);
    let (outcome, reason) = outcome(&world, &engine).await;
    assert_eq!(outcome, Some(Outcome::Succeeded), "{reason}");
    assert_eq!(shown(&world), serves("1"));
    assert_eq!(world.host.history().len(), 1, "the host never heard of it");
    let queued = engine.store.outbox_of(run).await.expect("read");
    queued.iter().map(|entry| entry.notice.facts["advice"].to_string()).collect()
}

#[tokio::test]
async fn in_advise_the_rows_say_what_refit_would_have_done() {
    for (factor, expected) in [
        (4, "and would be rolled back by the rows that both predicted: canary mean error 20.1, stable 5.02"),
        (1, "and would be promoted by the rows that both predicted: canary mean error 5.02, stable 5.02"),
    ] {
        let said = advice(BATCH, factor, TimeDelta::zero()).await;
        assert!(said.contains(expected), "{said}");
    }
}

#[tokio::test]
async fn what_the_last_round_brings_is_in_the_advice() {
    // The second round of two is the last: the time is over.
    let said =
        advice(&BATCH.replace("at_most: 5d", "at_most: 1d\n      every: 1d"), 4, TimeDelta::hours(23)).await;
    assert!(said.contains("and would be rolled back by the rows that both predicted"), "{said}");
}

/// Little traffic on version 1, then a workflow that asks first: 2 multiplies by `factor`.
async fn asked(world: &World, factor: u8, inputs: bool) -> (Arc<Engine>, refit::domain::id::RunId) {
    let engine = world.process(&Crash::never()).await;
    serving(world, &engine).await;
    for _ in 0..8 {
        a_minute(world, &engine, ("9", "1"), (0, 0)).await;
        world.pass(TimeDelta::minutes(10));
    }
    world.write("factor", &factor.to_string());
    world.write("rows.csv", "id,at,x,actual\n");
    if inputs {
        rows(world);
    }
    let source = BATCH.replace("when_underpowered: hold", "alpha: 0.05").replace("rules: [", RULES);
    let run = world.trigger(&engine, &source).await;
    reach(world, &engine, run, TimeDelta::minutes(1), |run| run.status != RunStatus::Running).await;
    (engine, run)
}

/// A tight margin, which little traffic cannot show.
const RULES: &str = "rules: [{ metric: error_rate, worse_by_at_most: 5% }, ";

async fn notes(engine: &Arc<Engine>, run: refit::domain::id::RunId) -> String {
    let chunks = engine.store.read_log(run, None, 0, 1000).await.expect("readable");
    chunks.iter().map(|chunk| String::from_utf8_lossy(&chunk.bytes).into_owned()).collect()
}

#[tokio::test]
async fn a_canary_that_could_not_conclude_is_replayed_and_then_a_person_decides() {
    let world = World::sqlite();
    let (engine, run) = asked(&world, 1, true).await;
    assert_eq!(shown(&world), serves("1"), "nothing is out before somebody approves");
    let said = notes(&engine, run).await;
    assert!(said.contains("a canary that is no worse passes within"), "{said}");
    assert!(said.contains("the last 200 inputs through both: 0 predictions differ"), "{said}");
    assert!(said.contains("over 150 blocks whose truth is known"), "{said}");
    let kind = SignalKind::Approve { step: "canary".parse().expect("an id") };
    assert!(engine.store.signal(run, &kind, "ann", None, start()).await.expect("told"));
    turn(&engine, run).await;
    assert_eq!(shown(&world), (Some("1".to_owned()), Some("2".to_owned())));
    let ann = ReleaseActor::Human { name: "ann".to_owned() };
    engine.roll_back(&model(), &target(), None, ann, "enough").await.expect("rolled back");
    let ended = ended(&world, &engine, run).await;
    let receipt = refit::receipt::of(engine.store.as_ref(), &ended).await.expect("read").expect("decided");
    let people: Vec<_> =
        receipt.people.iter().map(|person| (person.name.as_str(), person.did.as_str())).collect();
    assert_eq!(people, [("ann", "approved")], "the receipt says who let it out");
}

#[tokio::test]
async fn a_candidate_that_is_worse_on_logged_inputs_never_goes_out() {
    let world = World::sqlite();
    let (engine, run) = asked(&world, 4, true).await;
    let ended = ended(&world, &engine, run).await;
    let reason = ended.reason.expect("a reason");
    assert_eq!(ended.outcome, Some(Outcome::Rejected), "{reason}");
    assert!(reason.starts_with("the replay of logged inputs refused it: "), "{reason}");
    assert!(reason.contains("mean absolute error is 20.08, the champion's 5.02"), "{reason}");
    assert_eq!(shown(&world), serves("1"));
    assert_eq!(world.host.history().len(), 1, "the host never heard of it");
}

#[tokio::test]
async fn without_logged_inputs_a_person_is_asked_at_once_and_may_refuse() {
    let world = World::sqlite();
    let (engine, run) = asked(&world, 4, false).await;
    let said = notes(&engine, run).await;
    assert!(said.contains("nothing was replayed: no inputs are logged"), "{said}");
    let kind = SignalKind::Reject { step: "canary".parse().expect("an id") };
    assert!(engine.store.signal(run, &kind, "ann", Some("too soon"), start()).await.expect("told"));
    let ended = ended(&world, &engine, run).await;
    assert_eq!(ended.outcome, Some(Outcome::Rejected));
    assert_eq!(ended.reason.as_deref(), Some("ann did not approve: too soon"));
    assert_eq!(shown(&world), serves("1"));
}

#[tokio::test]
async fn traffic_that_is_fetched_is_known_before_the_canary_goes_out() {
    use refit::clock::Clock;
    use sqlx::{AssertSqlSafe, ConnectOptions, Executor};
    let world = World::sqlite();
    let engine = world.process(&Crash::never()).await;
    serving(&world, &engine).await;
    let path = world.root.path().join("app.db");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&path).create_if_missing(true);
    let mut app = options.connect().await.expect("opened");
    app.execute("CREATE TABLE served (at INTEGER, request_id TEXT, version TEXT, ok INTEGER)")
        .await
        .expect("made");
    for n in 0..80 {
        let at = (world.clock.now() - TimeDelta::minutes(n + 5)).timestamp();
        let row = format!("INSERT INTO served VALUES ({at}, 'r{n}', '1', {})", i32::from(n % 10 > 0));
        app.execute(AssertSqlSafe(row)).await.expect("served");
    }
    world.write("factor", "1");
    world.write("rows.csv", "id,at,x,actual\n");
    let evidence = format!(
        "mode: act\nevidence: {{ sql: {{ url: \"sqlite:{}\", query: SELECT * FROM served }} }}\n",
        path.display()
    );
    let source = BATCH
        .replace("mode: act\n", &evidence)
        .replace("when_underpowered: hold", "when_underpowered: approve, alpha: 0.05")
        .replace("rules: [", RULES);
    let run = world.trigger(&engine, &source).await;
    reach(&world, &engine, run, TimeDelta::minutes(1), |run| run.status != RunStatus::Running).await;
    assert_eq!(shown(&world), serves("1"), "nothing is out before somebody approves");
    let said = notes(&engine, run).await;
    assert!(said.contains("a canary that is no worse passes within"), "{said}");
}
