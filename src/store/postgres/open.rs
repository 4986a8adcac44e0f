//! Opening a Postgres database, which never changes its schema, and `migrate`, which does.

use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPoolOptions};
use sqlx::types::Uuid;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgPool};

use super::sql::{Parts, SqlStore};
use super::{Session, answers, queue_error};
use crate::clock::Clock;
use crate::domain::id::InstanceId;
use crate::store::liveness::Liveness;
use crate::store::{Store, StoreError, migrate_error, newer_schema};

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/postgres");

const CONNECTIONS: u32 = 12;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection that was idle longer is asked whether it is still there.
const TRUSTED_FOR: Duration = Duration::from_secs(1);

/// What is acknowledged is kept, also where the database's own setting would lose it in a crash; and a process that went
/// silent in a transaction keeps nobody out for hours. Stronger settings stand.
const SETTINGS: &str = "SELECT set_config(name, wanted, FALSE)
    FROM (VALUES ('synchronous_commit', 'off', 'on'), ('idle_in_transaction_session_timeout', '0', '60s'))
        AS s(name, weak, wanted)
    WHERE current_setting(name) = weak";

/// Opens the database at `url`, whose schema `migrate` must have made. The role needs SELECT, INSERT, UPDATE
/// and DELETE only.
pub async fn open(url: &str, clock: Arc<dyn Clock>) -> Result<Arc<dyn Store>, StoreError> {
    let options = options(url)?;
    let mut connection = connect(&options).await?;
    check_schema(&mut connection).await?;
    check_rights(&mut connection).await?;
    let instance = sqlx::query_scalar::<_, Uuid>("SELECT id FROM refit.instance")
        .fetch_optional(&mut connection)
        .await?
        .ok_or_else(outdated)?;
    connection.close().await?;
    let pool = pool(&options);
    let store = SqlStore::start(Parts {
        writer: pool.clone(),
        reader: pool.clone(),
        logs: pool,
        instance: InstanceId(instance),
        label: format!("postgres {}", place(&options)),
        clock,
        liveness: local_locks(),
        session: Session::new(options),
    });
    Ok(store)
}

/// Makes the schema, or brings it up to date; needs the owner's role. Refuses a database with tables of
/// others unless `shared`.
pub async fn migrate(url: &str, shared: bool) -> Result<(), StoreError> {
    let options = options(url)?;
    let mut connection = connect(&options).await?;
    if !shared {
        refuse_foreign(&mut connection, &options).await?;
    }
    set_up_queue(&mut connection, &options).await?;
    let mut migrator = Migrator { migrations: MIGRATIONS.migrations.clone(), ..Migrator::DEFAULT };
    migrator.dangerous_set_table_name("refit.schema_migrations");
    migrator.create_schema("refit");
    migrator.run_direct(None, &mut connection, false).await.map_err(migrate_error)?;
    sqlx::query("INSERT INTO refit.instance (singleton, id) VALUES (1, $1) ON CONFLICT DO NOTHING")
        .bind(Uuid::now_v7())
        .execute(&mut connection)
        .await?;
    Ok(connection.close().await?)
}

/// Makes the queue's schema, or brings it up to date. Before refit's own: that changes how the queue's tables are written.
async fn set_up_queue(connection: &mut PgConnection, options: &PgConnectOptions) -> Result<(), StoreError> {
    let hstore = sqlx::query_scalar::<_, String>(
        "SELECT quote_ident(n.nspname) FROM pg_catalog.pg_extension e
         JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'hstore'",
    )
    .fetch_optional(connection)
    .await?;
    // The queue's extension goes where every role looks: not into a schema that has the owner's name.
    let path = hstore.map_or_else(|| "public".to_owned(), |schema| format!("public, {schema}"));
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .after_connect(move |connection, _| {
            let set = AssertSqlSafe(format!("SET search_path TO {path}"));
            Box::pin(async move { sqlx::query(set).execute(connection).await.map(|_| ()) })
        })
        .connect_lazy_with(options.clone());
    let queue = apalis_postgres::PostgresStorage::setup(&pool).await;
    pool.close().await;
    queue.map_err(|error| match error {
        apalis_postgres::Error::Database(sqlx::Error::Migrate(error)) => migrate_error(*error),
        other => queue_error(other),
    })
}

fn options(url: &str) -> Result<PgConnectOptions, StoreError> {
    // The error may show the URL, and with it a password: say only what is expected.
    let options = PgConnectOptions::from_str(url).map_err(|_| StoreError::Unusable {
        problem: "the database URL cannot be read".to_owned(),
        hint: "use `postgres://user:password@host:5432/database`; special characters of the password are \
               written as %XX"
            .to_owned(),
    })?;
    Ok(options.application_name("refit").statement_cache_capacity(200).disable_statement_logging())
}

fn place(options: &PgConnectOptions) -> String {
    let database = options.get_database().unwrap_or(options.get_username());
    format!("{}:{}/{database}", options.get_host(), options.get_port())
}

fn pool(options: &PgConnectOptions) -> PgPool {
    PgPoolOptions::new()
        .max_connections(CONNECTIONS)
        .acquire_timeout(CONNECT_TIMEOUT)
        .test_before_acquire(false)
        .after_connect(|connection, _| {
            Box::pin(async move { sqlx::query(SETTINGS).execute(connection).await.map(drop) })
        })
        .before_acquire(|connection, meta| {
            Box::pin(async move { Ok(meta.idle_for < TRUSTED_FOR || answers::is_there(connection).await) })
        })
        // A connection that somebody stopped waiting for is asked before it is another's, and keeps its place until then.
        .after_release(|connection, _| Box::pin(async move { Ok(answers::is_ready(connection).await) }))
        .connect_lazy_with(options.clone())
}

pub(super) async fn connect(options: &PgConnectOptions) -> Result<PgConnection, StoreError> {
    let unreachable = |cause: &str| StoreError::Away(format!("Postgres at {}: {cause}", place(options)));
    match tokio::time::timeout(CONNECT_TIMEOUT, options.connect()).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(error)) => Err(match StoreError::from(error) {
            StoreError::Away(cause) => unreachable(&cause),
            other => other,
        }),
        Err(_) => Err(unreachable("no answer within 10 seconds")),
    }
}

fn outdated() -> StoreError {
    StoreError::Unusable {
        problem: "the database has no refit schema, or an older one".to_owned(),
        hint: "run `refit migrate`".to_owned(),
    }
}

async fn check_schema(connection: &mut PgConnection) -> Result<(), StoreError> {
    let found = sqlx::query_scalar::<_, Option<i64>>(
        "SELECT max(version) FROM refit.schema_migrations WHERE success",
    )
    .fetch_one(&mut *connection)
    .await;
    let found = match found {
        Ok(version) => version,
        Err(error) => match error.as_database_error().and_then(|error| error.code()).as_deref() {
            Some("42P01" | "3F000") => None,
            _ => return Err(error.into()),
        },
    };
    let wanted = MIGRATIONS.iter().map(|migration| migration.version).max();
    if found > wanted {
        return Err(newer_schema());
    }
    let queue = sqlx::query_scalar::<_, bool>(
        "SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_tables WHERE schemaname = 'apalis' AND tablename = 'jobs')",
    )
    .fetch_one(connection)
    .await?;
    if found < wanted || !queue { Err(outdated()) } else { Ok(()) }
}

async fn check_rights(connection: &mut PgConnection) -> Result<(), StoreError> {
    let missing = sqlx::query_scalar::<_, String>(
        "SELECT n.nspname || '.' || c.relname FROM pg_catalog.pg_class c
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE n.nspname IN ('refit', 'apalis') AND c.relkind IN ('r', 'p') AND c.relname NOT LIKE '%migrations'
           AND NOT (has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')
               AND has_table_privilege(c.oid, 'INSERT') AND has_table_privilege(c.oid, 'UPDATE')
               AND has_table_privilege(c.oid, 'DELETE'))
         ORDER BY 1 LIMIT 1",
    )
    .fetch_optional(&mut *connection)
    .await?;
    let hstore = sqlx::query_scalar::<_, bool>("SELECT to_regtype('hstore') IS NOT NULL")
        .fetch_one(&mut *connection)
        .await?;
    if !hstore {
        return Err(StoreError::Unusable {
            problem: "the database role does not see the type `hstore`, which the queue needs".to_owned(),
            hint: "add the schema of the extension `hstore` to the role's `search_path` (`ALTER ROLE … SET \
                   search_path = public, …`)"
                .to_owned(),
        });
    }
    let read_only = sqlx::query_scalar::<_, bool>(
        "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean",
    )
    .fetch_one(connection)
    .await?;
    if read_only {
        return Err(StoreError::Unusable {
            problem: "the database is read-only".to_owned(),
            hint: "connect to the primary, not to a replica".to_owned(),
        });
    }
    match missing {
        Some(table) => Err(StoreError::Unusable {
            problem: format!("the database role may not read and write `{table}`"),
            hint: "give the role SELECT, INSERT, UPDATE and DELETE on all tables of the schemas `refit` and \
                   `apalis`, and USAGE on both"
                .to_owned(),
        }),
        None => Ok(()),
    }
}

/// A database with tables that are not ours is somebody else's, unless refit was let in before.
async fn refuse_foreign(connection: &mut PgConnection, options: &PgConnectOptions) -> Result<(), StoreError> {
    let foreign = sqlx::query_scalar::<_, String>(
        "SELECT n.nspname || '.' || c.relname FROM pg_catalog.pg_class c
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname NOT LIKE 'pg\\_%'
           AND n.nspname NOT IN ('refit', 'apalis', 'information_schema')
           AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')
           AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_tables
               WHERE schemaname = 'refit' AND tablename = 'schema_migrations')
         ORDER BY 1 LIMIT 1",
    )
    .fetch_optional(connection)
    .await?;
    match foreign {
        Some(table) => Err(StoreError::Unusable {
            problem: format!("{} holds tables of another program (`{table}`)", place(options)),
            hint: "name a database of refit's own, or add `--shared`: refit keeps to its schemas `refit` and `apalis`"
                .to_owned(),
        }),
        None => Ok(()),
    }
}

/// Lock files of this machine's workers, in a directory that only this user can write; none without one.
fn local_locks() -> Option<Liveness> {
    let user = rustix::process::getuid().as_raw();
    let dir: PathBuf = std::env::temp_dir().join(format!("refit-{user}"));
    if let Err(error) = std::fs::DirBuilder::new().mode(0o700).create(&dir)
        && error.kind() != std::io::ErrorKind::AlreadyExists
    {
        return None;
    }
    let found = std::fs::symlink_metadata(&dir).ok()?;
    if !found.is_dir() || found.uid() != user || found.mode() & 0o022 != 0 {
        return None;
    }
    // The same directory of the same running kernel: no two machines or containers agree on all three.
    let kernel = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .unwrap_or_else(|_| rustix::system::uname().nodename().to_string_lossy().into_owned());
    let machine = format!("{}/{}/{}", kernel.trim(), found.dev(), found.ino());
    Liveness::on_machine(&dir, machine).ok()
}
