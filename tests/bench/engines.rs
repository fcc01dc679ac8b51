//! What the benches of the shared engines have in common: messages that go in, are read, and are
//! passed on by workers, one store as the other. What is compared with each is in its own file.

pub(crate) mod counter;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use millrace_engine::{Append, Engine, Hold, ProgressWrite, Transaction};
use millrace_model::{
    Durability, Offset, PartitionId, Progress, ProgressChange, RecordBatch, Topic, TopicPartition,
};

use crate::machine::synced_writes;
use crate::setup;
use crate::table::percentile;

pub(crate) const ROUNDS: usize = 3;
pub(crate) const ROUND: Duration = Duration::from_millis(1_500);
/// Messages of a commit.
pub(crate) const PER_COMMIT: usize = 1_000;
pub(crate) const PARTITIONS: u32 = 4;
pub(crate) const CALLERS: [usize; 3] = [1, 8, 32];
/// Single messages of a round, and how many rounds of them there are.
pub(crate) const SINGLES: usize = 300;
pub(crate) const SINGLE_ROUNDS: usize = 5;
pub(crate) const READ_BYTES: usize = 1 << 20;
const SYNCS: usize = 400;
/// Bytes that a server writes for a small commit.
const SYNC_BYTES: usize = 8_192;

/// An engine, and a topic for messages of one size.
pub(crate) struct Side {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) topic: Topic,
    pub(crate) bytes: usize,
}

impl Side {
    pub(crate) async fn create(engine: &Arc<dyn Engine>, bytes: usize) -> Result<Self> {
        Ok(Self {
            topic: topic(engine, &format!("messages-{bytes}"), PARTITIONS).await?,
            engine: Arc::clone(engine),
            bytes,
        })
    }

    pub(crate) async fn delete(&self) -> Result<()> {
        self.engine
            .delete_topic(&self.topic.spec.name, vec![])
            .await?;
        Ok(())
    }

    pub(crate) fn partition(&self, number: usize) -> TopicPartition {
        TopicPartition {
            topic: self.topic.id,
            partition: PartitionId(number as u32 % PARTITIONS),
        }
    }

    /// Appends for a while; messages a second.
    pub(crate) async fn append_for(&self, callers: usize) -> Result<f64> {
        let batch = setup::batch(PER_COMMIT, self.bytes)?;
        let began = Instant::now();
        let until = began + ROUND;
        let all = (0..callers).map(|number| {
            let (engine, at) = (Arc::clone(&self.engine), self.partition(number));
            tokio::spawn(append_until(engine, at, batch.clone(), until))
        });
        let mut commits = 0;
        for appended in all.collect::<Vec<_>>() {
            commits += appended.await??;
        }
        Ok((commits * PER_COMMIT) as f64 / began.elapsed().as_secs_f64())
    }

    /// Microseconds of each append of one message.
    pub(crate) async fn append_singles(&self) -> Result<Vec<f64>> {
        let batch = setup::batch(1, self.bytes)?;
        let mut times = Vec::with_capacity(SINGLES);
        for _ in 0..SINGLES {
            let began = Instant::now();
            append(&self.engine, self.partition(0), &batch).await?;
            times.push(micros(began));
        }
        Ok(times)
    }

    /// Reads a partition from its start for a while; messages a second.
    pub(crate) async fn read_from_start(&self) -> Result<f64> {
        let at = self.partition(0);
        let (began, end) = (Instant::now(), self.engine.ends(at)?.end);
        let (mut next, mut count) = (Offset(0), 0);
        while next < end && began.elapsed() < ROUND {
            let batches = self.engine.read(at, next, READ_BYTES).await?;
            count += batches.iter().map(|b| b.message_count()).sum::<usize>();
            next = batches.last().context("messages")?.end_offset();
        }
        Ok(count as f64 / began.elapsed().as_secs_f64())
    }

    /// Microseconds of each read that finds nothing new.
    pub(crate) async fn read_at_end(&self) -> Result<Vec<f64>> {
        let at = self.partition(0);
        let end = self.engine.ends(at)?.end;
        let mut times = Vec::with_capacity(SINGLES);
        for _ in 0..SINGLES {
            let began = Instant::now();
            ensure!(self.engine.read(at, end, READ_BYTES).await?.is_empty());
            times.push(micros(began));
        }
        Ok(times)
    }
}

pub(crate) async fn topic(engine: &Arc<dyn Engine>, name: &str, partitions: u32) -> Result<Topic> {
    let durability = Durability::Durable;
    let spec = serde_json::json!({
        "name": name, "partitions": partitions, "durability": durability, "created_at": 0,
    });
    let spec = serde_json::from_value(spec).context("a topic")?;
    Ok(engine.create_topic(spec, Vec::new()).await?)
}

pub(crate) async fn append(
    engine: &Arc<dyn Engine>,
    partition: TopicPartition,
    batch: &RecordBatch,
) -> Result<()> {
    let batch = batch.clone();
    let append = Append { partition, batch };
    engine.commit(Transaction::produce(vec![append])).await?;
    Ok(())
}

async fn append_until(
    engine: Arc<dyn Engine>,
    partition: TopicPartition,
    batch: RecordBatch,
    until: Instant,
) -> Result<usize> {
    let mut commits = 0;
    while Instant::now() < until {
        append(&engine, partition, &batch).await?;
        commits += 1;
    }
    Ok(commits)
}

pub(crate) fn progress_to(hold: &Hold, next: Offset) -> ProgressWrite {
    let progress = Progress {
        next,
        ..Progress::default()
    };
    ProgressWrite {
        lease: hold.lease.clone(),
        partition: hold.lease.partition,
        progress: ProgressChange::from(progress),
    }
}

/// What the disk needs for a small commit, in microseconds.
pub(crate) fn disk() -> Result<Vec<f64>> {
    let directory = tempfile::tempdir()?;
    synced_writes(&directory.path().join("synced"), SYNC_BYTES, SYNCS)
}

pub(crate) fn micros(began: Instant) -> f64 {
    crate::machine::micros(began.elapsed())
}

pub(crate) fn times(micros: &[f64]) -> String {
    let [p50, p99] = [0.5, 0.99].map(|share| percentile(micros.to_vec(), share));
    format!("p50 {p50:.0} µs, p99 {p99:.0} µs")
}
