//! Opens the database: connections, what must be so for the promises to hold, and the schema.

use std::str::FromStr as _;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, Row as _};

use crate::options::PostgresOptions;

/// The first version that has what the statements use.
pub(crate) const SERVER_VERSION_MIN: u32 = 140_000;
/// The newest schema that this version knows.
pub(crate) const SCHEMA_VERSION: i64 = 1;
/// A transaction whose host does not go on for so long is undone by the database, so that a host that stands still blocks nobody.
const IDLE_TRANSACTION_DURATION_MAX: Duration = Duration::from_secs(5);
/// Prepared statements of one connection: each topic has a few.
const STATEMENTS_MAX: usize = 1024;
/// With it, the name of a session has less than the 63 bytes that the server keeps.
const SCHEMA_CHARS_MAX: usize = 32;
/// How long a read waits for a free connection.
const ACQUIRE_DURATION_MAX: Duration = Duration::from_secs(10);
const SCHEMA: &str = include_str!("../migrations/0001.sql");

/// Why the database cannot be used. Nothing was lost.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The address is not one.
    #[error(
        "the database's address cannot be read ({0}); it is like postgres://user:password@host:5432/database"
    )]
    Url(String),
    /// Not a name that needs no quotes.
    #[error(
        "{0:?} cannot be the schema's name: use 1 to 32 lower-case letters, digits and underscores, with a letter first"
    )]
    Schema(String),
    /// It does not exist, and is not to be created.
    #[error("the database has no schema {0:?} of Millrace")]
    NoSchema(String),
    /// It cannot be reached.
    #[error(
        "the database cannot be reached ({0}); check its address, and that it accepts connections"
    )]
    Unreachable(String),
    /// A statement failed.
    #[error("the database refused to be opened ({0})")]
    Refused(String),
    /// Too old.
    #[error("PostgreSQL {found} is too old; version 14 or newer is needed")]
    ServerVersion {
        /// Its version.
        found: String,
    },
    /// It would lose what it has acknowledged.
    #[error(
        "the database runs with fsync = off, so it loses messages when its machine stops; turn fsync on"
    )]
    FsyncOff,
    /// Session locks and notifications do not work through it.
    #[error(
        "the connection goes through a pooler in transaction mode, which breaks session locks: give the address of the database itself, or \
         of a pooler in session mode"
    )]
    Pooler,
    /// Written by a newer host.
    #[error(
        "the database's schema has version {found}, and this host knows {known}: run a newer host on it"
    )]
    SchemaVersion {
        /// The schema's version.
        found: i64,
        /// The newest known one.
        known: i64,
    },
}

/// An error of a statement while the database is opened.
fn refused(error: sqlx::Error) -> OpenError {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::Tls(_) => {
            OpenError::Unreachable(error.to_string())
        }
        error => OpenError::Refused(error.to_string()),
    }
}

/// How every connection is made.
pub(crate) fn connect_options(
    options: &PostgresOptions,
    name: &str,
) -> Result<PgConnectOptions, OpenError> {
    let schema = &options.schema;
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let begins = schema.starts_with(|c: char| c.is_ascii_lowercase());
    if !begins || schema.len() > SCHEMA_CHARS_MAX || !schema.chars().all(is_plain) {
        return Err(OpenError::Schema(schema.clone()));
    }
    let url = PgConnectOptions::from_str(&options.url);
    let connect = url.map_err(|error| OpenError::Url(error.to_string()))?;
    let idle = IDLE_TRANSACTION_DURATION_MAX.as_millis().to_string();
    Ok(connect
        .application_name(name)
        .statement_cache_capacity(STATEMENTS_MAX)
        .options([
            ("search_path", schema.as_str()),
            ("idle_in_transaction_session_timeout", idle.as_str()),
            // Each statement finds its rows by an index, whatever its values: to plan it takes longer than to run it.
            ("plan_cache_mode", "force_generic_plan"),
        ])
        .disable_statement_logging())
}

/// Connects, checks, and creates or checks the schema.
pub(crate) async fn open(
    options: &PostgresOptions,
    connect: &PgConnectOptions,
) -> Result<PgPool, OpenError> {
    let first = PgConnection::connect_with(connect).await;
    let mut first = first.map_err(|error| OpenError::Unreachable(error.to_string()))?;
    check_server(&mut first).await?;
    check_pooler(&mut first).await?;
    make_schema(&mut first, options).await?;
    // Whatever a close that fails leaves behind, the server ends it.
    let _ = first.close().await;
    let pool = PgPoolOptions::new()
        .max_connections(options.connections_max.max(2))
        .acquire_timeout(ACQUIRE_DURATION_MAX)
        .connect_with(connect.clone())
        .await;
    pool.map_err(refused)
}

async fn check_server(connection: &mut PgConnection) -> Result<(), OpenError> {
    let asked = sqlx::query(
        "select current_setting('server_version_num')::int as number, current_setting('server_version') as version, \
         current_setting('fsync') as fsync, current_setting('full_page_writes') as pages",
    );
    let row = connection.fetch_one(asked).await.map_err(refused)?;
    let number: i32 = row.get("number");
    if (number as u32) < SERVER_VERSION_MIN {
        let found = row.get("version");
        return Err(OpenError::ServerVersion { found });
    }
    if row.get::<String, _>("fsync") == "off" {
        return Err(OpenError::FsyncOff);
    }
    if row.get::<String, _>("pages") == "off" {
        tracing::warn!(
            "the database runs with full_page_writes = off: unless its file system never tears a page, a power cut can damage it"
        );
    }
    Ok(())
}

/// A session lock must still be this session's in the next transaction.
pub(crate) async fn check_pooler(connection: &mut PgConnection) -> Result<(), OpenError> {
    let key: i64 = 0x6d69_6c6c_7261_6365;
    let lock = sqlx::query("select pg_advisory_lock_shared($1)").bind(key);
    connection.execute(lock).await.map_err(refused)?;
    for _ in 0..3 {
        let asked = sqlx::query(
            "select exists (select from pg_locks where locktype = 'advisory' and pid = pg_backend_pid() \
             and classid = ($1::bigint >> 32)::int::oid and objid = ($1::bigint & 4294967295)::oid) as held",
        );
        let row = connection.fetch_one(asked.bind(key)).await;
        if !row.map_err(refused)?.get::<bool, _>("held") {
            return Err(OpenError::Pooler);
        }
    }
    let unlock = sqlx::query("select pg_advisory_unlock_shared($1)").bind(key);
    connection.execute(unlock).await.map_err(refused)?;
    Ok(())
}

/// Several hosts may start at once: one of them creates it.
async fn make_schema(
    connection: &mut PgConnection,
    options: &PostgresOptions,
) -> Result<(), OpenError> {
    let schema = &options.schema;
    let mut making = connection.begin().await.map_err(refused)?;
    let lock = sqlx::query("select pg_advisory_xact_lock(hashtextextended('millrace ' || $1, 0))");
    making.execute(lock.bind(schema)).await.map_err(refused)?;
    let known = sqlx::query("select to_regclass($1) is not null as is_there");
    let known = known.bind(format!("{schema}.meta"));
    let row = making.fetch_one(known).await.map_err(refused)?;
    if row.get::<bool, _>("is_there") {
        let version = sqlx::query("select value from meta where name = 'schema'");
        let row = making.fetch_one(version).await.map_err(refused)?;
        let found: i64 = row.get("value");
        if found > SCHEMA_VERSION {
            let known = SCHEMA_VERSION;
            return Err(OpenError::SchemaVersion { found, known });
        }
        return Ok(());
    }
    if !options.makes_schema {
        return Err(OpenError::NoSchema(schema.clone()));
    }
    let create = format!("create schema if not exists {schema}");
    // Its name has only plain letters.
    let create = sqlx::raw_sql(AssertSqlSafe(create));
    making.execute(create).await.map_err(refused)?;
    making
        .execute(sqlx::raw_sql(SCHEMA))
        .await
        .map_err(refused)?;
    making.commit().await.map_err(refused)
}
