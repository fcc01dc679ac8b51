//! A keyed counter on several hosts of one store, as workers commit: each batch's outputs, state
//! and progress in one transaction. It has no component and no door, so it measures the engine.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use millrace_engine::state::{KeyColumns, StateAttempt, StateWrite, StateWrites, WriteColumns};
use millrace_engine::{Append, Engine, Hold, Transaction};
use millrace_model::{
    BatchBuilder, Durability, Message, Offset, PartitionId, ProcessorName, RecordBatch, Timestamp,
    TopicId, TopicPartition,
};

use super::{PER_COMMIT, progress_to, topic};
use crate::setup;
use crate::table::{Table, median};

/// Hosts that share the work.
pub(crate) const HOSTS: usize = 3;
const PARTITIONS: u32 = 6;
const KEYS: usize = 10_000;
const VALUE_BYTES: usize = 100;
/// Commits of input in each partition.
const COMMITS: usize = 80;
const ROUNDS: usize = 3;

/// On these hosts, and on the first of them alone.
pub(crate) async fn measure(
    table: &mut Table,
    name: &str,
    hosts: Vec<Arc<dyn Engine>>,
) -> Result<()> {
    let input = topic(&hosts[0], "in", PARTITIONS).await?;
    let output = topic(&hosts[0], "out", PARTITIONS).await?;
    let at = |topic: TopicId, number: u32| TopicPartition {
        topic,
        partition: PartitionId(number),
    };
    for number in 0..PARTITIONS {
        for commit in 0..COMMITS {
            let batch = batch(number, commit)?;
            let partition = at(input.id, number);
            let append = Append { partition, batch };
            hosts[0].commit(Transaction::produce(vec![append])).await?;
        }
    }
    let (mut all, mut alone) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        for (hosts, figures) in [(&hosts[..], &mut all), (&hosts[..1], &mut alone)] {
            let group = format!("counter-{round}-{}", hosts.len());
            let mut holds = Vec::new();
            for number in 0..PARTITIONS {
                let host = &hosts[number as usize % hosts.len()];
                // This host must have heard of the topics.
                let mut watch = host.watch_catalogue();
                while host.ends(at(output.id, number)).is_err() {
                    watch.changed().await?;
                }
                let hold = host
                    .hold(
                        &group.parse::<ProcessorName>()?.group(),
                        at(input.id, number),
                    )
                    .await?;
                holds.push((Arc::clone(host), hold.context("nobody else has it")?));
            }
            let began = Instant::now();
            let workers = holds.into_iter().map(|(host, hold)| {
                let to = at(output.id, hold.lease.partition.partition.0);
                tokio::spawn(work(host, hold, to))
            });
            for worker in workers.collect::<Vec<_>>() {
                worker.await??;
            }
            let messages = COMMITS * PER_COMMIT * PARTITIONS as usize;
            figures.push(messages as f64 / began.elapsed().as_secs_f64());
        }
    }
    for host in hosts {
        host.close().await;
    }
    let (all, alone) = (median(all), median(alone));
    table.row(
        &format!(
            "{name}: keyed counter, exactly once, durable, {HOSTS} hosts ({KEYS} keys, 100 B)"
        ),
        format!("{all:.0} messages/s"),
        "one host",
        format!("{alone:.0} messages/s"),
        format!("{:.2} × (≥ 100,000/s)", all / alone),
    );
    Ok(())
}

/// One worker: reads, counts and commits batch by batch.
async fn work(engine: Arc<dyn Engine>, hold: Hold, to: TopicPartition) -> Result<()> {
    let (group, from) = (&hold.lease.group, hold.lease.partition);
    let table = engine.state(group, from).await?;
    let end = Offset((COMMITS * PER_COMMIT) as u64);
    let mut next = Offset(0);
    while next < end {
        let batches = engine.read(from, next, 1).await?;
        let batch = batches.first().context("messages")?;
        let turn = table.turn().await;
        let (outputs, writes) = count(
            batch,
            StateAttempt::new(Arc::clone(&table), Timestamp(0), batch.message_count()),
        )?;
        next = batch.end_offset();
        engine
            .commit(Transaction {
                appends: vec![Append {
                    partition: to,
                    batch: outputs,
                }],
                state: vec![StateWrite {
                    group: group.clone(),
                    partition: from,
                    lease: Some(hold.lease.clone()),
                    writes: Arc::new(writes),
                }],
                progress: vec![progress_to(&hold, next)],
                turns: turn.held().into_iter().collect(),
                durability: Some(Durability::Durable),
                ..Transaction::default()
            })
            .await?;
    }
    let size = table.size().entries;
    ensure!(size == KEYS, "{size} keys instead of {KEYS}");
    Ok(())
}

/// Adds one for each message's key; the counts are the outputs.
fn count(batch: &RecordBatch, mut state: StateAttempt) -> Result<(RecordBatch, StateWrites)> {
    let (mut data, mut spans) = (Vec::new(), Vec::new());
    let mut keys = Vec::with_capacity(batch.message_count());
    for record in batch.records()? {
        let key = &batch.bytes()[record?.key.context("a key")?];
        spans.extend([data.len() as u32, key.len() as u32]);
        data.extend_from_slice(key);
        keys.push(Bytes::copy_from_slice(key));
    }
    let columns = KeyColumns {
        data: &data,
        spans: &spans,
    };
    let how = WriteColumns {
        ttl_ms: &[],
        messages: &[],
    };
    let counts = state.add(&columns, &[], &how)?;
    let mut outputs = BatchBuilder::with_capacity(counts.len() * 64);
    for (key, count) in keys.into_iter().zip(counts) {
        outputs.push(&Message {
            key: Some(key),
            value: Some(count.to_string().into()),
            headers: Vec::new(),
            timestamp: Timestamp(1_700_000_000_000),
        });
    }
    let outputs = outputs.finish().context("outputs")?;
    Ok((outputs, state.into_writes()))
}

/// Messages over all keys of a partition, a thousand keys in each batch.
fn batch(partition: u32, commit: usize) -> Result<RecordBatch> {
    let mut builder = BatchBuilder::with_capacity(PER_COMMIT * (VALUE_BYTES + 64));
    for number in 0..PER_COMMIT {
        let key = (commit * PER_COMMIT + number) % KEYS;
        builder.push(&Message {
            key: Some(format!("key-{partition}-{key:06}").into()),
            ..setup::message(number, VALUE_BYTES)
        });
    }
    builder.finish().context("a batch is not empty")
}
