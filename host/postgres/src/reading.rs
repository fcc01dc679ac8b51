//! Reads messages: the rows that hold them, and in these the batches.

use bytes::Bytes;
use millrace_engine::time::first_at;
use millrace_engine::{DamageKind, ReadError};
use millrace_model::{Offset, RecordBatch, Stamp, Timestamp, TopicPartition};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Executor as _, Row as _};

use crate::store::Store;
use crate::trouble::unread;

/// Rows of one read at most.
const READ_ROWS_MAX: i64 = 512;
/// Rows that are looked through at once for a time.
const SEARCH_ROWS: i64 = 16;

impl Store {
    pub(crate) async fn read(
        &self,
        partition: TopicPartition,
        from: Offset,
        bytes_max: usize,
    ) -> Result<Vec<RecordBatch>, ReadError> {
        let ends = self.memory.mirror.ends(partition)?;
        if from < ends.start {
            let (requested, start) = (from, ends.start);
            return Err(ReadError::BelowStart { requested, start });
        }
        let now = self.clock.monotonic();
        if let Some(batches) = self
            .memory
            .tail
            .read(partition, from, ends.end, bytes_max, now)
        {
            return Ok(batches);
        }
        // The first row counts whatever its size, and so does one more that begins within the bound.
        let read = format!(
            "select p.start, p.next as p_end, r.base, r.next, r.bytes from partition p left join lateral ( \
               select base, next, bytes from ( \
                 select base, next, bytes, sum(size) over (order by next) - size as before from ( \
                   select base, next, size, bytes from run_{} where number = $2 and next > $3 order by next limit {READ_ROWS_MAX} \
                 ) as found \
               ) as summed where before < greatest($4, 1) order by next \
             ) as r on true where p.topic = $1 and p.number = $2 order by r.next",
            partition.topic
        );
        let read = sqlx::query(AssertSqlSafe(read)).bind(partition.topic.0 as i64);
        let read = read.bind(partition.partition.0 as i32).bind(from.0 as i64);
        let read = read.bind(i64::try_from(bytes_max).unwrap_or(i64::MAX));
        let rows = self.pool.fetch_all(read).await;
        let rows = rows.map_err(|error| gone_or(error, partition))?;
        let first = rows.first().ok_or(ReadError::UnknownPartition(partition))?;
        let (start, end) = (offset(first, "start"), offset(first, "p_end"));
        if from < start {
            let requested = from;
            return Err(ReadError::BelowStart { requested, start });
        }
        if from > end {
            let requested = from;
            return Err(ReadError::PastEnd { requested, end });
        }
        let mut visible = ends.end;
        if end > visible && from >= visible {
            // A commit that this host has not heard of may be in other partitions, too: whoever sees a part of it must find the others.
            self.look_at_ends().await?;
            visible = end;
        }
        let mut batches = Vec::new();
        let mut bytes = 0;
        for row in &rows {
            let found = match batches_of(row, partition) {
                Ok(found) => found,
                // What is before the damage is read first.
                Err(_) if !batches.is_empty() => break,
                Err(damaged) => return Err(damaged),
            };
            for batch in found {
                if batch.end_offset() <= from {
                    continue;
                }
                if batch.base_offset() >= visible {
                    return Ok(batches);
                }
                bytes += batch.byte_count();
                if bytes > bytes_max && !batches.is_empty() {
                    return Ok(batches);
                }
                batches.push(batch);
            }
        }
        Ok(batches)
    }

    pub(crate) async fn count(
        &self,
        partition: TopicPartition,
        from: Offset,
        to: Offset,
    ) -> Result<u64, ReadError> {
        let start = self.memory.mirror.ends(partition)?.start;
        let from = from.max(start);
        if from >= to {
            return Ok(0);
        }
        // Rows within are counted as they say; those at the edges are looked into.
        let count = format!(
            "select base, next, messages, case when base < $2 or next > $3 then bytes end as bytes \
             from run_{} where number = $1 and next > $2 and base < $3",
            partition.topic
        );
        let count = sqlx::query(AssertSqlSafe(count)).bind(partition.partition.0 as i32);
        let to = to.min(Offset::MAX);
        let count = count.bind(from.0 as i64).bind(to.0 as i64);
        let rows = self.pool.fetch_all(count).await;
        let rows = rows.map_err(|error| gone_or(error, partition))?;
        let mut counted = 0;
        for row in &rows {
            match row.get::<Option<Vec<u8>>, _>("bytes") {
                None => counted += row.get::<i32, _>("messages") as u64,
                // Damaged messages may count or not.
                Some(_) => {
                    let batches = batches_of(row, partition).unwrap_or_default();
                    let within = |batch: &RecordBatch| batch.messages_within(from, to);
                    counted += batches.iter().map(within).sum::<u64>();
                }
            }
        }
        Ok(counted)
    }

    pub(crate) async fn offset_at(
        &self,
        partition: TopicPartition,
        at: Timestamp,
    ) -> Result<Option<Offset>, ReadError> {
        let start = self.memory.mirror.ends(partition)?.start;
        let mut from = start;
        loop {
            let find = format!(
                "select base, next, bytes from run_{} where number = $1 and next > $2 and latest >= $3 order by next limit {SEARCH_ROWS}",
                partition.topic
            );
            let find = sqlx::query(AssertSqlSafe(find)).bind(partition.partition.0 as i32);
            let find = find.bind(from.0 as i64);
            let find = find.bind(i64::try_from(at.0).unwrap_or(i64::MAX));
            let rows = self.pool.fetch_all(find).await;
            let rows = rows.map_err(|error| gone_or(error, partition))?;
            let Some(last) = rows.last() else {
                return Ok(None);
            };
            from = offset(last, "next");
            for row in &rows {
                // What is damaged has no time.
                let batches = batches_of(row, partition).unwrap_or_default();
                let found = batches.iter().find_map(|batch| first_at(batch, start, at));
                if found.is_some() {
                    return Ok(found);
                }
            }
        }
    }
}

fn offset(row: &PgRow, column: &str) -> Offset {
    Offset(row.get::<i64, _>(column) as u64)
}

/// The table of a deleted topic is gone.
fn gone_or(error: sqlx::Error, partition: TopicPartition) -> ReadError {
    const UNDEFINED_TABLE: &str = "42P01";
    let code = error.as_database_error().and_then(|error| error.code());
    match code.as_deref() {
        Some(UNDEFINED_TABLE) => ReadError::UnknownPartition(partition),
        _ => unread(error),
    }
}

/// The batches of a row; none if it has none.
pub(crate) fn batches_of(
    row: &PgRow,
    partition: TopicPartition,
) -> Result<Vec<RecordBatch>, ReadError> {
    let Some(bytes) = row.get::<Option<Vec<u8>>, _>("bytes") else {
        return Ok(Vec::new());
    };
    let mut left = Bytes::from(bytes);
    let mut batches = Vec::new();
    let damaged = |from: Offset, kind| ReadError::Damaged {
        partition,
        from,
        to: offset(row, "next"),
        kind,
    };
    let base = offset(row, "base");
    let mut next = base;
    while !left.is_empty() {
        let batch = RecordBatch::decode(&left);
        let batch = batch.map_err(|_| damaged(next, DamageKind::Changed))?;
        left = left.split_off(batch.byte_count());
        // In the row, offsets are counted from its first.
        let at = base.plus(batch.base_offset().0);
        if !batch.belongs_to(Stamp::of(partition)) || at < next {
            return Err(damaged(next, DamageKind::Misplaced));
        }
        let batch = batch.at_offset(at);
        next = batch.end_offset();
        batches.push(batch);
    }
    Ok(batches)
}
