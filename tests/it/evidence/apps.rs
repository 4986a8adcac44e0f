//! Apps that keep what they served, each in its own way.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use axum::extract::Query;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use refit::domain::Timestamp;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, SqliteConnection};

use crate::support::faults::Server;
use crate::support::prometheus::Prometheus;

/// A request that an app served.
#[derive(Debug, Clone)]
pub struct Served {
    pub id: String,
    pub at: Timestamp,
    pub version: &'static str,
    pub ok: bool,
}

/// An app with its own records.
#[async_trait]
pub trait App: Send + Sync {
    /// What the workflow says below `evidence:`.
    fn evidence(&self) -> String;
    /// The app served these.
    async fn serves(&self, requests: &[Served]);
    /// Rows that make no sense, one of them beside a time: SQL values, or JSON.
    async fn breaks(&self, at: Timestamp) -> u64;
    /// Whether it can be reached.
    async fn is_away(&self, away: bool);
}

/// A table as Prisma makes it, with the names of its columns.
pub struct SqliteTable {
    _dir: tempfile::TempDir,
    path: PathBuf,
    /// The type of the time's column.
    time: &'static str,
}

impl SqliteTable {
    pub async fn new(time: &'static str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("app.db");
        let app = Self { _dir: dir, path, time };
        let table = format!(
            "CREATE TABLE served (id TEXT, \"createdAt\" {time}, \"modelVersion\" TEXT, status INTEGER, ms REAL)"
        );
        app.connect().await.execute(AssertSqlSafe(table)).await.expect("a table");
        app
    }

    async fn connect(&self) -> SqliteConnection {
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&self.path).create_if_missing(true);
        options.connect().await.expect("opened")
    }

    async fn insert(&self, values: &str) {
        let text = format!("INSERT INTO served VALUES {values}");
        self.connect().await.execute(AssertSqlSafe(text)).await.expect("inserted");
    }

    fn time(&self, at: Timestamp) -> String {
        match self.time {
            "INTEGER" => at.timestamp_millis().to_string(),
            _ => format!("'{}'", at.format("%Y-%m-%d %H:%M:%S%.3f")),
        }
    }
}

#[async_trait]
impl App for SqliteTable {
    fn evidence(&self) -> String {
        format!(
            "sql:\n  url: sqlite:{}\n  error_if: row.status >= 500\n  query: |\n    \
             SELECT \"createdAt\" AS at, id AS request_id, \"modelVersion\" AS version, status, ms AS latency_ms \
             FROM served -- the table",
            self.path.display()
        )
    }

    async fn serves(&self, requests: &[Served]) {
        let row = |it: &Served| {
            let status = if it.ok { 200 } else { 500 };
            format!("('{}', {}, '{}', {status}, 12.5)", it.id, self.time(it.at), it.version)
        };
        self.insert(&requests.iter().map(row).collect::<Vec<_>>().join(", ")).await;
    }

    async fn breaks(&self, at: Timestamp) -> u64 {
        let at = self.time(at);
        // It sorts among the others, and is no time.
        let no_time = format!("{}x'", at.trim_end_matches('\''));
        let long = "x".repeat(10_000);
        self.insert(&format!(
            "(NULL, {at}, '1', 200, 1), ('a', {at}, NULL, 200, 1), ('b', {at}, '{long}', 200, 1), \
             ('c', {at}, '1', 200, -1), ('d', {at}, '1', 200, 9e999), ('e', {at}, '1', NULL, 1), \
             ('f', 'noon', '1', 200, 1), ('g', NULL, '1', 200, 1), ('h', {no_time}, '1', 200, 1)"
        ))
        .await;
        7
    }

    async fn is_away(&self, away: bool) {
        let aside = self.path.with_extension("aside");
        let (from, to) = if away { (&self.path, &aside) } else { (&aside, &self.path) };
        std::fs::rename(from, to).expect("renamed");
    }
}

/// A table of a Postgres of its own, read by a role that may only read.
pub struct PostgresTable {
    url: String,
    role: String,
    away: AtomicBool,
}

impl PostgresTable {
    pub async fn new() -> Self {
        let url = crate::store::database::empty_postgres().await;
        let role = format!("reader_{}", uuid::Uuid::now_v7().simple());
        let app = Self { url, role, away: AtomicBool::new(false) };
        let role = &app.role;
        app.run(&format!(
            "CREATE TABLE served (id text, created_at timestamptz, model_version text, failed boolean, ms double precision);
             CREATE ROLE {role} LOGIN PASSWORD 'reads-only'; GRANT SELECT ON served TO {role}"
        ))
        .await;
        app
    }

    async fn run(&self, text: &str) {
        let admin = std::env::var("REFIT_TEST_POSTGRES_ADMIN_URL").expect("`tests/run` sets it");
        let mut admin = url::Url::parse(&admin).expect("a URL");
        admin.set_path(url::Url::parse(&self.url).expect("a URL").path());
        let mut connection = PgConnection::connect(admin.as_str()).await.expect("connected");
        connection.execute(AssertSqlSafe(text.to_owned())).await.expect("done");
    }
}

#[async_trait]
impl App for PostgresTable {
    fn evidence(&self) -> String {
        let mut url = url::Url::parse(&self.url).expect("a URL");
        url.set_username(&self.role).expect("set");
        url.set_password(Some("reads-only")).expect("set");
        format!(
            "sql:\n  url: {url}\n  query: |\n    SELECT created_at AS at, id AS request_id, model_version AS version, \
             NOT failed AS ok, ms AS latency_ms FROM served;"
        )
    }

    async fn serves(&self, requests: &[Served]) {
        let row = |it: &Served| {
            format!("('{}', '{}', '{}', {}, 12.5)", it.id, it.at.to_rfc3339(), it.version, !it.ok)
        };
        let rows: Vec<_> = requests.iter().map(row).collect();
        self.run(&format!("INSERT INTO served VALUES {}", rows.join(", "))).await;
    }

    async fn breaks(&self, at: Timestamp) -> u64 {
        let (at, long) = (at.to_rfc3339(), "x".repeat(10_000));
        self.run(&format!(
            "INSERT INTO served VALUES (NULL, '{at}', '1', false, 1), ('a', '{at}', NULL, false, 1),
             ('b', '{at}', '{long}', false, 1), ('c', '{at}', '1', false, -1), ('d', '{at}', '1', false, 'NaN'),
             ('e', '{at}', '1', NULL, 1), ('f', 'infinity', '1', false, 1), ('g', NULL, '1', false, 1)"
        ))
        .await;
        6
    }

    async fn is_away(&self, away: bool) {
        let was = self.away.swap(away, Ordering::SeqCst);
        assert_ne!(was, away);
        let login = if away { "NOLOGIN" } else { "LOGIN" };
        self.run(&format!("ALTER ROLE {} {login}", self.role)).await;
    }
}

/// Requests that an app keeps in memory, behind an endpoint.
#[derive(Clone)]
struct Kept {
    requests: Arc<Mutex<Vec<(Served, Value)>>>,
    away: Arc<AtomicBool>,
}

impl Kept {
    fn new() -> Self {
        Self { requests: Arc::default(), away: Arc::default() }
    }

    fn add(&self, requests: &[Served]) {
        let mut kept = self.requests.lock().unwrap();
        kept.extend(requests.iter().map(|it| (it.clone(), row(&it.id, it))));
    }

    /// Away, or without the right to ask.
    fn refuses(&self, headers: &HeaderMap) -> Option<Response> {
        if self.away.load(Ordering::SeqCst) {
            return Some(
                (StatusCode::SERVICE_UNAVAILABLE, "token reads-only is fine, but I am not").into_response(),
            );
        }
        let allowed = headers.get("authorization").is_some_and(|value| value == "Bearer reads-only");
        (!allowed).then(|| StatusCode::UNAUTHORIZED.into_response())
    }
}

fn row(id: &str, it: &Served) -> Value {
    let status = if it.ok { 200 } else { 502 };
    json!({
        "id": id, "servedAt": it.at, "model": {"version": it.version}, "status": status,
        "timing": {"totalMs": 12.5},
    })
}

/// An endpoint that lists what was served, twenty rows a page.
pub struct Endpoint {
    kept: Kept,
    server: Server,
    by: Listing,
}

/// How an endpoint is asked for what is new.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Listing {
    /// From a time on, page by page.
    Since,
    /// After a number, for ever.
    After,
}

impl Endpoint {
    pub async fn new(by: Listing) -> Self {
        let kept = Kept::new();
        let of = kept.clone();
        let list = move |Query(asked): Query<BTreeMap<String, String>>, headers: HeaderMap| {
            let of = of.clone();
            async move { of.refuses(&headers).unwrap_or_else(|| listed(&of, &asked).into_response()) }
        };
        Self { kept, server: Server::start(Router::new().route("/served", get(list))), by }
    }
}

fn listed(kept: &Kept, asked: &BTreeMap<String, String>) -> Json<Value> {
    const PAGE: usize = 20;
    let since: Option<Timestamp> = asked.get("since").map(|since| since.parse().expect("a time"));
    let after: usize =
        asked.get("after").filter(|it| !it.is_empty()).map_or(0, |it| it.parse().expect("a number"));
    let all = kept.requests.lock().unwrap();
    let new = all.iter().enumerate().filter(|(_, (it, _))| since.is_none_or(|since| it.at >= since));
    let page: Vec<(usize, &Value)> = new
        .skip(if since.is_some() { after } else { 0 })
        .filter(|(number, _)| since.is_some() || *number >= after)
        .take(PAGE)
        .map(|(number, (_, row))| (number, row))
        .collect();
    let next = match page.last() {
        // A list from a time on ends; one after a number says where it goes on.
        Some(_) if since.is_some() => (page.len() == PAGE).then_some(after + PAGE),
        Some((number, _)) => Some(number + 1),
        None => None,
    };
    Json(json!({"data": {"items": page.iter().map(|(_, row)| *row).collect::<Vec<_>>()}, "next": next}))
}

#[async_trait]
impl App for Endpoint {
    fn evidence(&self) -> String {
        let begin = match self.by {
            Listing::Since => "since=${{ since }}&after=${{ cursor }}",
            Listing::After => "after=${{ cursor }}",
        };
        format!(
            "http:\n  url: \"{}/served?{begin}\"\n  headers: {{ authorization: \"Bearer ${{{{ secrets.TOKEN }}}}\" }}\n  rows: data.items\n  \
             next: next\n  error_if: row.status >= 500\n  \
             fields: {{ at: servedAt, request_id: id, version: model.version, latency_ms: timing.totalMs }}",
            self.server.url
        )
    }

    async fn serves(&self, requests: &[Served]) {
        self.kept.add(requests);
    }

    async fn breaks(&self, at: Timestamp) -> u64 {
        let served = Served { id: String::new(), at, version: "1", ok: true };
        let mut rows = vec![json!({"servedAt": at}), json!({"servedAt": at, "id": "a"})];
        for (field, value) in [
            ("/model/version", json!("x".repeat(10_000))),
            ("/timing/totalMs", json!(-1)),
            ("/timing/totalMs", json!("NaN")),
            ("/status", json!(null)),
        ] {
            let mut row = row(field, &served);
            *row.pointer_mut(field).expect("there") = value;
            rows.push(row);
        }
        let timeless = [json!("noon"), json!(null), json!(true)].map(|no_time| {
            let mut row = row("timeless", &served);
            row["servedAt"] = no_time;
            row
        });
        rows.extend(timeless);
        rows.push(json!("no object"));
        let refused = rows.len() as u64;
        self.kept.requests.lock().unwrap().extend(rows.into_iter().map(|row| (served.clone(), row)));
        refused
    }

    async fn is_away(&self, away: bool) {
        self.kept.away.store(away, Ordering::SeqCst);
    }
}

/// Counters of an app, scraped by a Prometheus that stands behind a proxy. Those of errors appear with the first
/// error.
pub struct Counters {
    kept: Kept,
    proxy: Server,
}

impl Counters {
    pub async fn new() -> Self {
        let kept = Kept::new();
        // One server for as many requests as are kept: another takes its place when there are more.
        let running: Arc<tokio::sync::Mutex<Option<(usize, Prometheus)>>> = Arc::default();
        let of = kept.clone();
        let asked = move |uri: Uri, headers: HeaderMap| {
            let (of, running) = (of.clone(), running.clone());
            async move {
                if let Some(refusal) = of.refuses(&headers) {
                    return refusal;
                }
                let mut running = running.lock().await;
                let kept = of.requests.lock().unwrap().len();
                if running.as_ref().is_none_or(|(scraped, _)| *scraped != kept) {
                    let samples = scraped(&of.requests.lock().unwrap());
                    *running = Some((kept, Prometheus::over(&samples).await));
                }
                let url = format!("{}{uri}", running.as_ref().expect("running").1.url);
                let answer = reqwest::get(url).await.expect("an answer");
                (answer.status(), answer.bytes().await.expect("a body")).into_response()
            }
        };
        Self { proxy: Server::start(Router::new().fallback(asked)), kept }
    }
}

/// Seconds between two scrapes, which do not fall together with the minutes.
const SCRAPED: (i64, usize) = (7, 15);

/// What a Prometheus keeps of these requests, from an hour before the first to four hours after the last.
fn scraped(requests: &[(Served, Value)]) -> String {
    let times = requests.iter().map(|(it, _)| it.at.timestamp());
    let (Some(first), Some(last)) = (times.clone().min(), times.max()) else { return String::new() };
    let scrapes = first / 60 * 60 - 3600 + SCRAPED.0..last + 4 * 3600;
    let versions: BTreeSet<&str> = requests.iter().map(|(it, _)| it.version).collect();
    let count = |version: &str, ok: bool, at: i64| {
        let served = |it: &Served| it.version == version && it.ok == ok && it.at.timestamp() <= at;
        requests.iter().filter(|(it, _)| served(it)).count()
    };
    let (mut counters, mut buckets) =
        (String::from("# TYPE n counter\n"), String::from("# TYPE ms histogram\n"));
    for version in versions {
        for at in scrapes.clone().step_by(SCRAPED.1) {
            let (ok, failed) = (count(version, true, at), count(version, false, at));
            for (status, n) in [("200", Some(ok)), ("500", Some(failed).filter(|n| *n > 0))] {
                if let Some(n) = n {
                    let labels = format!("job=\"app\",version=\"{version}\",status=\"{status}\"");
                    let _ = writeln!(counters, "n_total{{{labels}}} {n} {at}");
                }
            }
            for (le, n) in [("0.005", 0), ("0.05", ok + failed), ("+Inf", ok + failed)] {
                let labels = format!("job=\"app\",version=\"{version}\",le=\"{le}\"");
                let _ = writeln!(buckets, "ms_bucket{{{labels}}} {n} {at}");
            }
        }
    }
    counters + &buckets
}

#[async_trait]
impl App for Counters {
    fn evidence(&self) -> String {
        format!(
            "prometheus:\n  url: {}\n  headers: {{ authorization: \"Bearer ${{{{ secrets.TOKEN }}}}\" }}\n  requests: n_total{{job=\"app\"}}\n  \
             error_if: row.status.startsWith('5')\n  latency: ms_bucket{{job=\"app\"}}",
            self.proxy.url
        )
    }

    async fn serves(&self, requests: &[Served]) {
        self.kept.add(requests);
    }

    async fn breaks(&self, _: Timestamp) -> u64 {
        0
    }

    async fn is_away(&self, away: bool) {
        self.kept.away.store(away, Ordering::SeqCst);
    }
}
