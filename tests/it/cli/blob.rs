//! The commands on versions, where their files are in Vercel Blob.

use std::fs;
use std::path::Path;

use object_store::{ObjectStoreExt, PutPayload};
use tempfile::TempDir;

use super::refit::refit;
use crate::artifacts::vercel_blob;
use crate::support::vercel_blob::{Access, VercelBlob};

const WORKFLOW: &str = r#"
name: publishes
model: race-times
mode: act
steps:
  - id: train
    run: 'mkdir -p out && echo "$REFIT_RUN" > out/sprint.json && echo "{}" > out/olympic.json && echo "MAE: 400"'
    metrics: { stdout: { mae: { pattern: 'MAE: (\d+)' } } }
    outputs: { from: out, files: "*.json" }
  - { id: publish, uses: publish, with: { store: models, version: semver } }
"#;

/// A project whose versions are in `service`.
fn project(service: &VercelBlob, access: Access) -> TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    let settings = format!(
        r#"
[stores.models]
kind = "vercel-blob"
access = "{}"
prefix = "models"
token = "BLOB_TOKEN"
api_url = "{}"

[targets.production]
kind = "pointer"
path = "release.json"

[secrets]
BLOB_TOKEN = "token"
"#,
        access.word(),
        service.api_url()
    );
    let files = [
        ("refit.toml", settings.as_str()),
        ("token", &VercelBlob::token()),
        ("workflows/publishes.yaml", WORKFLOW),
    ];
    fs::create_dir(dir.path().join("workflows")).expect("made");
    for (file, text) in files {
        fs::write(dir.path().join(file), text).expect("written");
    }
    dir
}

/// Puts a file below `models/`, as the team's own function does, or somebody who should not.
async fn put(service: &VercelBlob, access: Access, file: &str, text: &str) {
    let store = vercel_blob(service, access, "models");
    let at = file.split('/').fold(store.prefix.clone(), |at, part| at.join(part));
    store.objects.put(&at, PutPayload::from(text.to_owned())).await.expect("put");
}

/// What the command prints, which must hold each of `parts`.
fn says(at: &Path, words: &str, parts: &[&str]) {
    let said = refit(at, &words.split(' ').collect::<Vec<_>>());
    for part in parts {
        assert!(said.contains(part), "refit {words}: no {part:?} in\n{said}");
    }
    assert!(!said.contains(&VercelBlob::token()), "{said}");
}

/// From what lay there before refit to what is left after `gc`.
async fn versions_live_in(access: Access) {
    let service = VercelBlob::start(access);
    for version in ["2026-11-07", "2026-11-14"] {
        for file in ["sprint.json", "olympic.json"] {
            put(&service, access, &format!("uploads/{version}/{file}"), version).await;
        }
    }
    let (before, dir) = (service.pathnames(), project(&service, access));
    let at = dir.path();
    says(
        at,
        "adopt models/uploads --champion 2026-11-14",
        &[
            "exit code: 0",
            "2026-11-14  2 files, 20 B, the champion on production",
            "2026-11-07  2 files, 20 B",
        ],
    );
    assert_eq!(service.pathnames(), before, "nothing was moved or written");
    let document = fs::read_to_string(at.join("release.json")).expect("served");
    assert!(document.contains(&format!("{}/models/uploads/2026-11-14", service.files_url())), "{document}");

    says(at, "trigger publishes --follow", &["exit code: 0"]);
    says(at, "trigger publishes --follow", &["exit code: 0"]);
    says(
        at,
        "model ls",
        &["race-times  1.1.0 ", "race-times  1.0.0 ", "2026-11-14  champion", "2026-11-07 "],
    );
    let files = format!("{}/models/race-times/1.0.0", service.files_url());
    says(at, "model show 1.0.0", &["exit code: 0", "race-times 1.0.0\n", "mae 400", "sprint.json", &files]);
    says(at, "model diff 1.0.0 1.1.0", &["exit code: 0", "mae", "400", "+0.0 %", "sprint.json"]);
    says(at, "model pull 1.0.0 --to here", &["race-times 1.0.0 is in here: 2 files", "as sealed"]);
    assert_eq!(fs::read_to_string(at.join("here/olympic.json")).expect("pulled"), "{}\n");
    says(
        at,
        "model pull 2026-11-07 --to old",
        &["race-times 2026-11-07 is in old: 2 files, 20 B, as sealed"],
    );
    assert_eq!(fs::read_to_string(at.join("old/sprint.json")).expect("pulled"), "2026-11-07");
    says(at, "model verify 1.0.0", &["exit code: 0", "race-times 1.0.0 is whole: 2 files as sealed"]);
    put(&service, access, "race-times/1.0.0/olympic.json", "[]\n").await;
    says(
        at,
        "model verify 1.0.0",
        &["exit code: 1", "olympic.json of race-times/1.0.0", "is damaged", "never served"],
    );
    says(at, "model pull 1.0.0 --to damaged", &["exit code: 1", "is damaged"]);
    assert!(!at.join("damaged").exists(), "whole or not at all");

    // What is old goes; what refit did not bring stays.
    let keeps = WORKFLOW.replace("version: semver", "version: semver, keep: { latest: 1 }");
    fs::write(at.join("workflows/publishes.yaml"), keeps).expect("written");
    let left = |version: &str| {
        let place = format!("models/race-times/{version}/");
        service.pathnames().iter().filter(|path| path.starts_with(&place)).count()
    };
    says(at, "gc --dry-run", &["exit code: 0", "would be deleted: 40 B", "race-times 1.0.0"]);
    assert_eq!((left("1.0.0"), left("1.1.0")), (4, 4));
    says(at, "gc --yes -q", &["exit code: 0", "deleted 1 thing"]);
    assert_eq!((left("1.0.0"), left("1.1.0")), (0, 4));
    says(at, "trigger publishes --follow", &["exit code: 0"]);
    assert_eq!((left("1.1.0"), left("1.2.0")), (0, 4), "a run of the workflow does the same");
    assert!(before.iter().all(|path| service.pathnames().contains(path)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_live_in_a_public_store() {
    versions_live_in(Access::Public).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_live_in_a_private_store() {
    versions_live_in(Access::Private).await;
}
