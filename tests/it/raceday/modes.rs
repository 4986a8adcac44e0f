//! The weeks before a team trusts refit: in `observe` and `advise` everything runs, and what serves is never touched.

use refit::domain::run::Outcome;

use super::place::{Place, QUICK};
use crate::store::database::Database;
use crate::store::on_both;
use crate::support::instance::Instance;
use crate::support::world::http;

const WORKFLOW: &str = "workflows/retrain.yaml";

/// What the team's old function uploaded, and serves; where it always did.
async fn uploaded(place: &Place, version: &str) {
    for file in ["sprint", "olympic", "long"] {
        let path = format!("models/{version}/{file}.json");
        let put = http()
            .put(format!("{}/?pathname={path}", place.blob.api_url()))
            .bearer_auth(crate::support::vercel_blob::VercelBlob::token())
            .header("x-api-version", "12")
            .header("x-vercel-blob-access", "public")
            .header("x-add-random-suffix", "0")
            .body("{\"model\": 0}");
        assert!(put.send().await.expect("answered").status().is_success());
    }
}

/// `refit …` in the team's project, as a process.
async fn refit(place: &Place, database: &Database, words: &[&str]) {
    let mut refit = tokio::process::Command::new(env!("CARGO_BIN_EXE_refit"));
    refit.arg("-C").arg(place.root()).args(["--db", &database.url]).args(words);
    let done = refit.output().await.expect("refit runs");
    assert!(done.status.success(), "{words:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// Requests that change something at Vercel.
fn changes(place: &Place) -> Vec<String> {
    let asked = place.vercel.server.asked().into_iter();
    asked.filter(|line| !line.starts_with("GET ")).collect()
}

async fn a_sunday_in_observe_and_one_in_advise_touch_nothing(database: Database) {
    let place = Place::new(database.url.starts_with("postgres"), QUICK).await;
    uploaded(&place, "2026-11-13").await;
    refit(&place, &database, &["adopt", "models", "--champion", "2026-11-13"]).await;
    let (release, written) = (place.release().expect("a first document"), changes(&place));
    assert_eq!(place.serving(), (Some("2026-11-13".to_owned()), None));

    // Everything runs, and nobody is told what refit would have done.
    place.edit(WORKFLOW, &[("mode: act", "mode: observe")]);
    place.race_until("2026-11-22", &["--starters", "2"]);
    let instance = Instance::on(place.root(), &database.url, database.clock.clone()).await;
    let sunday = instance.tick().await;
    let observed = instance.settle(sunday).await;
    assert_eq!(observed.outcome, Some(Outcome::Succeeded), "{:?}", observed.reason);
    assert_eq!(place.versions()["2026-11-22"], 3, "trained, judged and published");
    assert_eq!(place.slack.messages(), []);
    assert_eq!((place.release(), changes(&place)), (Some(release.clone()), written.clone()));

    // The same, and whoever would hear of a promotion hears what refit would have done.
    place.edit(WORKFLOW, &[("mode: observe", "mode: advise")]);
    place.race_until("2026-11-29", &["--starters", "2"]);
    let sunday = instance.tick().await;
    let advised = instance.settle(sunday).await;
    assert_eq!(advised.outcome, Some(Outcome::Succeeded), "{:?}", advised.reason);
    assert_eq!(place.versions()["2026-11-29"], 3);
    let texts: Vec<String> = place.slack.messages().into_iter().map(|message| message.text).collect();
    assert_eq!(texts, ["race-times 2026-11-29: what refit would have done"]);
    let mails = place.resend.mails();
    let [mail] = mails.as_slice() else { panic!("{mails:#?}") };
    let said = mail["text"].as_str().expect("text");
    for expected in [
        "In `mode: act`, 2026-11-29 would now get 10 % of `production` beside 2026-11-13",
        "2026-11-13 serves all traffic",
        "mae is 400; at most 600 allowed",
        "Mode advise: refit touched no target.",
    ] {
        assert!(said.contains(expected), "{expected} in {said}");
    }
    assert_eq!((place.release(), changes(&place)), (Some(release), written));
}

on_both! { a_sunday_in_observe_and_one_in_advise_touch_nothing }
