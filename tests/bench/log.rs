//! The engine's log compared with the bare machine: every figure is a share of what the same bytes
//! take without the engine. A lot is written before anything is timed: see [`WARM_ROUNDS`].

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use bytes::Bytes;
use millrace_engine::{Append, Engine, Transaction};
use millrace_model::{Durability, PartitionId, RecordBatch, TopicPartition};

use crate::machine::{self, mib_per_second, micros, plain_write, preallocated};
use crate::setup;
use crate::table::{Table, median, percentile};

const ROUNDS: usize = 3;
/// Bytes of messages per round.
const ROUND_BYTES: usize = 192 << 20;
/// Rounds that are not timed: after them files are reused and memory is as full as it gets, as in a
/// host that has run for a while.
const WARM_ROUNDS: usize = 4;
/// Bytes of messages per commit.
const COMMIT_BYTES: usize = 100_000;
const WRITERS: usize = 8;
const SYNCS: usize = 400;

/// Adds rows for the machine, for the throughput at `os` by partitions, and for one commit at
/// `durable` compared with a bare sync.
pub(crate) async fn measure(table: &mut Table) -> Result<()> {
    machine::measure(table)?;
    for bytes in [100, 1_024] {
        let mut of_eight = f64::NAN;
        for partitions in [1, 8, 1_000, 10_000] {
            let share = throughput(table, bytes, partitions, of_eight).await?;
            if partitions == 8 {
                of_eight = share;
            }
        }
    }
    one_sync(table).await
}

/// Returns the engine's MiB per second.
async fn throughput(
    table: &mut Table,
    bytes: usize,
    partitions: u32,
    of_eight: f64,
) -> Result<f64> {
    let batch = setup::batch(COMMIT_BYTES / bytes, bytes)?;
    let commits = ROUND_BYTES / batch.byte_count();
    let directory = tempfile::tempdir()?;
    let log = setup::engine(directory.path()).await?;
    let places = topic(&log, Durability::Os, partitions).await?;
    for _ in 0..WARM_ROUNDS {
        write_all(&log, &places, distinct(&batch, commits)?).await?;
    }
    let (mut engine, mut plain) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        // As with the requests of many producers, no two batches share their bytes.
        let batches = distinct(&batch, commits)?;
        let pieces = batches.iter().map(|batch| &batch.bytes()[..]);
        let path = directory.path().join(format!("plain-{round}"));
        plain.push(plain_write(&path, pieces)?);
        let bytes = batches.iter().map(RecordBatch::byte_count).sum();
        let began = Instant::now();
        write_all(&log, &places, batches).await?;
        engine.push(mib_per_second(bytes, began.elapsed()));
    }
    log.close().await;
    let (engine, plain) = (median(engine), median(plain));
    let beside_eight = if of_eight.is_nan() {
        String::new()
    } else {
        format!(
            ", {:.0} % of 8 partitions (≥ 50 %)",
            engine / of_eight * 100.0
        )
    };
    let messages = engine * f64::from(1 << 20) / batch.byte_count() as f64;
    let messages = messages * batch.message_count() as f64 / 1e6;
    table.row(
        &format!("engine, os, {bytes} B messages, {partitions} partition(s)"),
        format!("{engine:.0} MiB/s, {messages:.1} M messages/s"),
        "plain write of the same bytes",
        format!("{plain:.0} MiB/s"),
        format!("{:.0} % (≥ 50 %){beside_eight}", engine / plain * 100.0),
    );
    Ok(engine)
}

fn distinct(batch: &RecordBatch, count: usize) -> Result<Vec<RecordBatch>> {
    let copy = |_| {
        let bytes = Bytes::copy_from_slice(batch.bytes());
        RecordBatch::decode(&bytes).context("a copy of a batch")
    };
    (0..count).map(copy).collect()
}

/// Writes with several concurrent writers.
async fn write_all(
    engine: &Arc<dyn Engine>,
    partitions: &[TopicPartition],
    batches: Vec<RecordBatch>,
) -> Result<()> {
    let mut shares: Vec<Vec<(TopicPartition, RecordBatch)>> = vec![Vec::new(); WRITERS];
    for (number, batch) in batches.into_iter().enumerate() {
        shares[number % WRITERS].push((partitions[number % partitions.len()], batch));
    }
    let write = |share: Vec<(TopicPartition, RecordBatch)>| {
        let engine = engine.clone();
        tokio::spawn(async move {
            for (partition, batch) in share {
                let append = Append { partition, batch };
                engine.commit(Transaction::produce(vec![append])).await?;
            }
            anyhow::Ok(())
        })
    };
    let writers: Vec<_> = shares.into_iter().map(write).collect();
    for writer in writers {
        writer.await??;
    }
    Ok(())
}

/// One writer at `durable`, in turns with write and fdatasync of as many bytes into a preallocated
/// file.
async fn one_sync(table: &mut Table) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let engine = setup::engine(directory.path()).await?;
    let partition = topic(&engine, Durability::Durable, 1).await?[0];
    let batch = setup::batch(1, 100)?;
    let bytes = batch.byte_count();
    let file = preallocated(&directory.path().join("bare"), SYNCS * bytes)?;
    let (mut engine_times, mut bare) = (Vec::new(), Vec::new());
    for number in 0..SYNCS {
        let began = Instant::now();
        file.write_all_at(batch.bytes(), (number * bytes) as u64)?;
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
        format!("{:.2} × (≤ 1.5 ×)", engine / bare),
    );
    Ok(())
}

pub(crate) async fn topic(
    engine: &Arc<dyn Engine>,
    durability: Durability,
    partitions: u32,
) -> Result<Vec<TopicPartition>> {
    named_topic(engine, "log", durability, partitions).await
}

pub(crate) async fn named_topic(
    engine: &Arc<dyn Engine>,
    name: &str,
    durability: Durability,
    partitions: u32,
) -> Result<Vec<TopicPartition>> {
    let spec = serde_json::json!({"name": name, "partitions": partitions, "durability": durability, "created_at": 0});
    let topic = engine
        .create_topic(serde_json::from_value(spec).context("a topic")?, Vec::new())
        .await?;
    let at = |partition| TopicPartition {
        topic: topic.id,
        partition: PartitionId(partition),
    };
    Ok((0..partitions).map(at).collect())
}
