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
    steady(|| {
        assert_snapshot!(refit(&project.database, &["run", "ls"]), @r"
        exit code: 2
        error: cannot open the database: `[dir]/.refit/refit.db`: the database's schema is newer than this refit
        hint: install the newest refit, or name another database with `--db`
        ")
    });
    let postgres = Project::postgres().await;
    on_postgres(&postgres.database, &format!("INSERT INTO refit.schema_migrations {newer}'', 0)")).await;
    steady(|| {
        assert_snapshot!(refit(&postgres.database, &["serve", "--listen", "127.0.0.1:0"]), @r"
            exit code: 2
            error: cannot open the database: the database's schema is newer than this refit
            hint: install the newest refit, or name another database with `--db`
            ");
        assert_snapshot!(refit(&postgres.database, &["migrate"]), @r"
            exit code: 2
            error: cannot migrate the database: the database's schema is newer than this refit
            hint: install the newest refit, or name another database with `--db`
            ");
    });
}

#[test]
fn a_wrong_url() {
    steady(|| {
        assert_snapshot!(refit("mysql://root:hunter22@db/app", &["run", "ls"]), @r"
            exit code: 2
            error: cannot open the database: `mysql://…` is not a database refit can use
            hint: use `postgres://user@host/database`, `sqlite:path/to/refit.db` or a path
            ");
        assert_snapshot!(refit("postgres://root:hunter22@[db/app", &["run", "ls"]), @r"
            exit code: 2
            error: cannot open the database: the database URL cannot be read
            hint: use `postgres://user:password@host:5432/database`; special characters of the password are written as %XX
            ");
        assert_snapshot!(refit("", &["run", "ls"]), @r"
            exit code: 2
            error: cannot open the database: the database URL is empty
            hint: use `postgres://user@host/database`, `sqlite:path/to/refit.db` or a path
            ");
    });
}

#[tokio::test]
async fn a_postgres_that_cannot_be_reached() {
    let mut elsewhere = url::Url::parse(&empty_postgres().await).unwrap();
    elsewhere.set_path("nosuch");
    steady(|| {
        assert_snapshot!(refit("postgres://root:hunter22@127.0.0.1:1/app", &["run", "ls"]), @r"
            exit code: 8
            error: cannot open the database: the database is away: Postgres at 127.0.0.1:1/app: error communicating with database: Connection refused (os error 111)
            hint: is it running, and is its address right? See `refit doctor`
            ");
        assert_snapshot!(refit("postgres://root:hunter22@127.0.0.1:1/app", &["migrate"]), @r"
            exit code: 8
            error: cannot migrate the database: the database is away: Postgres at 127.0.0.1:1/app: error communicating with database: Connection refused (os error 111)
            hint: is it running, and is its address right? See `refit doctor`
            ");
        assert_snapshot!(refit("postgres://root:hunter22@127.0.0.1:1/app", &["worker"]), @r"
            exit code: 8
            error: cannot open the database: the database is away: Postgres at 127.0.0.1:1/app: error communicating with database: Connection refused (os error 111)
            hint: is it running, and is its address right? See `refit doctor`
            ");
        assert_snapshot!(refit(elsewhere.as_str(), &["run", "ls"]), @r#"
            exit code: 2
            error: cannot open the database: database "nosuch" does not exist
            hint: check the database's name in the URL, or create it with `createdb`
            "#);
    });
}

#[tokio::test]
async fn a_postgres_without_tables_and_somebody_elses() {
    let url = empty_postgres().await;
    steady(|| {
        assert_snapshot!(refit(&url, &["run", "ls"]), @r"
        exit code: 2
        error: cannot open the database: the database has no refit schema, or an older one
        hint: run `refit migrate`
        ")
    });
    on_postgres(&url, "CREATE TABLE users (id int)").await;
    steady(|| {
        assert_snapshot!(refit(&url, &["migrate"]), @r"
            exit code: 2
            error: cannot migrate the database: [server]/[database] holds tables of another program (`public.users`)
            hint: name a database of refit's own, or add `--shared`: refit keeps to its schemas `refit` and `apalis`
            ");
        assert_snapshot!(refit(&url, &["migrate", "--shared"]), @r"
            exit code: 0
            postgres://[server]/[database] is up to date
            ");
        assert_snapshot!(refit(&url, &["run", "ls"]), @r"
            exit code: 0
            no runs yet; start one with `refit trigger WORKFLOW`
            ");
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
        assert_snapshot!(refit(limited.as_str(), &["run", "ls"]), @r"
            exit code: 2
            error: cannot open the database: the database role may not do this: permission denied for schema refit
            hint: give the role SELECT, INSERT, UPDATE and DELETE on all tables of the schemas `refit` and `apalis`, and USAGE on both; `refit migrate` needs the owner's role
            ");
        assert_snapshot!(refit(limited.as_str(), &["migrate"]), @r"
            exit code: 2
            error: cannot migrate the database: the database role may not do this: permission denied for database [database]
            hint: give the role SELECT, INSERT, UPDATE and DELETE on all tables of the schemas `refit` and `apalis`, and USAGE on both; `refit migrate` needs the owner's role
            ");
    });
    on_postgres(
        &project.database,
        &format!(
            "GRANT USAGE ON SCHEMA refit, apalis TO {role};
             GRANT SELECT ON ALL TABLES IN SCHEMA refit, apalis TO {role}"
        ),
    )
    .await;
    steady(|| {
        assert_snapshot!(refit(limited.as_str(), &["run", "ls"]), @r"
        exit code: 2
        error: cannot open the database: the database role may not read and write `apalis.jobs`
        hint: give the role SELECT, INSERT, UPDATE and DELETE on all tables of the schemas `refit` and `apalis`, and USAGE on both
        ")
    });
}

#[tokio::test]
async fn a_file_that_is_no_database_of_ours() {
    let dir = tempfile::tempdir().unwrap();
    let (notes, app) = (dir.path().join("notes.txt"), dir.path().join("app.db"));
    let diary = "dear diary, ".repeat(100);
    std::fs::write(&notes, &diary).unwrap();
    on_sqlite(&app, "CREATE TABLE users (id INTEGER)").await;
    steady(|| {
        assert_snapshot!(refit(&notes.display().to_string(), &["run", "ls"]), @r"
            exit code: 2
            error: cannot open the database: `[dir]/notes.txt`: the file is damaged, or not a SQLite database: file is not a database
            hint: name another file with `--db`, or restore a backup
            ");
        assert_snapshot!(refit(&app.display().to_string(), &["run", "ls"]), @r"
            exit code: 2
            error: cannot open the database: `[dir]/app.db` is the database of another program (table `users`)
            hint: name another file with `--db`: refit keeps a database of its own
            ");
        assert_snapshot!(refit(&dir.path().display().to_string(), &["run", "ls"]), @r"
            exit code: 2
            error: cannot open the database: `[dir]` is a directory
            hint: name a file with `--db`, such as `[dir]/refit.db`
            ");
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
    let missing = dir.join("new/refit.db").display().to_string();
    let new = without_override(&["run", "ls"], project.dir.path(), &missing);
    set(&dir, 0o755);
    steady(|| {
        assert_snapshot!(shown, @r"
            exit code: 2
            error: cannot open the database: `[dir]/.refit/refit.db`: the database file cannot be written: attempt to write a readonly database
            hint: make the file and its directory writable for this user
            ");
        assert_snapshot!(new, @r"
            exit code: 2
            error: cannot open the database: the directory `[dir]/.refit/new` cannot be made: Permission denied (os error 13)
            hint: name a directory that can be written with `--db`
            ");
    });
    assert_eq!(project.says(&["run", "ls"]).trim(), "no runs yet; start one with `refit trigger WORKFLOW`");
}
