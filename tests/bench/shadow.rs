//! The cost of a shadow: the upper-case processor works off a backlog, alone and with another
//! revision called beside it. Alone, each partition has a core; the difference is what the shadow
//! costs.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use guest_artifacts as guests;
use millrace_broker::{Caller, Session};
use millrace_engine::{Append, Transaction};
use millrace_model::{Durability, PartitionId, ProcessorName, ProcessorSpec, TopicPartition};
use serde_json::json;

use crate::setup;
use crate::table::{Table, median};

const MESSAGES: usize = 1_000_000;
const PER_COMMIT: usize = 1_000;
const PARTITIONS: u32 = 2;
const VALUE_BYTES: usize = 100;
const ROUNDS: usize = 5;

/// One round.
struct Run {
    per_second: f64,
    /// The share of the messages that the shadow was called with.
    compared: f64,
}

pub(crate) async fn measure(table: &mut Table) -> Result<()> {
    let (mut shadowed, mut alone, mut compared) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let with = run(true).await?;
        shadowed.push(with.per_second);
        compared.push(with.compared);
        alone.push(run(false).await?.per_second);
    }
    let (shadowed, alone, compared) = (median(shadowed), median(alone), median(compared));
    table.row(
        &format!(
            "upper-case with a shadow that saw {:.0} % (backlog, 100 B, os)",
            compared * 100.0
        ),
        format!("{shadowed:.0} messages/s"),
        "the same without a shadow",
        format!("{alone:.0} messages/s"),
        format!("{:.0} %", shadowed / alone * 100.0),
    );
    Ok(())
}

async fn run(has_shadow: bool) -> Result<Run> {
    let directory = tempfile::tempdir()?;
    let components = setup::components(directory.path())?;
    let engine = setup::engine(directory.path()).await?;
    let broker = setup::broker(&engine, components).await?;
    let session = broker.session(Caller::unnamed());
    for name in ["in", "out"] {
        setup::topic(&session, name, PARTITIONS, Durability::Os).await?;
    }
    let name: ProcessorName = "worker".parse().context("a name")?;
    session
        .processors()
        .deploy(&name, spec(&session, guests::UPPERCASE).await?)
        .await?;
    session.processors().pause(&name).await?;
    if has_shadow {
        let other = spec(&session, guests::PASSTHROUGH).await?;
        session.processors().deploy_shadow(&name, other).await?;
    }
    let topic = session
        .catalogue()
        .topic(&"in".parse()?)
        .context("topic in")?;
    let batch = setup::batch(PER_COMMIT, VALUE_BYTES)?;
    for commit in 0..MESSAGES / PER_COMMIT {
        let partition = TopicPartition {
            topic: topic.id,
            partition: PartitionId(commit as u32 % PARTITIONS),
        };
        let batch = batch.clone();
        let append = Append { partition, batch };
        engine.commit(Transaction::produce(vec![append])).await?;
    }
    let out = session
        .catalogue()
        .topic(&"out".parse()?)
        .context("topic out")?;
    let count = || {
        let ends = (0..PARTITIONS)
            .filter_map(|number| session.catalogue().ends(&out, PartitionId(number)));
        ends.map(|ends| ends.end.0).sum::<u64>()
    };
    let began = Instant::now();
    session.processors().resume(&name, None).await?;
    while count() < MESSAGES as u64 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let seconds = began.elapsed().as_secs_f64();
    let compared = match has_shadow {
        true => session.processors().shadow_report(&name)?.compared as f64 / MESSAGES as f64,
        false => 0.0,
    };
    broker.stop().await;
    Ok(Run {
        per_second: MESSAGES as f64 / seconds,
        compared,
    })
}

async fn spec(session: &Session, guest: &'static [u8]) -> Result<ProcessorSpec> {
    let module = session
        .catalogue()
        .upload_module(Bytes::from_static(guest), None)
        .await?;
    let spec = json!({"topics": ["in"], "output": "out", "module": module.facts.digest});
    Ok(serde_json::from_value(spec)?)
}
