//! The team's project directory, the services around it, and the app's database.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock, Mutex};

use refit::domain::release::ReleaseDocument;
use serde_json::Value;
use sqlx::Connection as _;
use tempfile::TempDir;

use super::door;
use crate::store::database::empty_postgres;
use crate::support::crash::Crash;
use crate::support::resend::Resend;
use crate::support::slack::{self, Slack};
use crate::support::vercel::{CONFIG, READ_TOKEN, TEAM, TOKEN, Vercel};
use crate::support::vercel_blob::{Access, VercelBlob};
use crate::support::{node, python};

/// The same workflow, with a trainer that takes no time and waits that are short.
pub const QUICK: &[(&str, &str)] = &[
    ("require_approval", "accept"),
    ("rows: { min: 5000, vs_previous: { min: 95% } }", "rows: { min: 10 }"),
    (
        "run: python3 -m research.scripts.train_models --distances=sprint,olympic,70.3,140.6",
        r#"run: "printf 'MAE: 400\nR²: 0.95\n'""#,
    ),
    (
        "run: python3 -m research.scripts.export_artifacts --input-dir=research/models --output-dir=apps/web/src/data/ml-models",
        r#"run: 'out=apps/web/src/data/ml-models; mkdir -p $out; for name in sprint olympic long; do echo "{\"model\": $$}" > $out/$name.json; done'"#,
    ),
    ("count: 18", "count: 3"),
    (
        "        - { metric: latency_slow_share, acceptable_below: 15% }   # slow: as 5 % of today's answers are\n",
        "",
    ),
    ("for: 24h", "for: 3m"),
    ("bake: 6h", "bake: 2m"),
    ("[rolled_back, failed], email", "[promoted, rolled_back, failed], email"),
];

/// Everything that outlives a process of refit.
pub struct Place {
    pub project: TempDir,
    pub blob: VercelBlob,
    pub vercel: Vercel,
    pub resend: Resend,
    pub slack: Slack,
    /// Which of refit's requests is its last.
    pub crash: Arc<Mutex<Crash>>,
    /// The app's database.
    pub app_database: String,
    /// Where refit reaches each vendor.
    pub doors: BTreeMap<&'static str, String>,
}

impl Place {
    /// A project as `refit init --template raceday-vercel` leaves it, with the team's own trainer, and
    /// `changes` made to the workflow: each text to what stands in its place.
    pub async fn new(on_postgres: bool, changes: &[(&str, &str)]) -> Self {
        let project = tempfile::tempdir().expect("a directory");
        let root = project.path();
        let app_database = match on_postgres {
            true => empty_postgres().await,
            false => root.join("app.db").display().to_string(),
        };
        let mut place = Self {
            blob: VercelBlob::start(Access::Public),
            vercel: Vercel::start(),
            resend: Resend::start().await,
            slack: Slack::start().await,
            crash: Arc::new(Mutex::new(Crash::never())),
            app_database,
            project,
            doors: BTreeMap::new(),
        };
        place.init();
        place.settle_in(on_postgres, changes).await;
        place
    }

    pub fn root(&self) -> &Path {
        self.project.path()
    }

    fn init(&self) {
        /// Made once: a test may need it for each of its deaths.
        static INITIAL: LazyLock<BTreeMap<PathBuf, Vec<u8>>> = LazyLock::new(initial);
        for (path, bytes) in INITIAL.iter() {
            let path = self.root().join(path);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            std::fs::write(path, bytes).expect("written");
        }
        std::os::unix::fs::symlink(node::home().join("node_modules"), self.root().join("node_modules"))
            .expect("linked");
    }

    /// What a team writes into the files of the template.
    async fn settle_in(&mut self, on_postgres: bool, changes: &[(&str, &str)]) {
        for (name, upstream) in [
            ("blob", format!("http://127.0.0.1:{}", self.blob.port)),
            ("vercel", self.vercel.server.url.clone()),
            ("resend", self.resend.address.clone()),
            ("slack", self.slack.address.clone()),
        ] {
            self.doors.insert(name, door::open(name, upstream, Arc::clone(&self.crash)).await);
        }
        let [blob, vercel, resend, slack] =
            ["blob", "vercel", "resend", "slack"].map(|name| &self.doors[name]);
        self.edit(
            "refit.toml",
            &[
                ("url = \"REFIT_DATABASE_URL\"", ""),
                ("[database]", ""),
                ("# team = \"team_…\"", &format!("team = \"{TEAM}\"\napi = \"{vercel}\"")),
                ("ecfg_change_me", CONFIG),
                ("prefix = \"models\"", &format!("prefix = \"models\"\napi_url = \"{blob}/api/blob\"")),
                (
                    "channel = \"#models\"",
                    &format!("channel = \"{}\"\nbase_url = \"{slack}/api\"", slack::CHANNEL),
                ),
                (
                    "api_key = \"RESEND_API_KEY\"",
                    &format!("api_key = \"RESEND_API_KEY\"\nbase_url = \"{resend}\""),
                ),
            ],
        );
        let mut secrets = String::from("\n[secrets]\n");
        for (name, value) in [
            ("APP_DATABASE_URL", self.app_database.as_str()),
            ("BLOB_READ_WRITE_TOKEN", &VercelBlob::token()),
            ("VERCEL_TOKEN", TOKEN),
            ("RESEND_API_KEY", crate::support::resend::KEY),
            ("SLACK_BOT_TOKEN", slack::TOKEN),
        ] {
            let file = format!(".secrets/{name}");
            std::fs::create_dir_all(self.root().join(".secrets")).expect("made");
            std::fs::write(self.root().join(&file), value).expect("written");
            secrets += &format!("{name} = \"{file}\"\n");
        }
        let toml = self.root().join("refit.toml");
        let text = std::fs::read_to_string(&toml).expect("refit.toml");
        std::fs::write(&toml, text + &secrets).expect("written");

        let python = format!("run: OMP_NUM_THREADS=1 {} -m", python::venv().join("bin/python").display());
        self.edit("workflows/retrain.yaml", changes);
        let mut all = vec![("mode: advise", "mode: act")];
        if std::fs::read_to_string(self.root().join("workflows/retrain.yaml")).unwrap().contains("python3 -m")
        {
            all.push(("run: python3 -m", python.as_str()));
        }
        if !on_postgres {
            all.push((
                "from: { postgres: { url: \"${{ secrets.APP_DATABASE_URL }}\", query_file: sql/results.sql } }",
                "from: { sqlite: { path: app.db, query_file: sql/results.sql } }",
            ));
        }
        self.edit("workflows/retrain.yaml", &all);
    }

    /// Each text, which must be there, by the other.
    pub fn edit(&self, file: &str, changes: &[(&str, &str)]) {
        let path = self.root().join(file);
        let mut text = std::fs::read_to_string(&path).expect(file);
        for (from, to) in changes {
            assert!(text.contains(from), "{file} has no {from:?}");
            text = text.replace(from, to);
        }
        std::fs::write(path, text).expect("written");
    }

    /// Races take place until `date`: the app's table of results has those of twelve weeks before.
    pub fn race_until(&self, date: &str, more: &[&str]) {
        let mut generate = Command::new("python3");
        generate.arg(example("generate.py")).args(["--until", date, "--weeks", "12"]).args(more);
        if self.app_database.starts_with("postgres") {
            let made = generate.output().expect("python3 runs");
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
            let sql = String::from_utf8(made.stdout).expect("text");
            let url = self.app_database.clone();
            let runtime = tokio::runtime::Handle::current();
            tokio::task::block_in_place(|| {
                runtime.block_on(async {
                    let mut app = sqlx::PgConnection::connect(&url).await.expect("the app's database");
                    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut app).await.expect("inserted");
                });
            });
        } else {
            let made = generate.args(["--sqlite", &self.app_database]).output().expect("python3 runs");
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        }
    }

    /// The app's table of predictions as `sql/predictions.sql` reads it: how many rows there are of each
    /// version, and how many of them went well.
    pub async fn predictions(&self) -> BTreeMap<String, (i64, i64)> {
        let query = std::fs::read_to_string(example("sql/predictions.sql")).expect("the query");
        let counts = format!(
            "SELECT version, count(*), sum(CASE WHEN ok THEN 1 ELSE 0 END) FROM ({query}) AS observed \
             GROUP BY version"
        );
        let counts = sqlx::AssertSqlSafe(counts);
        let rows: Vec<(String, i64, i64)> = if self.app_database.starts_with("postgres") {
            let mut app = sqlx::PgConnection::connect(&self.app_database).await.expect("the app's database");
            sqlx::query_as(counts).fetch_all(&mut app).await.expect("rows")
        } else {
            let mut app = sqlx::SqliteConnection::connect(&self.app_database).await.expect("a database");
            sqlx::query_as(counts).fetch_all(&mut app).await.expect("rows")
        };
        rows.into_iter().map(|(version, all, well)| (version, (all, well))).collect()
    }

    /// What the app reads to know which version serves.
    pub fn connection(&self) -> String {
        format!("{}/{CONFIG}?token={READ_TOKEN}", self.vercel.server.url)
    }

    /// The release document in the Global Config.
    pub fn release(&self) -> Option<ReleaseDocument> {
        let value = self
            .vercel
            .with(|world| world.configs[CONFIG].items.get("refit-race-times").map(|item| item.value.clone()));
        value.map(|value| serde_json::from_value(value).expect("a release document"))
    }

    /// The version that serves all that the canary does not, and the canary.
    pub fn serving(&self) -> (Option<String>, Option<String>) {
        let Some(release) = self.release() else { return (None, None) };
        let canary = release.canary.filter(|canary| canary.basis_points.0 > 0);
        (
            release.champion.map(|served| served.version.to_string()),
            canary.map(|canary| canary.served.version.to_string()),
        )
    }

    /// Sealed versions in Blob, with the number of their files.
    pub fn versions(&self) -> BTreeMap<String, usize> {
        let mut versions: BTreeMap<String, (bool, usize)> = BTreeMap::new();
        for path in self.blob.pathnames() {
            let Some(rest) = path.strip_prefix("models/race-times/") else { continue };
            let (version, file) = rest.split_once('/').expect("a file of a version");
            let found = versions.entry(version.to_owned()).or_default();
            match file {
                "manifest.json" => found.0 = true,
                "_claim.json" => {}
                _ => found.1 += 1,
            }
        }
        versions
            .into_iter()
            .filter(|(_, (sealed, _))| *sealed)
            .map(|(version, (_, files))| (version, files))
            .collect()
    }

    /// The text of the one mail with this subject.
    pub fn mail(&self, subject: &str) -> String {
        let mut mails = self.resend.mails();
        mails.retain(|mail| mail["subject"] == subject);
        let [mail] = mails.as_slice() else { panic!("{subject}: {mails:#?}") };
        mail["text"].as_str().expect("text").to_owned()
    }

    /// Subjects of the mails that were sent.
    pub fn subjects(&self) -> Vec<String> {
        let subject = |mail: &Value| mail["subject"].as_str().expect("a subject").to_owned();
        self.resend.mails().iter().map(subject).collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            for judged in [
                &self.vercel.violations,
                &self.resend.violations,
                &self.slack.violations,
                &self.slack.hook_violations,
            ] {
                judged.assert_none();
            }
        }
    }
}

/// A file of `examples/raceday`.
pub fn example(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/raceday").join(path)
}

/// Files of the template, and of the team's own.
fn initial() -> BTreeMap<PathBuf, Vec<u8>> {
    let dir = tempfile::tempdir().expect("a directory");
    let done = Command::new(env!("CARGO_BIN_EXE_refit"))
        .args(["init", "--template", "raceday-vercel", "-C"])
        .arg(dir.path())
        .output()
        .expect("refit runs");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let mut files = BTreeMap::new();
    read(dir.path(), Path::new(""), &mut files);
    for part in ["research", "app"] {
        read(&example(part), Path::new(part), &mut files);
    }
    files
}

/// Files below `dir`, as they are to be below `at`.
fn read(dir: &Path, at: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in std::fs::read_dir(dir).expect("readable") {
        let entry = entry.expect("readable");
        let at = at.join(entry.file_name());
        match entry.path() {
            path if path.ends_with("__pycache__") => {}
            path if path.is_dir() => read(&path, &at, files),
            path => drop(files.insert(at, std::fs::read(path).expect("readable"))),
        }
    }
}
