//! Whatever a trainer does with a secret, nothing that refit keeps or logs has it.

use refit::domain::id::RunId;
use refit::domain::run::Outcome;
use refit::engine::Engine;
use refit::secret::Secret;
use sqlx::{Connection, PgConnection, Row};

use super::on_both;
use crate::support::crash::Crash;
use crate::support::log::Log;
use crate::support::world::{World, finish};

const VALUE: &str = "hunter2-is-\"quoted\"-in-here";
const LINES: &str = "-----BEGIN KEY-----\nc2VjcmV0LWxpbmUtb25l\nc2VjcmV0LWxpbmUtdHdv\n-----END KEY-----";

const SOURCE: &str = r#"
name: leaks
model: m
defaults: { retry: { attempts: 1 } }
notify: [{ on: [started, failed, succeeded], console: true }]
steps:
  - id: train
    env: { TOKEN: "${{ secrets.TOKEN }}", KEY: "${{ secrets.KEY }}" }
    run: |
      python3 - <<'PY'
      import json, os, sys, time
      token, key = os.environ["TOKEN"], os.environ["KEY"]
      say = lambda text: (sys.stdout.write(text), sys.stdout.flush())
      say("token " + token + "\n")
      say(token[:9]); time.sleep(0.6); say(token[9:] + "\n")
      say("x" * 20000 + token[:9]); time.sleep(0.6); say(token[9:] + "\n")
      for line in key.split("\n"):
          say(line + "\n"); time.sleep(0.4)
      say(json.dumps({"as json": token}) + "\n")
      say(json.dumps({"refit": "progress", "pct": 40, "message": "with " + token}) + "\n")
      sys.stderr.write("stderr " + token + "\n" + key + "\n")
      json.dump({"mae": 1, "segments": {token: {"mae": 1}}}, open(os.environ["REFIT_METRICS"], "w"))
      open("kept", "w").write(token)
      open(os.path.join(os.environ["REFIT_OUT"], "model.json"), "w").write("{}")
      PY
    metrics: { file: true }
"#;

/// Only its last step names the secret; a file has it from before.
const FAILS: &str = r#"
name: fails
model: m
defaults: { retry: { attempts: 1 } }
notify: [{ on: [started, failed, succeeded], console: true }]
steps:
  - id: fails
    run: 'cat kept; cat kept >&2; exit 3'
on_failure:
  - { id: sorry, run: 'cat kept' }
  - { id: asks, uses: http, with: { url: "http://127.0.0.1:9/${{ secrets.TOKEN }}", headers: { authorization: "${{ secrets.TOKEN }}" } } }
"#;

/// What none of the places may have, with a name for it.
fn forbidden() -> Vec<(&'static str, String)> {
    let escaped = serde_json::to_string(VALUE).expect("text");
    let escaped = escaped.trim_matches('"');
    let twice = serde_json::to_string(escaped).expect("text");
    vec![
        ("the value", VALUE.to_owned()),
        ("the value in JSON", escaped.to_owned()),
        ("the value in JSON in JSON", twice.trim_matches('"').to_owned()),
        ("a line of the key", "c2VjcmV0LWxpbmUtb25l".to_owned()),
        ("another line of the key", "c2VjcmV0LWxpbmUtdHdv".to_owned()),
    ]
}

fn check(place: &str, bytes: &[u8]) {
    for (what, value) in forbidden() {
        let at = bytes.windows(value.len()).position(|window| window == value.as_bytes());
        if let Some(at) = at {
            let around = &bytes[at.saturating_sub(200)..(at + 200).min(bytes.len())];
            panic!("{place} has {what}: {}", String::from_utf8_lossy(around));
        }
    }
}

/// Every row of every table.
async fn everything_in(world: &World) {
    if !world.database.starts_with("postgres") {
        for name in ["refit.db", "refit.db-wal", "logs.db", "logs.db-wal"] {
            if let Ok(bytes) = std::fs::read(world.path(&format!(".refit/{name}"))) {
                check(name, &bytes);
            }
        }
        return;
    }
    let mut connection = PgConnection::connect(&world.database).await.expect("answers");
    let tables = sqlx::query(
        "SELECT format('%I.%I', schemaname, tablename) AS name FROM pg_tables
         WHERE schemaname IN ('refit', 'apalis')",
    )
    .fetch_all(&mut connection)
    .await
    .expect("listed");
    assert!(tables.len() > 10);
    for table in tables {
        let name: String = table.get("name");
        let text = format!("SELECT coalesce(string_agg(t::text, E'\\n'), '') FROM {name} t");
        let rows: String =
            sqlx::query_scalar(sqlx::AssertSqlSafe(text)).fetch_one(&mut connection).await.expect("readable");
        // Rows show double quotes doubled.
        check(&name, rows.replace("\"\"", "\"").as_bytes());
    }
}

/// The log as it is read, chunk after chunk.
async fn log_of(engine: &Engine, run: RunId) -> Vec<u8> {
    let chunks = engine.store.read_log(run, None, 0, 1000).await.expect("readable");
    chunks.into_iter().flat_map(|chunk| chunk.bytes).collect()
}

#[tokio::test]
async fn a_secret_that_a_trainer_prints_returns_and_fails_with_is_nowhere() {
    let (process_log, _until_the_end) = Log::begin(tracing::Level::TRACE);
    on_both(async |mut world| {
        for (name, value) in [("TOKEN", VALUE), ("KEY", LINES)] {
            world.secrets.insert(name.parse().expect("a name"), Secret::new(value));
        }
        let engine = world.process(&Crash::never()).await;
        let run = world.trigger(&engine, SOURCE).await;
        let ended = finish(&world, &engine, run).await;
        assert_eq!(ended.outcome, Some(Outcome::Succeeded), "{:?}", ended.reason);
        check("the log of its steps", &log_of(&engine, run).await);
        engine.store.retire_worker(engine.worker).await.expect("retired");

        // Another process, which was never asked for the secret by the step that prints it.
        let next = world.process(&Crash::never()).await;
        let run = world.trigger(&next, FAILS).await;
        let ended = finish(&world, &next, run).await;
        assert_eq!(ended.outcome, Some(Outcome::Failed), "{ended:?}");
        assert!(ended.reason.is_some_and(|why| why.contains("exited with code 3:\n  ***")));
        let log = log_of(&next, run).await;
        assert!(String::from_utf8_lossy(&log).contains("***"));
        check("the log of its steps", &log);
        everything_in(&world).await;
        let written = process_log.text();
        assert!(written.contains("with ***"), "progress is logged");
        check("the log of the process", written.as_bytes());
    })
    .await;
}
