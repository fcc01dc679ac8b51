//! State larger than memory: a guest that counts in values of a hundred bytes, with 10,000,000 keys
//! in random order and with 10,000; the memory of the process, and the time of a start after a
//! kill. `MILLRACE_BENCH_KEYS` sets another number of keys.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use guest_artifacts as guests;
use millrace_broker::{Caller, Session};
use millrace_engine::state::StateQuery;
use millrace_engine::{Append, Engine, Transaction};
use millrace_model::{
    BatchBuilder, Durability, Message, PartitionId, ProcessorName, ProcessorSpec, RecordBatch,
    Topic, TopicPartition,
};

use crate::memory::{processor_time, status_mib};
use crate::setup;
use crate::table::Table;

const KEYS: u64 = 10_000_000;
const FEW_KEYS: u64 = 10_000;
/// Messages that are measured, with either number of keys.
const MESSAGES: u64 = 2_000_000;
const PER_COMMIT: u64 = 1_000;
const PARTITIONS: u32 = 2;
const GROUP: &str = "counter";
/// Primes: steps of either size reach each key once, in unrelated orders.
const STRIDES: [u64; 2] = [7_368_787, 6_972_593];

/// Three rows.
pub(crate) async fn measure(table: &mut Table) -> Result<()> {
    let keys = match std::env::var("MILLRACE_BENCH_KEYS") {
        Ok(keys) => keys.parse().context("MILLRACE_BENCH_KEYS is a number")?,
        Err(_) => KEYS,
    };
    let few = run(FEW_KEYS).await?;
    let many = run(keys).await?;
    table.row(
        &format!("keyed counter over {keys} keys in random order (values of 100 B, os)"),
        format!("{:.0} messages/s", many.per_second),
        "over 10,000",
        format!("{:.0} messages/s", few.per_second),
        format!("{:.0} % (≥ 60 %)", many.per_second / few.per_second * 100.0),
    );
    table.row(
        "… processor time a message",
        format!("{:.1} µs", many.processor_us),
        "over 10,000",
        format!("{:.1} µs", few.processor_us),
        format!("{:.0} %", few.processor_us / many.processor_us * 100.0),
    );
    table.row(
        &format!("state of {keys} keys: memory of the whole process"),
        format!(
            "{:.0} MiB, highest {:.0} MiB",
            many.resident_mib, many.highest_mib
        ),
        "start after a kill",
        format!("{:.2} s", many.start.as_secs_f64()),
        "≤ 1,024 MiB, ≤ 5 s".to_owned(),
    );
    Ok(())
}

struct Run {
    per_second: f64,
    /// Processor time of the whole process, with checkpoints and merges; other programs of the
    /// machine do not count.
    processor_us: f64,
    resident_mib: f64,
    highest_mib: f64,
    start: Duration,
}

async fn run(keys: u64) -> Result<Run> {
    let directory = tempfile::tempdir()?;
    let components = setup::components(directory.path())?;
    let engine = setup::engine(directory.path()).await?;
    let broker = setup::broker(&engine, components).await?;
    let session = broker.session(Caller::unnamed());
    for name in ["in", "out"] {
        setup::topic(&session, name, PARTITIONS, Durability::Os).await?;
    }
    let module = Bytes::from_static(guests::PADDED_COUNTER);
    let module = session.catalogue().upload_module(module, None).await?;
    let spec: ProcessorSpec = serde_json::from_value(serde_json::json!({
        "topics": ["in"], "output": "out", "module": module.facts.digest,
    }))?;
    session.processors().deploy(&GROUP.parse()?, spec).await?;
    let topic = session
        .catalogue()
        .topic(&"in".parse()?)
        .context("topic in")?;

    let began = Instant::now();
    through(&engine, &session, &topic, keys, 0..keys).await?;
    eprintln!(
        "  {keys} keys are there after {:.0} s, {:.0} MiB",
        began.elapsed().as_secs_f64(),
        status_mib("VmRSS:")?
    );
    let (began, processor) = (Instant::now(), processor_time());
    // Different steps than before, over the same keys.
    through(&engine, &session, &topic, keys, keys..keys + MESSAGES).await?;
    let per_second = MESSAGES as f64 / began.elapsed().as_secs_f64();
    let processor_us = (processor_time() - processor).as_secs_f64() / MESSAGES as f64 * 1e6;
    let (resident_mib, highest_mib) = (status_mib("VmRSS:")?, status_mib("VmHWM:")?);

    // Without closing, as after a kill.
    broker.stop().await;
    drop((session, broker));
    drop(engine);
    let began = Instant::now();
    let engine = setup::engine(directory.path()).await?;
    let start = began.elapsed();
    check(&*engine, &topic, keys).await?;
    engine.close().await;
    Ok(Run {
        per_second,
        processor_us,
        resident_mib,
        highest_mib,
        start,
    })
}

/// Sends the messages of these steps, and waits for all outputs.
async fn through(
    engine: &Arc<dyn Engine>,
    session: &Session,
    topic: &Topic,
    keys: u64,
    steps: std::ops::Range<u64>,
) -> Result<()> {
    let end = setup::count(session, "out")? + (steps.end - steps.start);
    let producers: Vec<_> = topic
        .partitions()
        .map(|partition| tokio::spawn(produce(engine.clone(), partition, keys, steps.clone())))
        .collect();
    for producer in producers {
        producer.await??;
    }
    while setup::count(session, "out")? < end {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

/// Produces the messages of those steps whose keys belong to the partition.
async fn produce(
    engine: Arc<dyn Engine>,
    partition: TopicPartition,
    keys: u64,
    steps: std::ops::Range<u64>,
) -> Result<()> {
    let own = |key: &u64| key % u64::from(PARTITIONS) == u64::from(partition.partition.0);
    let mut numbers = steps.map(|step| key_at(step, keys)).filter(own).peekable();
    while numbers.peek().is_some() {
        let batch = batch(numbers.by_ref().take(PER_COMMIT as usize))?;
        let append = Append { partition, batch };
        engine.commit(Transaction::produce(vec![append])).await?;
    }
    Ok(())
}

/// The key of a step: all keys in one order, then all keys in another order, and so on.
fn key_at(step: u64, keys: u64) -> u64 {
    let stride = STRIDES[(step / keys % 2) as usize];
    step % keys * stride % keys
}

fn batch(numbers: impl Iterator<Item = u64>) -> Result<RecordBatch> {
    let mut builder = BatchBuilder::with_capacity(PER_COMMIT as usize * 64);
    for number in numbers {
        builder.push(&Message {
            key: Some(key(number).into()),
            ..setup::message(number as usize, 10)
        });
    }
    builder.finish().context("a batch is not empty")
}

fn key(number: u64) -> String {
    // Keys with neighbouring numbers are not neighbours in the order.
    format!("{:016x}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// Checks for some keys that their count is the number of their messages.
async fn check(engine: &dyn Engine, topic: &Topic, keys: u64) -> Result<()> {
    let mut counts = std::collections::HashMap::new();
    for step in 0..keys + MESSAGES {
        let number = key_at(step, keys);
        if number.is_multiple_of(keys / 50) {
            *counts.entry(number).or_insert(0_u64) += 1;
        }
    }
    let group = GROUP.parse::<ProcessorName>()?.group();
    for (number, expected) in counts {
        let partition = PartitionId((number % u64::from(PARTITIONS)) as u32);
        let partition = topic.partition(partition).context("it has two")?;
        let prefix = key(number).into_bytes();
        let query = StateQuery {
            prefix,
            entries_max: 1,
            bytes_max: 1 << 10,
            ..StateQuery::default()
        };
        let page = engine.read_state(&group, partition, &query).await?;
        let value = page.entries.first().context("its entry")?.value.clone();
        let count = value
            .as_bytes()
            .first_chunk()
            .map(|count| u64::from_le_bytes(*count));
        ensure!(
            count == Some(expected),
            "key {number}: {count:?} instead of {expected}"
        );
    }
    Ok(())
}
