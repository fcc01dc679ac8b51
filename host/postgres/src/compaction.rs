//! Compacts partitions: of all messages with one key, only the latest is kept.
//!
//! A pass reads what came since the last one and remembers where the latest message of each key is, for as many keys as memory allows.
//! Then it goes through all rows, oldest first, and rewrites those with superseded messages, a few rows at a time. Offsets never change:
//! what is removed leaves gaps. A row that cannot be read stays as it is.
//!
//! The rule is that of [`millrace_engine::compaction`]; the commit of a row is by the clock of a host.

use std::time::Duration;

use millrace_engine::compaction::{DIRTY_PERCENT_MIN, Latest, Left, Run, Thinning};
use millrace_model::{Offset, PartitionId, Stamp, Timestamp, Topic, TopicPartition};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Executor as _, Row as _};

use crate::reading::batches_of;
use crate::trouble::Trouble;

/// Bytes that are read and rewritten in one step, unless a single row is larger.
const PIECE_BYTES_MAX: i64 = 4 << 20;
/// Rows of one step.
const PIECE_ROWS_MAX: i64 = 512;
/// Bytes a second that a pass reads, so that the database stays available to other work.
const BYTES_PER_SECOND_MAX: u64 = 64 << 20;

/// A partition that is due for a pass.
struct Pass {
    at: TopicPartition,
    start: Offset,
    end: Offset,
    /// What is before it was compacted by earlier passes.
    clean: Offset,
    /// Tombstones that were committed before this time are old.
    old_before: Timestamp,
    /// Whether earlier passes left tombstones that are old by now.
    has_old: bool,
}

/// Makes a pass over each partition of the topic that is due.
pub(crate) async fn compact(
    connection: &mut PgConnection,
    topic: &Topic,
    now: Timestamp,
) -> Result<(), Trouble> {
    for pass in due(connection, topic, now).await? {
        pass.run(connection, now).await?;
    }
    Ok(())
}

/// Those to which enough came, and those with tombstones, or messages that no pass has seen, that are old.
async fn due(
    connection: &mut PgConnection,
    topic: &Topic,
    now: Timestamp,
) -> Result<Vec<Pass>, Trouble> {
    let id = topic.id;
    let find = format!(
        "select p.number, p.start, p.next, greatest(p.clean, p.start) as clean, p.tombstones_at, s.total, s.dirty, s.dirty_at \
         from partition p cross join lateral ( \
           select coalesce(sum(r.size), 0)::bigint as total, coalesce(sum(r.size) filter (where r.next > p.clean), 0)::bigint as dirty, \
             min(r.at) filter (where r.next > p.clean) as dirty_at from run_{id} r where r.number = p.number and r.next > p.start \
         ) as s where p.topic = $1 order by p.number"
    );
    let find = sqlx::query(AssertSqlSafe(find)).bind(id.0 as i64);
    let old_before = now.0.saturating_sub(topic.spec.settings.tombstone_ms);
    let is_old = |at: Option<i64>| at.is_some_and(|at| at as u64 <= old_before);
    let mut passes = Vec::new();
    for row in connection.fetch_all(find).await? {
        let (total, dirty) = (row.get::<i64, _>("total"), row.get::<i64, _>("dirty"));
        let enough_came = dirty > 0 && dirty >= total / 100 * DIRTY_PERCENT_MIN as i64;
        let has_old = is_old(row.get("tombstones_at"));
        let offset = |column: &str| Offset(row.get::<i64, _>(column) as u64);
        if enough_came || has_old || is_old(row.get("dirty_at")) {
            passes.push(Pass {
                at: TopicPartition {
                    topic: id,
                    partition: PartitionId(row.get::<i32, _>("number") as u32),
                },
                start: offset("start"),
                end: offset("next"),
                clean: offset("clean"),
                old_before: Timestamp(old_before),
                has_old,
            });
        }
    }
    Ok(passes)
}

impl Pass {
    async fn run(self, connection: &mut PgConnection, now: Timestamp) -> Result<(), Trouble> {
        let mut latest = Latest::default();
        if self.has_old {
            latest = self.note_old_tombstones(connection, latest).await?;
        }
        let (latest, clean) = self.note_latest(connection, latest).await?;
        let left_at = self.rewrite(connection, latest, clean, now).await?;
        let note = sqlx::query(
            "update partition set clean = $3, tombstones_at = $4 where topic = $1 and number = $2",
        );
        let note = note.bind(self.at.topic.0 as i64);
        let note = note.bind(self.at.partition.0 as i32).bind(clean.0 as i64);
        connection
            .execute(note.bind(left_at.map(|at| at.0 as i64)))
            .await?;
        tracing::debug!(partition = %self.at, from = %self.clean, to = %clean, "a partition was compacted");
        Ok(())
    }

    /// Uses at most half of the memory, for the oldest ones; others are left for the next pass.
    async fn note_old_tombstones(
        &self,
        connection: &mut PgConnection,
        mut latest: Latest,
    ) -> Result<Latest, Trouble> {
        let (clean, old_before) = (self.clean, self.old_before);
        let mut from = self.start;
        while let Some(runs) = self.piece(connection, from, clean).await? {
            from = runs.last().map_or(clean, |run| run.next);
            let noted = move || {
                let is_full = latest.note_old_tombstones(&runs, clean, old_before);
                (latest, is_full)
            };
            let (noted, is_full) = beside(noted).await?;
            latest = noted;
            if is_full {
                break;
            }
        }
        Ok(latest)
    }

    /// The positions of the latest messages, and the offset up to which they are known.
    async fn note_latest(
        &self,
        connection: &mut PgConnection,
        mut latest: Latest,
    ) -> Result<(Latest, Offset), Trouble> {
        let (clean, mut from, mut is_first) = (self.clean, self.clean, true);
        while let Some(runs) = self.piece(connection, from, self.end).await? {
            from = runs.last().map_or(self.end, |run| run.next);
            let noted = move || {
                let full_at = latest.note(&runs, clean, is_first);
                (latest, full_at)
            };
            let (noted, full_at) = beside(noted).await?;
            latest = noted;
            is_first = false;
            if let Some(full_at) = full_at {
                return Ok((latest, full_at));
            }
        }
        Ok((latest, self.end))
    }

    /// Rewrites what has superseded messages before `clean`. Returns the commit of the oldest tombstone that stays.
    async fn rewrite(
        &self,
        connection: &mut PgConnection,
        latest: Latest,
        clean: Offset,
        now: Timestamp,
    ) -> Result<Option<Timestamp>, Trouble> {
        let mut thinning = Thinning::new(latest, self.end, clean, self.old_before);
        let mut from = self.start;
        while let Some(runs) = self.piece(connection, from, clean).await? {
            from = runs.last().map_or(clean, |run| run.next);
            let thinned = move || {
                let left: Vec<_> = runs
                    .iter()
                    .map(|run| (run.base, run.next, thinning.thin(run)))
                    .collect();
                (thinning, left)
            };
            let (after, left) = beside(thinned).await?;
            thinning = after;
            self.write(connection, left).await?;
        }
        Ok(thinning.tombstones_at(now))
    }

    /// The next rows that begin before `until`; `None` if there are none. Rests to keep within the allowed bytes a second.
    async fn piece(
        &self,
        connection: &mut PgConnection,
        from: Offset,
        until: Offset,
    ) -> Result<Option<Vec<Run>>, Trouble> {
        let read = format!(
            "select base, next, at, bytes from ( \
               select base, next, at, bytes, sum(size) over (order by next) - size as before from ( \
                 select base, next, at, size, bytes from run_{} where number = $1 and next > $2 and base < $3 \
                 order by next limit {PIECE_ROWS_MAX} \
               ) as found \
             ) as summed where before < {PIECE_BYTES_MAX} order by next",
            self.at.topic
        );
        let read = sqlx::query(AssertSqlSafe(read)).bind(self.at.partition.0 as i32);
        let read = read.bind(from.0 as i64).bind(until.0 as i64);
        let rows = connection.fetch_all(read).await?;
        let offset =
            |row: &sqlx::postgres::PgRow, column: &str| Offset(row.get::<i64, _>(column) as u64);
        let runs = rows.iter().map(|row| Run {
            base: offset(row, "base"),
            next: offset(row, "next"),
            at: Timestamp(row.get::<i64, _>("at") as u64),
            batches: batches_of(row, self.at),
        });
        let runs: Vec<Run> = runs.collect();
        let batches = runs.iter().flat_map(|run| run.batches.iter().flatten());
        let bytes: u64 = batches.map(|batch| batch.byte_count() as u64).sum();
        tokio::time::sleep(Duration::from_micros(
            bytes * 1_000_000 / BYTES_PER_SECOND_MAX,
        ))
        .await;
        Ok((!runs.is_empty()).then_some(runs))
    }

    /// In one step, and before anything later is rewritten.
    async fn write(
        &self,
        connection: &mut PgConnection,
        left: Vec<(Offset, Offset, Left)>,
    ) -> Result<(), Trouble> {
        let mut gone = Vec::new();
        let (mut nexts, mut messages) = (Vec::new(), Vec::new());
        let (mut latest, mut bytes) = (Vec::new(), Vec::new());
        let stamp = Stamp::of(self.at);
        for (base, next, left) in left {
            match left {
                Left::All => {}
                Left::Nothing => gone.push(next.0 as i64),
                Left::Some(run) => {
                    nexts.push(run.next.0 as i64);
                    messages.push(run.messages as i32);
                    latest.push(i64::try_from(run.latest.0).unwrap_or(i64::MAX));
                    // Within a row, offsets count from its first.
                    let placed = run.batches.iter().flat_map(|batch| {
                        let at = Offset(batch.base_offset().0 - base.0);
                        batch.clone().placed(at, stamp).bytes().to_vec()
                    });
                    bytes.push(placed.collect::<Vec<u8>>());
                }
            }
        }
        if gone.is_empty() && nexts.is_empty() {
            return Ok(());
        }
        let id = self.at.topic;
        let write = format!(
            "with gone as (delete from run_{id} where number = $1 and next = any($2)) \
             update run_{id} r set messages = w.messages, latest = w.latest, size = octet_length(w.bytes), bytes = w.bytes \
             from unnest($3::bigint[], $4::int[], $5::bigint[], $6::bytea[]) as w(next, messages, latest, bytes) \
             where r.number = $1 and r.next = w.next"
        );
        let write = sqlx::query(AssertSqlSafe(write)).bind(self.at.partition.0 as i32);
        let write = write.bind(gone).bind(nexts).bind(messages);
        connection.execute(write.bind(latest).bind(bytes)).await?;
        Ok(())
    }
}

/// Runs what takes processor time beside the tasks of the host.
async fn beside<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Trouble> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| Trouble::Unavailable("a thread of compaction failed".into()))
}
