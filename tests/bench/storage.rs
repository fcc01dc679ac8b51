//! The cost of encrypting stored messages, and of compressing them.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use millrace_engine::{Append, Engine, Transaction};
use millrace_local::{Cipher, LocalEngine, LocalOptions};
use millrace_model::{Compression, Durability, PartitionId, RecordBatch, TopicPartition};

use crate::setup;
use crate::table::{Table, median};

const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_millis(500);
const WRITERS: usize = 16;
/// Batches as a busy producer sends them.
const MESSAGES: usize = 64;

/// A row for encryption, and one for each codec.
pub(crate) async fn measure(table: &mut Table) -> Result<()> {
    encryption(table).await?;
    let plain = setup::batch(MESSAGES, 1024)?;
    for codec in &Compression::ALL[1..] {
        compression(table, &plain, *codec)?;
    }
    Ok(())
}

async fn encryption(table: &mut Table) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let key = format!("1:{}", "0123456789abcdef".repeat(4));
    let keys = Arc::new(Cipher::parse(&key)?);
    let plain = open(&directory.path().join("plain"), None).await?;
    let encrypted = open(&directory.path().join("encrypted"), Some(keys)).await?;
    let batch = setup::batch(MESSAGES, 1024)?;
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        without.push(round(&plain, &batch).await?);
        with.push(round(&encrypted, &batch).await?);
    }
    plain.0.close().await;
    encrypted.0.close().await;
    let (without, with) = (median(without), median(with));
    let figure = |bytes: f64| format!("{:.0} MB/s", bytes / 1e6);
    table.row(
        &format!("produce at os, {MESSAGES} messages of 1 KiB a batch, {WRITERS} at once, plain"),
        figure(without),
        "encrypted",
        figure(with),
        format!("{:.2} ×", without / with),
    );
    Ok(())
}

type Target = (Arc<dyn Engine>, TopicPartition);

async fn open(directory: &Path, encryption: Option<Arc<Cipher>>) -> Result<Target> {
    let options = LocalOptions {
        encryption,
        ..LocalOptions::default()
    };
    let engine: Arc<dyn Engine> = LocalEngine::open(directory, options, setup::clock()).await?;
    let spec = serde_json::json!({
        "name": "storage", "partitions": 1, "durability": Durability::Os, "created_at": 0,
    });
    let spec = serde_json::from_value(spec).context("a topic")?;
    let topic = engine.create_topic(spec, Vec::new()).await?;
    let partition = TopicPartition {
        topic: topic.id,
        partition: PartitionId(0),
    };
    Ok((engine, partition))
}

/// Bytes per second.
async fn round((engine, partition): &Target, batch: &RecordBatch) -> Result<f64> {
    let began = Instant::now();
    let write = |engine: Arc<dyn Engine>, partition, batch: RecordBatch| async move {
        let mut bytes = 0;
        while began.elapsed() < ROUND {
            let append = Append {
                partition,
                batch: batch.clone(),
            };
            engine.commit(Transaction::produce(vec![append])).await?;
            bytes += batch.byte_count();
        }
        anyhow::Ok(bytes)
    };
    let writers: Vec<_> = (0..WRITERS)
        .map(|_| tokio::spawn(write(engine.clone(), *partition, batch.clone())))
        .collect();
    let mut bytes = 0;
    for writer in writers {
        bytes += writer.await??;
    }
    Ok(bytes as f64 / began.elapsed().as_secs_f64())
}

fn compression(table: &mut Table, plain: &RecordBatch, codec: Compression) -> Result<()> {
    let packed = plain.deflated(codec);
    let (mut deflate, mut inflate) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        deflate.push(rate(plain, || drop(plain.deflated(codec))));
        let mut failed = None;
        inflate.push(rate(plain, || failed = packed.inflated().err()));
        failed.map_or(Ok(()), Err)?;
    }
    let figure = |bytes: f64| format!("{:.0} MB/s", bytes / 1e6);
    let share = plain.byte_count() as f64 / packed.byte_count() as f64;
    table.row(
        &format!("{codec}, {MESSAGES} messages of 1 KiB a batch, compress"),
        figure(median(deflate)),
        "decompress",
        figure(median(inflate)),
        format!("{share:.1} × smaller"),
    );
    Ok(())
}

/// Uncompressed bytes per second.
fn rate(plain: &RecordBatch, mut work: impl FnMut()) -> f64 {
    let began = Instant::now();
    let mut times = 0;
    while began.elapsed() < ROUND / 5 {
        work();
        times += 1;
    }
    (times * plain.byte_count()) as f64 / began.elapsed().as_secs_f64()
}
