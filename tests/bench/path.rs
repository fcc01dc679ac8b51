//! The whole path: commit of the input, the handler, commit of the output, on the local engine at
//! durability `os`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use guest_artifacts as guests;
use millrace_broker::{Broker, Caller, ModuleHost, Session};
use millrace_engine::{Append, Engine, Transaction};
use millrace_model::{Durability, PartitionId, ProcessorSpec, RecordBatch, TopicPartition};

use crate::native::NativeModules;
use crate::setup;
use crate::table::{Table, median};

const MESSAGES: u64 = 1_000_000;
const PER_COMMIT: usize = 1_000;
const PARTITIONS: u32 = 2;
const VALUE_BYTES: usize = 100;
const ROUNDS: usize = 5;

/// Adds one row: through the guest, compared with a native handler.
pub(crate) async fn measure(table: &mut Table) -> Result<()> {
    let (mut guest, mut native) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        guest.push(run(true).await?);
        native.push(run(false).await?);
    }
    let (guest, native) = (median(guest), median(native));
    table.row(
        "whole path (commit → upper-case → commit), 100 B, os",
        format!("{guest:.0} messages/s"),
        "native handler",
        format!("{native:.0} messages/s"),
        format!("{:.0} % (≥ 60 %, ≥ 250,000/s)", guest / native * 100.0),
    );
    Ok(())
}

/// Messages per second.
async fn run(guest: bool) -> Result<f64> {
    let directory = tempfile::tempdir()?;
    let components = setup::components(directory.path())?;
    let modules: Arc<dyn ModuleHost> = if guest {
        components
    } else {
        Arc::new(NativeModules(components))
    };
    let engine = setup::engine(directory.path()).await?;
    let broker = pipeline(&engine, modules, Durability::Os).await?;
    let session = broker.session(Caller::unnamed());
    let began = Instant::now();
    through(&engine, &session, MESSAGES).await?;
    let seconds = began.elapsed().as_secs_f64();
    broker.stop().await;
    Ok(MESSAGES as f64 / seconds)
}

/// Creates topics `in` and `out` and the upper-case processor between them.
pub(crate) async fn pipeline(
    engine: &Arc<dyn Engine>,
    modules: Arc<dyn ModuleHost>,
    durability: Durability,
) -> Result<Broker> {
    let broker = setup::broker(engine, modules).await?;
    let session = broker.session(Caller::unnamed());
    setup::topic(&session, "in", PARTITIONS, durability).await?;
    setup::topic(&session, "out", PARTITIONS, durability).await?;
    let module = session
        .catalogue()
        .upload_module(Bytes::from_static(guests::UPPERCASE), None)
        .await?;
    let spec: ProcessorSpec = serde_json::from_value(serde_json::json!({
        "topics": ["in"], "output": "out", "module": module.facts.digest,
    }))?;
    session
        .processors()
        .deploy(&"worker".parse().context("a name")?, spec)
        .await?;
    Ok(broker)
}

/// Commits `messages` messages to `in` with two producers at once, and waits until `out` has as
/// many more.
pub(crate) async fn through(
    engine: &Arc<dyn Engine>,
    session: &Session,
    messages: u64,
) -> Result<()> {
    let target = setup::count(session, "out")? + messages;
    let batch = setup::batch(PER_COMMIT, VALUE_BYTES)?;
    let commits = messages / PER_COMMIT as u64 / u64::from(PARTITIONS);
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
            tokio::spawn(produce(engine.clone(), partition, batch.clone(), commits))
        })
        .collect();
    for producer in producers {
        producer.await??;
    }
    while setup::count(session, "out")? < target {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

async fn produce(
    engine: Arc<dyn Engine>,
    partition: TopicPartition,
    batch: RecordBatch,
    commits: u64,
) -> Result<()> {
    for _ in 0..commits {
        let append = Append {
            partition,
            batch: batch.clone(),
        };
        engine.commit(Transaction::produce(vec![append])).await?;
    }
    Ok(())
}
