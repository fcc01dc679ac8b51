//! A start after a kill, with many topics and the longest possible journal between two checkpoints.

use std::time::Instant;

use anyhow::Result;
use millrace_engine::{Append, Transaction};
use millrace_local::LocalOptions;
use millrace_model::Durability;

use crate::log::named_topic;
use crate::setup;
use crate::table::Table;

const TOPICS: usize = 1_000;

/// One row.
pub(crate) async fn measure(table: &mut Table) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let engine = setup::engine(directory.path()).await?;
    let mut partitions = Vec::with_capacity(TOPICS);
    for number in 0..TOPICS {
        let name = format!("topic-{number}");
        partitions.extend(named_topic(&engine, &name, Durability::Os, 1).await?);
    }
    let batch = setup::batch(100, 100)?;
    let journal_bytes = LocalOptions::default().checkpoint_journal_bytes as usize * 9 / 10;
    let commits = journal_bytes / batch.byte_count();
    for number in 0..commits {
        let append = Append {
            partition: partitions[number % TOPICS],
            batch: batch.clone(),
        };
        engine.commit(Transaction::produce(vec![append])).await?;
    }
    // Drops the engine without closing it, as a kill would.
    drop(engine);
    let began = Instant::now();
    let engine = setup::engine(directory.path()).await?;
    let took = began.elapsed();
    engine.close().await;
    table.row(
        &format!(
            "start after a kill, {TOPICS} topics, {} MiB of journal",
            journal_bytes >> 20
        ),
        format!("{:.2} s", took.as_secs_f64()),
        "",
        String::new(),
        "≤ 2 s".to_owned(),
    );
    Ok(())
}
