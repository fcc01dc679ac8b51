//! Examines a database for `millrace doctor`: whether it keeps the promises of the hosts on it, what holds them up, and what is left over.
//! Reads only, and needs no right beyond those of a host; what it may not see it says.

use std::collections::BTreeSet;
use std::time::Duration;

use millrace_engine::findings::{FINDINGS_OF_A_KIND_MAX, Finding, bytes};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, Row as _};

use crate::connect::{
    OpenError, SCHEMA_VERSION, SERVER_VERSION_MIN, check_pooler, connect_options, not_connected,
    refused,
};
use crate::hosts::{LIVES, LOCK_CLASS};
use crate::options::PostgresOptions;

/// Connections of a host besides [`PostgresOptions::connections_max`]: commits, cleaning, compaction, its session.
const CONNECTIONS_BESIDES: i64 = 6;
/// No query of an examination takes longer.
const QUERY_DURATION_MAX: Duration = Duration::from_secs(30);
/// A database whose oldest transaction is older needs help: at twice as many transactions it stops.
const TRANSACTION_AGE_MAX: i64 = 1_000_000_000;

/// The marks of an unfinished copy, which are among the modules: of every one, and how that of one source begins.
const COPY_MARK: &str = "an unfinished copy\n";
const COPY_MARK_BEGINS: &str = "an unfinished copy of ";

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

    async fn server(&mut self) -> Looked {
        let row = self
            .row(
                "select current_setting('server_version_num')::int as number, current_setting('server_version') as version, \
                 current_setting('fsync') as fsync, current_setting('full_page_writes') as pages, \
                 current_setting('autovacuum') as autovacuum, pg_is_in_recovery() as is_standby, \
                 age(datfrozenxid)::bigint as age from pg_database where datname = current_database()",
            )
            .await?;
        let (number, version): (i32, String) = (row.get("number"), row.get("version"));
        let is_too_old = (number as u32) < SERVER_VERSION_MIN;
        self.add(match is_too_old {
            true => Finding::fault("server", format!("PostgreSQL {version} is too old"))
                .advise("upgrade it to version 14 or newer"),
            false => Finding::ok("server", format!("PostgreSQL {version}")),
        });
        if row.get("is_standby") {
            self.add(
                Finding::fault("server", "it is a standby, on which no host can write")
                    .advise("give the address of the primary"),
            );
        }
        let (fsync, pages): (String, String) = (row.get("fsync"), row.get("pages"));
        self.add(match fsync.as_str() {
            "off" => Finding::fault(
                "fsync",
                "it is off: the database loses messages when its machine stops",
            )
            .advise("set fsync = on"),
            _ => Finding::ok("fsync", "it is on"),
        });
        self.add(match pages.as_str() {
            "off" => Finding::note("full_page_writes", "it is off: unless the file system never tears a page, a power cut can damage the database")
                .advise("set full_page_writes = on"),
            _ => Finding::ok("full_page_writes", "it is on"),
        });
        if row.get::<String, _>("autovacuum") == "off" {
            self.add(
                Finding::fault("autovacuum", "it is off: the rows that count offsets are never cleaned, and commits become slower and slower")
                    .advise("set autovacuum = on"),
            );
        }
        let age: i64 = row.get("age");
        if age > TRANSACTION_AGE_MAX {
            self.add(
                Finding::fault("database", format!("its oldest transaction is {age} transactions old; at two billion it stops"))
                    .advise("find what keeps vacuum from its work: snapshots, replication slots, prepared transactions"),
            );
        }
        Ok(())
    }

    /// It can be set for the server, the database and the role; hosts use what applies to them.
    async fn synchronous_commit(&mut self) -> Looked {
        let row = self
            .row(
                "select setting, source, current_setting('synchronous_standby_names') as standbys from pg_settings \
                 where name = 'synchronous_commit'",
            )
            .await?;
        let (setting, source): (String, String) = (row.get("setting"), row.get("source"));
        let standbys: String = row.get("standbys");
        let place = "synchronous_commit";
        let meaning = format!("it is {setting} ({source})");
        self.add(match setting.as_str() {
            "off" => Finding::fault(place, format!("{meaning}: durable messages are acknowledged before they are on a disk"))
                .advise("set it to on, for the server or for the role of the hosts"),
            "local" if !standbys.is_empty() => Finding::note(place, format!("{meaning}: commits do not wait for the synchronous standby"))
                .advise("set it to on"),
            "remote_write" => Finding::note(place, format!("{meaning}: a standby has written what is acknowledged, but maybe not to its disk")),
            _ => Finding::ok(place, meaning),
        });
        let others = self
            .rows(
                "select coalesce(d.datname, 'every database') as database, coalesce(r.rolname, 'every role') as role, setting \
                 from pg_db_role_setting s cross join unnest(s.setconfig) as setting \
                 left join pg_database d on d.oid = s.setdatabase left join pg_roles r on r.oid = s.setrole \
                 where setting ilike 'synchronous_commit=%' and s.setdatabase in (0, (select oid from pg_database where datname = current_database()))",
            )
            .await?;
        let found = others.iter().map(|row| {
            let (database, role): (String, String) = (row.get("database"), row.get("role"));
            let setting: String = row.get("setting");
            let meaning = format!("{setting} is set for {role} in {database}");
            match setting.ends_with("=off") {
                true => Finding::note(
                    place,
                    format!(
                        "{meaning}: a host that connects so acknowledges durable messages too early"
                    ),
                ),
                false => Finding::ok(place, meaning),
            }
        });
        let found = found.collect();
        self.add_all(place, found);
        Ok(())
    }

    async fn standbys(&mut self) -> Looked {
        let rows = self
            .rows(
                "select application_name, coalesce(host(client_addr), 'a local socket') as address, state, sync_state, \
                 pg_wal_lsn_diff(case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end, replay_lsn)::bigint as bytes, \
                 extract(epoch from replay_lag)::float8 as delay, current_setting('synchronous_standby_names') as names \
                 from pg_stat_replication order by application_name",
            )
            .await?;
        let names = self
            .row("select current_setting('synchronous_standby_names') as names")
            .await?;
        let names: String = names.get("names");
        let is_synchronous = |row: &&PgRow| {
            let state: Option<String> = row.get("sync_state");
            matches!(state.as_deref(), Some("sync" | "quorum"))
        };
        let synchronous = rows.iter().filter(is_synchronous).count();
        let place = "synchronous_standby_names";
        self.add(match (names.is_empty(), synchronous) {
            (false, 0) => Finding::fault(place, format!("{names:?} names standbys, and none of them is connected: commits wait until one is"))
                .advise("start the standby, or empty the setting and accept that the loss of this server loses messages"),
            (false, count) => Finding::ok(place, format!("commits wait for {count} connected standbys")),
            (true, _) if !rows.is_empty() => Finding::note(place, "it is empty: when a standby is promoted, the last acknowledged messages can be lost")
                .advise("name the standbys that commits must wait for"),
            (true, _) => Finding::note(place, "there is no standby: the loss of this server loses everything since the last backup"),
        });
        let mut found = Vec::new();
        for row in &rows {
            let name: String = row.get("application_name");
            let address: String = row.get("address");
            let state: Option<String> = row.get("state");
            let behind: Option<i64> = row.get("bytes");
            let delay: Option<f64> = row.get("delay");
            let place = format!("standby {name} at {address}");
            let behind = behind.unwrap_or(0);
            let delay = Duration::try_from_secs_f64(delay.unwrap_or(0.0)).unwrap_or_default();
            let meaning = format!(
                "{}, {} behind, {} ms",
                state.as_deref().unwrap_or("of unknown state"),
                bytes(behind),
                delay.as_millis()
            );
            let lags =
                behind > self.thresholds.standby_bytes || delay > self.thresholds.standby_delay;
            found.push(match lags || state.as_deref() != Some("streaming") {
                true => Finding::note(
                    place,
                    format!("{meaning}: if it is promoted now, or commits wait for it, this shows"),
                )
                .advise("look at its machine and the network between"),
                false => Finding::ok(place, meaning),
            });
        }
        self.add_all("standbys", found);
        Ok(())
    }

    async fn slots(&mut self) -> Looked {
        let rows = self
            .rows(
                "select slot_name::text as name, active, pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint as bytes \
                 from pg_replication_slots where not pg_is_in_recovery() order by slot_name",
            )
            .await?;
        let mut found = Vec::new();
        for row in &rows {
            let (name, active): (String, bool) = (row.get("name"), row.get("active"));
            let kept: i64 = row.get::<Option<i64>, _>("bytes").unwrap_or(0);
            if !active && kept > self.thresholds.slot_bytes {
                let meaning = format!(
                    "nobody reads it, and it keeps {} of the write-ahead log, which grows until the disk is full",
                    bytes(kept)
                );
                found.push(
                    Finding::fault(format!("replication slot {name}"), meaning)
                        .advise("start its reader, or drop it with pg_drop_replication_slot"),
                );
            }
        }
        self.add_all("replication slots", found);
        Ok(())
    }

    async fn connections(&mut self) -> Looked {
        let row = self
            .row(
                "select current_setting('max_connections')::bigint as max, current_setting('superuser_reserved_connections')::bigint \
                 + coalesce(current_setting('reserved_connections', true), '0')::bigint as reserved, \
                 (select count(*) from pg_stat_activity where backend_type = 'client backend') as used, \
                 (select count(*) from pg_stat_activity where application_name like 'millrace ' || current_schema() || ' %') as own, \
                 (select count(*) from pg_stat_activity where datname = current_database() and backend_type = 'client backend') as here, \
                 (select datconnlimit::bigint from pg_database where datname = current_database()) as of_database, \
                 (select rolconnlimit::bigint from pg_roles where rolname = current_user) as of_role, \
                 (select count(*) from pg_stat_activity where usename = current_user and backend_type = 'client backend') as of_user",
            )
            .await?;
        let number = |column: &str| row.get::<i64, _>(column);
        let free = number("max") - number("reserved") - number("used");
        let left = |limit: i64, used: i64| (limit >= 0).then_some(limit - used);
        let of_database = left(number("of_database"), number("here"));
        let of_role = left(number("of_role"), number("of_user"));
        let free = [of_database, of_role]
            .into_iter()
            .flatten()
            .fold(free, i64::min);
        let needs = i64::from(self.options.connections_max) + CONNECTIONS_BESIDES;
        let meaning = format!(
            "{} of {} are used, {} of them by hosts of this schema; {} are free",
            number("used"),
            number("max"),
            number("own"),
            free.max(0)
        );
        self.add(match free < needs {
            true => Finding::fault(
                "connections",
                format!("{meaning}, and one more host needs {needs}: it would not start"),
            )
            .advise("raise max_connections, or lower engine.postgres.connections_max of the hosts"),
            false => Finding::ok("connections", meaning),
        });
        Ok(())
    }

    async fn hosts(&mut self) -> Looked {
        let find = format!(
            "select id, address, release, {LIVES} as lives, extract(epoch from clock_timestamp() - seen_at)::float8 as age from host order by id"
        );
        let dead_ms = self.options.dead_after.as_millis() as i64;
        let find = sqlx::query(AssertSqlSafe(find));
        let find = find.bind(dead_ms).bind(LOCK_CLASS);
        let rows = self.connection.fetch_all(find).await?;
        let mut releases = BTreeSet::new();
        let mut found = Vec::new();
        for row in &rows {
            let (id, address): (i64, String) = (row.get("id"), row.get("address"));
            let (release, lives): (String, bool) = (row.get("release"), row.get("lives"));
            let age = row.get::<f64, _>("age").max(0.0);
            let place = format!("host {id:016x} at {address:?}");
            if lives {
                found.push(Finding::ok(
                    place,
                    format!("version {release}, heard of {age:.0} s ago"),
                ));
                releases.insert(release);
            } else {
                found.push(Finding::note(place, format!("it was last heard of {age:.0} s ago and counts as dead; the others take its work")));
            }
        }
        let living = releases.len();
        self.add_all("hosts", found);
        if living == 0 {
            self.add(Finding::note("hosts", "none lives: nothing is processed"));
        }
        if living > 1 {
            let releases: Vec<String> = releases.into_iter().collect();
            self.add(
                Finding::note(
                    "hosts",
                    format!("they have different versions: {}", releases.join(", ")),
                )
                .advise("complete the upgrade"),
            );
        }
        Ok(())
    }

    async fn locks(&mut self) -> Looked {
        let find = sqlx::query(
            "select a.pid, a.application_name, extract(epoch from clock_timestamp() - a.state_change)::float8 as age, \
             b.pid as blocker, b.application_name as by, coalesce(b.state, 'unknown') as state from pg_stat_activity a \
             cross join lateral unnest(pg_blocking_pids(a.pid)) as blocking(pid) join pg_stat_activity b on b.pid = blocking.pid \
             where a.datname = current_database() and a.wait_event_type = 'Lock' \
             and clock_timestamp() - a.state_change > $1 * interval '1 millisecond' order by age desc",
        );
        let wait = self.thresholds.lock_wait.as_millis() as i64;
        let rows = self.connection.fetch_all(find.bind(wait)).await?;
        let blocked = rows.iter().map(|row| {
            let (pid, name): (i32, String) = (row.get("pid"), row.get("application_name"));
            let (blocker, by): (i32, String) = (row.get("blocker"), row.get("by"));
            let (age, state): (f64, String) = (row.get("age"), row.get("state"));
            let meaning = format!(
                "it waits for {age:.0} s for a lock that session {blocker} ({by}, {state}) has"
            );
            Finding::fault(format!("session {pid} ({name})"), meaning).advise(format!(
                "end the other one: select pg_terminate_backend({blocker})"
            ))
        });
        let blocked: Vec<Finding> = blocked.collect();
        if blocked.is_empty() {
            self.add(Finding::ok("locks", "nobody waits for one"));
        }
        self.add_all("locks", blocked);
        Ok(())
    }

    /// A snapshot keeps what was removed since from being cleaned, in all tables.
    async fn snapshots(&mut self) -> Looked {
        let find = sqlx::query(
            "select pid, application_name, coalesce(state, 'unknown') as state, backend_xmin is not null as has_snapshot, \
             extract(epoch from clock_timestamp() - xact_start)::float8 as age, \
             extract(epoch from clock_timestamp() - state_change)::float8 as idle from pg_stat_activity \
             where datname = current_database() and pid <> pg_backend_pid() and xact_start is not null and backend_type <> 'walsender' \
             and (state like 'idle in transaction%' and clock_timestamp() - state_change > $1 * interval '1 millisecond' \
               or backend_xmin is not null and clock_timestamp() - xact_start > $2 * interval '1 millisecond') order by xact_start",
        );
        let idle = self.thresholds.idle_transaction.as_millis() as i64;
        let old = self.thresholds.snapshot.as_millis() as i64;
        let rows = self.connection.fetch_all(find.bind(idle).bind(old)).await?;
        let found = rows.iter().map(|row| {
            let (pid, name): (i32, String) = (row.get("pid"), row.get("application_name"));
            let (age, idle, state): (f64, f64, String) =
                (row.get("age"), row.get("idle"), row.get("state"));
            let place = format!("session {pid} ({name})");
            match state.starts_with("idle in transaction") {
                true => Finding::fault(place, format!("it is idle in a transaction for {idle:.0} s: what it has locked stays locked, and dead rows stay"))
                    .advise(format!("commit or end it: select pg_terminate_backend({pid})")),
                false => Finding::note(place, format!("its transaction runs for {age:.0} s: until it ends, dead rows stay, and commits become slower"))
                    .advise("dump from a standby, and keep reports short"),
            }
        });
        let found: Vec<Finding> = found.collect();
        if found.is_empty() {
            self.add(Finding::ok(
                "sessions",
                "none has been in a transaction for long",
            ));
        }
        self.add_all("sessions", found);
        Ok(())
    }

    async fn prepared(&mut self) -> Looked {
        let find = sqlx::query(
            "select gid, extract(epoch from clock_timestamp() - prepared)::float8 as age from pg_prepared_xacts \
             where database = current_database() and clock_timestamp() - prepared > $1 * interval '1 millisecond' order by prepared",
        );
        let old = self.thresholds.snapshot.as_millis() as i64;
        let rows = self.connection.fetch_all(find.bind(old)).await?;
        let found = rows.iter().map(|row| {
            let (gid, age): (String, f64) = (row.get("gid"), row.get("age"));
            Finding::fault(format!("prepared transaction {gid}"), format!("it was prepared {age:.0} s ago and never ended: its locks and all dead rows stay"))
                .advise("commit or roll it back, by COMMIT PREPARED or ROLLBACK PREPARED")
        });
        let found = found.collect();
        self.add_all("prepared transactions", found);
        Ok(())
    }

    async fn dead_rows(&mut self) -> Looked {
        let rows = self
            .rows(
                "select relname::text as name, n_dead_tup as dead, n_live_tup as live, \
                 greatest(last_autovacuum, last_vacuum)::text as cleaned from pg_stat_user_tables \
                 where schemaname = current_schema() and relname in ('partition', 'chain', 'kind', 'meta', 'state', 'host', 'entry') order by relname",
            )
            .await?;
        let mut found = Vec::new();
        let mut most = 0;
        for row in &rows {
            let (name, dead, live): (String, i64, i64) =
                (row.get("name"), row.get("dead"), row.get("live"));
            most = most.max(dead);
            if dead > self.thresholds.dead_rows && dead > live {
                let cleaned: Option<String> = row.get("cleaned");
                let cleaned = cleaned.unwrap_or_else(|| "never".to_owned());
                let meaning = format!(
                    "{dead} dead rows beside {live} living ones, last cleaned: {cleaned}; each commit reads past them"
                );
                found.push(
                    Finding::note(format!("table {name}"), meaning)
                        .advise("end what has a long snapshot; then `vacuum` the table"),
                );
            }
        }
        if found.is_empty() {
            self.add(Finding::ok(
                "dead rows",
                format!("at most {most} in a table"),
            ));
        }
        self.findings.extend(found);
        Ok(())
    }

    async fn outbox(&mut self) -> Looked {
        let find = sqlx::query(
            "select count(*) as waiting, count(*) filter (where tries > 0) as refused, \
             (array_agg(topic || ': ' || error order by id) filter (where error is not null))[1] as why, \
             count(*) filter (where tries = 0 and due < clock_timestamp() - $1 * interval '1 millisecond') as stuck from outbox",
        );
        let wait = self.thresholds.outbox_wait.as_millis() as i64;
        let row = self.connection.fetch_one(find.bind(wait)).await?;
        let count = |column: &str| row.get::<i64, _>(column);
        let (waiting, refused, stuck) = (count("waiting"), count("refused"), count("stuck"));
        if refused > 0 {
            let why: Option<String> = row.get("why");
            let why = why.unwrap_or_default();
            self.add(
                Finding::note("outbox", format!("{refused} messages were refused, the first for this reason: {why}"))
                    .advise("create the topic or correct the row, and it is sent at the next try; or delete the row"),
            );
        }
        if stuck > 0 {
            let seconds = self.thresholds.outbox_wait.as_secs();
            self.add(
                Finding::fault("outbox", format!("{stuck} messages wait for more than {seconds} s, and no host has tried to send them"))
                    .advise("start a host, or look into its log"),
            );
        }
        if refused + stuck == 0 {
            self.add(Finding::ok("outbox", format!("{waiting} messages wait")));
        }
        Ok(())
    }

    async fn modules(&mut self) -> Looked {
        let rows = self
            .rows(
                "select encode(m.digest, 'hex') as digest, octet_length(m.bytes)::bigint as size, \
                 case when octet_length(m.bytes) < 4096 then convert_from(substr(m.bytes, 1, 22), 'LATIN1') end as begins from module m \
                 where not exists (select from entry e where e.kind = 'module' and e.key = encode(m.digest, 'hex') and e.value is not null) order by 1",
            )
            .await?;
        let spare = rows.iter().filter_map(|row| {
            let (digest, size): (String, i64) = (row.get("digest"), row.get("size"));
            let begins: Option<String> = row.get("begins");
            match begins.as_deref() {
                Some(COPY_MARK) => Some(
                    Finding::fault(
                        "copy",
                        "a copy into this schema was begun and not completed: no host starts on it",
                    )
                    .advise("repeat the `millrace copy`, which goes on"),
                ),
                Some(COPY_MARK_BEGINS) => None,
                _ => Some(
                    Finding::note(
                        format!("module {digest}"),
                        format!("{size} bytes that no module names"),
                    )
                    .advise("upload the component again if it is needed; otherwise delete the row"),
                ),
            }
        });
        let spare = spare.collect();
        self.add_all("modules", spare);
        let rows = self
            .rows(
                "select e.key from entry e where e.kind = 'module' and e.value is not null \
                 and not exists (select from module m where encode(m.digest, 'hex') = e.key) order by 1",
            )
            .await?;
        let lost = rows.iter().map(|row| {
            let key: String = row.get("key");
            Finding::fault(
                format!("module {key}"),
                "its bytes are missing: no host that starts can load it",
            )
            .advise("upload the same component again")
        });
        let lost = lost.collect();
        self.add_all("modules", lost);
        Ok(())
    }

    /// The space of each topic, and tables and topics that do not belong together.
    async fn tables(&mut self) -> Looked {
        let rows = self
            .rows(
                "select t.id, t.name, c.oid is not null as has_table, \
                 coalesce((select sum(pg_total_relation_size(tree.relid)) from pg_partition_tree(c.oid) as tree), 0)::bigint as bytes, \
                 coalesce((select count(*) from pg_partition_tree(c.oid) as tree where tree.isleaf), 0) as leaves, \
                 (select count(*) from partition p where p.topic = t.id) as partitions, \
                 (select coalesce(sum(p.next - p.start), 0) from partition p where p.topic = t.id)::bigint as offsets \
                 from topic t left join pg_class c on c.relname = 'run_' || t.id and c.relnamespace = current_schema()::regnamespace order by t.name",
            )
            .await?;
        let topics = rows.iter().map(|row| {
            let (id, name): (i64, String) = (row.get("id"), row.get("name"));
            let place = format!("topic {name}");
            match row.get("has_table") {
                false => Finding::fault(place, format!("its table run_{id} is missing, and with it its messages"))
                    .advise("restore the database from its backup"),
                true => {
                    let space = bytes(row.get("bytes"));
                    let (leaves, partitions, offsets): (i64, i64, i64) =
                        (row.get("leaves"), row.get("partitions"), row.get("offsets"));
                    Finding::ok(place, format!("{space} in {leaves} leaves of run_{id}, {offsets} offsets in {partitions} partitions"))
                }
            }
        });
        let topics = topics.collect();
        self.add_all("topics", topics);
        let rows = self
            .rows(
                "select c.relname::text as name, pg_total_relation_size(c.oid)::bigint as bytes from pg_class c \
                 where c.relnamespace = current_schema()::regnamespace and c.relkind in ('r', 'p') and c.relname ~ '^run_[0-9]+(_[0-9]+)?$' \
                 and not exists (select from topic t where t.id = split_part(c.relname, '_', 2)::bigint) \
                 and not exists (select from pg_inherits i where i.inhrelid = c.oid) order by 1",
            )
            .await?;
        let spare = rows.iter().map(|row| {
            let (name, size): (String, i64) = (row.get("name"), row.get("bytes"));
            Finding::note(
                format!("table {name}"),
                format!("{} of a topic that does not exist", bytes(size)),
            )
            .advise("drop the table if nobody needs it")
        });
        let spare = spare.collect();
        self.add_all("tables", spare);
        Ok(())
    }
}
