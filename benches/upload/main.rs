//! How fast a version is published, beside rclone with the same files to the
//! same store in the same run: `cargo bench --bench upload`, one JSON line per figure, each with its limit
//! (rclone's time, the memory it may take) and the ratio to it: at most 1 is within it.
//!
//! 18 files of 8 MB to a local directory and to a local S3 server: s3s-fs when it is
//! on PATH, else moto from the tests' virtual environment. Both programs are
//! processes of their own, taken from start to end, by turns; refit's also
//! claims, hashes, seals and reads the manifest back. Then one file of 4 GB.

mod process;
mod server;
mod sink;

use std::io::Write as _;
use std::path::Path;

use refit::adapter::Deps;
use refit::artifacts::source::LocalFile;
use refit::artifacts::upload::{Upload, publish};
use refit::domain::id::{InstanceId, SecretName};
use refit::domain::metric::Metrics;
use refit::secret::{Secret, Secrets};
use serde_json::{Value, json};

use process::{Measured, measure};
use server::S3;

type Failure = Box<dyn std::error::Error + Send + Sync>;

const FILES: usize = 18;
const FILE_BYTES: usize = 8_000_000;
const REPEATS: usize = 5;
const LARGE_BYTES: u64 = 4_000_000_000;
/// The bar: megabytes resident while uploading.
const MOST_MEMORY: f64 = 64.0;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [word, store, dir, version] = words.as_slice()
        && word == "publish"
    {
        return upload(serde_json::from_str(store)?, Path::new(dir), version).await;
    }
    let place = tempfile::tempdir()?;
    let files = place.path().join("files");
    generate(&files)?;
    let rclone = process::is_there("rclone");
    if !rclone {
        say(&json!({"figure": "rclone", "missing": "install rclone to compare with it"}))?;
    }
    let s3 = S3::start(place.path()).await?;
    for store in [Store::Directory(place.path()), Store::S3(&s3)] {
        compare(&store, &files, rclone).await?;
    }
    drop(s3);

    let large = place.path().join("large");
    std::fs::create_dir(&large)?;
    // A file of holes is read like any other.
    std::fs::File::create(large.join("large.bin"))?.set_len(LARGE_BYTES)?;
    let sink = sink::start().await?;
    for (name, store) in
        [("directory", Store::Directory(place.path()).settings()), ("s3 (bodies dropped)", sink)]
    {
        let done = measure(ourselves(&store, &large, "large")?).await?;
        let mb = LARGE_BYTES as f64 / 1e6;
        say(&json!({
            "figure": "one_large_file", "store": name, "mb": mb, "s": rounded(done.seconds),
            "mb_per_s": rounded(mb / done.seconds), "memory_mb": rounded(done.memory_mb),
            "limit_mb": MOST_MEMORY, "ratio": rounded(done.memory_mb / MOST_MEMORY),
        }))?;
    }
    Ok(())
}

/// Where to.
enum Store<'a> {
    Directory(&'a Path),
    S3(&'a S3),
}

impl Store<'_> {
    fn name(&self) -> String {
        match self {
            Store::Directory(_) => "directory".to_owned(),
            Store::S3(s3) => format!("s3 ({})", s3.program),
        }
    }

    fn settings(&self) -> Value {
        match self {
            Store::Directory(place) => json!({"kind": "local", "path": place.join("store")}),
            Store::S3(s3) => s3.settings(),
        }
    }

    /// rclone's command for the same.
    fn rclone(&self, files: &Path, version: &str) -> tokio::process::Command {
        let mut command = tokio::process::Command::new("rclone");
        // rclone 1.60 does not start with a bundle of its own.
        command.arg("copy").arg(files).env("RCLONE_CONFIG", "/dev/null").env_remove("AWS_CA_BUNDLE");
        match self {
            Store::Directory(place) => command.arg(place.join("rclone").join(version)),
            Store::S3(s3) => s3.rclone(&mut command).arg(format!("bench:models/rclone/{version}")),
        };
        command
    }
}

async fn compare(store: &Store<'_>, files: &Path, rclone: bool) -> Result<(), Failure> {
    let (mut ours, mut theirs) = (vec![], vec![]);
    for round in 0..=REPEATS {
        let version = format!("v{round}");
        let refit = measure(ourselves(&store.settings(), files, &version)?).await?;
        let other = match rclone {
            true => Some(measure(store.rclone(files, &version)).await?),
            false => None,
        };
        // The first round warms caches up.
        if round > 0 {
            ours.push(refit);
            theirs.extend(other);
        }
    }
    let (refit, rclone) = (median(&ours), median(&theirs));
    say(&json!({
        "figure": "upload_s", "store": store.name(), "files": FILES, "mb": FILES * FILE_BYTES / 1_000_000,
        "of": ours.len(), "s": refit.map(rounded), "limit_s": rclone.map(rounded),
        "ratio": refit.zip(rclone).map(|(refit, rclone)| rounded(refit / rclone)),
    }))?;
    say(&json!({
        "figure": "upload_memory_mb", "store": store.name(), "mb": peak(&ours), "limit_mb": MOST_MEMORY,
        "ratio": peak(&ours).map(|peak| rounded(peak / MOST_MEMORY)), "rclone_mb": peak(&theirs),
    }))
}

/// This program, as the one that uploads.
fn ourselves(store: &Value, files: &Path, version: &str) -> Result<tokio::process::Command, Failure> {
    let mut command = tokio::process::Command::new(std::env::current_exe()?);
    command.arg("publish").arg(store.to_string()).arg(files).arg(version);
    Ok(command)
}

/// Publishes the files of `dir`.
async fn upload(store: Value, dir: &Path, version: &str) -> Result<(), Failure> {
    let secret = |name: &str| Ok::<_, Failure>((name.parse::<SecretName>()?, Secret::new("test")));
    let deps = Deps {
        project: dir.to_owned(),
        secrets: Secrets::fixed([secret("S3_ID")?, secret("S3_KEY")?].into()),
        http: refit::http_client::build()?,
        stores: Default::default(),
    };
    let store = refit::artifacts::build(store, &deps)?;
    let mut files = vec![];
    for entry in std::fs::read_dir(dir)? {
        let source = entry?.path();
        let path = source.file_name().and_then(|name| name.to_str()).ok_or("a name")?.to_owned();
        files.push(LocalFile { path, source, sha256: None });
    }
    let upload = Upload {
        store: &store,
        model: &"race-times".parse()?,
        version: &version.parse()?,
        instance: InstanceId::generate(),
        run: None,
        files: &files,
        metrics: &Metrics::default(),
        provenance: &Value::Null,
        sealed_at: chrono::DateTime::UNIX_EPOCH,
    };
    publish(&upload, &|_| {}).await?;
    Ok(())
}

/// Files that do not compress, the same every time.
fn generate(dir: &Path) -> Result<(), Failure> {
    std::fs::create_dir(dir)?;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for number in 0..FILES {
        let words = (0..FILE_BYTES / 8).flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        });
        std::fs::write(dir.join(format!("model-{number:02}.json")), words.collect::<Vec<u8>>())?;
    }
    Ok(())
}

fn median(of: &[Measured]) -> Option<f64> {
    let mut seconds: Vec<f64> = of.iter().map(|one| one.seconds).collect();
    seconds.sort_by(f64::total_cmp);
    seconds.get(seconds.len() / 2).copied()
}

fn peak(of: &[Measured]) -> Option<f64> {
    of.iter().map(|one| one.memory_mb).max_by(f64::total_cmp).map(rounded)
}

fn say(line: &Value) -> Result<(), Failure> {
    Ok(writeln!(std::io::stdout(), "{line}")?)
}

fn rounded(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}
