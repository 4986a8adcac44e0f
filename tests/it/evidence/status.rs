//! What `refit status` says of evidence that is fetched.

use chrono::TimeDelta;
use insta::assert_snapshot;

use super::apps::{App, Served, SqliteTable};
use super::watched::Watched;
use crate::cli::refit::{refit, steady};
use crate::support::world::{World, start};

/// `refit status` as people read it.
async fn status(watched: &Watched) -> String {
    let (dir, database) = (watched.world.path(""), watched.world.database.clone());
    let program = tokio::task::spawn_blocking(move || refit(&dir, &["--db", &database, "status"]));
    program.await.expect("it ran")
}

/// The lines on evidence.
async fn shown(watched: &Watched) -> String {
    let text = status(watched).await;
    let lines = text.lines().skip_while(|line| !line.starts_with("  evidence"));
    let mut own = true;
    let lines = lines.take_while(|line| std::mem::take(&mut own) || line.starts_with("            "));
    lines.map(|line| format!("{line}\n")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_far_a_source_was_read_what_was_refused_and_why_it_is_not_read_now() {
    let app = SqliteTable::new("TEXT").await;
    let watched = Watched::start(World::sqlite(), &app.evidence()).await;
    watched.world.write("refit.toml", "");
    let served = |id: &str, minutes: i64, version| Served {
        id: id.to_owned(),
        at: start() + TimeDelta::minutes(minutes),
        version,
        ok: true,
    };
    let mut said = vec![];
    watched.look_in(1).await;
    said.push(shown(&watched).await);
    app.serves(&[served("a", 0, "1"), served("b", 1, "2")]).await;
    watched.look_in(1).await;
    said.push(shown(&watched).await);
    // Rows that make no sense, and one that comes after its minute was looked at.
    app.breaks(start() + TimeDelta::minutes(2)).await;
    app.serves(&[served("late", 0, "1"), served("c", 12, "1")]).await;
    watched.look_in(11).await;
    said.push(shown(&watched).await);
    app.is_away(true).await;
    watched.look_in(1).await;
    said.push(shown(&watched).await);
    // The times are the test's own.
    let paths: Vec<_> = steady().into_iter().filter(|(_, word)| *word == "[dir]").collect();
    insta::with_settings!({filters => paths}, {
        assert_snapshot!(said.join("\n"), @r#"
          evidence  from sql: nothing yet

          evidence  from sql: up to 2026-11-20 02:01:00Z

          evidence  from sql: up to 2026-11-20 02:12:00Z; 7 rows refused, such as: `at` is no time: neither such as "2026-03-01T12:00:00Z" nor seconds or milliseconds since 1970; 1 request came late

          evidence  from sql: up to 2026-11-20 02:12:00Z; 7 rows refused, such as: `at` is no time: neither such as "2026-03-01T12:00:00Z" nor seconds or milliseconds since 1970; 1 request came late
                    since 2026-11-20 02:14:00Z: the SQLite file [dir]/app.db could not be opened: there is no such file
        "#);
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_canary_can_show_once_the_traffic_before_it_is_known() {
    let app = SqliteTable::new("TEXT").await;
    let watched = Watched::start(World::sqlite(), &app.evidence()).await;
    watched.world.write("refit.toml", "");
    let before = (0..120).map(|ago| Served {
        id: format!("before-{ago}"),
        at: start() - TimeDelta::minutes(ago + 2),
        version: "1",
        ok: ago % 10 > 0,
    });
    app.serves(&before.collect::<Vec<_>>()).await;
    watched.look_in(1).await;
    let said = status(&watched).await;
    assert!(said.contains("\n  forecast  at 14"), "{said}");
    assert!(said.contains("a canary that is no worse passes within"), "{said}");
}
