//! The hosts of a world, each with its own ways to the servers of the store.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use rustix::process::{Signal, kill_process};

use super::forwarder::{Forwarder, Weather};
use super::store::Store;
use crate::{Client, Host};

/// One of the hosts.
pub(super) struct Member {
    pub(super) host: Host,
    /// One to each server of the store.
    ways: Vec<Forwarder>,
    log: PathBuf,
}

impl Member {
    /// A host that is not started yet.
    pub(super) fn new(
        binary: &Path,
        directory: &Path,
        number: usize,
        store: &dyn Store,
    ) -> Result<Self> {
        let ways = store.upstreams().into_iter().map(Forwarder::start);
        let ways: Vec<Forwarder> = ways.collect::<Result<_>>()?;
        let ports: Vec<u16> = ways.iter().map(Forwarder::port).collect();
        let options = store.options(&ports);
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let log = directory.join(format!("host-{number}.log"));
        let data = directory.join(format!("host-{number}"));
        let mut host = Host::in_directory(binary, &data, &options);
        host.log_to(&log);
        Ok(Self { host, ways, log })
    }

    /// What happens to all its connections to the store.
    pub(super) fn set(&self, weather: Weather) {
        self.ways.iter().for_each(|way| way.set(weather));
    }

    /// New connections go where the servers are now.
    pub(super) fn lead_to(&self, store: &dyn Store) {
        for (way, upstream) in self.ways.iter().zip(store.upstreams()) {
            way.lead_to(upstream);
        }
    }

    /// Starts it; an error has the end of its log.
    pub(super) fn start(&mut self) -> Result<()> {
        let started = self.host.start_again();
        started.with_context(|| self.says())
    }

    /// Starts it with a clock that is so many hours ahead, or behind.
    pub(super) fn start_at(&mut self, hours: i32) -> Result<()> {
        let library = clocks().context("no libfaketime")?;
        let mut command = self.host.serve_command();
        command.env("LD_PRELOAD", library);
        command.env("FAKETIME", format!("{hours:+}h"));
        command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        self.host.spawn_as(command)?;
        let started = self.host.wait_until_ready();
        started.with_context(|| self.says())
    }

    pub(super) fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(self.host.pid()?, signal)?;
        Ok(())
    }

    pub(super) fn client(&self) -> Client {
        self.host.client()
    }

    /// The end of its log.
    pub(super) fn says(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let mut last: Vec<&str> = log.lines().rev().take(5).collect();
        last.reverse();
        format!("its log ends with {last:?}")
    }
}

/// The library that changes a process's clock, if it is installed.
pub(super) fn clocks() -> Option<PathBuf> {
    let found = Command::new("sh")
        .args(["-c", "ls /usr/lib/*/faketime/libfaketimeMT.so.1"])
        .output();
    let found = String::from_utf8(found.ok()?.stdout).ok()?;
    let first = found.lines().next()?;
    Some(first.into())
}
