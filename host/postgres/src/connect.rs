//! Opens the database: connections, what must be so for the promises to hold, and the schema.

use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions, PgRow};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, Row as _};

use crate::memory::{Life, Memory};
use crate::options::PostgresOptions;

/// The first version that has what the statements use.
pub(crate) const SERVER_VERSION_MIN: u32 = 140_000;
/// The newest schema that this version knows.
pub(crate) const SCHEMA_VERSION: i64 = 1 + MIGRATIONS.len() as i64;
/// What makes each newer schema of the one before it.
pub(crate) const MIGRATIONS: [Migration; 6] = [
    Migration {
        sql: include_str!("../migrations/0002.sql"),
        is_additive: true,
    },
    Migration {
        sql: include_str!("../migrations/0003.sql"),
        is_additive: true,
    },
    Migration {
        sql: include_str!("../migrations/0004.sql"),
        is_additive: true,
    },
    Migration {
        sql: include_str!("../migrations/0005.sql"),
        is_additive: true,
    },
    Migration {
        sql: include_str!("../migrations/0006.sql"),
        is_additive: true,
    },
    Migration {
        sql: include_str!("../migrations/0007.sql"),
        is_additive: true,
    },
];
/// A transaction whose host does not go on for so long is undone by the database, so that a host that stands still blocks nobody.
const IDLE_TRANSACTION_DURATION_MAX: Duration = Duration::from_secs(5);
/// Prepared statements of one connection: each topic has a few.
const STATEMENTS_MAX: usize = 1024;
/// With it, the name of a session has less than the 63 bytes that the server keeps.
const SCHEMA_CHARS_MAX: usize = 32;
/// How long a read waits for a free connection.
const ACQUIRE_DURATION_MAX: Duration = Duration::from_secs(10);
const SCHEMA: &str = include_str!("../migrations/0001.sql");

/// What makes a newer schema of the one before it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Migration {
    /// The statements, without the row of the version.
    sql: &'static str,
    /// Whether hosts that know only the schema before can work on this one: nothing that they read or write is removed or changes its
    /// meaning.
    is_additive: bool,
}

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
        "{0:?} cannot be the schema's name: use 1 to 32 lower-case letters, digits and underscores, with a letter first, and not pg_ at the \
         beginning, which PostgreSQL keeps for itself"
    )]
    Schema(String),
    /// It does not exist, and is not to be created.
    #[error("the database has no schema {0:?} of Millrace")]
    NoSchema(String),
    /// There are tables, and not those of Millrace.
    #[error(
        "schema {0:?} has tables of others in it; choose another name, such as millrace, and it will be created"
    )]
    Strangers(String),
    /// The server has no such database.
    #[error(
        "the server has no such database ({0}); create it, or correct the name at the end of the address"
    )]
    NoDatabase(String),
    /// There is no such role, its password is another one, or it has no entry in `pg_hba.conf`.
    #[error(
        "the database does not let this host in ({0}); check the user and the password in its address, and whether its pg_hba.conf \
         allows this user from here"
    )]
    NotLetIn(String),
    /// It has no connection left.
    #[error(
        "the database has no free connection ({0}); raise its max_connections, or lower connections_max of the hosts"
    )]
    Full(String),
    /// The role lacks a right.
    #[error(
        "the role of this host may not do what it must ({0}); make it the owner of the schema, or allow it to create one: \
         grant create on database … to …"
    )]
    NoRight(String),
    /// It cannot be reached.
    #[error(
        "the database cannot be reached ({0}); check its address, and that it accepts connections"
    )]
    Unreachable(String),
    /// The certificate of the server is not trusted, or is another server's.
    #[error(
        "the database's certificate is not accepted ({0}); give the file of the authority that signed it as sslrootcert in the address, and          for sslmode=verify-full call the database by a name in its certificate"
    )]
    Certificate(String),
    /// It does not do TLS.
    #[error(
        "the database does not encrypt connections ({0}); turn ssl on in its settings, or choose another sslmode in the address"
    )]
    NoTls(String),
    /// A statement failed.
    #[error("the database refused to be opened ({0})")]
    Refused(String),
    /// It takes no writes.
    #[error(
        "the database is a standby, which takes no writes; give the address of the primary, or one that leads to it"
    )]
    Standby,
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
        "the database's schema has version {found}, which needs hosts that know version {needed}, and this host knows {known}: run a newer \
         host on it"
    )]
    SchemaVersion {
        /// The schema's version.
        found: i64,
        /// What a host must know to work on it.
        needed: i64,
        /// The newest known one.
        known: i64,
    },
    /// Older hosts could not work on the schema that this host would make.
    #[error(
        "this host needs a newer schema, with which {others} hosts of an older version cannot work, and they live: stop them, then start this \
         one again"
    )]
    OlderHosts {
        /// How many live.
        others: i64,
    },
}

/// What the server says with a code that tells what can be done.
fn by_code(error: &sqlx::Error) -> Option<OpenError> {
    let answer = error.as_database_error()?;
    let text = answer.message().to_owned();
    match answer.code()?.as_ref() {
        "3D000" => Some(OpenError::NoDatabase(text)),
        "28P01" | "28000" => Some(OpenError::NotLetIn(text)),
        "53300" => Some(OpenError::Full(text)),
        "42501" => Some(OpenError::NoRight(text)),
        _ => None,
    }
}

/// An error of a statement while the database is opened.
pub(crate) fn refused(error: sqlx::Error) -> OpenError {
    if let Some(known) = by_code(&error) {
        return known;
    }
    match error {
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::Tls(_) => {
            OpenError::Unreachable(error.to_string())
        }
        error => OpenError::Refused(error.to_string()),
    }
}

/// An error of the first connection.
pub(crate) fn not_connected(error: sqlx::Error) -> OpenError {
    if let Some(known) = by_code(&error) {
        return known;
    }
    let text = error.to_string();
    match error {
        // That it was a certificate is only in the text of the TLS library.
        _ if text.contains("certificate") => OpenError::Certificate(text),
        sqlx::Error::Tls(_) => OpenError::NoTls(text),
        _ => OpenError::Unreachable(text),
    }
}

/// How every session is made.
#[derive(Clone)]
pub(crate) struct Connect {
    pub(crate) options: PgConnectOptions,
    /// Each session learns which life of the database it is in.
    pub(crate) memory: Arc<Memory>,
    /// Statements at the beginning of a session. As parameters of the connection, poolers would refuse them.
    settings: String,
}

impl Connect {
    /// As [`Connect::session_in_life`], for those to whom the life is all the same.
    #[cfg(test)]
    pub(crate) async fn session(&self) -> Result<PgConnection, sqlx::Error> {
        Ok(self.session_in_life().await?.0)
    }

    /// Connects and begins a session, and says in which life of the database it is.
    pub(crate) async fn session_in_life(&self) -> Result<(PgConnection, Life), sqlx::Error> {
        let mut session = PgConnection::connect_with(&self.options).await?;
        let life = self.begin(&mut session).await?;
        Ok((session, life))
    }

    async fn begin(&self, session: &mut PgConnection) -> Result<Life, sqlx::Error> {
        // Built of a checked name and numbers.
        let settings = sqlx::raw_sql(AssertSqlSafe(self.settings.clone()));
        session.execute(settings).await?;
        let begun = self.memory.begin(session).await;
        begun.map_err(|error| sqlx::Error::Io(std::io::Error::other(error.to_string())))
    }
}

/// Where the database is, and the name of sessions.
pub(crate) fn connect_options(
    options: &PostgresOptions,
    name: &str,
) -> Result<PgConnectOptions, OpenError> {
    let schema = &options.schema;
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let begins = schema.starts_with(|c: char| c.is_ascii_lowercase());
    let begins = begins && !schema.starts_with("pg_");
    if !begins || schema.len() > SCHEMA_CHARS_MAX || !schema.chars().all(is_plain) {
        return Err(OpenError::Schema(schema.clone()));
    }
    let url = PgConnectOptions::from_str(&options.url);
    let connect = url.map_err(|error| OpenError::Url(error.to_string()))?;
    Ok(connect
        .application_name(name)
        .statement_cache_capacity(STATEMENTS_MAX)
        .disable_statement_logging())
}

impl Connect {
    pub(crate) fn new(
        options: &PostgresOptions,
        name: &str,
        memory: &Arc<Memory>,
    ) -> Result<Self, OpenError> {
        let schema = &options.schema;
        let idle = IDLE_TRANSACTION_DURATION_MAX.as_millis();
        Ok(Self {
            options: connect_options(options, name)?,
            memory: Arc::clone(memory),
            // Each statement finds its rows by an index, whatever its values: to plan it takes longer than to run it. A host whose database was given a schema
            // that it does not know, while it stood still, gets no session.
            settings: format!(
                "set search_path = {schema}; set idle_in_transaction_session_timeout = {idle}; set plan_cache_mode = force_generic_plan; \
                 do $$ begin if to_regclass('{schema}.meta') is not null then \
                 if (select value from {schema}.meta where name = 'schema_min') > {SCHEMA_VERSION} then \
                 raise exception 'the schema was made by a newer host, with which this one cannot work: run a newer one'; \
                 end if; end if; end $$"
            ),
        })
    }
}

/// Connects, checks, and creates or checks the schema.
pub(crate) async fn open(
    options: &PostgresOptions,
    connect: &Connect,
) -> Result<PgPool, OpenError> {
    let first = PgConnection::connect_with(&connect.options).await;
    let mut first = first.map_err(not_connected)?;
    check_server(&mut first).await?;
    check_pooler(&mut first, &connect.options).await?;
    let path = format!("set search_path = {}", options.schema);
    let path = sqlx::raw_sql(AssertSqlSafe(path));
    first.execute(path).await.map_err(refused)?;
    make_schema(&mut first, options, &MIGRATIONS).await?;
    // Whatever a close that fails leaves behind, the server ends it.
    let _ = first.close().await;
    let begins = connect.clone();
    let memory = Arc::clone(&connect.memory);
    let pool = PgPoolOptions::new()
        .max_connections(options.connections_max.max(2))
        .acquire_timeout(ACQUIRE_DURATION_MAX)
        .after_connect(move |session, _| {
            let begins = begins.clone();
            Box::pin(async move { begins.begin(session).await.map(drop) })
        })
        // It leads to a server that is no longer the database, and does not know it.
        .before_acquire(move |_, connection| {
            let is_usable = !memory.is_of_before(connection.age);
            Box::pin(async move { Ok(is_usable) })
        })
        .connect_with(connect.options.clone())
        .await;
    pool.map_err(refused)
}

/// One row of an answer. Prepared statements, which other queries use, fail in poolers before anything can be found out.
async fn row(connection: &mut PgConnection, sql: &'static str) -> Result<PgRow, OpenError> {
    let row = connection.fetch_one(sqlx::raw_sql(sql)).await;
    row.map_err(refused)
}

async fn check_server(connection: &mut PgConnection) -> Result<(), OpenError> {
    let row = row(
        connection,
        "select current_setting('server_version_num')::int as number, current_setting('server_version') as version, \
         current_setting('fsync') as fsync, current_setting('full_page_writes') as pages, pg_is_in_recovery() as follows",
    )
    .await?;
    let number: i32 = row.get("number");
    if (number as u32) < SERVER_VERSION_MIN {
        let found = row.get("version");
        return Err(OpenError::ServerVersion { found });
    }
    if row.get("follows") {
        return Err(OpenError::Standby);
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

/// A session must be the same process of the server in each transaction, also while another one is busy: a pooler in transaction mode gives
/// its process to whoever asks next.
pub(crate) async fn check_pooler(
    connection: &mut PgConnection,
    options: &PgConnectOptions,
) -> Result<(), OpenError> {
    const PROCESS: &str = "select pg_backend_pid() as pid";
    let other = PgConnection::connect_with(options).await;
    let mut other = other.map_err(not_connected)?;
    for _ in 0..3 {
        let own: i32 = row(connection, PROCESS).await?.get("pid");
        let begin = sqlx::raw_sql("begin");
        other.execute(begin).await.map_err(refused)?;
        let others: i32 = row(&mut other, PROCESS).await?.get("pid");
        let still: i32 = row(connection, PROCESS).await?.get("pid");
        let rollback = sqlx::raw_sql("rollback");
        other.execute(rollback).await.map_err(refused)?;
        if own != still || own == others {
            return Err(OpenError::Pooler);
        }
    }
    let _ = other.close().await;
    Ok(())
}

/// Several hosts may start at once: one of them creates the schema, or brings it up to date.
pub(crate) async fn make_schema(
    connection: &mut PgConnection,
    options: &PostgresOptions,
    migrations: &[Migration],
) -> Result<(), OpenError> {
    let (schema, newest) = (&options.schema, 1 + migrations.len() as i64);
    let mut making = connection.begin().await.map_err(refused)?;
    let lock = sqlx::query("select pg_advisory_xact_lock(hashtextextended('millrace ' || $1, 0))");
    making.execute(lock.bind(schema)).await.map_err(refused)?;
    let known = sqlx::query(
        "select to_regclass($1) is not null and to_regclass($2) is not null as is_there",
    );
    let known = known
        .bind(format!("{schema}.meta"))
        .bind(format!("{schema}.chain"));
    let row = making.fetch_one(known).await.map_err(refused)?;
    let found = match row.get::<bool, _>("is_there") {
        true => {
            let versions = sqlx::query(
                "select (select value from meta where name = 'schema') as found, \
                 coalesce((select value from meta where name = 'schema_min'), 1) as needed",
            );
            let row = making.fetch_one(versions).await.map_err(refused)?;
            let (found, needed) = (row.get("found"), row.get("needed"));
            if needed > newest {
                let known = newest;
                return Err(OpenError::SchemaVersion {
                    found,
                    needed,
                    known,
                });
            }
            found
        }
        false if !options.makes_schema => return Err(OpenError::NoSchema(schema.clone())),
        false => {
            // What an extension has put there does no harm.
            let strangers = sqlx::query(
                "select exists (select from pg_class c join pg_namespace n on n.oid = c.relnamespace where n.nspname = $1 \
                 and c.relkind in ('r', 'p', 'v', 'm', 'S', 'f') and not exists (select from pg_depend d where d.objid = c.oid and d.deptype = 'e')) as are_there",
            );
            let row = making
                .fetch_one(strangers.bind(schema))
                .await
                .map_err(refused)?;
            if row.get("are_there") {
                return Err(OpenError::Strangers(schema.clone()));
            }
            let create = format!("create schema if not exists {schema}");
            // Its name has only plain letters.
            let create = sqlx::raw_sql(AssertSqlSafe(create));
            making.execute(create).await.map_err(refused)?;
            let create = sqlx::raw_sql(SCHEMA);
            making.execute(create).await.map_err(refused)?;
            1
        }
    };
    migrate(&mut making, options, found, migrations).await?;
    making.commit().await.map_err(refused)
}

/// Brings the schema up to date. Hosts that could not work on it must not live.
async fn migrate(
    making: &mut PgConnection,
    options: &PostgresOptions,
    found: i64,
    migrations: &[Migration],
) -> Result<(), OpenError> {
    let first = usize::try_from(found - 1).unwrap_or(usize::MAX);
    let left = migrations.iter().enumerate().skip(first);
    let mut needed = None;
    for (place, migration) in left {
        let version = place as i64 + 2;
        if !migration.is_additive {
            needed = Some(version);
        }
        let migrate = sqlx::raw_sql(migration.sql);
        making.execute(migrate).await.map_err(refused)?;
        let raise = sqlx::query("update meta set value = $1 where name = 'schema'");
        let raise = raise.bind(version);
        making.execute(raise).await.map_err(refused)?;
    }
    let Some(needed) = needed else {
        return Ok(());
    };
    let others = sqlx::query(
        "select count(*) as others from host where seen_at > clock_timestamp() - $1 * interval '1 millisecond'",
    );
    let others = others.bind(options.dead_after.as_millis() as i64);
    let row = making.fetch_one(others).await.map_err(refused)?;
    let others: i64 = row.get("others");
    if others > 0 {
        // Nothing was committed.
        return Err(OpenError::OlderHosts { others });
    }
    let raise = sqlx::query(
        "insert into meta values ('schema_min', $1) on conflict (name) do update set value = excluded.value",
    );
    let raise = raise.bind(needed);
    making.execute(raise).await.map_err(refused)?;
    Ok(())
}

#[cfg(test)]
impl Migration {
    pub(crate) const fn new(sql: &'static str, is_additive: bool) -> Self {
        Self { sql, is_additive }
    }
}
