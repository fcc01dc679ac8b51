//! How long a swap of revisions delays a partition: messages come at a steady pace, with a swap now
//! and then; the longest silence at the output around each swap is compared with the longest
//! silences of equally long times without a swap.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use guest_artifacts as guests;
use millrace_broker::{Caller, NewMessage, Session};
use millrace_model::{
    Durability, Message, PartitionId, ProcessorSpec, Timestamp, TopicName, TopicPartition,
};
use serde_json::json;

use crate::setup;
use crate::table::{Table, percentile};

const SWAPS: usize = 200;
/// Time between two swaps; half of it counts as time without a swap.
const BETWEEN: Duration = Duration::from_millis(100);
/// Time between two messages.
const PACE: Duration = Duration::from_micros(500);

/// Adds the one row.
pub(crate) async fn measure(table: &mut Table) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let components = setup::components(directory.path())?;
    let engine = setup::engine(directory.path()).await?;
    let broker = setup::broker(&engine, components).await?;
    let session = broker.session(Caller::unnamed());
    for name in ["in", "out"] {
        setup::topic(&session, name, 1, Durability::Os).await?;
    }
    let mut specs = Vec::new();
    for guest in [guests::STAMP_1, guests::STAMP_2] {
        let module = session
            .catalogue()
            .upload_module(Bytes::from_static(guest), None);
        let spec = json!({"topics": ["in"], "output": "out", "module": module.await?.facts.digest});
        specs.push(serde_json::from_value::<ProcessorSpec>(spec)?);
    }
    let name = "stamp".parse()?;
    session.processors().deploy(&name, specs[0].clone()).await?;
    let over = Arc::new(AtomicBool::new(false));
    let producing = tokio::spawn(produce(session.clone(), Arc::clone(&over)));
    let out = session
        .catalogue()
        .topic(&"out".parse()?)
        .context("topic out")?
        .id;
    let out = TopicPartition {
        topic: out,
        partition: PartitionId(0),
    };
    let watching = tokio::spawn(watch(engine.clone(), out, Arc::clone(&over)));
    let (mut swaps, mut quiet) = (Vec::new(), Vec::new());
    for spec in specs.iter().cycle().skip(1).take(SWAPS) {
        tokio::time::sleep(BETWEEN / 2).await;
        let began = Instant::now();
        tokio::time::sleep(BETWEEN / 2).await;
        quiet.push((began, Instant::now()));
        let began = Instant::now();
        session.processors().deploy(&name, spec.clone()).await?;
        swaps.push((began, Instant::now() + BETWEEN / 4));
    }
    over.store(true, Ordering::Relaxed);
    let produced = producing.await??;
    let arrivals = watching.await??;
    broker.stop().await;
    ensure!(produced > SWAPS, "only {produced} messages");
    let silence = |times: &[(Instant, Instant)], share| {
        let longest = times.iter().map(|time| longest_silence(&arrivals, *time));
        percentile(longest.collect(), share)
    };
    table.row(
        &format!("hot swap, longest silence of the partition around each of {SWAPS}"),
        format!(
            "p50 {:.1} ms, p99 {:.1} ms",
            silence(&swaps, 0.5),
            silence(&swaps, 0.99)
        ),
        "without a swap",
        format!(
            "p50 {:.1} ms, p99 {:.1} ms",
            silence(&quiet, 0.5),
            silence(&quiet, 0.99)
        ),
        "p99 ≤ 20 ms".to_owned(),
    );
    Ok(())
}

/// The most milliseconds between two arrivals, at least one of which is within the span.
fn longest_silence(arrivals: &[Instant], (from, to): (Instant, Instant)) -> f64 {
    let first = arrivals.partition_point(|at| *at < from).saturating_sub(1);
    let after = arrivals.partition_point(|at| *at <= to);
    let within = &arrivals[first..(after + 1).min(arrivals.len())];
    let silences = within
        .windows(2)
        .map(|pair| pair[1].duration_since(pair[0]));
    silences.max().unwrap_or_default().as_secs_f64() * 1_000.0
}

async fn produce(session: Session, over: Arc<AtomicBool>) -> Result<usize> {
    let topic: TopicName = "in".parse()?;
    let mut produced = 0;
    while !over.load(Ordering::Relaxed) {
        let message = NewMessage {
            deliver_at: None,
            partition: None,
            message: Message {
                key: None,
                value: Some(Bytes::from_static(b"hello")),
                headers: Vec::new(),
                timestamp: Timestamp(1_700_000_000_000),
            },
        };
        session.messages().produce(&topic, vec![message]).await?;
        produced += 1;
        tokio::time::sleep(PACE).await;
    }
    Ok(produced)
}

/// Records when each output arrived.
async fn watch(
    engine: Arc<dyn millrace_engine::Engine>,
    out: TopicPartition,
    over: Arc<AtomicBool>,
) -> Result<Vec<Instant>> {
    let mut watch = engine.watch(out)?;
    let mut arrivals = Vec::new();
    while !over.load(Ordering::Relaxed) {
        let end = watch.end();
        // Nothing more arrives once it is over.
        if let Ok(end) = tokio::time::timeout(BETWEEN, watch.past(end)).await {
            end.context("the topic is gone")?;
            arrivals.push(Instant::now());
        }
    }
    Ok(arrivals)
}
