//! The engine beside the bare machine: every figure as a share of what the same bytes cost without it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use millrace_engine::{Append, Engine, Transaction};
use millrace_model::{Durability, PartitionId, RecordBatch, TopicPartition};
use rustix::fs::{FallocateFlags, fallocate};

use crate::setup;
use crate::table::{Table, median, percentile};

const ROUNDS: usize = 5;
/// Bytes of messages of one round.
const ROUND_BYTES: usize = 256 << 20;
/// Bytes of messages of one commit.
const COMMIT_BYTES: usize = 100_000;
const WRITERS: u32 = 8;
const SYNCS: usize = 400;

/// Rows: throughput at `os` by partitions, and one commit at `durable` beside a bare sync.
pub(crate) async fn measure(table: &mut Table) -> Result<()> {
    for (bytes, partitions) in [(100, 1), (100, 8), (100, 1_000), (1_024, 8)] {
        throughput(table, bytes, partitions).await?;
    }
    one_sync(table).await
}

async fn throughput(table: &mut Table, bytes: usize, partitions: u32) -> Result<()> {
    let batch = setup::batch(COMMIT_BYTES / bytes, bytes)?;
    let commits = ROUND_BYTES / batch.byte_count();
    let (mut engine, mut plain) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let directory = tempfile::tempdir()?;
        plain.push(plain_write(directory.path(), &batch, commits)?);
        engine.push(engine_write(directory.path(), &batch, commits, partitions).await?);
    }
    let (engine, plain) = (median(engine), median(plain));
    table.row(
        &format!("engine, os, {bytes} B messages, {partitions} partition(s)"),
        format!("{engine:.0} MiB/s"),
        "plain write of the same bytes",
        format!("{plain:.0} MiB/s"),
        format!("{:.0} %", engine / plain * 100.0),
    );
    Ok(())
}

/// MiB a second into one file, in the same pieces.
fn plain_write(directory: &Path, batch: &RecordBatch, commits: usize) -> Result<f64> {
    let file = new_file(&directory.join("plain"))?;
    let began = Instant::now();
    for number in 0..commits {
        file.write_all_at(batch.bytes(), (number * batch.byte_count()) as u64)?;
    }
    Ok(mib(batch, commits) / began.elapsed().as_secs_f64())
}

/// MiB a second through the engine, several writers at once.
async fn engine_write(
    directory: &Path,
    batch: &RecordBatch,
    commits: usize,
    partitions: u32,
) -> Result<f64> {
    let engine = setup::engine(directory).await?;
    let partitions = topic(&engine, Durability::Os, partitions).await?;
    let began = Instant::now();
    let each = commits / WRITERS as usize;
    let writers: Vec<_> = (0..WRITERS as usize)
        .map(|writer| {
            tokio::spawn(write(
                engine.clone(),
                partitions.clone(),
                writer,
                batch.clone(),
                each,
            ))
        })
        .collect();
    for writer in writers {
        writer.await??;
    }
    let seconds = began.elapsed().as_secs_f64();
    engine.close().await;
    Ok(mib(batch, each * WRITERS as usize) / seconds)
}

async fn write(
    engine: Arc<dyn Engine>,
    partitions: Vec<TopicPartition>,
    first: usize,
    batch: RecordBatch,
    commits: usize,
) -> Result<()> {
    for number in 0..commits {
        let partition = partitions[(first + number * WRITERS as usize) % partitions.len()];
        let append = Append {
            partition,
            batch: batch.clone(),
        };
        engine.commit(Transaction::produce(vec![append])).await?;
    }
    Ok(())
}

/// One writer at `durable` beside write + fdatasync of as many bytes into a preallocated file, in turns.
async fn one_sync(table: &mut Table) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let engine = setup::engine(directory.path()).await?;
    let partition = topic(&engine, Durability::Durable, 1).await?[0];
    let batch = setup::batch(1, 100)?;
    let file = new_file(&directory.path().join("bare"))?;
    fallocate(
        &file,
        FallocateFlags::empty(),
        0,
        (SYNCS * batch.byte_count()) as u64,
    )?;
    let (mut engine_times, mut bare) = (Vec::new(), Vec::new());
    for number in 0..SYNCS {
        let began = Instant::now();
        file.write_all_at(batch.bytes(), (number * batch.byte_count()) as u64)?;
        file.sync_data()?;
        bare.push(micros(began.elapsed()));
        let began = Instant::now();
        let append = Append {
            partition,
            batch: batch.clone(),
        };
        engine.commit(Transaction::produce(vec![append])).await?;
        engine_times.push(micros(began.elapsed()));
    }
    engine.close().await;
    let (engine, bare) = (percentile(engine_times, 0.5), percentile(bare, 0.5));
    table.row(
        "engine, durable, one message after the other",
        format!("p50 {engine:.0} µs"),
        "bare write + fdatasync",
        format!("p50 {bare:.0} µs"),
        format!("{:.2} ×", engine / bare),
    );
    Ok(())
}

async fn topic(
    engine: &Arc<dyn Engine>,
    durability: Durability,
    partitions: u32,
) -> Result<Vec<TopicPartition>> {
    let spec = serde_json::json!({"name": "log", "partitions": partitions, "durability": durability, "created_at": 0});
    let topic = engine
        .create_topic(serde_json::from_value(spec).context("a topic")?)
        .await?;
    let at = |partition| TopicPartition {
        topic: topic.id,
        partition: PartitionId(partition),
    };
    Ok((0..partitions).map(at).collect())
}

fn new_file(path: &Path) -> Result<File> {
    Ok(OpenOptions::new().write(true).create_new(true).open(path)?)
}

fn mib(batch: &RecordBatch, commits: usize) -> f64 {
    (batch.byte_count() * commits) as f64 / f64::from(1 << 20)
}

fn micros(duration: Duration) -> f64 {
    duration.as_nanos() as f64 / 1_000.0
}
