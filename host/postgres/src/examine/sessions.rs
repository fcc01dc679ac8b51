//! Who is on the server: hosts, and sessions that hold them up.

use std::collections::BTreeSet;

use millrace_engine::findings::Finding;
use sqlx::{AssertSqlSafe, Executor as _, Row as _};

use super::{Examination, Looked};
use crate::hosts::{LIVES, LOCK_CLASS};

impl Examination<'_> {
    pub(super) async fn hosts(&mut self) -> Looked {
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

    pub(super) async fn locks(&mut self) -> Looked {
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
    pub(super) async fn snapshots(&mut self) -> Looked {
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

    pub(super) async fn prepared(&mut self) -> Looked {
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
}
