//! Does memory stay flat while five million messages take the whole path?

use std::time::Duration;

use anyhow::{Context, Result};
use millrace_broker::Caller;
use millrace_model::Durability;

use crate::table::Table;
use crate::{path, setup};

const WARM_UP: u64 = 1_000_000;
const MESSAGES: u64 = 5_000_000;
const STEPS: u64 = 10;

/// One row: memory after the warm-up, compared with memory at the end.
pub(crate) async fn measure(table: &mut Table) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let components = setup::components(directory.path())?;
    let engine = setup::engine(directory.path()).await?;
    let broker = path::pipeline(&engine, components, Durability::Os).await?;
    let session = broker.session(Caller::unnamed());
    let start = resident_mib()?;
    path::through(&engine, &session, WARM_UP).await?;
    let warm = resident_mib()?;
    let mut highest = warm;
    for step in 1..=STEPS {
        path::through(&engine, &session, MESSAGES / STEPS).await?;
        let resident = resident_mib()?;
        eprintln!(
            "  after {} more: {resident:.0} MiB",
            step * MESSAGES / STEPS
        );
        highest = highest.max(resident);
    }
    let end = resident_mib()?;
    broker.stop().await;
    table.row(
        "resident memory after 5,000,000 more messages",
        format!("{end:.0} MiB, highest {highest:.0} MiB"),
        "after the first 1,000,000",
        format!("{warm:.0} MiB (empty: {start:.0} MiB)"),
        format!("{:.2}", end / warm),
    );
    Ok(())
}

fn resident_mib() -> Result<f64> {
    status_mib("VmRSS:")
}

/// A value of this process's memory, as the kernel reports it under this name.
pub(crate) fn status_mib(name: &str) -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .with_context(|| format!("no {name}"))?;
    let kib: f64 = line.trim().trim_end_matches(" kB").trim().parse()?;
    Ok(kib / 1024.0)
}

/// CPU time of this process, in user and system mode.
pub(crate) fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
}
