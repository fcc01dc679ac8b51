//! Turns a copied checkpoint into one of a different directory: producer ids that the original
//! directory issued since are not issued here again.

use std::hash::{BuildHasher, RandomState};

use millrace_model::Topic;
use sqlx::Row;
use sqlx::sqlite::SqliteConnection;

use super::rows::{self, Value};
use super::{CheckpointStore, in_one_step, number, read_meta, unusable};
use crate::ground::open_error::OpenError;

/// The range of the number of skipped producer ids. It is more than a host issues in its life, and
/// random, so that two copies do not continue at the same id. Even thousands of copies of copies
/// stay below the largest exact number in JSON.
const IDS_PASSED_OVER: std::ops::Range<u64> = (1 << 32)..(1 << 33);
/// Skipped epochs of each producer name. A name whose epochs run out gets a new id.
const EPOCHS_PASSED_OVER: i64 = 1 << 8;
const NEXT_PRODUCER: &str = "next_producer";

impl CheckpointStore {
    /// Makes the change, durable on return; returns the topics by name, with their partition
    /// counts. Needs no keys.
    pub(crate) fn renew(&mut self) -> Result<Vec<(String, u32)>, OpenError> {
        let renewing = in_one_step(&mut self.connection, self.is_sealed, renew);
        let renewed = self.runtime.block_on(renewing);
        let renewed = renewed.and_then(|()| {
            let read = rows::TOPICS.read(&mut self.connection, true);
            self.runtime.block_on(read)
        });
        let rows = renewed.map_err(|error| unusable(&self.path, &error))?;
        let topics = rows.iter().map(|row| {
            let topic: Topic = serde_json::from_str(row.try_get(1).ok()?).ok()?;
            Some((topic.spec.name.to_string(), topic.spec.partitions))
        });
        Ok(topics.flatten().collect())
    }
}

async fn renew(on: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    let (meta, _) = read_meta(on).await?;
    let next = meta
        .iter()
        .find(|row| matches!(row.try_get(0), Ok(NEXT_PRODUCER)));
    let next = next.map_or(Ok(0), |row| number(row, 1))?;
    let passed_over = IDS_PASSED_OVER.start
        + RandomState::new().hash_one(next) % (IDS_PASSED_OVER.end - IDS_PASSED_OVER.start);
    let next = next.saturating_add(passed_over);
    let row = vec![NEXT_PRODUCER.into(), next.into()];
    rows::META.put(on, [row]).await?;
    let named = rows::PRODUCER_NAMES.read(on, true).await?;
    let mut renewed = Vec::with_capacity(named.len());
    for row in &named {
        let epoch: i64 = row.try_get(2)?;
        let epoch = (epoch + EPOCHS_PASSED_OVER).min(i16::MAX.into());
        let name: String = row.try_get(0)?;
        renewed.push(vec![
            name.into(),
            Value::Number(row.try_get(1)?),
            Value::Number(epoch),
            Value::Number(row.try_get(3)?),
        ]);
    }
    rows::PRODUCER_NAMES.put(on, renewed).await
}
