//! A memory limit that the host reaches, so that the kernel kills it. Needs cgroups of version 1
//! and the right to create one.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, bail, ensure};

use super::super::clients::TIMEOUT;
use super::super::world::QUICK;
use super::{Fault, World, note, within_patience};
use crate::Client;

const CONTROLLER: &str = "/sys/fs/cgroup/memory";
/// How far above the host's present use the limit is set.
const ROOM_BYTES: u64 = 2 << 20;
/// Simultaneous requests that are larger than the room.
const HUGE_REQUESTS: u32 = 4;
const HUGE_BYTES: usize = 12 << 20;
const SIGKILL: i32 = 9;
const UNLIMITED: &str = "-1";

pub(super) fn available() -> Result<(), String> {
    let attempt = || -> Result<()> {
        ensure!(rustix::process::geteuid().is_root(), "not root");
        ensure!(Path::new(CONTROLLER).is_dir(), "no memory controller");
        let group = Path::new(CONTROLLER).join(format!("millrace-torture-{}", std::process::id()));
        fs::create_dir(&group)?;
        let limit = fs::write(group.join("memory.limit_in_bytes"), UNLIMITED);
        fs::remove_dir(&group)?;
        Ok(limit?)
    };
    attempt().map_err(|error| format!("needs root and cgroup v1 memory limits ({error:#})"))
}

/// Starts the host in a group of its own.
pub(super) fn start(world: &mut World) -> Result<()> {
    let group = group(world);
    fs::create_dir(&group)?;
    world.group = Some(Group(group));
    spawn(world)?;
    world.host.wait_until_ready()
}

/// Lowers the limit to the present use, and sends requests that need more.
pub(super) fn inject(world: &mut World) -> Result<Option<u32>> {
    let group = group(world);
    let used: u64 = fs::read_to_string(group.join("memory.usage_in_bytes"))?
        .trim()
        .parse()?;
    let limit = (used + ROOM_BYTES).to_string();
    fs::write(group.join("memory.limit_in_bytes"), limit)?;
    let url = world.host.url().to_owned();
    let hogs: Vec<_> = (0..HUGE_REQUESTS)
        .map(|_| {
            thread::spawn({
                let url = url.clone();
                move || hog(&url)
            })
        })
        .collect();
    let mut status = None;
    within_patience(|| {
        status = world.host.ended()?;
        Ok(status.is_some())
    })?;
    for hog in hogs {
        let _ = hog.join();
    }
    let status = status.context("the kernel does not kill a host without memory")?;
    if status.signal() != Some(SIGKILL) {
        bail!("without memory the host ended with {status}");
    }
    note(world, Fault::Memory, "the kernel killed it");
    drop(world.shared.shut());
    fs::write(group.join("memory.limit_in_bytes"), UNLIMITED)?;
    Ok(world.recover()?.then_some(1))
}

/// Sends requests for a partition that does not exist; the host holds each body until it has found
/// that out.
fn hog(url: &str) {
    let client = Client::with_timeout(url, TIMEOUT);
    let body = vec![b'x'; HUGE_BYTES];
    for _ in 0..20 {
        let path = format!("/v1/topics/{QUICK}/messages?partition=9999");
        if client
            .post(&path, "application/octet-stream", &body)
            .is_err()
        {
            return;
        }
    }
}

/// Starts the host so that it is in the group from the first moment.
pub(super) fn spawn(world: &mut World) -> Result<()> {
    let serve = world.host.serve_command();
    let mut command = Command::new("sh");
    command
        .args(["-c", "echo $$ > \"$0/cgroup.procs\" && exec \"$@\""])
        .arg(group(world))
        .arg(serve.get_program())
        .args(serve.get_args());
    for (name, value) in serve.get_envs() {
        if let Some(value) = value {
            command.env(name, value);
        }
    }
    world.host.spawn_as(command)
}

/// A memory group; removed when the host is gone.
pub(crate) struct Group(PathBuf);

impl Drop for Group {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.0) {
            eprintln!("torture: {}: {error}", self.0.display());
        }
    }
}

fn group(world: &World) -> PathBuf {
    Path::new(CONTROLLER).join(format!(
        "millrace-torture-{}-{}",
        std::process::id(),
        world.seed
    ))
}
