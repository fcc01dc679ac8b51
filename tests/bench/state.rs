//! State: a guest that counts the messages of 10,000 keys in state, compared with one that counts
//! in its own memory and loses its counts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use guest_artifacts as guests;
use millrace_broker::Caller;
use millrace_engine::{Append, Engine, Transaction};
use millrace_model::{
    BatchBuilder, Durability, Message, PartitionId, ProcessorSpec, RecordBatch, TopicPartition,
};

use crate::setup;
use crate::table::{Table, median};

const MESSAGES: usize = 1_000_000;
const PER_COMMIT: usize = 1_000;
const KEYS: usize = 10_000;
const PARTITIONS: u32 = 2;
const VALUE_BYTES: usize = 100;
const ROUNDS: usize = 5;

pub(crate) async fn measure(table: &mut Table) -> Result<()> {
    let (mut kept, mut forgotten) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        kept.push(run(guests::COUNTER).await?);
        forgotten.push(run(guests::FORGETFUL_COUNTER).await?);
    }
    let (kept, forgotten) = (median(kept), median(forgotten));
    table.row(
        "keyed counter, exactly once (10,000 keys, 100 B, os)",
        format!("{kept:.0} messages/s"),
        "the same without state",
        format!("{forgotten:.0} messages/s"),
        format!("{:.0} % (≥ 60 %, ≥ 200,000/s)", kept / forgotten * 100.0),
    );
    Ok(())
}

/// Messages per second.
async fn run(guest: &'static [u8]) -> Result<f64> {
    let directory = tempfile::tempdir()?;
    let components = setup::components(directory.path())?;
    let engine = setup::engine(directory.path()).await?;
    let broker = setup::broker(&engine, components).await?;
    let session = broker.session(Caller::unnamed());
    for name in ["in", "out"] {
        setup::topic(&session, name, PARTITIONS, Durability::Os).await?;
    }
    let module = session
        .catalogue()
        .upload_module(Bytes::from_static(guest), None)
        .await?;
    let spec: ProcessorSpec = serde_json::from_value(serde_json::json!({
        "topics": ["in"], "output": "out", "module": module.facts.digest,
    }))?;
    session
        .processors()
        .deploy(&"counter".parse().context("a name")?, spec)
        .await?;
    let batches = batches()?;
    let began = Instant::now();
    let topic = session
        .catalogue()
        .topic(&"in".parse()?)
        .context("topic in")?
        .id;
    let producers: Vec<_> = (0..PARTITIONS)
        .map(|partition| {
            let partition = TopicPartition {
                topic,
                partition: PartitionId(partition),
            };
            tokio::spawn(produce(engine.clone(), partition, batches.clone()))
        })
        .collect();
    for producer in producers {
        producer.await??;
    }
    while setup::count(&session, "out")? < MESSAGES as u64 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let seconds = began.elapsed().as_secs_f64();
    broker.stop().await;
    Ok(MESSAGES as f64 / seconds)
}

/// Batches over all keys.
fn batches() -> Result<Vec<RecordBatch>> {
    let batch = |first: usize| {
        let mut builder = BatchBuilder::with_capacity(PER_COMMIT * (VALUE_BYTES + 64));
        for number in first..first + PER_COMMIT {
            builder.push(&Message {
                key: Some(format!("key-{number:06}").into()),
                ..setup::message(number, VALUE_BYTES)
            });
        }
        builder.finish().context("a batch is not empty")
    };
    (0..KEYS).step_by(PER_COMMIT).map(batch).collect()
}

async fn produce(
    engine: Arc<dyn Engine>,
    partition: TopicPartition,
    batches: Vec<RecordBatch>,
) -> Result<()> {
    let commits = MESSAGES / PER_COMMIT / PARTITIONS as usize;
    for batch in batches.iter().cycle().take(commits) {
        let append = Append {
            partition,
            batch: batch.clone(),
        };
        engine.commit(Transaction::produce(vec![append])).await?;
    }
    Ok(())
}
