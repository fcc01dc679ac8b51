//! Removes what is no longer kept. One host at a time does it, whoever gets the lock first.
//!
//! Compaction takes long, so that it has a task and a lock of its own; whatever changes leaves is done here.
//!
//! A topic's table has leaves: the newest takes what is appended, and a leaf with nothing that is kept is dropped, which costs nothing for
//! what was in it. What is removed before its leaf is, by trims and by small bounds, goes in pieces.

use std::sync::Arc;

use millrace_model::bounds::{PRODUCER_IDLE_MS, REQUEST_AGE_MS_MAX, REQUESTS_PER_TOPIC_MAX};
use millrace_model::{Timestamp, Topic, TopicSettings};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, Row as _};
use tokio::sync::watch;

use crate::catalogue::WAIT_BRIEFLY;
use crate::compaction::compact;
use crate::memory::Life;
use crate::store::Store;
use crate::trouble::Trouble;

/// The lock of whoever cleans; the other half is the schema's.
const CLEANING: i32 = 0x636c_6e73;
/// The lock of whoever compacts.
const COMPACTING: i32 = 0x636d_7073;
/// A leaf of this size is full.
const LEAF_BYTES_MAX: i64 = 1 << 30;
/// A leaf spans this part of the time for which messages are kept.
const LEAVES_PER_RETENTION: u64 = 8;
/// The messages of a compacted leaf that are still kept move on when they are at most this percentage of its size.
const MOVED_PERCENT_MAX: i64 = 25;
/// Rows that are deleted in one statement.
const PIECE_ROWS: i64 = 1000;
/// Pieces of one partition in one round, so that all get their turn.
const PIECES_MAX: usize = 100;
/// For so long every host has heard of what was removed. One that has not reads everything.
const HEARD_MS: u64 = 60_000;

/// What a task does in turn with those of other hosts.
#[derive(Clone, Copy)]
pub(crate) enum Work {
    Clean,
    Compact,
}

/// Cleans, or compacts, until the engine is closed.
pub(crate) async fn run(store: Arc<Store>, work: Work, mut stop: watch::Receiver<bool>) {
    let mut connection = None;
    loop {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(store.options.cleaning_interval) => {}
        }
        if let Err(error) = round(&store, work, &mut connection).await {
            connection = None;
            tracing::warn!(%error, "what is no longer kept could not be removed; the next round tries again");
        }
    }
}

async fn round(
    store: &Store,
    work: Work,
    kept: &mut Option<(PgConnection, Life)>,
) -> Result<(), Trouble> {
    let compacted = |topic: &Topic| topic.spec.settings.compact;
    if matches!(work, Work::Compact) && !store.memory.mirror.topics().iter().any(compacted) {
        // It needs no connection.
        *kept = None;
        return Ok(());
    }
    kept.take_if(|(_, life)| store.memory.life() != Some(*life));
    let (connection, _) = match kept {
        Some(connection) => connection,
        None => kept.insert(store.connect.session_in_life().await?),
    };
    let lock = sqlx::query("select pg_try_advisory_lock($1, hashtext($2)) as is_mine");
    let lock = lock.bind(work.lock()).bind(&store.options.schema);
    if !connection.fetch_one(lock).await?.get::<bool, _>("is_mine") {
        return Ok(());
    }
    let cleaned = match work {
        Work::Clean => clean(store, connection).await,
        Work::Compact => compact_all(store, connection).await,
    };
    let unlock = sqlx::query("select pg_advisory_unlock($1, hashtext($2))");
    let unlock = unlock.bind(work.lock()).bind(&store.options.schema);
    connection.execute(unlock).await?;
    cleaned
}

impl Work {
    fn lock(self) -> i32 {
        match self {
            Self::Clean => CLEANING,
            Self::Compact => COMPACTING,
        }
    }
}

async fn compact_all(store: &Store, connection: &mut PgConnection) -> Result<(), Trouble> {
    let topics = store.memory.mirror.topics();
    for topic in topics.iter().filter(|topic| topic.spec.settings.compact) {
        later(topic, compact(connection, topic, store.clock.wall()).await)?;
    }
    Ok(())
}

/// It was deleted meanwhile, or its table is in use just now.
fn later(topic: &Topic, done: Result<(), Trouble>) -> Result<(), Trouble> {
    match done {
        Err(Trouble::Again(reason)) => {
            tracing::debug!(%reason, topic = %topic.spec.name, "a topic is cleaned later");
            Ok(())
        }
        done => done,
    }
}

async fn clean(store: &Store, connection: &mut PgConnection) -> Result<(), Trouble> {
    let now = store.clock.wall();
    for topic in store.memory.mirror.topics() {
        later(&topic, clean_topic(connection, &topic, now).await)?;
    }
    let before = |age_ms: u64| now.0.saturating_sub(age_ms) as i64;
    for (statement, time) in [
        (
            "delete from request where at < $1",
            before(REQUEST_AGE_MS_MAX),
        ),
        (
            "delete from producer where seen_at < $1",
            before(PRODUCER_IDLE_MS),
        ),
        ("delete from state where ends_at < $1", before(HEARD_MS)),
    ] {
        connection
            .execute(sqlx::query(statement).bind(time))
            .await?;
    }
    bound_requests(connection).await?;
    forget_removed(connection, now).await
}

/// The oldest keys beyond the number that a topic remembers.
async fn bound_requests(connection: &mut PgConnection) -> Result<(), Trouble> {
    let bound = sqlx::query(
        "delete from request r using ( \
           select topic, (array_agg(at order by at desc))[$1 + 1] as newest_gone from request group by topic having count(*) > $1 \
         ) as over where r.topic = over.topic and r.at <= over.newest_gone",
    );
    connection
        .execute(bound.bind(REQUESTS_PER_TOPIC_MAX as i64))
        .await?;
    Ok(())
}

/// Keys and entries that were removed: hosts that do not know of it by now read everything.
async fn forget_removed(connection: &mut PgConnection, now: Timestamp) -> Result<(), Trouble> {
    // What was there in the last round but one has been heard of.
    let rounds = sqlx::query("select value from meta where name = 'removed_at'");
    let last = connection.fetch_optional(rounds).await?;
    let last = last.map(|row| row.get::<i64, _>("value") as u64);
    if last.is_some_and(|last| now.0.saturating_sub(last) < HEARD_MS) {
        return Ok(());
    }
    let mut forgetting = connection.begin().await?;
    let note = sqlx::query(
        "insert into meta values ('removed_at', $1) on conflict (name) do update set value = excluded.value",
    );
    forgetting.execute(note.bind(now.0 as i64)).await?;
    // In the order in which commits lock.
    let forget = "with marked as (select id, state_mark from chain where state_mark is distinct from state_seq or state_floor < state_mark \
           order by id for no key update), \
         gone as (delete from state s using marked m where s.chain = m.id and s.value is null and s.seq <= m.state_mark), \
         floors as (update chain c set state_floor = greatest(c.state_floor, coalesce(m.state_mark, 0)), state_mark = c.state_seq \
           from marked m where c.id = m.id) \
         select 1";
    forgetting.execute(sqlx::query(forget)).await?;
    forgetting.commit().await?;
    Ok(())
}

async fn clean_topic(
    connection: &mut PgConnection,
    topic: &Topic,
    now: Timestamp,
) -> Result<(), Trouble> {
    let settings = &topic.spec.settings;
    if settings.retention_ms.is_some() || settings.retention_bytes.is_some() {
        retain(connection, topic, settings, now).await?;
    }
    delete_rows(connection, topic).await?;
    if settings.compact {
        move_rest(connection, topic).await?;
    }
    turn_leaves(connection, topic, settings, now).await
}

/// Moves the starts of partitions on, past what is too old or too much; as with the embedded engine, a message's own time counts unless it
/// is later than that of its commit.
async fn retain(
    connection: &mut PgConnection,
    topic: &Topic,
    settings: &TopicSettings,
    now: Timestamp,
) -> Result<(), Trouble> {
    let id = topic.id;
    let oldest = settings
        .retention_ms
        .map(|ms| now.0.saturating_sub(ms) as i64);
    let find = format!(
        "select p.number, coalesce(old.start, p.start) as by_age, coalesce(much.start, p.start) as by_size from partition p \
         left join lateral ( \
           select coalesce((select r.base from run_{id} r where r.number = p.number and r.next > p.start \
               and least(nullif(r.latest, 0), r.at) >= $2 order by r.next limit 1), \
             (select max(r.next) from run_{id} r where r.number = p.number)) as start where $2::bigint is not null \
         ) as old on true \
         left join lateral ( \
           select max(summed.next) as start from ( \
             select r.next, sum(r.size) over (order by r.next desc) as kept from run_{id} r where r.number = p.number and r.next > p.start \
           ) as summed where summed.kept > $3 and $3::bigint is not null \
         ) as much on true where p.topic = $1"
    );
    let find = sqlx::query(AssertSqlSafe(find))
        .bind(id.0 as i64)
        .bind(oldest);
    let bytes = settings
        .retention_bytes
        .map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX));
    for row in connection.fetch_all(find.bind(bytes)).await? {
        let start = row.get::<i64, _>("by_age").max(row.get("by_size"));
        let trim = sqlx::query(
            "update partition set start = $3 where topic = $1 and number = $2 and start < $3 and next >= $3",
        );
        let number: i32 = row.get("number");
        let trim = trim.bind(id.0 as i64).bind(number).bind(start);
        let trimmed = connection.execute(trim).await?.rows_affected();
        if trimmed > 0 {
            tracing::info!(topic = %topic.spec.name, partition = number, start, "messages are no longer kept: the partition's start has moved");
        }
    }
    Ok(())
}

/// Deletes the rows before the starts.
async fn delete_rows(connection: &mut PgConnection, topic: &Topic) -> Result<(), Trouble> {
    let id = topic.id;
    let starts = sqlx::query("select number, start from partition where topic = $1 and start > 0");
    for row in connection.fetch_all(starts.bind(id.0 as i64)).await? {
        let (number, start): (i32, i64) = (row.get("number"), row.get("start"));
        for _ in 0..PIECES_MAX {
            let delete = format!(
                "with old as (select number, next from run_{id} where number = $1 and next <= $2 order by next limit {PIECE_ROWS}) \
                 delete from run_{id} r using old where r.number = old.number and r.next = old.next"
            );
            let delete = sqlx::query(AssertSqlSafe(delete)).bind(number).bind(start);
            if connection.execute(delete).await?.rows_affected() < PIECE_ROWS as u64 {
                break;
            }
        }
    }
    Ok(())
}

/// Moves the little that compaction has left in older leaves to the newest, so that they can be dropped: a table does not become smaller by
/// itself.
async fn move_rest(connection: &mut PgConnection, topic: &Topic) -> Result<(), Trouble> {
    let id = topic.id;
    let find = sqlx::query("select bucket from leaf where topic = $1 order by bucket");
    let leaves = connection.fetch_all(find.bind(id.0 as i64)).await?;
    let leaves: Vec<i32> = leaves.iter().map(|row| row.get("bucket")).collect();
    let Some((newest, older)) = leaves.split_last() else {
        return Ok(());
    };
    for bucket in older {
        let measure = format!(
            "select coalesce(sum(size), 0)::bigint as kept, pg_total_relation_size($1::regclass) as bytes from run_{id}_{bucket}"
        );
        let measure = sqlx::query(AssertSqlSafe(measure)).bind(format!("run_{id}_{bucket}"));
        let row = connection.fetch_one(measure).await?;
        let (kept, bytes) = (row.get::<i64, _>("kept"), row.get::<i64, _>("bytes"));
        if kept > bytes / 100 * MOVED_PERCENT_MAX {
            continue;
        }
        for _ in 0..PIECES_MAX {
            let rest = format!(
                "with rest as (select number, next from run_{id}_{bucket} order by number, next limit {PIECE_ROWS}) \
                 update run_{id} r set bucket = $2 from rest where r.bucket = $1 and r.number = rest.number and r.next = rest.next"
            );
            let rest = sqlx::query(AssertSqlSafe(rest)).bind(bucket).bind(newest);
            if connection.execute(rest).await?.rows_affected() < PIECE_ROWS as u64 {
                break;
            }
        }
    }
    Ok(())
}

/// Begins a new leaf when the newest is full or old, and drops those with nothing in them.
async fn turn_leaves(
    connection: &mut PgConnection,
    topic: &Topic,
    settings: &TopicSettings,
    now: Timestamp,
) -> Result<(), Trouble> {
    let id = topic.id;
    let find = sqlx::query("select bucket, made_at from leaf where topic = $1 order by bucket");
    let leaves = connection.fetch_all(find.bind(id.0 as i64)).await?;
    let leaves: Vec<(i32, u64)> = leaves
        .iter()
        .map(|row| (row.get("bucket"), row.get::<i64, _>("made_at") as u64))
        .collect();
    let Some(&(newest, made_at)) = leaves.last() else {
        return Ok(());
    };
    let age_ms = now.0.saturating_sub(made_at);
    // A commit that began before the newest leaf was made may still write to the one before.
    if age_ms > HEARD_MS {
        for &(bucket, _) in leaves.iter().rev().skip(1) {
            drop_leaf(connection, topic, bucket).await?;
        }
    }
    let too_old = settings
        .retention_ms
        .is_some_and(|ms| age_ms > ms / LEAVES_PER_RETENTION);
    let size = sqlx::query("select pg_total_relation_size($1::regclass) as bytes");
    let row = connection
        .fetch_one(size.bind(format!("run_{id}_{newest}")))
        .await?;
    let bytes: i64 = row.get("bytes");
    let has_some = format!("select exists (select from run_{id}_{newest}) as has_some");
    let row = connection
        .fetch_one(sqlx::query(AssertSqlSafe(has_some)))
        .await?;
    if row.get::<bool, _>("has_some") && (bytes > LEAF_BYTES_MAX || too_old && age_ms > HEARD_MS) {
        let mut making = connection.begin().await?;
        // A deletion of the topic waits for this, or this finds no topic.
        let lock = sqlx::query("select from topic where id = $1 for no key update");
        if making
            .fetch_optional(lock.bind(id.0 as i64))
            .await?
            .is_some()
        {
            let table = leaf_table(id.0, newest + 1);
            making.execute(sqlx::query(WAIT_BRIEFLY)).await?;
            making.execute(sqlx::raw_sql(AssertSqlSafe(table))).await?;
            let note = sqlx::query("insert into leaf (topic, bucket, made_at) values ($1, $2, $3)");
            let note = note.bind(id.0 as i64).bind(newest + 1).bind(now.0 as i64);
            making.execute(note).await?;
            let turn = sqlx::query("update topic set bucket = $2 where id = $1");
            making
                .execute(turn.bind(id.0 as i64).bind(newest + 1))
                .await?;
        }
        making.commit().await?;
    }
    Ok(())
}

async fn drop_leaf(
    connection: &mut PgConnection,
    topic: &Topic,
    bucket: i32,
) -> Result<(), Trouble> {
    let id = topic.id;
    let has_some = format!("select exists (select from run_{id}_{bucket}) as has_some");
    let row = connection
        .fetch_one(sqlx::query(AssertSqlSafe(has_some)))
        .await?;
    if row.get::<bool, _>("has_some") {
        return Ok(());
    }
    let mut dropping = connection.begin().await?;
    dropping.execute(sqlx::query(WAIT_BRIEFLY)).await?;
    let table = format!("drop table run_{id}_{bucket}");
    dropping
        .execute(sqlx::raw_sql(AssertSqlSafe(table)))
        .await?;
    let forget = sqlx::query("delete from leaf where topic = $1 and bucket = $2");
    dropping
        .execute(forget.bind(id.0 as i64).bind(bucket))
        .await?;
    dropping.commit().await?;
    Ok(())
}

/// The statements that make a leaf of a topic's table.
pub(crate) fn leaf_table(topic: u64, bucket: i32) -> String {
    let end = bucket + 1;
    format!(
        "create table run_{topic}_{bucket} partition of run_{topic} for values from ({bucket}) to ({end}); \
         alter table run_{topic}_{bucket} alter column bytes set storage external; \
         create index on run_{topic}_{bucket} (number, next)"
    )
}
