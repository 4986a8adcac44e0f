//! `kill -9` before and after each kind of request that refit makes to Blob, Vercel, Resend and Slack: a process of
//! its own asks, and is killed while the request, or its answer, stands still on the way.
#![cfg(target_os = "linux")]

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use futures::FutureExt as _;
use refit::clock::{Clock as _, ManualClock};
use refit::domain::run::Outcome;
use refit::store::{RunFilter, Store};
use tokio::process::Command;

use super::killed::{World, a_minute};
use crate::support::crash::{Crash, When, Write};
use crate::support::instance::Instance;
use crate::support::slack::WEBHOOK;
use crate::support::vercel::{CONFIG, DOMAIN, PROJECT};
use crate::support::world::start;

const ROOT: &str = "REFIT_TEST_ROOT";
const DATABASE: &str = "REFIT_TEST_DATABASE";
/// What time it is, below the root: the next process goes on from there.
const CLOCK: &str = "clock";
/// Two retrains take seconds.
const PATIENCE: Duration = Duration::from_secs(240);

/// Not a test by itself: the process that is killed.
#[tokio::test]
#[ignore = "started by the tests below, and killed"]
async fn a_refit_that_retrains() {
    let [root, database] = [ROOT, DATABASE].map(|name| std::env::var(name).expect(name));
    let file = Path::new(&root).join(CLOCK);
    let now = std::fs::read_to_string(&file).map_or(start(), |text| text.parse().expect("a time"));
    let clock = Arc::new(ManualClock::starting_at(now));
    let refit = Instance::on(Path::new(&root), &database, clock.clone()).await;
    refit.engine.store.reap(clock.now()).await.expect("reaps");
    for turn in 0.. {
        a_minute(&refit, turn).await;
        clock.advance(TimeDelta::minutes(1));
        // Whole or not at all, whenever it is killed.
        let next = file.with_extension("next");
        std::fs::write(&next, clock.now().to_rfc3339()).expect("written");
        std::fs::rename(&next, &file).expect("renamed");
    }
}

/// Returns when both retrains are over and everybody was told.
async fn settled(world: &World, store: &dyn Store) {
    while !world.is_settled(store).await {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Returns when the process has gone on for a minute of its own from when this began: nothing that it asked for before
/// is under way. One that is to die after its last request has that effect before it dies.
async fn goes_on(root: &Path) {
    let file = root.join(CLOCK);
    let now = || std::fs::read_to_string(&file).unwrap_or_default();
    for _ in 0..2 {
        let before = now();
        while now() == before {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// A process at work, until it is killed: at the first request of `deaths`, which is returned, or when there is
/// nothing left to do.
async fn live(world: &World, store: &dyn Store, deaths: &[(Write, When)]) -> Option<(Write, When)> {
    let crash = Crash::at_first_of(deaths);
    *world.place.crash.lock().unwrap() = crash.clone();
    let log = world.place.root().join("process.log");
    let mut process = Command::new(std::env::current_exe().expect("this program"))
        .args(["raceday::killed_for_real::a_refit_that_retrains", "--exact", "--ignored", "--nocapture"])
        .env(ROOT, world.place.root())
        .env(DATABASE, &world.database)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(&log).expect("a log"))
        .kill_on_drop(true)
        .spawn()
        .expect("starts");
    tokio::select! {
        () = crash.died() => {}
        () = settled(world, store).then(|()| goes_on(world.place.root())) => {}
        _ = process.wait() => panic!("it ended: {}", std::fs::read_to_string(&log).expect("a log")),
        () = tokio::time::sleep(PATIENCE) => {
            panic!("it comes to no end: {}", std::fs::read_to_string(&log).expect("a log"))
        }
    }
    process.kill().await.expect("SIGKILL");
    crash.last()
}

/// Both retrains, with a process killed before and after each of `requests`.
async fn killed_at_each(world: &World, requests: &[&str]) {
    let write = |name: &&str| Write { name: (*name).to_owned(), nth: 0 };
    let mut deaths: Vec<(Write, When)> =
        requests.iter().flat_map(|name| [(write(name), When::Before), (write(name), When::After)]).collect();
    let store = refit::store::open(&world.database, world.clock.clone()).await.expect("opens");
    while let Some(death) = live(world, store.as_ref(), &deaths).await {
        deaths.retain(|due| *due != death);
    }
    store.close().await;
    assert_eq!(deaths, [], "never asked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_request_of_the_recommended_way_has_one_effect() {
    let world = World::new(false).await;
    // One file is large enough to be sent in parts.
    let large = ("done'", "done; head -c 9000000 /dev/zero > $out/long.json'");
    world.place.edit("workflows/retrain.yaml", &[large]);
    // No update of the message: how many there are depends on how fast this plays beside Slack's second, which is a
    // real one. In the story that dies within one process each of them is met.
    let requests = [
        "blob PUT /api/blob/ sprint.json",
        "blob POST /api/blob/mpu long.json upload 2",
        "blob POST /api/blob/mpu long.json complete",
        "blob PUT /api/blob/ manifest.json",
        "vercel PATCH /v1/global-config/ecfg_raceday/items",
        "slack POST /api/chat.postMessage",
        "resend POST /emails",
    ];
    killed_at_each(&world, &requests).await;
    world.prove().await;
}

/// Variables and a deployment instead of Global Config, and a webhook instead of Slack's API: what takes no key and
/// cannot be read is told again when nobody knows whether it came.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_request_of_the_other_way_has_one_effect_but_a_webhook() {
    let mut world = World::new(false).await;
    world.follows = false;
    let place = &world.place;
    let vercel = format!(
        "kind = \"vercel\"\nproject = \"{PROJECT}\"\ndomain = \"{DOMAIN}\"\npoll = \"1ms\"\n\
         verify = {{ url = \"{}\", path = \"model.version\" }}\n",
        place.vercel.verify_url()
    );
    let secret = "SLACK_WEBHOOK = \".secrets/SLACK_WEBHOOK\"\n";
    let notifier = "[notifiers.hook]\nkind = \"slack\"\nurl = \"SLACK_WEBHOOK\"\n\n[notifiers.mail]";
    place.edit(
        "refit.toml",
        &[
            ("kind = \"vercel-config\"", vercel.as_str()),
            (&format!("config = \"{CONFIG}\""), ""),
            ("[secrets]\nAPP", &format!("[secrets]\n{secret}APP")),
            ("[notifiers.mail]", notifier),
        ],
    );
    let address = format!("{}{WEBHOOK}", place.doors["slack"]);
    std::fs::write(place.root().join(".secrets/SLACK_WEBHOOK"), address).expect("written");
    place.edit("workflows/retrain.yaml", &[("slack: team", "slack: hook")]);
    let webhook = format!("slack POST {WEBHOOK}");
    let requests =
        [&format!("vercel POST /v10/projects/{PROJECT}/env"), "vercel POST /v13/deployments", &webhook];
    killed_at_each(&world, &requests).await;

    let store = refit::store::open(&world.database, world.clock.clone()).await.expect("opens");
    let runs = store.runs(&RunFilter { limit: 100, ..RunFilter::default() }).await.expect("readable");
    let outcomes: Vec<_> = runs.into_iter().map(|run| run.outcome).collect();
    assert_eq!(outcomes, [Some(Outcome::Promoted); 2]);
    assert_eq!(
        place.vercel.with(|world| world.value("MODEL_VERSION").map(str::to_owned)).as_deref(),
        Some("2026-11-20.2")
    );
    assert_eq!(place.vercel.made(), 3, "the first version, the canary, its promotion");
    assert_eq!(place.subjects().len(), 2);
    let hooked: Vec<_> = place.slack.hooked().into_iter().map(|body| body["text"].clone()).collect();
    assert_eq!(hooked.len(), 3, "{hooked:?}");
    store.close().await;
}
