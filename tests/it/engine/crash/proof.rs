//! What must be the same whether a process died or not.

use std::collections::BTreeMap;
use std::path::Path;

use refit::domain::Timestamp;
use refit::domain::canary::CanaryState;
use refit::domain::id::RunId;
use refit::domain::release::ReleaseActor;
use refit::domain::run::{Attempt, AttemptState, IntentState, Outcome};
use refit::domain::verdict::Verdict;
use refit::domain::version::VersionState;
use refit::store::Store;

use super::inbox::Inbox;
use super::process::run_of;
use super::story::{Story, workflow_of};
use crate::support::crash::Crash;
use crate::support::world::World;

/// The end of a story, without what differs from run to run: ids, times, hashes.
#[derive(Debug, Clone, PartialEq)]
pub struct Proof {
    /// The end of the story's run.
    pub run: End,
    /// Those of the runs beside it.
    beside: BTreeMap<&'static str, End>,
    /// The champions that the host showed, in order.
    pub champions: Vec<String>,
    /// Champion and canary that it shows.
    host: (Option<String>, Option<String>),
    /// Every change of the release: who, champion, canary with its share.
    releases: Vec<String>,
    versions: Vec<(String, VersionState)>,
    /// All objects in the artifact store.
    objects: Vec<String>,
    /// What the messages say that follow runs.
    boards: Vec<String>,
}

/// The end of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct End {
    pub outcome: Option<Outcome>,
    /// Whether the promotion was past its first write.
    committed: bool,
    /// How each step ended.
    steps: BTreeMap<String, AttemptState>,
    canary: Option<(CanaryState, Verdict)>,
    /// What became of each undo.
    undos: BTreeMap<String, IntentState>,
    /// Keys of the messages.
    told: Vec<String>,
    /// Keys of what the app was asked.
    asked: Vec<String>,
}

impl Proof {
    /// How `other` differs.
    pub fn difference(&self, other: &Self) -> Option<String> {
        let (calm, crashed) = (format!("{self:#?}"), format!("{other:#?}"));
        if calm == crashed {
            return None;
        }
        let (calm, crashed): (Vec<&str>, Vec<&str>) = (calm.lines().collect(), crashed.lines().collect());
        // One of them goes on where the other ends, if they are the same until then.
        let same = calm.iter().zip(&crashed).take_while(|(a, b)| a == b).count();
        let lines = |of: &[&str], sign: char| {
            let shown = of.iter().enumerate().skip(same).take(3);
            shown.map(|(at, line)| format!("\n  {sign} {}: {line}", at + 1)).collect::<String>()
        };
        Some(format!("{}{}{}", within(&calm, same), lines(&calm, '-'), lines(&crashed, '+')))
    }
}

/// The lines that line `at` of a `{:#?}` is within, from the outermost on.
fn within(lines: &[&str], at: usize) -> String {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let mut depth = lines.get(at).map_or(0, |line| indent(line));
    let mut around = vec![];
    for line in lines[..at].iter().rev() {
        if indent(line) < depth {
            depth = indent(line);
            around.push(line.trim());
        }
    }
    around.reverse();
    around.join(" ")
}

/// Reads what there is and when the story's run ended, and checks what holds of any end.
pub async fn prove(world: &World, story: &dyn Story, inbox: &Inbox) -> (Proof, Timestamp) {
    let engine = world.process(&Crash::never()).await;
    let store = engine.store.as_ref();
    let id = run_of(&engine, &workflow_of(&story.workflow())).await.expect("a run");
    let run = end_of(id, store, world, inbox).await;
    let mut told = run.told.len();
    let ended = store.run(id).await.expect("readable").and_then(|run| run.finished_at).expect("it ended");
    let mut beside = BTreeMap::new();
    for workflow in story.beside() {
        let other = run_of(&engine, &workflow.parse().expect("a name")).await.expect("a run");
        let end = end_of(other, store, world, inbox).await;
        told += end.told.len();
        beside.insert(*workflow, end);
    }
    let messages = inbox.messages(world);
    assert!(messages.len() >= told, "{} messages arrived of {told}: {messages:#?}", messages.len());

    let attempts = store.attempts(id).await.expect("readable");
    let began = std::fs::read_to_string(world.path("began")).unwrap_or_default().lines().count();
    let trainings = attempts.iter().filter(|attempt| attempt.step.as_str() == "train").count();
    // One more: the first version's.
    assert!(began <= trainings + 1, "trained {began} times for {trainings} attempts");

    let (mut releases, mut versions) = (vec![], vec![]);
    let shown = world.host.current();
    for release in store.releases(None).await.expect("readable") {
        assert_eq!((release.is_applied(), release.owner), (true, None), "{release:#?}");
        assert_eq!(release.desired.canary, None);
        let document = release.document(store.instance());
        assert_eq!(shown, Some(document), "the host shows something else");
        let history = store.release_history(&release.model, &release.target, 100).await.expect("readable");
        let generations: Vec<i64> = history.iter().rev().map(|change| change.generation.0).collect();
        assert!(generations.iter().zip(1..).all(|(made, n)| *made == n), "{generations:?}");
        releases.extend(history.iter().rev().map(change));
        versions.extend(store.versions(&release.model).await.expect("readable"));
    }
    let artifacts = &engine.services.stores[&"models".parse().expect("a name")];
    for version in &versions {
        refit::artifacts::verify(artifacts, &version.model, &version.name, &version.manifest_sha256)
            .await
            .unwrap_or_else(|error| panic!("{}: {error}", version.name));
    }
    store.retire_worker(engine.worker).await.expect("retires");
    let (champion, canary) = shown.map(|shown| (shown.champion, shown.canary)).unwrap_or_default();
    let proof = Proof {
        run,
        beside,
        champions: world.host.champions(),
        host: (
            champion.map(|served| served.version.to_string()),
            canary.map(|canary| canary.served.version.to_string()),
        ),
        releases,
        versions: versions.into_iter().map(|version| (version.name.to_string(), version.state)).collect(),
        objects: objects(&world.path("models")),
        boards: inbox.boards(world),
    };
    (proof, ended)
}

/// How a run ended, and that everything it said was sent.
async fn end_of(id: RunId, store: &dyn Store, world: &World, inbox: &Inbox) -> End {
    let run = store.run(id).await.expect("readable").expect("a run");
    let attempts = store.attempts(id).await.expect("readable");
    succeed_once(&attempts);
    let told = store.outbox_of(id).await.expect("readable");
    let unsent: Vec<_> = told.iter().filter(|entry| entry.sent_at.is_none()).collect();
    assert!(unsent.is_empty(), "{unsent:#?}");
    let canary = store.canary_of(id).await.expect("readable");
    let intents = store.intents(id).await.expect("readable");
    let undos = intents.iter().filter(|intent| intent.undo.is_some());
    let canary_id = canary.as_ref().map_or_else(|| "-".repeat(36), |canary| canary.id.to_string());
    let unprefixed = |key: &str| key.replace(&id.to_string(), "run").replace(&canary_id, "its");
    let mut asked = sorted(inbox.requests(world).iter().map(|key| unprefixed(key)));
    asked.dedup();
    End {
        outcome: run.outcome,
        committed: run.committed,
        steps: attempts.iter().map(|attempt| (attempt.step.to_string(), attempt.state)).collect(),
        canary: canary.map(|canary| (canary.state, canary.verdict)),
        undos: undos.map(|intent| (unprefixed(&intent.key), intent.state)).collect(),
        told: sorted(told.iter().map(|entry| unprefixed(&entry.notice.key))),
        asked,
    }
}

/// No step succeeds twice, none begins again once it did, and at the end none seems to go on.
fn succeed_once(attempts: &[Attempt]) {
    let open = |attempt: &Attempt| matches!(attempt.state, AttemptState::Started | AttemptState::Sleeping);
    assert!(!attempts.iter().any(open), "{attempts:#?}");
    for (at, done) in attempts.iter().enumerate() {
        if done.state == AttemptState::Succeeded {
            let mut others =
                attempts.iter().enumerate().filter(|(i, other)| *i != at && other.step == done.step);
            assert!(others.all(|(_, other)| other.attempt < done.attempt), "{attempts:#?}");
        }
    }
}

fn change(change: &refit::store::ReleaseAudit) -> String {
    let who = match &change.actor {
        // The run and the controller read one verdict; whoever comes first acts on it.
        ReleaseActor::Run { .. } | ReleaseActor::Controller { .. } => "refit",
        ReleaseActor::Undo { .. } => "undo",
        ReleaseActor::Human { .. } => "human",
    };
    let champion = change.assignment.champion.as_ref().map(|served| served.version.to_string());
    let canary = change.assignment.canary.as_ref();
    let canary = canary.map(|canary| format!("{} {}", canary.served.version, canary.basis_points));
    format!("{who}: {champion:?} {canary:?}")
}

/// The files below `dir`, in order.
fn objects(dir: &Path) -> Vec<String> {
    let pattern = format!("{}/**/*", dir.display());
    let found = glob::glob(&pattern).expect("a pattern").map(|path| path.expect("readable"));
    let files = found.filter(|path| path.is_file());
    sorted(files.map(|path| path.strip_prefix(dir).expect("below").display().to_string()))
}

fn sorted<T: Ord>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut items: Vec<T> = items.collect();
    items.sort();
    items
}
