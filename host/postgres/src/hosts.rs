//! Which hosts live, as the database sees it: each holds the lock of its row in a session of its own and renews the row's time.
//!
//! A process that ends loses its session, so the others know at once. A host that stands still keeps its session; its time tells, by the
//! database's clock, and the others end its sessions, so that what it has locked is free. Neither decides what may be committed: that
//! is the epoch of a lease, which is checked in each transaction.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use millrace_engine::{HostId, HostInfo};
use millrace_model::{Clock, Timestamp, go_by};
use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Executor as _, Row as _};
use tokio::sync::{Notify, watch};

use crate::connect::Connect;
use crate::following::HOSTS;
use crate::memory::Life;
use crate::options::PostgresOptions;
use crate::trouble::Trouble;

/// The first half of the locks of hosts; the second half is the row's.
pub(crate) const LOCK_CLASS: i32 = 0x6d69_6c6c;
/// How long one round may take before the session is given up.
const ROUND_DURATION_MAX: Duration = Duration::from_secs(5);

/// Without a session, the next try.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// A difference that an operator should know of.
const CLOCK_MS_TOLD: i64 = 1_000;

/// This host among the others.
pub(crate) struct Hosts {
    pub(crate) id: HostId,
    alive: watch::Sender<Arc<[HostInfo]>>,
    /// Whether the last round reached the database.
    is_reached: AtomicBool,
    /// Tests let a host stand still.
    is_stalled: AtomicBool,
    /// Another host says that it has joined or leaves.
    pub(crate) changed: Notify,
}

/// The condition under which a row of `host` is of a living host; `$1` has the milliseconds after which it is dead, `$2` the class of
/// locks. When the database has just started, nobody has had the time to come back, so all count as living.
pub(crate) const LIVES: &str = "(pg_postmaster_start_time() > clock_timestamp() - $1 * interval '1 millisecond' \
    or seen_at > clock_timestamp() - $1 * interval '1 millisecond' \
    and exists (select from pg_locks where locktype = 'advisory' and granted and objsubid = 2 \
    and database = (select oid from pg_database where datname = current_database()) \
    and classid = $2::int::oid and objid::bigint = lock_id::bigint & 4294967295))";

impl Hosts {
    pub(crate) fn new() -> Self {
        use std::hash::{BuildHasher as _, RandomState};
        // Random: a restarted process is a different host. 62 bits, so that it is a positive number everywhere.
        let id = HostId(RandomState::new().hash_one(0) >> 2);
        Self {
            id,
            alive: watch::Sender::new(Arc::new([])),
            is_reached: AtomicBool::new(false),
            is_stalled: AtomicBool::new(false),
            changed: Notify::new(),
        }
    }

    pub(crate) fn alive(&self) -> watch::Receiver<Arc<[HostInfo]>> {
        self.alive.subscribe()
    }

    pub(crate) fn is_reached(&self) -> bool {
        self.is_reached.load(Ordering::Relaxed)
    }

    #[cfg(test)]
    pub(crate) fn stall(&self, is_stalled: bool) {
        self.is_stalled.store(is_stalled, Ordering::SeqCst);
    }

    fn lock_id(&self) -> i32 {
        self.id.0 as i32
    }
}

/// The session in which this host lives.
pub(crate) struct Session {
    connection: PgConnection,
    life: Life,
}

impl Session {
    /// Connects and takes the lock and the row of this host.
    pub(crate) async fn begin(
        hosts: &Hosts,
        options: &PostgresOptions,
        connect: &Connect,
        clock: &dyn Clock,
    ) -> Result<Self, Trouble> {
        let (mut connection, life) = connect.session_in_life().await?;
        // A session of this host that broke may still have it, as long as the server has not noticed.
        let end = sqlx::query(
            "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and objsubid = 2 \
             and database = (select oid from pg_database where datname = current_database()) \
             and classid = $1::int::oid and objid::bigint = $2::bigint & 4294967295 and pid <> pg_backend_pid()",
        );
        let end = end.bind(LOCK_CLASS).bind(hosts.lock_id());
        connection.fetch_all(end).await?;
        let lock = sqlx::query("select pg_advisory_lock($1, $2)");
        connection
            .execute(lock.bind(LOCK_CLASS).bind(hosts.lock_id()))
            .await?;
        let mut session = Self { connection, life };
        session.keep(hosts, options, clock).await?;
        hosts.is_reached.store(true, Ordering::Relaxed);
        session.tell(options).await?;
        Ok(session)
    }

    /// One round: says that this host lives, and learns who else does.
    async fn keep(
        &mut self,
        hosts: &Hosts,
        options: &PostgresOptions,
        clock: &dyn Clock,
    ) -> Result<(), Trouble> {
        self.set(clock).await?;
        self.say(hosts, options).await?;
        self.look(hosts, options).await
    }

    /// Tells the others to look who lives.
    async fn tell(&mut self, options: &PostgresOptions) -> Result<(), Trouble> {
        let tell = sqlx::query("select pg_notify($1, $2)");
        let tell = tell.bind(&options.schema).bind(HOSTS.to_string());
        self.connection.execute(tell).await?;
        Ok(())
    }

    /// Sets this host's clock by the database's if they differ by more than the question takes. A message that one host accepts is delivered
    /// by another, and a schedule goes on at another, so that all must have the same time.
    async fn set(&mut self, clock: &dyn Clock) -> Result<(), Trouble> {
        let asked = "select (extract(epoch from clock_timestamp()) * 1000)::bigint as now_ms";
        let before = clock.wall();
        let row = self.connection.fetch_one(sqlx::query(asked)).await?;
        let there = Timestamp(row.get::<i64, _>("now_ms").max(0) as u64);
        if let Some(by_ms) = go_by(clock, (before, clock.wall()), there)
            && by_ms.abs() > CLOCK_MS_TOLD
        {
            tracing::warn!(
                by_ms,
                "this machine's clock differs from the database's; this host goes by the database's. Set the machine's clock"
            );
        }
        Ok(())
    }

    async fn say(&mut self, hosts: &Hosts, options: &PostgresOptions) -> Result<(), Trouble> {
        let say = sqlx::query(
            "insert into host (id, address, release, lock_id, seen_at) values ($1, $2, $3, $4, clock_timestamp()) \
             on conflict (id) do update set seen_at = excluded.seen_at",
        );
        let say = say.bind(hosts.id.0 as i64).bind(&options.address);
        let say = say.bind(&options.release).bind(hosts.lock_id());
        self.connection.execute(say).await?;
        Ok(())
    }

    /// Learns who lives, and ends the sessions of those who stand still.
    async fn look(&mut self, hosts: &Hosts, options: &PostgresOptions) -> Result<(), Trouble> {
        let asked = format!(
            "select id, address, seat, {LIVES} as lives, seen_at < clock_timestamp() - $1 * interval '1 millisecond' as stands_still \
             from host order by id"
        );
        let asked = sqlx::query(sqlx::AssertSqlSafe(asked));
        let dead_ms = options.dead_after.as_millis() as i64;
        let asked = asked.bind(dead_ms).bind(LOCK_CLASS);
        let rows = self.connection.fetch_all(asked).await?;
        let mut alive = Vec::with_capacity(rows.len());
        let mut dead = Vec::new();
        for row in rows {
            let id = HostId(row.get::<i64, _>("id") as u64);
            // One that only lost its session comes back by itself.
            match (row.get("lives"), row.get("stands_still")) {
                (true, _) => {
                    let seat: Option<i32> = row.get("seat");
                    let seat = seat.and_then(|seat| u32::try_from(seat).ok());
                    alive.push((id, row.get::<String, _>("address").into(), seat));
                }
                (false, true) => dead.push(id),
                (false, false) => {}
            }
        }
        self.evict(&dead, options).await?;
        let said = alive.iter().find(|(id, ..)| *id == hosts.id);
        let said = said.map(|(.., seat)| *seat);
        let alive = HostInfo::seated(alive);
        let seen = alive.iter().find(|host| host.id == hosts.id);
        if let (Some(said), Some(seen)) = (said, seen)
            && said != Some(seen.seat)
        {
            let sit = sqlx::query("update host set seat = $2 where id = $1");
            let sit = sit.bind(hosts.id.0 as i64).bind(seen.seat as i32);
            self.connection.execute(sit).await?;
        }
        hosts.alive.send_if_modified(|known| {
            let is_new = **known != *alive;
            if is_new {
                *known = alive.into();
            }
            is_new
        });
        Ok(())
    }

    async fn evict(&mut self, dead: &[HostId], options: &PostgresOptions) -> Result<(), Trouble> {
        if dead.is_empty() {
            return Ok(());
        }
        let names: Vec<String> = dead.iter().map(|&id| session_name(options, id)).collect();
        let end = sqlx::query(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name = any($1) and pid <> pg_backend_pid()",
        );
        self.connection.fetch_all(end.bind(names)).await?;
        let ids: Vec<i64> = dead.iter().map(|id| id.0 as i64).collect();
        // It comes back with its row if it goes on; whoever takes its work sees that it has none.
        let forget = format!("delete from host where id = any($3) and not {LIVES}");
        let forget = sqlx::query(sqlx::AssertSqlSafe(forget));
        let dead_ms = options.dead_after.as_millis() as i64;
        let forget = forget.bind(dead_ms).bind(LOCK_CLASS).bind(ids);
        self.connection.execute(forget).await?;
        Ok(())
    }

    /// Leaves: what this host held can be taken at once.
    pub(crate) async fn end(mut self, hosts: &Hosts, options: &PostgresOptions) {
        let leave = sqlx::query("delete from host where id = $1").bind(hosts.id.0 as i64);
        let left = self.connection.execute(leave).await;
        let left = left.map_err(Trouble::from);
        if let Err(error) = left.and(self.tell(options).await) {
            tracing::debug!(%error, "the database will learn from the end of the session that this host has ended");
        }
        // The server ends it anyway.
        let _ = self.connection.close().await;
    }
}

/// The name of all sessions of a host, by which others end them.
pub(crate) fn session_name(options: &PostgresOptions, id: HostId) -> String {
    format!("millrace {} {id}", options.schema)
}

/// Keeps this host alive until it is told to stop. Returns the session, if there is one, so that it can be ended.
pub(crate) async fn live(
    hosts: &Hosts,
    options: &PostgresOptions,
    connect: &Connect,
    clock: &dyn Clock,
    session: Session,
    mut stop: watch::Receiver<bool>,
) -> Option<Session> {
    let mut session = Some(session);
    loop {
        let wait = match session {
            Some(_) => options.heartbeat_interval,
            None => options.heartbeat_interval.min(RETRY_INTERVAL),
        };
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return session,
            () = tokio::time::sleep(wait) => {}
            () = hosts.changed.notified() => {}
        }
        if hosts.is_stalled.load(Ordering::SeqCst) {
            continue;
        }
        let round = round(hosts, options, connect, clock, session.take());
        let done = match tokio::time::timeout(ROUND_DURATION_MAX, round).await {
            Ok(done) => done,
            Err(_) => Err(Trouble::Unavailable("no answer".into())),
        };
        match done {
            Ok((going, is_new)) => {
                hosts.is_reached.store(true, Ordering::Relaxed);
                session = Some(going);
                if is_new {
                    // Whoever waits for the database need not wait for longer.
                    hosts.alive.send_modify(|_| ());
                }
            }
            Err(error) => {
                let was_reached = hosts.is_reached.swap(false, Ordering::Relaxed);
                if was_reached {
                    tracing::warn!(%error, "the database cannot be reached; this host tries again until it can");
                }
            }
        }
    }
}

/// Says that this host lives, in a new session if the one it had is lost. Returns whether it is new.
async fn round(
    hosts: &Hosts,
    options: &PostgresOptions,
    connect: &Connect,
    clock: &dyn Clock,
    session: Option<Session>,
) -> Result<(Session, bool), Trouble> {
    // One to a server that is no longer the database says nothing to the others.
    let session = session.filter(|session| connect.memory.life() == Some(session.life));
    if let Some(mut session) = session {
        match session.keep(hosts, options, clock).await {
            Ok(()) => return Ok((session, false)),
            Err(error) => tracing::debug!(%error, "the session of this host is lost"),
        }
    }
    let session = Session::begin(hosts, options, connect, clock).await?;
    Ok((session, true))
}
