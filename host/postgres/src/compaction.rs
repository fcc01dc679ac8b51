//! Compacts partitions: of all messages with one key, only the latest is kept.
//!
//! A pass reads what came since the last one and remembers where the latest message of each key is, for as many keys as memory allows.
//! Then it goes through all rows, oldest first, and rewrites those with superseded messages, a few rows at a time. Offsets never change:
//! what is removed leaves gaps. A row that cannot be read stays as it is.
//!
//! **A tombstone** (a message without a value) is removed last: when it is old enough, and when the same pass has seen that nothing older
//! with its key is left. Its age counts from the commit of its row, by the clock of a host, which a producer cannot influence.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use millrace_engine::ReadError;
use millrace_model::batch::{RecordView, Thinned};
use millrace_model::{
    Compression, Offset, PartitionId, RecordBatch, Stamp, Timestamp, Topic, TopicPartition,
};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Executor as _, Row as _};

use crate::reading::batches_of;
use crate::trouble::Trouble;

/// Keys whose latest message one pass remembers, about 64 MiB. More are left for the next pass.
const KEYS_MAX: usize = 1 << 20;
/// A partition is compacted when this percentage of it is newer than the last pass, because a pass reads all of it.
const DIRTY_PERCENT_MIN: i64 = 50;
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

/// A row of messages.
struct Run {
    base: Offset,
    next: Offset,
    /// When it was committed.
    at: Timestamp,
    batches: Result<Vec<RecordBatch>, ReadError>,
}

/// The positions of keys' latest messages. The hash has a random key, so that nobody can choose keys that collide.
struct Latest {
    hashers: [RandomState; 2],
    offsets: HashMap<[u64; 2], Offset>,
}

/// What is left of a row.
enum Left {
    All,
    Some(Rewritten),
    Nothing,
}

struct Rewritten {
    next: Offset,
    messages: i32,
    latest: Timestamp,
    bytes: Vec<u8>,
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
        let enough_came = dirty > 0 && dirty >= total / 100 * DIRTY_PERCENT_MIN;
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
        let mut latest = Latest {
            hashers: [RandomState::new(), RandomState::new()],
            offsets: HashMap::new(),
        };
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
        let mut thinning = Thinning {
            latest,
            at: self.at,
            end: self.end,
            clean,
            old_before: self.old_before,
            is_held: false,
            left_at: None,
        };
        let mut from = self.start;
        while let Some(runs) = self.piece(connection, from, clean).await? {
            from = runs.last().map_or(clean, |run| run.next);
            let thinned = move || {
                let left: Vec<_> = runs
                    .iter()
                    .map(|run| (run.next, thinning.thin(run)))
                    .collect();
                (thinning, left)
            };
            let (after, left) = beside(thinned).await?;
            thinning = after;
            self.write(connection, left).await?;
        }
        // What could not be read now is tried again later.
        let held_at = thinning.is_held.then_some(now);
        Ok(held_at.or(thinning.left_at))
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
        left: Vec<(Offset, Left)>,
    ) -> Result<(), Trouble> {
        let mut gone = Vec::new();
        let (mut nexts, mut messages) = (Vec::new(), Vec::new());
        let (mut latest, mut bytes) = (Vec::new(), Vec::new());
        for (next, left) in left {
            match left {
                Left::All => {}
                Left::Nothing => gone.push(next.0 as i64),
                Left::Some(run) => {
                    nexts.push(run.next.0 as i64);
                    messages.push(run.messages);
                    latest.push(i64::try_from(run.latest.0).unwrap_or(i64::MAX));
                    bytes.push(run.bytes);
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

impl Latest {
    fn hash(&self, key: &[u8]) -> [u64; 2] {
        [0, 1].map(|at| self.hashers[at].hash_one(key))
    }

    /// Returns the offset of the first batch for which there was no room; a pass always has room for one.
    fn note(&mut self, runs: &[Run], clean: Offset, mut is_first: bool) -> Option<Offset> {
        for batch in readable(runs.iter()) {
            if !is_first && self.offsets.len() + batch.message_count() > KEYS_MAX {
                return Some(batch.base_offset());
            }
            is_first = false;
            for record in messages(&batch).filter(|record| record.offset >= clean) {
                if let Some(key) = record.key {
                    let hash = self.hash(&batch.bytes()[key]);
                    self.offsets.insert(hash, record.offset);
                }
            }
        }
        None
    }

    /// Returns whether there is no more room.
    fn note_old_tombstones(&mut self, runs: &[Run], clean: Offset, old_before: Timestamp) -> bool {
        let old = runs.iter().filter(|run| run.at <= old_before);
        for batch in readable(old) {
            for record in messages(&batch).filter(|record| record.offset < clean) {
                if let (Some(key), None) = (record.key, record.value) {
                    let hash = self.hash(&batch.bytes()[key]);
                    self.offsets.insert(hash, record.offset);
                }
            }
            if self.offsets.len() >= KEYS_MAX / 2 {
                return true;
            }
        }
        false
    }
}

/// The batches with messages, as they were before they were compressed.
fn readable<'a>(runs: impl Iterator<Item = &'a Run>) -> impl Iterator<Item = RecordBatch> {
    let batches = runs.flat_map(|run| run.batches.iter().flatten());
    let produced = batches.filter(|batch| !batch.is_control());
    produced.filter_map(|batch| batch.inflated().ok())
}

fn messages(batch: &RecordBatch) -> impl Iterator<Item = RecordView> {
    let records = batch.records().ok();
    records.into_iter().flatten().map_while(Result::ok)
}

/// The rule by which messages go, and what has been seen on the way.
struct Thinning {
    latest: Latest,
    at: TopicPartition,
    end: Offset,
    /// Latest messages are known up to here.
    clean: Offset,
    old_before: Timestamp,
    /// Whether something could not be read, so that tombstones after it stay: it may have what they deleted.
    is_held: bool,
    /// The commit of the oldest tombstone that stays.
    left_at: Option<Timestamp>,
}

impl Thinning {
    fn thin(&mut self, run: &Run) -> Left {
        let thinned = run.batches.as_ref().ok().and_then(|batches| {
            let keeps_tombstones = self.is_held || run.at > self.old_before;
            self.thin_batches(batches, run, keeps_tombstones)
        });
        match thinned {
            Some((left, has_tombstones)) => {
                if has_tombstones {
                    self.left_at = Some(self.left_at.map_or(run.at, |at| at.min(run.at)));
                }
                left
            }
            None => {
                self.is_held = true;
                Left::All
            }
        }
    }

    /// What is left of a row, and whether that has tombstones; `None` if it cannot be read.
    fn thin_batches(
        &self,
        batches: &[RecordBatch],
        run: &Run,
        keeps_tombstones: bool,
    ) -> Option<(Left, bool)> {
        let (mut left, mut changes, mut has_tombstones) = (Vec::new(), false, false);
        for batch in batches {
            if batch.is_control() {
                // A placeholder is needed while it is the last.
                match batch.is_gap() && run.next < self.end {
                    true => changes = true,
                    false => left.push(batch.clone()),
                }
                continue;
            }
            let plain = batch.inflated().ok()?;
            let thinned = plain.thinned(|record| {
                let stays = self.keeps(&plain, record, keeps_tombstones);
                has_tombstones |= stays && record.key.is_some() && record.value.is_none();
                stays
            });
            match thinned.ok()? {
                Thinned::Whole => left.push(batch.clone()),
                Thinned::Nothing => changes = true,
                Thinned::Part(part) => {
                    changes = true;
                    let codec = Compression::from_code(batch.codec()).unwrap_or_default();
                    left.push(part.deflated(codec));
                }
            }
        }
        let left = match (changes, left.is_empty()) {
            (false, _) => Left::All,
            (true, true) if run.next < self.end => Left::Nothing,
            // A reader before the end of a partition must find something.
            (true, true) => self.rewritten(run, vec![RecordBatch::gap(run.base, run.next)]),
            (true, false) => self.rewritten(run, left),
        };
        Some((left, has_tombstones))
    }

    fn keeps(&self, batch: &RecordBatch, record: &RecordView, keeps_tombstones: bool) -> bool {
        let Some(key) = record.key.clone().filter(|_| record.offset < self.clean) else {
            return true;
        };
        let newest = self
            .latest
            .offsets
            .get(&self.latest.hash(&batch.bytes()[key]));
        match newest {
            Some(&newest) if record.offset < newest => false,
            // Everything before it was visited, and nothing with its key was left.
            Some(&newest) if record.offset == newest => keeps_tombstones || record.value.is_some(),
            _ => true,
        }
    }

    /// The row reaches as far as before, so that whoever reads from within finds something in it.
    fn rewritten(&self, run: &Run, mut batches: Vec<RecordBatch>) -> Left {
        if let Some(last) = batches.last_mut() {
            *last = last.reaching(run.next);
        }
        let produced = || batches.iter().filter(|batch| !batch.is_control());
        let messages: usize = produced().map(RecordBatch::message_count).sum();
        let latest = produced().map(RecordBatch::max_timestamp).max();
        let stamp = Stamp::of(self.at);
        let placed = batches.iter().flat_map(|batch| {
            let at = Offset(batch.base_offset().0 - run.base.0);
            batch.clone().placed(at, stamp).bytes().to_vec()
        });
        Left::Some(Rewritten {
            next: run.next,
            messages: messages as i32,
            latest: latest.unwrap_or_default(),
            bytes: placed.collect(),
        })
    }
}
