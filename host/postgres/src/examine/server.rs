//! What the server promises: its settings, its standbys, and the connections that it has for hosts.

use std::time::Duration;

use millrace_engine::findings::{Finding, bytes};
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use super::{Examination, Looked};
use crate::connect::SERVER_VERSION_MIN;

/// Connections of a host besides [`PostgresOptions::connections_max`]: commits, cleaning, compaction, its session.
const CONNECTIONS_BESIDES: i64 = 6;
/// A database whose oldest transaction is older needs help: at twice as many transactions it stops.
const TRANSACTION_AGE_MAX: i64 = 1_000_000_000;

impl Examination<'_> {
    pub(super) async fn server(&mut self) -> Looked {
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
    pub(super) async fn synchronous_commit(&mut self) -> Looked {
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

    pub(super) async fn standbys(&mut self) -> Looked {
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

    pub(super) async fn slots(&mut self) -> Looked {
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

    pub(super) async fn connections(&mut self) -> Looked {
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
}
