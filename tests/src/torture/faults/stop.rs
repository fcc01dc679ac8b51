//! The process is stopped for a while, as by a debugger or a scheduler that starves it.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::{Fault, World, note, unexpected, within_patience};

/// The system call numbers of fsync and fdatasync in /proc.
#[cfg(target_arch = "x86_64")]
const SYNCS: [&str; 2] = ["74", "75"];
/// Their numbers on other machines.
#[cfg(not(target_arch = "x86_64"))]
const SYNCS: [&str; 2] = ["82", "83"];

/// Stops the process for about as long as clients wait for an answer, then waits until it serves
/// again.
pub(super) fn inject(world: &mut World) -> Result<Option<u32>> {
    let pause_ms = world.random.u64(1_000..4_000);
    note(world, Fault::Stop, &format!("for {pause_ms} ms"));
    stand_still(world, false)?;
    thread::sleep(Duration::from_millis(pause_ms));
    go_on(world)?;
    let client = world.host.client();
    let ready = || {
        Ok(client
            .get("/health/ready")
            .is_ok_and(|reply| reply.status == 200))
    };
    if within_patience(ready)?.is_none() {
        unexpected(world, "not ready after standing still".to_owned());
    }
    Ok(Some(1))
}

/// Stops the process; with `outside_kernel`, waits until each thread has left the kernel.
pub(super) fn stand_still(world: &World, outside_kernel: bool) -> Result<()> {
    let pid = world.host.pid()?;
    // A process that has just ended by itself counts as stopped.
    let _ = kill_process(pid, Signal::STOP);
    if outside_kernel && within_patience(|| Ok(stands_still(pid)))?.is_none() {
        bail!("a thread of the host does not stand still");
    }
    Ok(())
}

/// Lets the process continue.
pub(super) fn go_on(world: &World) -> Result<()> {
    let _ = kill_process(world.host.pid()?, Signal::CONT);
    Ok(())
}

/// Whether a thread of the stopped process is in a sync of a file in that directory: it has called
/// the kernel and has not seen the result.
pub(super) fn is_syncing(pid: Pid, directory: &Path) -> bool {
    let is_amid = |thread: &Path| {
        let call = std::fs::read_to_string(thread.join("syscall")).unwrap_or_default();
        let mut words = call.split_whitespace();
        let is_sync = SYNCS.contains(&words.next().unwrap_or_default());
        let file = words.next().and_then(|word| word.strip_prefix("0x"));
        let file = file.and_then(|hex| u32::from_str_radix(hex, 16).ok());
        let file = file.and_then(|file| std::fs::read_link(format!("/proc/{pid}/fd/{file}")).ok());
        is_sync && file.is_some_and(|file| file.starts_with(directory))
    };
    threads(pid).iter().any(|thread| is_amid(thread))
}

/// The threads' directories in /proc; none if the process is gone.
pub(super) fn threads(pid: Pid) -> Vec<PathBuf> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task"));
    let threads = threads.into_iter().flatten().flatten();
    threads.map(|thread| thread.path()).collect()
}

fn stands_still(pid: Pid) -> bool {
    threads(pid).iter().all(|thread| {
        let stat = std::fs::read_to_string(thread.join("stat")).unwrap_or_default();
        let state = stat
            .rsplit(") ")
            .next()
            .and_then(|rest| rest.chars().next());
        // Stopped, or ended.
        state.is_none_or(|state| "TtZX".contains(state))
    })
}
