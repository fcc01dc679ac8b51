//! Reading back ten million messages: in order, compared with reading the files, and at scattered
//! offsets.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, ensure};
use millrace_engine::{Append, Engine, Transaction};
use millrace_local::{LocalEngine, LocalOptions};
use millrace_model::{Durability, Offset, TopicPartition};

use crate::log::topic;
use crate::machine::{mib_per_second, micros};
use crate::setup;
use crate::table::{Table, median, percentile};

const MESSAGES: u64 = 10_000_000;
const BATCH_MESSAGES: usize = 500;
const SEGMENT_BYTES: u64 = 128 << 20;
const READ_BYTES: usize = 1 << 20;
const LOOKUPS: usize = 20_000;
const ROUNDS: usize = 3;

/// Adds rows for sealed segments in order, and for lookups.
pub(crate) async fn measure(table: &mut Table) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let options = LocalOptions {
        segment_bytes: SEGMENT_BYTES,
        ..LocalOptions::default()
    };
    let data = directory.path().join("data");
    let engine: std::sync::Arc<dyn Engine> =
        LocalEngine::open(&data, options, setup::clock()).await?;
    let partition = topic(&engine, Durability::Os, 1).await?[0];
    let batch = setup::batch(BATCH_MESSAGES, 20)?;
    for _ in 0..MESSAGES / BATCH_MESSAGES as u64 {
        let append = Append {
            partition,
            batch: batch.clone(),
        };
        engine.commit(Transaction::produce(vec![append])).await?;
    }
    in_order(table, &engine, partition, &data).await?;
    lookups(table, &engine, partition).await?;
    engine.close().await;
    Ok(())
}

async fn in_order(
    table: &mut Table,
    engine: &std::sync::Arc<dyn Engine>,
    partition: TopicPartition,
    data: &Path,
) -> Result<()> {
    let segments = sealed_segments(data, partition)?;
    let bytes: usize = segments.iter().map(|(_, bytes)| bytes).sum();
    let (mut ours, mut files) = (Vec::new(), Vec::new());
    let mut messages = 0;
    for _ in 0..ROUNDS {
        let began = Instant::now();
        for (path, _) in &segments {
            read_file(path)?;
        }
        files.push(mib_per_second(bytes, began.elapsed()));
        let began = Instant::now();
        let (mut from, mut read) = (Offset(0), 0);
        while read < bytes {
            for batch in engine.read(partition, from, READ_BYTES).await? {
                read += batch.byte_count();
                from = batch.end_offset();
            }
        }
        messages = from.0;
        ours.push(mib_per_second(read, began.elapsed()));
    }
    let (ours, files) = (median(ours), median(files));
    let per_second = messages as f64 / (bytes as f64 / f64::from(1 << 20) / ours) / 1e6;
    table.row(
        "engine, sealed segments read in order, every checksum verified",
        format!("{ours:.0} MiB/s, {per_second:.1} M messages/s"),
        "reading the files",
        format!("{files:.0} MiB/s"),
        format!("{:.0} % (≥ 60 %)", ours / files * 100.0),
    );
    Ok(())
}

fn read_file(path: &Path) -> Result<()> {
    use std::io::Read;
    let mut file = fs::File::open(path)?;
    let mut buffer = vec![0; READ_BYTES];
    while file.read(&mut buffer)? > 0 {}
    std::hint::black_box(&buffer);
    Ok(())
}

/// All segments except the last, in order.
fn sealed_segments(data: &Path, partition: TopicPartition) -> Result<Vec<(PathBuf, usize)>> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(data.join(format!("topics/{}", partition.topic)))? {
        let entry = entry?;
        if entry.path().extension().is_some_and(|e| e == "segment") {
            segments.push((entry.path(), entry.metadata()?.len() as usize));
        }
    }
    segments.sort_unstable();
    segments.pop();
    ensure!(!segments.is_empty(), "no segment was sealed");
    Ok(segments)
}

async fn lookups(
    table: &mut Table,
    engine: &std::sync::Arc<dyn Engine>,
    partition: TopicPartition,
) -> Result<()> {
    let mut times = Vec::with_capacity(LOOKUPS);
    // A fixed walk over all offsets with long steps.
    let offsets = (0..LOOKUPS as u64).map(|n| n * 7_919_317 % MESSAGES);
    for (number, offset) in offsets.enumerate() {
        let began = Instant::now();
        let read = engine.read(partition, Offset(offset), 1).await?;
        let took = micros(began.elapsed());
        ensure!(read[0].end_offset() > Offset(offset), "the wrong batch");
        // The first lookups map the segments.
        if number >= LOOKUPS / 10 {
            times.push(took);
        }
    }
    let p50 = percentile(times.clone(), 0.5);
    table.row(
        "engine, lookup of an offset in 10 million messages",
        format!("p50 {p50:.0} µs, p99 {:.0} µs", percentile(times, 0.99)),
        "",
        String::new(),
        "p99 < 50 µs".to_owned(),
    );
    Ok(())
}
