//! SQLite finds the few rows that a batch is about without going through all that a model has.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};

use sqlx::{AssertSqlSafe, Connection, Row, SqliteConnection};
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_batch_goes_through_all_evidence_of_its_model() {
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
