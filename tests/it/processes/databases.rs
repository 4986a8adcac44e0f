//! A database that cannot be used, as people see it.

use std::path::Path;
use std::process::{Command, Stdio};

use insta::{assert_snapshot, with_settings};
use sqlx::{AssertSqlSafe, Connection, PgConnection, SqliteConnection};

use super::project::Project;
use crate::store::database::empty_postgres;

/// What `refit --db URL ARGS` says and how it ends.
fn refit(database: &str, args: &[&str]) -> String {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("refit.toml"), "").unwrap();
    said(Command::new(env!("CARGO_BIN_EXE_refit")).args(args).current_dir(dir.path()), database)
}

fn said(command: &mut Command, database: &str) -> String {
    let output = command
        .env("REFIT_DATABASE_URL", database)
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    format!(
        "exit code: {}\n{}{}",
        output.status.code().unwrap(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Places replaced by words.
fn steady(test: impl FnOnce()) {
    let filters = vec![
        (r"127\.0\.0\.1:\d{4,5}/refit_[0-9a-f]{32}", "[server]/[database]"),
        (r"127\.0\.0\.1:\d{4,5}", "[server]"),
        (r"refit_[0-9a-f]{32}", "[database]"),
        (r"[^ `]*/\.tmp[^ /`]*", "[dir]"),
    ];
    with_settings!({filters => filters}, { test() });
}

async fn on_sqlite(path: &Path, sql: &'static str) {
    let url = format!("sqlite:{}?mode=rwc", path.display());
    let mut connection = SqliteConnection::connect(&url).await.unwrap();
    sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

async fn on_postgres(url: &str, sql: &str) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await.unwrap();
}

#[tokio::test]
async fn a_newer_schema() {
    let project = Project::sqlite();
    project.says(&["run", "ls"]);
    let newer = "(version, description, success, checksum, execution_time) VALUES (9999, 'later', TRUE, ";
    let insert: &'static str =
        "INSERT INTO _refit_migrations (version, description, success, checksum, execution_time)
                                VALUES (9999, 'later', TRUE, x'00', 0)";
    on_sqlite(&project.path(".refit/refit.db"), insert).await;
    steady(|| assert_snapshot!(refit(&project.database, &["run", "ls"]), @""));
    let postgres = Project::postgres().await;
    on_postgres(&postgres.database, &format!("INSERT INTO refit.schema_migrations {newer}'', 0)")).await;
    steady(|| {
        assert_snapshot!(refit(&postgres.database, &["serve", "--listen", "127.0.0.1:0"]), @"");
        assert_snapshot!(refit(&postgres.database, &["migrate"]), @"");
    });
}

#[test]
fn a_wrong_url() {
    steady(|| {
        assert_snapshot!(refit("mysql://root:hunter22@db/app", &["run", "ls"]), @"");
        assert_snapshot!(refit("postgres://root:hunter22@[db/app", &["run", "ls"]), @"");
        assert_snapshot!(refit("", &["run", "ls"]), @"");
    });
}

#[tokio::test]
async fn a_postgres_that_cannot_be_reached() {
    let mut elsewhere = url::Url::parse(&empty_postgres().await).unwrap();
    elsewhere.set_path("nosuch");
    steady(|| {
        assert_snapshot!(refit("postgres://root:hunter22@127.0.0.1:1/app", &["run", "ls"]), @"");
        assert_snapshot!(refit("postgres://root:hunter22@127.0.0.1:1/app", &["migrate"]), @"");
        assert_snapshot!(refit("postgres://root:hunter22@127.0.0.1:1/app", &["worker"]), @"");
        assert_snapshot!(refit(elsewhere.as_str(), &["run", "ls"]), @"");
    });
}

#[tokio::test]
async fn a_postgres_without_tables_and_somebody_elses() {
    let url = empty_postgres().await;
    steady(|| assert_snapshot!(refit(&url, &["run", "ls"]), @""));
    on_postgres(&url, "CREATE TABLE users (id int)").await;
    steady(|| {
        assert_snapshot!(refit(&url, &["migrate"]), @"");
        assert_snapshot!(refit(&url, &["migrate", "--shared"]), @"");
        assert_snapshot!(refit(&url, &["run", "ls"]), @"");
    });
}

#[tokio::test]
async fn a_role_without_rights() {
    let project = Project::postgres().await;
    let admin = std::env::var("REFIT_TEST_POSTGRES_ADMIN_URL").expect("`tests/run` sets it");
    let role = format!("limited_{}", uuid::Uuid::now_v7().simple());
    on_postgres(&admin, &format!("CREATE ROLE {role} LOGIN PASSWORD 'hunter22'")).await;
    let mut limited = url::Url::parse(&project.database).unwrap();
    limited.set_username(&role).unwrap();
    limited.set_password(Some("hunter22")).unwrap();
    steady(|| {
        assert_snapshot!(refit(limited.as_str(), &["run", "ls"]), @"");
        assert_snapshot!(refit(limited.as_str(), &["migrate"]), @"");
    });
    on_postgres(
        &project.database,
        &format!(
            "GRANT USAGE ON SCHEMA refit, apalis TO {role};
             GRANT SELECT ON ALL TABLES IN SCHEMA refit, apalis TO {role}"
        ),
    )
    .await;
    steady(|| assert_snapshot!(refit(limited.as_str(), &["run", "ls"]), @""));
}

#[tokio::test]
async fn a_file_that_is_no_database_of_ours() {
    let dir = tempfile::tempdir().unwrap();
    let (notes, app) = (dir.path().join("notes.txt"), dir.path().join("app.db"));
    let diary = "dear diary, ".repeat(100);
    std::fs::write(&notes, &diary).unwrap();
    on_sqlite(&app, "CREATE TABLE users (id INTEGER)").await;
    steady(|| {
        assert_snapshot!(refit(&notes.display().to_string(), &["run", "ls"]), @"");
        assert_snapshot!(refit(&app.display().to_string(), &["run", "ls"]), @"");
        assert_snapshot!(refit(&dir.path().display().to_string(), &["run", "ls"]), @"");
    });
    assert_eq!(std::fs::read_to_string(&notes).unwrap(), diary, "it was not written to");
}

/// As somebody who may not write what is not writable: root may, unless it gives that right up.
fn without_override(args: &[&str], dir: &Path, database: &str) -> String {
    let program = env!("CARGO_BIN_EXE_refit");
    let mut command = if rustix::process::getuid().is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set=-dac_override", "--inh-caps=-dac_override", "--", program]);
        command
    } else {
        Command::new(program)
    };
    said(command.args(args).current_dir(dir), database)
}

#[test]
fn a_database_that_may_not_be_written() {
    use std::os::unix::fs::PermissionsExt;
    let set = |path: &Path, mode: u32| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let project = Project::sqlite();
    project.says(&["run", "ls"]);
    let (dir, file) = (project.path(".refit"), project.path(".refit/refit.db"));
    set(&file, 0o444);
    let shown = without_override(&["run", "ls"], project.dir.path(), &project.database);
    set(&file, 0o644);
    set(&dir, 0o555);
    let directory = without_override(&["run", "ls"], project.dir.path(), &project.database);
    let missing = dir.join("new/refit.db").display().to_string();
    let new = without_override(&["run", "ls"], project.dir.path(), &missing);
    set(&dir, 0o755);
    steady(|| {
        assert_snapshot!(shown, @"");
        assert_snapshot!(directory, @"");
        assert_snapshot!(new, @"");
    });
    assert_eq!(project.says(&["run", "ls"]).trim(), "no runs yet; start one with `refit trigger WORKFLOW`");
}
