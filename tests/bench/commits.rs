//! What a commit costs at durability `durable` (synced to the disk) and at `os` (in the page cache).

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use millrace_engine::{Append, Engine, Transaction};
use millrace_model::{Durability, PartitionId, RecordBatch, TopicPartition};

use crate::machine::synced_writes;
use crate::setup;
use crate::table::{Table, median, percentile};

const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_millis(500);
const WRITERS: usize = 64;

/// Two rows: one writer that waits for each commit, and many at once.
pub(crate) async fn measure(table: &mut Table) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let engine = setup::engine(directory.path()).await?;
    let durable = partition(&engine, Durability::Durable).await?;
    let os = partition(&engine, Durability::Os).await?;
    let batch = setup::batch(1, 100)?;
    for writers in [1, WRITERS] {
        let (mut fast, mut safe) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            fast.push(round(&engine, os, &batch, writers).await?);
            safe.push(round(&engine, durable, &batch, writers).await?);
        }
        row(table, writers, &fast, &safe);
    }
    engine.close().await;
    groups(table, directory.path(), &batch)
}

/// What plain writes and syncs of as many messages as there are writers give: the most that one group can hold.
fn groups(table: &mut Table, directory: &Path, batch: &RecordBatch) -> Result<()> {
    let bytes = WRITERS * batch.byte_count();
    let times = synced_writes(&directory.join("groups"), bytes, 1_000)?;
    let seconds = times.iter().sum::<f64>() / 1e6;
    let rate = (WRITERS * times.len()) as f64 / seconds;
    table.row(
        &format!("plain write + fdatasync of {WRITERS} messages at once"),
        format!("{rate:.0} messages/s"),
        "",
        String::new(),
        "durable, 64 at once: ≥ 60 % of it, ≥ 70 % of os".to_owned(),
    );
    Ok(())
}

fn row(table: &mut Table, writers: usize, fast: &[(f64, f64)], safe: &[(f64, f64)]) {
    let middle = |of: &[(f64, f64)]| {
        let rate = median(of.iter().map(|one| one.0).collect());
        (rate, median(of.iter().map(|one| one.1).collect()))
    };
    let (fast, safe) = (middle(fast), middle(safe));
    let figure = |(rate, p50): (f64, f64)| format!("{rate:.0}/s, p50 {p50:.0} µs");
    table.row(
        &format!("commits of one message, {writers} at once, os"),
        figure(fast),
        "durable",
        figure(safe),
        format!("{:.1} ×", fast.0 / safe.0),
    );
}

async fn partition(engine: &Arc<dyn Engine>, durability: Durability) -> Result<TopicPartition> {
    let spec = serde_json::json!({
        "name": format!("commits-{durability:?}").to_lowercase(), "partitions": 1, "durability": durability,
        "created_at": 0,
    });
    let topic = engine
        .create_topic(serde_json::from_value(spec).context("a topic")?)
        .await?;
    Ok(TopicPartition {
        topic: topic.id,
        partition: PartitionId(0),
    })
}

/// Commits a second, and the median time of one in microseconds.
async fn round(
    engine: &Arc<dyn Engine>,
    partition: TopicPartition,
    batch: &RecordBatch,
    writers: usize,
) -> Result<(f64, f64)> {
    let began = Instant::now();
    let writers: Vec<_> = (0..writers)
        .map(|_| {
            tokio::spawn(write(
                engine.clone(),
                partition,
                batch.clone(),
                began + ROUND,
            ))
        })
        .collect();
    let mut times = Vec::new();
    for writer in writers {
        times.extend(writer.await??);
    }
    let rate = times.len() as f64 / began.elapsed().as_secs_f64();
    Ok((rate, percentile(times, 0.5)))
}

async fn write(
    engine: Arc<dyn Engine>,
    partition: TopicPartition,
    batch: RecordBatch,
    until: Instant,
) -> Result<Vec<f64>> {
    let mut times = Vec::new();
    while Instant::now() < until {
        let began = Instant::now();
        let append = Append {
            partition,
            batch: batch.clone(),
        };
        engine.commit(Transaction::produce(vec![append])).await?;
        times.push(began.elapsed().as_nanos() as f64 / 1_000.0);
    }
    Ok(times)
}
