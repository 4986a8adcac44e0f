//! What every store promises; takes fresh ones by name.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use object_store::{ObjectStoreExt, PutPayload};
use refit::adapter::ArtifactStore;
use refit::artifacts::sealed::{self, SealedError, SealedVersion};
use refit::artifacts::source::LocalFile;
use refit::artifacts::upload::{CHUNK, Upload, UploadError, publish};
use refit::domain::id::{InstanceId, ModelName, RunId, VersionName};
use refit::domain::metric::Metrics;
use serde_json::json;

use super::faulty::{Faults, Faulty};

/// One model's files, and who publishes them.
struct Training {
    dir: tempfile::TempDir,
    files: Vec<LocalFile>,
    instance: InstanceId,
    run: RunId,
}

/// Small, empty, in a directory, and one that is sent in parts.
const SIZES: [(&str, usize); 5] = [
    ("model.json", 1_000),
    ("empty.bin", 0),
    ("sprint/größe 2.bin", 70_000),
    ("whole.bin", 300_000),
    ("large.bin", CHUNK + 12_345),
];

impl Training {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let files = SIZES.iter().enumerate().map(|(seed, (path, size))| {
            let source = dir.path().join(seed.to_string());
            let bytes: Vec<u8> = (0..*size).map(|at| (at.wrapping_mul(31) >> 3) as u8 ^ seed as u8).collect();
            std::fs::write(&source, bytes).expect("written");
            LocalFile { path: (*path).to_owned(), source, sha256: None }
        });
        Self { files: files.collect(), dir, instance: InstanceId::generate(), run: RunId::generate() }
    }

    /// The same training as another run would publish it.
    fn by_another_run(&self) -> Self {
        let mut other = Self::new();
        other.instance = self.instance;
        other
    }

    async fn publish(&self, store: &ArtifactStore, version: &str) -> Result<SealedVersion, UploadError> {
        self.publish_noting(store, version).await.0
    }

    /// Also gives the files that were found, not sent.
    async fn publish_noting(
        &self,
        store: &ArtifactStore,
        version: &str,
    ) -> (Result<SealedVersion, UploadError>, Vec<String>) {
        let (metrics, provenance) = (Metrics::default(), json!({"workflow": "w"}));
        let upload = Upload {
            store,
            model: &model(),
            version: &version.parse().expect("a name"),
            instance: self.instance,
            run: Some(self.run),
            files: &self.files,
            metrics: &metrics,
            provenance: &provenance,
            sealed_at: chrono::DateTime::from_timestamp(1_795_000_000, 0).expect("in range"),
        };
        let found = Mutex::new(vec![]);
        let result = publish(&upload, &|progress| {
            if progress.found {
                found.lock().expect("not poisoned").push(progress.path.to_owned());
            }
        })
        .await;
        (result, found.into_inner().expect("not poisoned"))
    }
}

fn model() -> ModelName {
    "race-times".parse().expect("a name")
}

fn name(text: &str) -> VersionName {
    text.parse().expect("a name")
}

async fn listed(store: &ArtifactStore) -> Vec<String> {
    let listed = sealed::list_sealed(store, &model()).await.expect("listed");
    listed.iter().map(ToString::to_string).collect()
}

/// The object of one file of a version.
fn object(store: &ArtifactStore, version: &str, path: &str) -> object_store::path::Path {
    object_store::path::Path::parse(format!("{}/{}/{version}/{path}", store.prefix, model())).expect("a path")
}

async fn overwrite(store: &ArtifactStore, version: &str, path: &str, bytes: &[u8]) {
    let payload = PutPayload::from(bytes.to_vec());
    store.objects.put(&object(store, version, path), payload).await.expect("written");
}

/// Runs the suite.
pub async fn exercise(fresh: impl Fn(&str) -> ArtifactStore) {
    a_version_is_published_verified_and_fetched(&fresh("whole")).await;
    publishing_twice_is_publishing_once(&fresh("twice")).await;
    a_foreign_claim_is_left_alone(&fresh("claim")).await;
    what_was_there_without_a_claim_is_left_alone(&fresh("strangers")).await;
    damage_is_found(&fresh("damage")).await;
    a_hostile_manifest_leads_nowhere(&fresh("hostile")).await;
    bad_files_publish_nothing(&fresh("bad")).await;
    a_crash_at_any_write_is_survived(|at| fresh(&format!("crash-{at}"))).await;
}

async fn a_version_is_published_verified_and_fetched(store: &ArtifactStore) {
    let training = Training::new();
    assert!(listed(store).await.is_empty(), "a model that nobody has published");
    let made = training.publish(store, "2026-11-21").await.expect("published");
    assert_eq!(made.manifest.files.len(), SIZES.len());
    assert!(made.manifest.files.is_sorted_by(|a, b| a.path < b.path));
    assert_eq!(listed(store).await, ["2026-11-21"]);
    let version = name("2026-11-21");
    refit::artifacts::verify(store, &model(), &version, &made.sha256).await.expect("whole");
    refit::artifacts::verify(store, &model(), &version, "0").await.expect_err("another manifest");

    let to = training.dir.path().join("versions/champion");
    sealed::fetch(store, &model(), &version, &to).await.expect("fetched");
    for file in &training.files {
        let there = std::fs::read(to.join(&file.path)).expect("there");
        assert_eq!(there, std::fs::read(&file.source).expect("there"), "{}", file.path);
    }
    let stamp = |path: &Path| std::fs::metadata(path).and_then(|m| m.modified()).expect("there");
    let before = stamp(&to.join("model.json"));
    sealed::fetch(store, &model(), &version, &to).await.expect("there already");
    assert_eq!(stamp(&to.join("model.json")), before, "not fetched again");
    std::fs::write(to.join("model.json"), "damaged").expect("written");
    sealed::fetch(store, &model(), &version, &to).await.expect("fetched again");
    assert_eq!(std::fs::metadata(to.join("model.json")).expect("there").len(), 1_000);
    let left: Vec<PathBuf> = std::fs::read_dir(to.parent().expect("a parent"))
        .expect("readable")
        .map(|entry| entry.expect("readable").path())
        .collect();
    assert_eq!(left, [to], "nothing half-fetched stays");
}

async fn publishing_twice_is_publishing_once(store: &ArtifactStore) {
    let training = Training::new();
    let first = training.publish(store, "1").await.expect("published");
    let again = training.publish(store, "1").await.expect("the same");
    assert_eq!(first, again);
    std::fs::write(&training.files[0].source, "other").expect("written");
    let other = training.publish(store, "1").await.expect_err("sealed");
    assert!(matches!(other, UploadError::SealedDifferently { .. }), "{other}");
    assert_eq!(sealed::verify(store, &model(), &name("1")).await.expect("whole"), first);
}

async fn a_foreign_claim_is_left_alone(store: &ArtifactStore) {
    let (ours, theirs) = (Training::new(), Training::new());
    let sealed = theirs.publish(store, "1").await.expect("published");
    for loser in [&ours, &theirs.by_another_run()] {
        let refused = loser.publish(store, "1").await.expect_err("claimed");
        assert!(matches!(refused, UploadError::ClaimedByOther { .. }), "{refused}");
    }
    assert_eq!(sealed::verify(store, &model(), &name("1")).await.expect("whole"), sealed);
    overwrite(store, "2", "_claim.json", b"{\"instance\": 7}").await;
    let refused = ours.publish(store, "2").await.expect_err("claimed");
    assert!(matches!(refused, UploadError::ClaimedByOther { .. }), "{refused}");
    // Both at once: one gets the name.
    let another = ours.by_another_run();
    let (a, b) = tokio::join!(ours.publish(store, "3"), another.publish(store, "3"));
    assert_eq!(usize::from(a.is_ok()) + usize::from(b.is_ok()), 1, "{a:?} {b:?}");
    assert_eq!(listed(store).await, ["1", "3"]);
}

async fn what_was_there_without_a_claim_is_left_alone(store: &ArtifactStore) {
    let training = Training::new();
    overwrite(store, "1", "model.json", b"uploaded by a script").await;
    let refused = training.publish(store, "1").await.expect_err("occupied");
    assert!(matches!(refused, UploadError::ClaimedByOther { .. }), "{refused}");
    let there = store.objects.get(&object(store, "1", "model.json")).await.expect("there");
    assert_eq!(there.bytes().await.expect("readable"), "uploaded by a script");
    assert!(listed(store).await.is_empty());
}

async fn damage_is_found(store: &ArtifactStore) {
    let training = Training::new();
    training.publish(store, "1").await.expect("published");
    overwrite(store, "1", "model.json", &[b'x'; 1_000]).await;
    let damaged = sealed::verify(store, &model(), &name("1")).await.expect_err("damaged");
    assert!(matches!(&damaged, SealedError::BadFile { path, .. } if path == "model.json"), "{damaged}");
    let to = training.dir.path().join("out");
    sealed::fetch(store, &model(), &name("1"), &to).await.expect_err("damaged");
    assert!(!to.exists(), "nothing is there, not half of it");
    store.objects.delete(&object(store, "1", "model.json")).await.expect("deleted");
    let damaged = sealed::verify(store, &model(), &name("1")).await.expect_err("damaged");
    assert!(matches!(&damaged, SealedError::BadFile { .. }), "{damaged}");
    let absent = sealed::verify(store, &model(), &name("9")).await.expect_err("absent");
    assert!(matches!(absent, SealedError::NotSealed { .. }), "{absent}");
}

async fn a_hostile_manifest_leads_nowhere(store: &ArtifactStore) {
    let training = Training::new();
    let sealed = training.publish(store, "1").await.expect("published");
    let to = training.dir.path().join("deep/out");
    for path in ["../../escaped", "/tmp/escaped", "a/../../escaped", "manifest.json"] {
        let mut manifest = sealed.manifest.clone();
        manifest.files[0].path = path.to_owned();
        overwrite(store, "1", "manifest.json", &serde_json::to_vec(&manifest).expect("JSON")).await;
        let bad = sealed::fetch(store, &model(), &name("1"), &to).await.expect_err("hostile");
        assert!(matches!(bad, SealedError::BadManifest { .. }), "{bad}");
    }
    let mut other = sealed.manifest.clone();
    other.version = name("2");
    for text in [serde_json::to_vec(&other).expect("JSON"), b"{".to_vec(), vec![0xff; 10]] {
        overwrite(store, "1", "manifest.json", &text).await;
        let bad = sealed::verify(store, &model(), &name("1")).await.expect_err("hostile");
        assert!(matches!(bad, SealedError::BadManifest { .. }), "{bad}");
    }
}

async fn bad_files_publish_nothing(store: &ArtifactStore) {
    let mut training = Training::new();
    training.files[0].sha256 = Some("0".repeat(64));
    training.publish(store, "1").await.expect_err("not what was collected");
    training.files[0].sha256 = None;
    training.files[4].sha256 = Some("0".repeat(64));
    training.publish(store, "1").await.expect_err("not what was collected, in parts");
    training.files[4].sha256 = None;
    training.files[1].path = "Model.json".to_owned();
    let odd = training.publish(store, "1").await.expect_err("two names that are one");
    assert!(matches!(odd, UploadError::Name(_)), "{odd}");
    training.files.clear();
    training.publish(store, "1").await.expect_err("no files");
    assert!(listed(store).await.is_empty());
}

/// The process dies at every write, before and after it is made; then it is called again.
async fn a_crash_at_any_write_is_survived(fresh: impl Fn(usize) -> ArtifactStore) {
    let training = Training::new();
    let calm = fresh(0);
    let faults = Faults::none();
    let watched = with(&calm, faults.clone());
    training.publish(&watched, "1").await.expect("published");
    // Claim, four files whole, two parts and their completion, manifest.
    assert_eq!(faults.writes(), 9, "{:?}", faults.puts());

    for at in 0..faults.writes() {
        for made in [false, true] {
            let store = fresh(1 + at * 2 + usize::from(made));
            let crash = format!("at write {at}, made: {made}");
            let dying = Faults::new(at, made);
            training.publish(&with(&store, dying.clone()), "1").await.expect_err(&crash);
            let sealed = made && at + 1 == faults.writes();
            assert_eq!(listed(&store).await.len(), usize::from(sealed), "{crash}");
            let there = finished(&store).await;

            let again = Faults::none();
            let (result, found) = training.publish_noting(&with(&store, again.clone()), "1").await;
            let result = result.unwrap_or_else(|error| panic!("{crash}: {error}"));
            for path in &there {
                let resent = again.puts().iter().any(|put| put.ends_with(&format!("/1/{path}")));
                assert!(!resent, "{crash}: {path} was sent again");
                assert!(sealed || found.contains(path), "{crash}: {path}");
            }
            assert_eq!(listed(&store).await, ["1"], "{crash}");
            let whole = sealed::verify(&store, &model(), &name("1")).await.expect(&crash);
            assert_eq!(whole, result, "{crash}");
        }
    }
}

fn with(store: &ArtifactStore, faults: std::sync::Arc<Faults>) -> ArtifactStore {
    let objects = std::sync::Arc::new(Faulty { inner: store.objects.clone(), faults });
    ArtifactStore { objects, ..store.clone() }
}

/// The files that are in the store, whole.
async fn finished(store: &ArtifactStore) -> Vec<String> {
    let mut there = vec![];
    for (path, _) in SIZES {
        if store.objects.head(&object(store, "1", path)).await.is_ok() {
            there.push(path.to_owned());
        }
    }
    there
}
