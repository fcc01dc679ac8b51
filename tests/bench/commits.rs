//! The cost of a commit at durability `durable` (synced to the disk) and at `os` (in the page
//! cache).

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use millrace_engine::{Append, Engine, Transaction};
use millrace_model::{Durability, PartitionId, RecordBatch, TopicPartition};

use crate::machine::synced_writes;
use crate::meter::Meter;
use crate::setup;
use crate::table::{Table, median, percentile};

const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_millis(500);
const WRITERS: usize = 64;
/// Number of plain writes and syncs that a round is compared with.
const SYNCS: usize = 400;

/// Adds rows for one writer that waits for each commit, for many at once, and for these compared
/// with a plain loop that writes and syncs.
pub(crate) async fn measure(table: &mut Table) -> Result<()> {
    let meter = Meter::install()?;
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
    let mut groups = Vec::new();
    for _ in 0..ROUNDS {
        let before = meter.read();
        let rate = round(&engine, durable, &batch, WRITERS).await?.0;
        let after = meter.read();
        let [syncs, bytes] = [0, 1].map(|at| (after[at] - before[at]) as f64);
        let messages = rate * ROUND.as_secs_f64();
        let plain =
            |messages: f64, bytes: f64| plain_loop(directory.path(), messages, bytes as usize);
        groups.push(Groups {
            rate,
            reached: messages / syncs,
            beside_reached: plain(messages / syncs, bytes / syncs)?,
            beside_all: plain(WRITERS as f64, bytes / messages * WRITERS as f64)?,
        });
    }
    engine.close().await;
    group_rows(table, &groups);
    Ok(())
}

/// A round of many writers at `durable`, and the plain writes and syncs that it is compared with.
struct Groups {
    /// Messages per second.
    rate: f64,
    /// How many messages one sync made durable.
    reached: f64,
    /// Messages a second of a plain loop with as many messages in each sync.
    beside_reached: f64,
    /// Messages a second of a plain loop with one message of every writer in each sync, the most
    /// that is possible.
    beside_all: f64,
}

/// Messages a second of a loop that writes `bytes` for each `messages` and syncs.
fn plain_loop(directory: &Path, messages: f64, bytes: usize) -> Result<f64> {
    let times = synced_writes(&directory.join("groups"), bytes, SYNCS)?;
    let seconds = times.iter().sum::<f64>() / 1e6;
    Ok(messages * times.len() as f64 / seconds)
}

fn group_rows(table: &mut Table, groups: &[Groups]) {
    let middle = |of: fn(&Groups) -> f64| median(groups.iter().map(of).collect());
    let share = |of: fn(&Groups) -> f64| format!("{:.0} %", middle(of) * 100.0);
    let rate = format!("{:.0}/s", middle(|group| group.rate));
    table.row(
        &format!("commits of one message, {WRITERS} at once, durable"),
        rate.clone(),
        &format!(
            "plain write + fdatasync of as many as a sync covered: {:.0}",
            middle(|group| group.reached)
        ),
        format!("{:.0}/s", middle(|group| group.beside_reached)),
        share(|group| group.rate / group.beside_reached) + " (≥ 60 %)",
    );
    table.row(
        "the same",
        rate,
        &format!("plain write + fdatasync of {WRITERS}"),
        format!("{:.0}/s", middle(|group| group.beside_all)),
        share(|group| group.rate / group.beside_all),
    );
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
        format!("{:.0} % of os", safe.0 / fast.0 * 100.0),
    );
}

async fn partition(engine: &Arc<dyn Engine>, durability: Durability) -> Result<TopicPartition> {
    let spec = serde_json::json!({
        "name": format!("commits-{durability:?}").to_lowercase(), "partitions": 1, "durability": durability,
        "created_at": 0,
    });
    let topic = engine
        .create_topic(serde_json::from_value(spec).context("a topic")?, Vec::new())
        .await?;
    Ok(TopicPartition {
        topic: topic.id,
        partition: PartitionId(0),
    })
}

/// Commits a second, and their median time in microseconds.
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
