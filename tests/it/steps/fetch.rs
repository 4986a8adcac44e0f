//! `uses: fetch` from each of its sources.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use refit::domain::expr::Template;
use refit::domain::run::{FailureKind, Outcome};
use refit::domain::workflow::step::{ColumnType, Expectations, Fetch, Newest, OnStale, RowBounds, Source};
use refit::steps::context::{StepError, StepResult};
use refit::steps::fetch::{FetchOutput, run};
use sqlx::{Connection, Executor};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wiremock::matchers::{header, path};
use wiremock::{Mock, MockServer, ResponseTemplate};

use crate::support::steps::{Bench, done, failure};

fn text(source: &str) -> Template {
    Template::compile(source).expect("a template")
}

fn fetch(from: Source) -> Fetch {
    Fetch { from, to: "results.csv".to_owned(), expect: Expectations::default() }
}

fn of_url(url: &str) -> Fetch {
    fetch(Source::Http { url: text(url), headers: BTreeMap::from([("x-key".to_owned(), text("k"))]) })
}

fn fetched(bench: &Bench) -> String {
    std::fs::read_to_string(bench.dirs.data.join("results.csv")).expect("fetched")
}

/// What is in the data directory, hidden files too.
fn left(bench: &Bench) -> Vec<String> {
    let entries = std::fs::read_dir(&bench.dirs.data).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[tokio::test]
async fn rows_of_a_compressed_file() {
    let bench = Bench::new("data");
    let file = std::fs::File::create(bench.project("rows.csv.gz")).expect("writable");
    let mut packed = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
    packed.write_all(b"id,day\n1,2026-11-20\n").expect("writable");
    packed.finish().expect("writable");
    let mut spec = fetch(Source::File { path: text("rows.csv.gz") });
    spec.expect.columns = vec![("day".to_owned(), ColumnType::Date)];
    let output: FetchOutput = done(run(&spec, &bench.ctx()).await);
    assert_eq!((output.rows, output.bytes), (1, 20));
    assert_eq!(output.columns[1].max.as_deref(), Some("2026-11-20"));
    assert_eq!(fetched(&bench), "id,day\n1,2026-11-20\n");
    done::<FetchOutput>(run(&spec, &bench.ctx()).await);
    assert_eq!(left(&bench), ["results.csv"], "a second fetch takes its place");
}

#[tokio::test]
async fn bad_rows_end_the_run_as_rejected_with_every_reason() {
    let mut bench = Bench::new("data");
    std::fs::write(bench.project("rows.csv"), "id,day\n1,2026-01-01\n1,\n").expect("writable");
    let mut spec = fetch(Source::File { path: text("rows.csv") });
    spec.expect = Expectations {
        rows: RowBounds { min: Some(3), max: None, min_vs_previous: Some(0.95) },
        unique: vec!["id".to_owned()],
        null_rate: vec![("day".to_owned(), 0.1)],
        ..Expectations::default()
    };
    let previous = FetchOutput {
        file: "results.csv".to_owned(),
        rows: 10,
        bytes: 0,
        sha256: String::new(),
        columns: Vec::new(),
        violations: Vec::new(),
        stale: None,
    };
    bench.ledger.previous = Some(serde_json::to_value(previous).expect("JSON"));
    let Ok(StepResult::End { outcome, reason, output }) = run(&spec, &bench.ctx()).await else {
        panic!("not ended")
    };
    assert_eq!(outcome, Outcome::Rejected);
    for part in [
        "2 rows, fewer than the 3",
        "20.0 % of the last fetch's 10",
        "`day` is empty in 1 of 2",
        "(id) repeats",
    ] {
        assert!(reason.contains(part), "{reason}");
    }
    assert_eq!(output["violations"].as_array().map(Vec::len), Some(4));
}

#[tokio::test]
async fn stale_rows_skip_or_reject() {
    let bench = Bench::new("data");
    std::fs::write(bench.project("rows.csv"), "day\n2026-11-01\n").expect("writable");
    let mut spec = fetch(Source::File { path: text("rows.csv") });
    for (on_stale, expected) in [(OnStale::Skip, Outcome::Skipped), (OnStale::Fail, Outcome::Rejected)] {
        let max_age = Duration::from_secs(10 * 86_400);
        spec.expect.newest = Some(Newest { column: "day".to_owned(), max_age, on_stale });
        let Ok(StepResult::End { outcome, reason, .. }) = run(&spec, &bench.ctx()).await else {
            panic!("not ended")
        };
        assert_eq!(outcome, expected);
        assert!(reason.contains("the newest `day` is 2026-11-01, 20 d 2 h old"), "{reason}");
    }
}

#[tokio::test]
async fn a_file_that_is_no_csv_leaves_nothing() {
    let bench = Bench::new("data");
    std::fs::write(bench.project("rows.csv"), "a,b\n1,2\n3\n").expect("writable");
    let message = failure(run(&fetch(Source::File { path: text("rows.csv") }), &bench.ctx()).await);
    assert_eq!(message, "what was fetched is not a CSV file: line 3 has 1 cells; the header has 2");
    let message = failure(run(&fetch(Source::File { path: text("none.csv") }), &bench.ctx()).await);
    assert!(message.contains("none.csv"), "{message}");
    assert!(left(&bench).is_empty());
}

#[tokio::test]
async fn rows_of_a_url() {
    let bench = Bench::new("data");
    let server = MockServer::start().await;
    let answer = ResponseTemplate::new(200).set_body_string("a\n1\n2\n");
    Mock::given(path("/rows")).and(header("x-key", "k")).respond_with(answer).mount(&server).await;
    let busy = ResponseTemplate::new(503).insert_header("retry-after", "7");
    Mock::given(path("/busy")).respond_with(busy).mount(&server).await;
    let output: FetchOutput = done(run(&of_url(&format!("{}/rows", server.uri())), &bench.ctx()).await);
    assert_eq!(output.rows, 2);
    let result = run(&of_url(&format!("{}/busy?token=x", server.uri())), &bench.ctx()).await;
    let Err(StepError::Failed { failure, retry_after }) = result else { panic!("not failed: {result:?}") };
    assert_eq!((failure.kind, retry_after), (FailureKind::Transient, Some(Duration::from_secs(7))));
    assert!(!failure.message.contains("token"), "{}", failure.message);
}

/// As a release's file is, which its host keeps elsewhere; but a key stays with the host it is for.
#[tokio::test]
async fn a_public_file_is_followed_to_another_host() {
    let bench = Bench::new("data");
    let (server, elsewhere) = (MockServer::start().await, MockServer::start().await);
    let sent = ResponseTemplate::new(302).insert_header("location", format!("{}/rows", elsewhere.uri()));
    Mock::given(path("/rows")).respond_with(sent).mount(&server).await;
    let answer = ResponseTemplate::new(200).set_body_string("a\n1\n2\n");
    Mock::given(path("/rows")).respond_with(answer).mount(&elsewhere).await;
    let with_key = of_url(&format!("{}/rows", server.uri()));
    let refused = run(&with_key, &bench.ctx()).await;
    assert!(matches!(refused, Err(StepError::Failed { .. })), "{refused:?}");
    assert_eq!(elsewhere.received_requests().await.map(|seen| seen.len()), Some(0));
    let mut without = with_key;
    if let Source::Http { headers, .. } = &mut without.from {
        headers.clear();
    }
    let output: FetchOutput = done(run(&without, &bench.ctx()).await);
    assert_eq!(output.rows, 2);
}

#[tokio::test]
async fn a_body_that_is_cut_is_not_taken_for_whole() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/rows", listener.local_addr().expect("bound"));
    let server = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.expect("a client");
        let mut request = [0; 1024];
        let _ = socket.read(&mut request).await;
        socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\na\n1\n2\n").await.expect("sent");
    });
    let bench = Bench::new("data");
    let message = failure(run(&of_url(&url), &bench.ctx()).await);
    server.await.expect("served");
    assert!(message.contains("its answer was cut after 6 bytes"), "{message}");
    assert!(left(&bench).is_empty());
}

#[tokio::test]
async fn a_part_is_not_taken_for_the_whole() {
    let server = MockServer::start().await;
    let part = ResponseTemplate::new(206)
        .insert_header("content-range", "bytes 0-5/1000")
        .set_body_string("a\n1\n2\n");
    Mock::given(path("/rows")).respond_with(part).mount(&server).await;
    let bench = Bench::new("data");
    let message = failure(run(&of_url(&format!("{}/rows", server.uri())), &bench.ctx()).await);
    assert!(message.contains("206 Partial Content where the whole file was asked for"), "{message}");
    assert!(left(&bench).is_empty());
}

#[tokio::test]
async fn a_cancelled_fetch_leaves_nothing() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/rows", listener.local_addr().expect("bound"));
    let bench = Bench::new("data");
    let spec = of_url(&url);
    let cancel = async {
        let (mut socket, _) = listener.accept().await.expect("a client");
        socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\na\n1\n").await.expect("sent");
        bench.cancel.cancel();
        socket
    };
    let ctx = bench.ctx();
    let (result, _socket) = tokio::join!(run(&spec, &ctx), cancel);
    assert_eq!(result, Err(StepError::Interrupted));
    assert!(left(&bench).is_empty());
}

#[tokio::test]
async fn rows_of_sqlite() {
    let bench = Bench::new("data");
    let file = bench.project("app.db");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&file).create_if_missing(true);
    let mut database = sqlx::SqliteConnection::connect_with(&options).await.expect("created");
    database
        .execute(
            "CREATE TABLE races (id INTEGER, name TEXT, finish_s REAL, photo BLOB); \
            INSERT INTO races VALUES (1, 'a, \"b\"', 3.5, x'00'), (2, NULL, 4, NULL)",
        )
        .await
        .expect("filled");
    database.close().await.expect("closed");
    let query = |query: &str| fetch(Source::Sqlite { path: text("app.db"), query: query.to_owned() });
    let rows = query("SELECT id, name, finish_s FROM races ORDER BY id -- all");
    let output: FetchOutput = done(run(&rows, &bench.ctx()).await);
    assert_eq!(output.rows, 2);
    assert_eq!(fetched(&bench), "id,name,finish_s\n1,\"a, \"\"b\"\"\",3.5\n2,,4\n");
    done::<FetchOutput>(run(&query("SELECT id FROM races WHERE id > 9"), &bench.ctx()).await);
    assert_eq!(fetched(&bench), "id\n", "no rows, but their columns");
    for (sql, problem) in [
        ("SELECT photo FROM races", "column `photo`: it holds bytes (BLOB)"),
        ("DELETE FROM races RETURNING id", "readonly"),
        ("SELECT absent FROM races;\n", "no such column: absent"),
    ] {
        let message = failure(run(&query(sql), &bench.ctx()).await);
        assert!(message.contains(problem), "{message}");
    }
    let missing = fetch(Source::Sqlite { path: text("none.db"), query: "SELECT 1".to_owned() });
    assert!(failure(run(&missing, &bench.ctx()).await).contains("there is no such file"));
    assert!(!bench.project("none.db").exists());
}

#[tokio::test]
async fn rows_of_postgres() {
    let url = std::env::var("REFIT_TEST_POSTGRES_URL").expect("REFIT_TEST_POSTGRES_URL: tests/run sets it");
    let bench = Bench::new("data");
    let query = |url: &str, query: &str| fetch(Source::Postgres { url: text(url), query: query.to_owned() });
    let rows = "SELECT n AS id, CASE WHEN n = 2 THEN NULL ELSE 'a,' || n END AS name \
        FROM generate_series(1, 200000) AS n ORDER BY n -- all";
    let output: FetchOutput = done(run(&query(&url, rows), &bench.ctx()).await);
    assert_eq!(output.rows, 200_000);
    assert!(fetched(&bench).starts_with("id,name\n1,\"a,1\"\n2,\n3,"));
    let message = failure(run(&query(&url, "SELECT nothing"), &bench.ctx()).await);
    assert!(message.contains("column \"nothing\" does not exist (42703)"), "{message}");
    done::<FetchOutput>(
        run(&query(&url, "SELECT current_setting('transaction_read_only') AS c;\n"), &bench.ctx()).await,
    );
    assert_eq!(fetched(&bench), "c\non\n");
    let away = "postgres://app:hunter2@127.0.0.1:9/races?sslmode=disable";
    let message = failure(run(&query(away, "SELECT 1"), &bench.ctx()).await);
    assert!(message.starts_with("the database 127.0.0.1:9/races is unavailable: "), "{message}");
}
