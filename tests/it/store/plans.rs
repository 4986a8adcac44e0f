//! A database finds the few rows that a batch is about without going through all that a model has: also before it knows
//! how many these are.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use refit::domain::evidence::Prediction;
use refit::store::{ObservationBatch, TruthBatch};
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row, SqliteConnection};
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::{Layer, registry};

use super::database::Database;
use super::orders;

/// Every statement that sqlx was given.
#[derive(Clone, Default)]
struct Statements(Arc<Mutex<BTreeSet<String>>>);

impl<S: tracing::Subscriber> Layer<S> for Statements {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        event.record(&mut self.clone());
    }
}

impl Visit for Statements {
    fn record_debug(&mut self, _: &Field, _: &dyn Debug) {}

    fn record_str(&mut self, field: &Field, value: &str) {
        // A short statement is its own summary; that of a long one ends in dots.
        let text = value.trim();
        if ["summary", "db.statement"].contains(&field.name()) && !text.is_empty() && !text.ends_with('…') {
            self.0.lock().expect("nobody panics").insert(text.to_owned());
        }
    }
}

/// What reads of evidence, except on behalf of `gc`, which goes through what is old: it names the age first.
fn is_of_evidence(statement: &str) -> bool {
    ["paired_errors", "truths", "predictions", "label_minutes", "evidence_minutes"]
        .iter()
        .any(|table| statement.contains(table))
        && !statement.contains("< $1")
}

/// Set in a process that runs this test and no other: what is heard is said by the whole process.
const ALONE: &str = "REFIT_TEST_ALONE";

#[test]
fn on_sqlite_no_batch_goes_through_all_evidence_of_its_model() {
    if std::env::var_os(ALONE).is_none() {
        let name = "store::plans::on_sqlite_no_batch_goes_through_all_evidence_of_its_model";
        let mut alone = Command::new(std::env::current_exe().expect("this program"));
        let said = alone.args([name, "--exact"]).env(ALONE, "1").output().expect("starts");
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&[said.stdout, said.stderr].concat()));
        return;
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(explain_all());
}

async fn explain_all() {
    let (heard, explained) = (Database::sqlite(), Database::sqlite());
    for db in [&heard, &explained] {
        db.open().await.close().await;
    }
    let said = Statements::default();
    tracing::subscriber::set_global_default(registry().with(said.clone())).expect("the only subscriber");
    orders::a_request_counts_once_in_whatever_order_it_becomes_known(heard).await;
    let mut statements = said.0.lock().expect("nobody panics").clone();
    statements.retain(|statement| is_of_evidence(statement));
    assert!(statements.len() > 15, "these were heard: {statements:#?}");

    let mut connection =
        SqliteConnection::connect(&format!("sqlite:{}", explained.url)).await.expect("opens");
    let mut wide = vec![];
    for statement in &statements {
        let explain = AssertSqlSafe(format!("EXPLAIN QUERY PLAN {statement}"));
        for row in sqlx::query(explain).fetch_all(&mut connection).await.expect(statement) {
            let line: String = row.get("detail");
            let of_documents = line.contains("VIRTUAL TABLE");
            if line.starts_with("SCAN") && !of_documents || line.ends_with("(model=?)") {
                wide.push(format!("{statement}\n=> {line}"));
            }
        }
    }
    assert!(wide.is_empty(), "{}", wide.join("\n\n"));
}

/// Batches, and requests of each: one that goes through all of the model reads fifty for each of its own, on average.
const BATCHES: usize = 100;
const ROWS: usize = 20;
/// Entries of indexes, of rows that are gone included, and rows of whole tables that may be read for one request, from
/// its report to its pair.
const READ_FOR_ONE: usize = 15;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_postgres_no_batch_goes_through_all_evidence_of_its_model() {
    let db = Database::postgres().await;
    let store = db.open().await;
    let (model, at) = ("race-times".parse().expect("a name"), db.now());
    for batch in 0..BATCHES {
        let ids = (0..ROWS).map(|row| format!("{batch}-{row}"));
        let prediction = |id| Prediction {
            request_id: id,
            version: "v1".parse().expect("a name"),
            value: 2.0,
            shadow: vec![],
            at,
        };
        let predictions = ids.clone().map(prediction).collect();
        let model = &model;
        let (id, minutes) = (batch.to_string(), vec![]);
        let reported =
            ObservationBatch { model: Clone::clone(model), batch_id: id.clone(), minutes, predictions, at };
        store.observe(&reported).await.expect("kept");
        let rows = ids.map(|id| (id, 1.0, None)).collect();
        store
            .add_truth(&TruthBatch { model: Clone::clone(model), batch_id: id, rows, at })
            .await
            .expect("kept");
    }
    store.close().await;

    let mut connection = PgConnection::connect(&db.url).await.expect("connects");
    let requests = BATCHES * ROWS;
    // A session reports what it did when it ends.
    for _ in 0..1000 {
        let (pairs, read): (i64, i64) = sqlx::query_as(
            "SELECT sum(n_tup_ins) FILTER (WHERE relname = 'paired_errors')::bigint,
                 (sum(seq_tup_read) + (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes
                      WHERE relname IN ('paired_errors', 'predictions', 'truths')))::bigint
             FROM pg_stat_user_tables WHERE relname IN ('paired_errors', 'predictions', 'truths')",
        )
        .fetch_one(&mut connection)
        .await
        .expect("read");
        if pairs == i64::try_from(requests).expect("few") {
            let most = i64::try_from(requests * READ_FOR_ONE).expect("few");
            assert!(read < most, "{read} rows were read for {requests} requests");
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the database does not say what was read");
}
