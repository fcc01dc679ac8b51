//! Delays syncs by strace: what was written stays only in memory for long enough to cut the power.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use super::super::disk;
use super::{World, stop, within_patience};

/// Longer than the time from the moment when a frame is written until the process has been ended.
const DELAY_MICROS: u32 = 50_000;

/// Syncs are slow until this ends.
pub(super) struct SlowSyncs(Child);

/// Starts to delay syncs, if this machine can do that.
pub(super) fn begin(world: &World) -> Result<Option<SlowSyncs>> {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    let traces = || disk::tool("strace", &["-qq", "-o", "/dev/null", "true"]).is_ok();
    if !AVAILABLE.get_or_init(traces) {
        return Ok(None);
    }
    let pid = world.host.pid()?;
    let calls = "fdatasync,fsync";
    let tracer = Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null", "-e"])
        .arg(format!("trace={calls}"))
        .arg("-e")
        .arg(format!("inject={calls}:delay_enter={DELAY_MICROS}"))
        .args(["-p", &pid.to_string()])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let mut slow = SlowSyncs(tracer.context("strace does not run")?);
    let began = within_patience(|| Ok(is_traced(pid) || slow.0.try_wait()?.is_some()))?;
    Ok((began.is_some() && is_traced(pid)).then_some(slow))
}

impl SlowSyncs {
    /// Ends the process before any sync begins.
    pub(super) fn end_host(self, world: &World) -> Result<()> {
        kill_process(world.host.pid()?, Signal::KILL)?;
        Ok(())
    }
}

impl Drop for SlowSyncs {
    fn drop(&mut self) {
        // Usually it has ended with the host.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether all threads are traced.
fn is_traced(pid: Pid) -> bool {
    let threads = stop::threads(pid);
    !threads.is_empty() && threads.iter().all(|thread| has_tracer(thread))
}

fn has_tracer(thread: &Path) -> bool {
    let status = std::fs::read_to_string(thread.join("status")).unwrap_or_default();
    let tracer = status
        .lines()
        .find_map(|line| line.strip_prefix("TracerPid:"));
    tracer.is_some_and(|tracer| tracer.trim() != "0")
}
