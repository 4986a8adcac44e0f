//! The queries that are there to be copied, on both databases, and `doctor`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use chrono::TimeDelta;
use refit::adapter::AdapterError;
use refit::domain::workflow::parse;
use refit::evidence::{Checked, Place, checked, source};
use refit::secret::Secrets;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection};

use crate::cli::refit::refit;
use crate::support::prometheus::Prometheus;
use crate::support::world::{http, start};

const TABLES: &str = "
    CREATE TABLE prediction (id TEXT, \"modelVersion\" TEXT, \"errorRate\" REAL, \"predictionTime\" REAL, \"createdAt\" TIMESTAMP);
    INSERT INTO prediction VALUES ('p1', 'v1', 0, 12.5, '2026-11-20 01:59:01'), ('p2', 'v2', 0.5, 40, '2026-11-20 01:59:02');
    CREATE TABLE ml_predictions (id INTEGER, model_version TEXT, predicted_at TIMESTAMP, latency_ms REAL, error TEXT, prediction REAL);
    INSERT INTO ml_predictions VALUES (1, 'v1', '2026-11-20 01:59:01', 3, NULL, 0.5), (2, 'v2', '2026-11-20 01:59:02', 3, 'timeout', NULL);
";

/// What a source over `url` with a query of `examples/evidence` has.
async fn look(url: &str, query: &str, error_if: &str) -> Result<Checked, AdapterError> {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/evidence").join(query);
    let files = BTreeMap::from([("q.sql".to_owned(), std::fs::read_to_string(file).expect("readable"))]);
    let text = format!(
        "name: w\nmodel: m\nevidence: {{ sql: {{ url: '{url}', query_file: q.sql{error_if} }} }}\nsteps: [{{run: x}}]\n"
    );
    let (workflow, _) = parse("w.yaml", &text, &files).expect("valid");
    let (secrets, http) = (Secrets::default(), http());
    let place = Place { project: std::path::Path::new("/"), secrets: &secrets, http: &http };
    let source = source(workflow.evidence.as_ref().expect("a source"), place)?;
    checked(source.as_ref(), start() + TimeDelta::minutes(1)).await
}

async fn ready_made_queries_are_read(url: &str) {
    for (query, error_if) in
        [("prediction.sql", ", error_if: row.error_rate > 0.0"), ("ml_predictions.sql", "")]
    {
        let found = look(url, query, error_if).await.expect("read");
        assert_eq!(
            (found.said.as_str(), &found.problem),
            ("2 requests of v1, v2 in the last hour", &None),
            "{query}"
        );
    }
}

#[tokio::test]
async fn errors_of_other_requests_say_nothing_of_a_version() {
    let (mut served, mut failed) = ("# TYPE n counter\n".to_owned(), "# TYPE bad counter\n".to_owned());
    for minute in 0..30 {
        let at = (start() - TimeDelta::minutes(30 - minute)).timestamp();
        // All that `2` served failed; what is counted as errors of `1` is something else.
        for (version, requests, errors) in [("1", 10, 90), ("2", 10, 10)] {
            let _ = writeln!(served, "n_total{{version=\"{version}\"}} {} {at}", requests * minute);
            let _ = writeln!(failed, "bad_total{{version=\"{version}\"}} {} {at}", errors * minute);
        }
    }
    let app = Prometheus::over(&(served + &failed)).await;
    let text = format!(
        "name: w\nmodel: m\nevidence: {{ prometheus: {{ url: '{}', requests: n_total, errors: bad_total }} }}\nsteps: [{{run: x}}]\n",
        app.url
    );
    let (workflow, _) = parse("w.yaml", &text, &BTreeMap::new()).expect("valid");
    let (secrets, http) = (Secrets::default(), http());
    let place = Place { project: std::path::Path::new("/"), secrets: &secrets, http: &http };
    let source = source(workflow.evidence.as_ref().expect("a source"), place).expect("a source");
    let found = checked(source.as_ref(), start() + TimeDelta::minutes(1)).await.expect("read");
    assert!(found.said.ends_with("requests of 2 in the last hour"), "{}", found.said);
    let problem = found.problem.unwrap_or_default();
    assert!(problem.starts_with("`errors` of 1 grew by more than its `requests`"), "{problem}");
}

async fn sqlite(path: &std::path::Path) {
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path).create_if_missing(true);
    let mut connection = options.connect().await.expect("opened");
    connection.execute(TABLES).await.expect("tables");
    connection.close().await.expect("closed");
}

#[tokio::test]
async fn ready_made_queries_are_read_on_sqlite() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("app.db");
    sqlite(&path).await;
    ready_made_queries_are_read(&format!("sqlite:{}", path.display())).await;
}

#[tokio::test]
async fn ready_made_queries_are_read_on_postgres() {
    let url = crate::store::database::empty_postgres().await;
    let mut connection = PgConnection::connect(&url).await.expect("connected");
    connection.execute(AssertSqlSafe(TABLES.to_owned())).await.expect("tables");
    ready_made_queries_are_read(&url).await;
}

#[tokio::test]
async fn doctor_reads_the_evidence() {
    let dir = tempfile::tempdir().expect("a directory");
    sqlite(&dir.path().join("app.db")).await;
    std::fs::create_dir(dir.path().join("workflows")).expect("writable");
    std::fs::write(dir.path().join("refit.toml"), "").expect("writable");
    let workflow = |columns: &str| {
        let text = format!(
            "name: w\nmodel: m\nevidence: {{ sql: {{ url: 'sqlite:app.db', query: \"SELECT {columns} FROM ml_predictions\" }} }}\n\
             steps: [{{run: x}}]\n"
        );
        std::fs::write(dir.path().join("workflows/w.yaml"), text).expect("writable");
        refit(dir.path(), &["doctor"])
    };
    let said = workflow("predicted_at AS at, id AS request_id, model_version AS version, 1 AS ok");
    assert!(said.contains("0 requests in the last day"), "{said}");
    let said = workflow("predicted_at, id, model_version");
    let wanted =
        "the query has no column `at`, `request_id`, `version`; it has predicted_at, id, model_version";
    assert!(said.contains(wanted), "{said}");
}
