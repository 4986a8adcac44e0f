//! One message a run at Slack: posted when the run begins, rewritten as it goes on, answered to when it matters.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use refit::clock::Clock as _;
use refit::domain::id::{NotifierName, RunId};
use refit::domain::run::{Outcome, Run, RunStatus};
use refit::engine::{Engine, Settings};
use refit::notify::{Notifiers, outbox};
use serde_json::{Value, json};

use super::deps;
use crate::support::crash::Crash;
use crate::support::faults::Fault;
use crate::support::slack::{Posted, Slack, TOKEN};
use crate::support::world::{World, turn};
use refit::store::Stay;

const FLOW: &str = r#"
name: retrain
model: m
mode: act
metrics: { mae: { better: lower } }
notify: [{ on: [started, canary_started, promoted, failed], slack: team }]
steps:
  - id: train
    run: 'mkdir -p out && rm -f out/* && echo "$REFIT_RUN" > out/model.json && echo "MAE: 10"'
    metrics: { stdout: { mae: { pattern: 'MAE: (\d+)' } } }
    outputs: { from: out, files: "*.json" }
  - { id: gate, uses: gate, with: { first_version: accept, rules: [{ metric: mae, max: 600 }] } }
  - { id: publish, uses: publish, with: { store: models, version: counter } }
  - { id: canary, uses: canary, with: { target: production, stages: [10%], compare: compare } }
  - { id: watch, uses: wait, with: { for: 1h } }
  - { id: compare, uses: compare, with: { rules: [{ metric: error_rate }], on_inconclusive: promote } }
  - { id: promote, uses: promote, with: {} }
"#;

/// A process with a Slack that follows runs.
pub(super) struct Followed {
    pub(super) world: Arc<World>,
    pub(super) engine: Arc<Engine>,
    notifiers: Notifiers,
    pub(super) slack: Slack,
}

pub(super) fn notifiers(slack: &Slack, progress: bool) -> Notifiers {
    let table = json!({
        "kind": "slack-api", "token": "TOKEN", "channel": "#models", "progress": progress,
        "base_url": format!("{}/api", slack.address),
    });
    let tables = [("team".parse().expect("a name"), table)];
    let deps = deps(&[("TOKEN", TOKEN.to_owned())]);
    Notifiers::build(tables.into(), None, &deps).expect("notifiers")
}

impl Followed {
    pub(super) async fn new(world: World, progress: bool) -> Self {
        let slack = Slack::start().await;
        let followed = Self::of(Arc::new(world), slack, progress, &Crash::never()).await;
        assert_eq!(followed.notifiers.boards().len(), usize::from(progress));
        followed
    }

    /// Another process of the same project.
    pub(super) async fn beside(&self, crash: &Crash) -> Self {
        let progress = !self.notifiers.boards().is_empty();
        Self::of(Arc::clone(&self.world), self.slack.clone(), progress, crash).await
    }

    async fn of(world: Arc<World>, slack: Slack, progress: bool, crash: &Crash) -> Self {
        let notifiers = notifiers(&slack, progress);
        let boards: BTreeSet<NotifierName> = notifiers.boards();
        let settings = Settings { grace: Duration::from_secs(2), boards, ..Settings::default() };
        let engine = world.unregistered(crash, world.clock.clone(), settings).await;
        let now = world.clock.now();
        engine.store.register_worker(engine.worker, &[], Stay::Open, now).await.expect("registers");
        Self { world, engine, notifiers, slack }
    }

    /// Everything that a worker's loops do, once, and until nothing is left to say.
    async fn turn(&self, run: RunId) -> Run {
        let seen = turn(&self.engine, run).await;
        self.tell().await;
        seen
    }

    pub(super) async fn tell(&self) {
        self.engine.show_boards(&self.notifiers).await.expect("shown");
        let store = self.engine.store.as_ref();
        outbox::drain_once(store, &self.notifiers, self.engine.clock.as_ref()).await.expect("sent");
    }

    /// To its end, ten minutes a turn.
    async fn finish(&self, run: RunId) -> Run {
        for _ in 0..40 {
            let seen = self.turn(run).await;
            if seen.status == RunStatus::Finished {
                return seen;
            }
            self.world.pass(TimeDelta::minutes(10));
        }
        panic!("the run never ended: {:#?}", self.engine.store.attempts(run).await);
    }

    pub(super) async fn start(&self) -> RunId {
        self.world.trigger(&self.engine, FLOW).await
    }

    fn of_run(&self, run: RunId) -> Vec<Posted> {
        let ours = |message: &Posted| message.metadata.to_string().contains(&run.to_string());
        self.slack.messages().into_iter().filter(ours).collect()
    }

    fn calls(&self, method: &str) -> usize {
        self.slack.server.seen().iter().filter(|seen| seen.line.ends_with(method)).count()
    }
}

fn said(message: &Posted) -> String {
    let text = |block: &Value| {
        let text = block.pointer("/text/text").or_else(|| block.pointer("/elements/0/text"));
        text.and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    message.blocks.as_array().into_iter().flatten().map(text).collect::<Vec<_>>().join("\n")
}

async fn on_both(test: impl AsyncFn(World)) {
    test(World::sqlite()).await;
    test(World::postgres().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_has_one_message_that_says_where_it_is_and_answers_for_what_matters() {
    on_both(async |world| {
        let mut followed = Followed::new(world, true).await;
        let first = followed.start().await;
        assert_eq!(followed.finish(first).await.outcome, Some(Outcome::Promoted));
        // Another process: it has not posted anything within this second.
        followed.notifiers = notifiers(&followed.slack, true);
        let second = followed.start().await;
        let waits = followed.turn(second).await;
        assert_eq!(waits.status, RunStatus::Waiting);
        // The start is the message itself; the canary was asked for, and says so quietly.
        let messages = followed.of_run(second);
        assert_eq!(messages.len(), 2, "{messages:#?}");
        let board = &messages[0];
        assert_eq!(board.thread_ts, None);
        assert_eq!(board.text, "🐤 m 2 is on canary at 10 %");
        let now = said(board);
        for expected in
            ["✅ train: mae 10", "✅ publish: 2", "⏳ watch: until", "▫️ promote", "*mae* 10 → 10"]
        {
            assert!(now.contains(expected), "{expected} in {now}");
        }
        assert_eq!((messages[1].thread_ts.as_ref(), messages[1].broadcast), (Some(&board.ts), false));

        assert_eq!(followed.finish(second).await.outcome, Some(Outcome::Promoted));
        followed.world.pass(TimeDelta::minutes(1));
        followed.tell().await;
        let messages = followed.of_run(second);
        // Nobody reported anything: that is told, too.
        assert_eq!(messages.len(), 4, "{messages:#?}");
        assert_eq!(
            (messages[0].ts.as_str(), messages[0].text.as_str()),
            (board.ts.as_str(), "✅ m 2 was promoted")
        );
        assert!(said(&messages[0]).contains("✅ promote: 2 serves everybody"), "{}", said(&messages[0]));
        assert_eq!(messages[3].text, "m 2 was promoted");
        assert_eq!((messages[3].thread_ts.as_ref(), messages[3].broadcast), (Some(&board.ts), true));

        // What says the same is not said again.
        let before = followed.calls("chat.update");
        let team = ["team".parse().expect("a name")];
        let now = followed.world.clock.now();
        followed.engine.store.touch_boards(second, &team, now).await.expect("touched");
        assert_eq!(followed.engine.show_boards(&followed.notifiers).await.expect("shown"), 0);
        assert_eq!(followed.calls("chat.update"), before);
        followed.slack.violations.assert_none();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_changes_are_one_rewrite_and_a_message_that_cannot_be_rewritten_holds_nothing_up() {
    let followed = Followed::new(World::sqlite(), true).await;
    let run = followed.start().await;
    // Slack is away while the run goes all its way: seven steps are over before anything is shown.
    followed.slack.server.next(Fault::Answer(500, vec![], "down".to_owned()));
    assert_eq!(
        followed.engine.store.run(run).await.expect("readable").expect("a run").status,
        RunStatus::Queued
    );
    let ended = loop {
        let seen = turn(&followed.engine, run).await;
        if seen.status == RunStatus::Finished {
            break seen;
        }
        followed.world.pass(TimeDelta::minutes(10));
    };
    assert_eq!(ended.outcome, Some(Outcome::Promoted));
    followed.tell().await;
    // The board failed; what people wait for went out on its own.
    let messages = followed.of_run(run);
    assert_eq!(
        messages.iter().map(|message| message.text.as_str()).collect::<Vec<_>>(),
        ["m 1 was promoted"]
    );
    assert_eq!(messages[0].thread_ts, None);
    // Half a minute later the board is there, with the newest state and no other.
    followed.world.pass(TimeDelta::seconds(30));
    tokio::time::timeout(Duration::from_secs(20), async {
        while followed.engine.show_boards(&followed.notifiers).await.expect("shown") == 0 {
            followed.world.pass(TimeDelta::seconds(30));
            // Slack's second between two posts is a real one.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .expect("shown");
    let messages = followed.of_run(run);
    assert_eq!((messages.len(), messages[1].text.as_str(), messages[1].edits), (2, "✅ m 1 was promoted", 0));
    followed.slack.violations.assert_none();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_that_begin_at_once_take_turns_and_nothing_is_looked_for() {
    let followed = Followed::new(World::sqlite(), true).await;
    let mut runs = vec![];
    let team = ["team".parse().expect("a name")];
    for _ in 0..3 {
        let run = followed.start().await;
        followed.engine.store.touch_boards(run, &team, followed.world.clock.now()).await.expect("touched");
        runs.push(run);
    }
    let told = async {
        while runs.iter().any(|run| followed.of_run(*run).is_empty()) {
            followed.engine.show_boards(&followed.notifiers).await.expect("shown");
            followed.world.pass(TimeDelta::seconds(1));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), told).await.expect("shown");
    let asked = followed.slack.server.asked();
    assert!(asked.iter().all(|line| line.ends_with("chat.postMessage")), "{asked:#?}");
    assert_eq!(asked.len(), 3);
    followed.slack.violations.assert_none();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_progress_there_are_only_the_messages_that_were_asked_for() {
    let followed = Followed::new(World::sqlite(), false).await;
    let run = followed.start().await;
    assert_eq!(followed.finish(run).await.outcome, Some(Outcome::Promoted));
    let texts: Vec<String> = followed.of_run(run).into_iter().map(|message| message.text).collect();
    assert_eq!(texts, ["m: retrain began", "m 1 was promoted"]);
    assert_eq!(followed.calls("chat.update"), 0);
}
