//! The short way of a group that only appends to one topic: a single statement locks, places, writes and commits, so that a message costs one
//! trip to the database. It does nothing if anything is not as this host believes; the group then goes the long way.

use std::collections::BTreeMap;

use millrace_engine::contract::Transaction;
use millrace_engine::{CommitError, Receipt};
use millrace_model::{Durability, Offset, TopicId, TopicPartition};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Executor as _, Row as _};

use super::judging::{Run, append_to};
use crate::store::Store;
use crate::trouble::Trouble;

/// A group that only appends to one topic.
pub(crate) struct Plain {
    topic: TopicId,
    pub(crate) is_durable: bool,
    /// With offsets from the present end of each partition.
    runs: Vec<Run>,
    /// What is added to each partition.
    added: BTreeMap<TopicPartition, u64>,
    /// The partition and the offset of each append, by transaction.
    places: Vec<Vec<(TopicPartition, u64)>>,
}

impl Plain {
    /// The group, if it is one.
    pub(crate) fn of<'a>(
        store: &Store,
        group: impl Iterator<Item = &'a Transaction>,
    ) -> Option<Self> {
        let mut plain: Option<Self> = None;
        for transaction in group {
            let Transaction {
                appends,
                progress,
                fences,
                entries,
                state,
                turns: _,
                durability,
                request,
                producer,
                expects,
                outbox,
            } = transaction;
            let is_plain = progress.is_empty()
                && fences.is_empty()
                && entries.is_empty()
                && state.is_empty()
                && request.is_none()
                && producer.is_none()
                && expects.is_empty()
                && outbox.is_empty();
            if !is_plain {
                return None;
            }
            let first = appends.first()?.partition.topic;
            let plain = plain.get_or_insert_with(|| Self {
                topic: first,
                is_durable: store.mirror.is_durable(first),
                runs: Vec::new(),
                added: BTreeMap::new(),
                places: Vec::new(),
            });
            plain.is_durable |= *durability == Some(Durability::Durable);
            let mut places = Vec::with_capacity(appends.len());
            for append in appends {
                let is_other = append.partition.topic != plain.topic;
                if is_other || append.batch.numbering().is_some() {
                    return None;
                }
                let added = plain.added.entry(append.partition).or_default();
                places.push((append.partition, *added));
                let batch = &append.batch;
                append_to(&mut plain.runs, append.partition, 0, Offset(*added), batch);
                *added += batch.end_offset().0 - batch.base_offset().0;
            }
            plain.places.push(places);
        }
        plain
    }

    /// Commits it; `None` if it must go the long way.
    pub(crate) async fn commit(
        &self,
        store: &Store,
        connection: &mut PgConnection,
    ) -> Result<Option<Vec<Result<Receipt, CommitError>>>, Trouble> {
        let topic = self.topic;
        let commit = format!(
            "with place as materialized ( \
               select p.number, p.next, p.durable, t.bucket from partition p join topic t on t.id = p.topic \
               where p.topic = $1 and p.number = any($2) order by p.number for no key update of p), \
             whole as (select count(*) = cardinality($2) and bool_and($4 or not durable) as is_so from place), \
             moved as (update partition p set next = place.next + w.added from unnest($2::int[], $3::bigint[]) as w(number, added), place, whole \
               where p.topic = $1 and p.number = w.number and place.number = w.number and whole.is_so), \
             written as (insert into run_{topic} (bucket, number, base, next, latest, at, messages, size, bytes) \
               select place.bucket, w.number, place.next + w.base, place.next + w.next, w.latest, $11, w.messages, octet_length(w.bytes), w.bytes \
               from unnest($5::int[], $6::bigint[], $7::bigint[], $8::bigint[], $9::int[], $10::bytea[]) \
               as w(number, base, next, latest, messages, bytes) join place on place.number = w.number, whole where whole.is_so) \
             select place.number, place.next from place, whole where whole.is_so"
        );
        let commit = sqlx::query(AssertSqlSafe(commit)).bind(topic.0 as i64);
        let numbers = self.added.keys().map(|at| at.partition.0 as i32);
        let commit = commit
            .bind(numbers.collect::<Vec<i32>>())
            .bind(self.added.values().map(|&n| n as i64).collect::<Vec<i64>>())
            .bind(self.is_durable);
        let column = |of: fn(&Run) -> i64| self.runs.iter().map(of).collect::<Vec<i64>>();
        let small = |of: fn(&Run) -> i32| self.runs.iter().map(of).collect::<Vec<i32>>();
        let commit = commit
            .bind(small(|run| run.partition.partition.0 as i32))
            .bind(column(|run| run.base.0 as i64))
            .bind(column(|run| run.next.0 as i64))
            .bind(column(|run| {
                i64::try_from(run.latest.0).unwrap_or(i64::MAX)
            }))
            .bind(small(|run| run.messages as i32))
            .bind(
                self.runs
                    .iter()
                    .map(|run| &run.bytes[..])
                    .collect::<Vec<&[u8]>>(),
            )
            .bind(store.clock.wall().0 as i64);
        let rows = connection.fetch_all(commit).await?;
        let before: BTreeMap<i32, u64> = rows
            .iter()
            .map(|row| (row.get("number"), row.get::<i64, _>("next") as u64))
            .collect();
        if before.len() != self.added.len() {
            return Ok(None);
        }
        let end = |at: &TopicPartition| before.get(&(at.partition.0 as i32)).copied();
        let place =
            |(at, added): &(TopicPartition, u64)| Offset(end(at).unwrap_or_default()).plus(*added);
        let receipt = |places: &Vec<(TopicPartition, u64)>| {
            Ok(Receipt {
                base_offsets: places.iter().map(place).collect(),
                ..Receipt::default()
            })
        };
        let ends = self
            .added
            .iter()
            .map(|(at, &added)| (*at, place(&(*at, added))));
        let ends: Vec<_> = ends.collect();
        store.mirror.hear_ends(ends.iter().copied());
        store.news.ends(ends);
        Ok(Some(self.places.iter().map(receipt).collect()))
    }
}
