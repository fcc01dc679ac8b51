//! Tests of the local engine's own promises, besides those of the conformance suite.

mod backup;
mod care;
mod compaction;
mod conformance;
mod crashes;
mod damage;
mod disk;
mod encryption;
mod examine;
mod exhaustive;
mod full;
mod lifetime;
mod loss;
mod misplaced;
mod paged;
mod pipeline;
mod producers;
mod restart;
mod speed;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use millrace_engine::{Append, CommitError, Engine, Receipt, TopicChange, Transaction};
use millrace_log::sim::SimDisk;
use millrace_model::{
    BatchBuilder, Digest, Durability, Message, Offset, PartitionId, RecordBatch, SystemClock,
    Timestamp, Topic, TopicName, TopicPartition, TopicSpec,
};
use sha2::{Digest as _, Sha256};

use crate::LocalEngine;
use crate::LocalOptions;
use crate::OpenError;

/// Small sizes: files roll, memory fills, checkpoints are frequent.
fn small() -> LocalOptions {
    LocalOptions {
        journal_file_bytes: 16 << 10,
        segment_bytes: 4 << 10,
        tail_bytes_max: 8 << 10,
        checkpoint_journal_bytes: 12 << 10,
        checkpoint_interval: Duration::from_secs(60),
        reserve_bytes: 16 << 10,
        scrub_bytes_per_second: 0,
        notes_durable: false,
        cleaning_interval: Duration::from_secs(60),
        encryption: None,
        state_changes_bytes_max: 64 << 10,
        ..LocalOptions::default()
    }
}

async fn open_sim(disk: &SimDisk, dir: &Path) -> Result<Arc<LocalEngine>, OpenError> {
    let clock = Arc::new(SystemClock::new());
    LocalEngine::open_on(Arc::new(disk.clone()), dir, small(), clock).await
}

async fn open_real(dir: &Path, options: LocalOptions) -> Result<Arc<LocalEngine>, OpenError> {
    LocalEngine::open(dir, options, Arc::new(SystemClock::new())).await
}

fn spec(name: &str, partitions: u32, durability: Durability) -> TopicSpec {
    TopicSpec {
        name: TopicName::parse(name).unwrap(),
        partitions,
        durability,
        partitioner: None,
        owner: None,
        created_at: Timestamp(1),
        settings: Default::default(),
    }
}

async fn topic(engine: &LocalEngine, name: &str, durability: Durability) -> Topic {
    let made = engine
        .create_topic(spec(name, 3, durability), Vec::new())
        .await;
    made.expect("the topic is made")
}

/// Raises the topic's number of partitions.
async fn grow(engine: &LocalEngine, name: &str, partitions: u32) -> Topic {
    let change = TopicChange {
        partitions: Some(partitions),
        ..TopicChange::default()
    };
    let name = TopicName::parse(name).unwrap();
    let grown = engine.change_topic(&name, change).await;
    grown.expect("it grows")
}

fn at(topic: &Topic, partition: u32) -> TopicPartition {
    topic.partition(PartitionId(partition)).unwrap()
}

fn batch(value: &str) -> RecordBatch {
    let mut builder = BatchBuilder::with_capacity(0);
    builder.push(&Message {
        value: Some(Bytes::copy_from_slice(value.as_bytes())),
        ..Message::default()
    });
    builder.finish().unwrap()
}

fn append(partition: TopicPartition, value: &str) -> Append {
    let batch = batch(value);
    Append { partition, batch }
}

async fn produce(
    engine: &LocalEngine,
    partition: TopicPartition,
    value: &str,
) -> Result<Receipt, CommitError> {
    let appends = vec![append(partition, value)];
    engine.commit(Transaction::produce(appends)).await
}

/// The values of a partition, in order; offsets must follow each other without gaps.
async fn values(engine: &LocalEngine, partition: TopicPartition) -> Vec<String> {
    let end = engine.ends(partition).unwrap().end;
    let mut from = Offset(0);
    let mut values = Vec::new();
    while from < end {
        for batch in engine.read(partition, from, 2_000).await.unwrap() {
            assert_eq!(batch.base_offset(), from);
            from = batch.end_offset();
            values.extend(values_of(&batch));
        }
    }
    values
}

fn values_of(batch: &RecordBatch) -> Vec<String> {
    let records = batch.records().unwrap();
    let value = |record: millrace_model::batch::RecordView| {
        String::from_utf8(batch.bytes()[record.value.unwrap()].to_vec()).unwrap()
    };
    records.map(|record| value(record.unwrap())).collect()
}

/// The digest of a module's bytes.
fn digest_of(module: &[u8]) -> Digest {
    Digest(Sha256::digest(module).into())
}

/// Waits until the condition holds.
async fn eventually(mut is_so: impl AsyncFnMut() -> bool) {
    let patience = Duration::from_secs(20);
    let waiting = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let waited = tokio::time::timeout(patience, waiting).await;
    waited.expect("it becomes so in time");
}
