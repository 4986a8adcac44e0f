//! What every store promises; takes fresh ones by name.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use object_store::{ObjectStoreExt, PutPayload};
use refit::adapter::ArtifactStore;
use refit::artifacts::sealed::{self, SealedError, SealedVersion};
use refit::artifacts::source::LocalFile;
use refit::artifacts::upload::{CHUNK, FileState, Upload, UploadError, publish};
use refit::domain::id::{InstanceId, ModelName, RunId, VersionName};
use refit::domain::metric::Metrics;
use serde_json::json;

use super::faulty::{Faults, Faulty};

/// One model's files, and who publishes them.
pub struct Training {
    pub dir: tempfile::TempDir,
    pub files: Vec<LocalFile>,
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
        Self::of(&SIZES)
    }

    pub fn of(sizes: &[(&str, usize)]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let files = sizes.iter().enumerate().map(|(seed, (path, size))| {
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

    pub async fn publish(&self, store: &ArtifactStore, version: &str) -> Result<SealedVersion, UploadError> {
        self.publish_noting(store, version).await.0
    }

    /// Also gives the files that were found, not sent.
    pub async fn publish_noting(
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
            if progress.state == FileState::Found {
                found.lock().expect("not poisoned").push(progress.path.to_owned());
            }
        })
        .await;
        (result, found.into_inner().expect("not poisoned"))
    }
}

pub fn model() -> ModelName {
    "race-times".parse().expect("a name")
}

pub fn name(text: &str) -> VersionName {
    text.parse().expect("a name")
}

pub async fn listed(store: &ArtifactStore) -> Vec<String> {
    let listed = sealed::list_sealed(store, &model()).await.expect("listed");
    listed.iter().map(ToString::to_string).collect()
}

/// The object of one file of a version.
pub fn object(store: &ArtifactStore, version: &str, path: &str) -> object_store::path::Path {
    object_store::path::Path::parse(format!("{}/{}/{version}/{path}", store.prefix, model())).expect("a path")
}

async fn overwrite(store: &ArtifactStore, version: &str, path: &str, bytes: &[u8]) {
    let payload = PutPayload::from(bytes.to_vec());
    store.objects.put(&object(store, version, path), payload).await.expect("written");
}

/// What every way to a store must do, however it is configured.
pub async fn publishes(fresh: impl Fn(&str) -> ArtifactStore) {
    a_version_is_published_verified_and_fetched(&fresh("whole")).await;
    publishing_twice_is_publishing_once(&fresh("twice")).await;
    a_file_is_resumed_without_sending_it_again(&fresh("resumed")).await;
}

/// Runs the suite.
pub async fn exercise(fresh: impl Fn(&str) -> ArtifactStore) {
    an_object_store_does_what_it_says(&fresh("objects")).await;
    two_runs_that_want_one_name_make_one_version(&fresh("race")).await;
    a_file_that_changes_while_it_is_sent_is_not_sealed(&fresh("changed")).await;
    odd_names_and_links_are_refused(&fresh("odd")).await;
    a_full_disk_is_told_and_nothing_is_sealed(&fresh("full")).await;
    compressed_versions_are_the_same_to_read(&gzip(fresh("gzip"))).await;
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

fn gzip(store: ArtifactStore) -> ArtifactStore {
    ArtifactStore { gzip: true, ..store }
}

/// The trait itself, as far as refit leans on it.
async fn an_object_store_does_what_it_says(store: &ArtifactStore) {
    use futures::TryStreamExt;
    use object_store::{Error, GetOptions, GetRange, PutMode};
    let objects = &store.objects;
    let base = store.prefix.clone().join("trait");
    let at = |name: &str| object_store::path::Path::parse(format!("{base}/{name}")).expect("a path");
    for name in ["a.json", "b/1", "b/2", "bc", "d/e/f", "größe 2+3 (x)&=.bin"] {
        objects.put(&at(name), PutPayload::from(name.as_bytes().to_vec())).await.expect(name);
        let read = objects.get(&at(name)).await.expect(name).bytes().await.expect(name);
        assert_eq!(read, name.as_bytes());
    }
    let names = |metas: Vec<object_store::ObjectMeta>| {
        let mut names: Vec<String> = metas
            .into_iter()
            .map(|meta| {
                meta.location.as_ref().trim_start_matches(base.as_ref()).trim_start_matches('/').to_owned()
            })
            .collect();
        names.sort();
        names
    };
    let all = names(objects.list(Some(&base)).try_collect().await.expect("listed"));
    assert_eq!(all, ["a.json", "b/1", "b/2", "bc", "d/e/f", "größe 2+3 (x)&=.bin"]);
    let below = names(objects.list(Some(&at("b"))).try_collect().await.expect("listed"));
    assert_eq!(below, ["b/1", "b/2"], "by parts, not by letters");
    let folded = objects.list_with_delimiter(Some(&base)).await.expect("listed");
    assert_eq!(names(folded.objects), ["a.json", "bc", "größe 2+3 (x)&=.bin"]);
    let mut folders: Vec<String> = folded.common_prefixes.iter().map(ToString::to_string).collect();
    folders.sort();
    assert_eq!(folders, [at("b").to_string(), at("d").to_string()]);

    let exists = objects.put_opts(&at("bc"), "x".into(), PutMode::Create.into()).await.expect_err("there");
    assert!(matches!(exists, Error::AlreadyExists { .. }), "{exists}");
    assert_eq!(objects.get(&at("bc")).await.expect("there").bytes().await.expect("read"), "bc");
    let head = objects.head(&at("a.json")).await.expect("there");
    assert_eq!(head.size, 6);
    for (range, bytes) in [
        (GetRange::Bounded(1..3), "j"),
        (GetRange::Offset(2), "json"),
        (GetRange::Suffix(2), "on"),
        (GetRange::Bounded(4..900), "on"),
    ] {
        let options = GetOptions { range: Some(range.clone()), ..GetOptions::default() };
        let read =
            objects.get_opts(&at("a.json"), options).await.expect("there").bytes().await.expect("read");
        let expected = if bytes == "j" { ".j" } else { bytes };
        assert_eq!(read, expected, "{range:?}");
    }
    objects.copy(&at("a.json"), &at("copied/a.json")).await.expect("copied");
    let read = objects.get(&at("copied/a.json")).await.expect("there").bytes().await.expect("read");
    assert_eq!(read, "a.json");
    objects.delete(&at("a.json")).await.expect("deleted");
    let gone = objects.head(&at("a.json")).await.expect_err("gone");
    assert!(matches!(gone, Error::NotFound { .. }), "{gone}");
    let gone = objects.get(&at("a.json")).await.expect_err("gone");
    assert!(matches!(gone, Error::NotFound { .. }), "{gone}");
}

async fn two_runs_that_want_one_name_make_one_version(store: &ArtifactStore) {
    let (one, other) = (Training::of(&[("model.json", 5_000)]), Training::of(&[("model.json", 5_000)]));
    let (first, second) = tokio::join!(one.publish(store, "1"), other.publish(store, "1"));
    let (sealed, refused) = match (first, second) {
        (Ok(sealed), Err(refused)) | (Err(refused), Ok(sealed)) => (sealed, refused),
        both => panic!("one of them: {both:?}"),
    };
    assert!(matches!(refused, UploadError::ClaimedByOther { .. }), "{refused}");
    let there = sealed::verify(store, &model(), &name("1")).await.expect("whole");
    assert_eq!(there, sealed);
}

async fn a_file_that_changes_while_it_is_sent_is_not_sealed(store: &ArtifactStore) {
    let training = Training::of(&[("large.bin", CHUNK * 2 + 1)]);
    let source = training.files[0].source.clone();
    let faults = Faults::none();
    // Between its first part and its last one.
    faults.before_write(2, move || {
        use std::io::{Seek, SeekFrom, Write};
        let mut file = std::fs::OpenOptions::new().write(true).open(&source).expect("there");
        file.seek(SeekFrom::Start(9)).expect("seekable");
        file.write_all(b"changed").expect("written");
        file.set_modified(std::time::SystemTime::UNIX_EPOCH).expect("set");
    });
    let changed = training.publish(&with(store, faults), "1").await.expect_err("changed");
    assert!(changed.to_string().contains("changed since it was collected"), "{changed}");
    assert!(listed(store).await.is_empty());
    assert!(store.objects.head(&object(store, "1", "large.bin")).await.is_err(), "no half file either");
}

async fn odd_names_and_links_are_refused(store: &ArtifactStore) {
    for odd in [
        "../up",
        "/etc/passwd",
        "a/../../b",
        "a//b",
        "a\\b",
        "a\nb",
        "C:x",
        "a\u{202e}b",
        "_claim.json",
        "a.",
    ] {
        let mut training = Training::of(&[("model.json", 10), ("other.json", 10)]);
        training.files[1].path = odd.to_owned();
        let refused = training.publish(store, "1").await.expect_err(odd);
        assert!(matches!(refused, UploadError::Name(_)), "{odd}: {refused}");
    }
    let mut training = Training::of(&[("model.json", 10), ("other.json", 10)]);
    let link = training.dir.path().join("link");
    std::os::unix::fs::symlink("/etc/hostname", &link).expect("linked");
    training.files[1].source = link;
    let refused = training.publish(store, "1").await.expect_err("a link");
    assert!(refused.to_string().ends_with("is not a plain file"), "{refused}");
    assert!(listed(store).await.is_empty());

    let fine = [
        "modèle/größe 2.bin",
        "日本/モデル.json",
        "emoji 🚴.json",
        "a+b&c=d@(1)!.txt",
        "x,y;z$'.bin",
        "[1]{2}^`.bin",
    ];
    let training = Training::of(&fine.map(|path| (path, 100)));
    training.publish(store, "2").await.expect("published");
    let to = training.dir.path().join("fetched");
    sealed::fetch(store, &model(), &name("2"), &to).await.expect("fetched");
    for path in fine {
        assert_eq!(std::fs::metadata(to.join(path)).expect(path).len(), 100);
    }
}

/// What a disk without space says, at every write.
async fn a_full_disk_is_told_and_nothing_is_sealed(store: &ArtifactStore) {
    let training = Training::of(&[("model.json", 1_000), ("large.bin", CHUNK + 1_000)]);
    for space in [10, 900, 5_000, CHUNK, CHUNK + 1_500] {
        let full = Faults::full_after(space);
        let error = training.publish(&with(store, full), "1").await.expect_err("full");
        assert!(error.to_string().contains("No space left on device"), "{space}: {error}");
        assert!(listed(store).await.is_empty(), "{space}");
    }
    training.publish(store, "1").await.expect("once there is space");
    sealed::verify(store, &model(), &name("1")).await.expect("whole");
}

async fn compressed_versions_are_the_same_to_read(store: &ArtifactStore) {
    let mut training =
        Training::of(&[("model.json", 100_000), ("sprint/größe 2.bin", CHUNK + 12_345), ("empty", 0)]);
    let there = training.dir.path().join("packed.gz");
    std::fs::write(&there, "packed already").expect("written");
    training.files.push(LocalFile { path: "packed.gz".to_owned(), source: there, sha256: None });
    let sealed = training.publish(store, "1").await.expect("published");
    let stored: Vec<&str> = sealed.manifest.files.iter().map(|file| file.stored_path()).collect();
    assert_eq!(stored, ["empty.gz", "model.json.gz", "packed.gz", "sprint/größe 2.bin.gz"]);
    let model_file = &sealed.manifest.files[1];
    assert!(model_file.size == 100_000 && model_file.stored_size() < 50_000);
    assert_eq!(sealed::verify(store, &model(), &name("1")).await.expect("whole"), sealed);
    let to = training.dir.path().join("fetched");
    sealed::fetch(store, &model(), &name("1"), &to).await.expect("fetched");
    for file in &training.files {
        assert!(
            std::fs::read(to.join(&file.path)).expect("there") == std::fs::read(&file.source).expect("there")
        );
    }
    assert_eq!(training.publish(store, "1").await.expect("again"), sealed);
    a_file_is_resumed_without_sending_it_again(store).await;
    overwrite(store, "1", "model.json.gz", &vec![0; model_file.stored_size() as usize]).await;
    let bad = sealed::verify(store, &model(), &name("1")).await.expect_err("damaged");
    assert!(matches!(&bad, SealedError::BadFile { path, .. } if path == "model.json"), "{bad}");
}

async fn a_file_is_resumed_without_sending_it_again(store: &ArtifactStore) {
    let training = Training::of(&[("a.json", 1_000), ("large.bin", CHUNK + 12_345)]);
    let calm = Faults::none();
    training.publish(&with(store, calm.clone()), "8").await.expect("published");
    // The manifest is lost: all files are there.
    training.publish(&with(store, Faults::new(calm.writes() - 1, false)), "9").await.expect_err("cut");
    let again = Faults::none();
    let (sealed, found) = training.publish_noting(&with(store, again.clone()), "9").await;
    sealed.expect("published");
    assert_eq!(found.len(), 2);
    assert_eq!(again.writes(), 1, "the manifest: {:?}", again.puts());
}
