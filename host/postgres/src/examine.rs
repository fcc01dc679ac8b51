//! Examines a database for `millrace doctor`: whether it keeps the promises of the hosts on it, what holds them up, and what is left over.
//! Reads only, and needs no right beyond those of a host; what it may not see it says.

mod contents;
mod server;
mod sessions;

use std::time::Duration;

use millrace_engine::findings::{FINDINGS_OF_A_KIND_MAX, Finding};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, Row as _};

use crate::connect::{
    OpenError, SCHEMA_VERSION, check_pooler, connect_options, not_connected, refused,
};
use crate::options::PostgresOptions;

/// No query of an examination takes longer.
const QUERY_DURATION_MAX: Duration = Duration::from_secs(30);

/// From where on something is worth telling.
#[derive(Clone, Copy, Debug)]
pub struct Thresholds {
    /// A session in a transaction that does nothing for so long holds others up.
    pub idle_transaction: Duration,
    /// A snapshot of this age keeps dead rows from being removed.
    pub snapshot: Duration,
    /// A session that waits for a lock for so long stands still.
    pub lock_wait: Duration,
    /// A standby that is behind by so many bytes, or for so long.
    pub standby_bytes: i64,
    /// See `standby_bytes`.
    pub standby_delay: Duration,
    /// Bytes of the write-ahead log that a replication slot without a reader keeps.
    pub slot_bytes: i64,
    /// Dead rows of a table that every commit reads.
    pub dead_rows: i64,
    /// A message in the outbox that is due for so long is stuck.
    pub outbox_wait: Duration,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            idle_transaction: Duration::from_secs(10),
            snapshot: Duration::from_secs(300),
            lock_wait: Duration::from_secs(5),
            standby_bytes: 64 << 20,
            standby_delay: Duration::from_secs(10),
            slot_bytes: 1 << 30,
            dead_rows: 10_000,
            outbox_wait: Duration::from_secs(60),
        }
    }
}

/// Examines the database that these options name.
///
/// # Errors
/// [`OpenError`] if it cannot be connected to, or has no schema of Millrace.
pub async fn examine(
    options: &PostgresOptions,
    thresholds: &Thresholds,
) -> Result<Vec<Finding>, OpenError> {
    let connect = connect_options(options, "millrace doctor")?;
    let connection = PgConnection::connect_with(&connect).await;
    let mut connection = connection.map_err(not_connected)?;
    let settings = format!(
        "set search_path = {}; set statement_timeout = {}; set default_transaction_read_only = on",
        options.schema,
        QUERY_DURATION_MAX.as_millis()
    );
    // Built of a checked name and a number.
    let settings = sqlx::raw_sql(AssertSqlSafe(settings));
    connection.execute(settings).await.map_err(refused)?;
    let mut examination = Examination {
        connection,
        connect,
        options,
        thresholds: *thresholds,
        findings: Vec::new(),
    };
    examination.everything().await?;
    let Examination {
        connection,
        findings,
        ..
    } = examination;
    // The server ends it anyway.
    let _ = connection.close().await;
    Ok(findings)
}

struct Examination<'a> {
    connection: PgConnection,
    connect: PgConnectOptions,
    options: &'a PostgresOptions,
    thresholds: Thresholds,
    findings: Vec<Finding>,
}

type Looked = Result<(), sqlx::Error>;

impl Examination<'_> {
    async fn everything(&mut self) -> Result<(), OpenError> {
        self.schema().await?;
        let looked = self.server().await;
        self.seen("the server's settings", looked);
        let looked = self.synchronous_commit().await;
        self.seen("synchronous_commit", looked);
        match check_pooler(&mut self.connection, &self.connect).await {
            Ok(()) => {}
            Err(OpenError::Pooler) => {
                self.add(Finding::fault("the address", OpenError::Pooler.to_string()))
            }
            Err(error) => self.add(Finding::note("the address", error.to_string())),
        }
        let looked = self.standbys().await;
        self.seen("standbys", looked);
        let looked = self.slots().await;
        self.seen("replication slots", looked);
        let looked = self.connections().await;
        self.seen("connections", looked);
        let looked = self.hosts().await;
        self.seen("hosts", looked);
        let looked = self.locks().await;
        self.seen("locks", looked);
        let looked = self.snapshots().await;
        self.seen("sessions", looked);
        let looked = self.prepared().await;
        self.seen("prepared transactions", looked);
        let looked = self.dead_rows().await;
        self.seen("dead rows", looked);
        let looked = self.outbox().await;
        self.seen("outbox", looked);
        let looked = self.modules().await;
        self.seen("modules", looked);
        let looked = self.tables().await;
        self.seen("tables", looked);
        Ok(())
    }

    fn add(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    /// Adds findings of one kind, and how many more there are.
    fn add_all(&mut self, place: &str, found: Vec<Finding>) {
        let more = found.len().saturating_sub(FINDINGS_OF_A_KIND_MAX);
        self.findings
            .extend(found.into_iter().take(FINDINGS_OF_A_KIND_MAX));
        if more > 0 {
            self.add(Finding::note(place, format!("and {more} more of these")));
        }
    }

    /// What cannot be looked at is said.
    fn seen(&mut self, place: &str, looked: Looked) {
        if let Err(error) = looked {
            let meaning = format!("it could not be looked at: {error}");
            self.add(Finding::note(place, meaning));
        }
    }

    async fn rows(&mut self, query: &'static str) -> Result<Vec<PgRow>, sqlx::Error> {
        self.connection.fetch_all(sqlx::query(query)).await
    }

    async fn row(&mut self, query: &'static str) -> Result<PgRow, sqlx::Error> {
        self.connection.fetch_one(sqlx::query(query)).await
    }

    async fn schema(&mut self) -> Result<(), OpenError> {
        let schema = &self.options.schema;
        let refused = |error: sqlx::Error| OpenError::Refused(error.to_string());
        let known = sqlx::query(
            "select to_regclass($1) is not null and to_regclass($2) is not null as is_there",
        );
        let known = known
            .bind(format!("{schema}.meta"))
            .bind(format!("{schema}.chain"));
        let row = self.connection.fetch_one(known).await.map_err(refused)?;
        if !row.get::<bool, _>("is_there") {
            return Err(OpenError::NoSchema(schema.clone()));
        }
        let version = self
            .row(
                "select value as found, coalesce((select value from meta where name = 'schema_min'), 1) as needed \
                 from meta where name = 'schema'",
            )
            .await;
        let version = version.map_err(refused)?;
        let (found, needed): (i64, i64) = (version.get("found"), version.get("needed"));
        let place = format!("schema {schema}");
        let known = SCHEMA_VERSION;
        self.add(match found {
            _ if needed > known => Finding::fault(
                place,
                format!("it has version {found}, which needs hosts that know version {needed}, and this program knows {known}"),
            )
            .advise("use the program of the newest host on it"),
            _ if found > known => Finding::note(
                place,
                format!("it has version {found}, and this program knows {known}: what is new in it is not examined"),
            ),
            _ if found < known => Finding::note(
                place,
                format!("it has version {found}; the next host that starts makes it {known}"),
            ),
            _ => Finding::ok(place, format!("version {found}")),
        });
        Ok(())
    }
}
