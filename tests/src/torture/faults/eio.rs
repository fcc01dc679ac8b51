//! A sync that fails. What is on the disk is then unknown: the host must acknowledge nothing more
//! and end with code 7, and a start on the repaired disk must find everything that was
//! acknowledged.
//!
//! The seed chooses one of two ways: the system call is made to fail (strace), or the medium under
//! the file system breaks.

use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use super::super::disk::{self, LoopDisk};
use super::{Fault, World, note, note_as, unexpected, within_patience};

/// The host's exit code after a disk error.
const POISONED: i32 = 7;
const DISK_BYTES: u64 = 192 << 20;
/// Less than the size that the disk claims; the rest is used up at the time of the fault.
const MEDIUM_BYTES: u64 = 96 << 20;

pub(super) fn available() -> Result<(), String> {
    let traced = disk::tool("strace", &["-qq", "-o", "/dev/null", "true"]);
    let traced =
        traced.map_err(|error| format!("needs strace and the right to use it ({error:#})"));
    traced.or_else(|missing| disk::available().map_err(|why| format!("{missing}; or {why}")))
}

/// A disk that can be made to break, if this machine can do that.
pub(super) fn disk() -> Result<Option<LoopDisk>> {
    match disk::available() {
        Ok(()) => LoopDisk::of(DISK_BYTES, MEDIUM_BYTES, "loop").map(Some),
        Err(_) => Ok(None),
    }
}

pub(super) fn inject(world: &mut World) -> Result<Option<u32>> {
    let breaks = world.disk.is_some() && world.random.bool();
    let mut tracer = None;
    if breaks {
        // The kernel cannot write what it had accepted, and drops it.
        note_as(world, Fault::Eio, "the medium breaks", true);
        world.disk()?.break_down()?;
    } else {
        let nth = world.random.u32(1..6);
        note(
            world,
            Fault::Eio,
            &format!("each thread's sync {nth} fails"),
        );
        tracer = Some(trace(world, nth)?);
    }
    expect_the_end(world)?;
    if let Some(mut tracer) = tracer {
        tracer.kill().context("strace")?;
        tracer.wait()?;
    }
    drop(world.shared.shut());
    if breaks {
        world.disk()?.mend()?;
        world.disk()?.restore()?;
    }
    Ok(world.recover()?.then_some(1))
}

fn expect_the_end(world: &mut World) -> Result<()> {
    let mut status = None;
    within_patience(|| {
        status = world.host.ended()?;
        Ok(status.is_some())
    })?;
    match status {
        Some(status) if status.code() == Some(POISONED) => {}
        Some(status) => unexpected(
            world,
            format!("after a failed sync the host ended with {status}"),
        ),
        None => {
            unexpected(world, "after a failed sync the host goes on".to_owned());
            world.host.kill()?;
        }
    }
    Ok(())
}

/// Attaches to the host; in each thread one sync fails, the `nth` from now.
fn trace(world: &World, nth: u32) -> Result<Child> {
    let calls = "fdatasync,fsync,syncfs";
    let tracer = Command::new("strace")
        .args([
            "-f",
            "-qq",
            "-o",
            "/dev/null",
            "-e",
            &format!("trace={calls}"),
        ])
        .args(["-e", &format!("inject={calls}:error=EIO:when={nth}")])
        .args(["-p", &world.host.pid()?.to_string()])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    tracer.context("strace does not run")
}
