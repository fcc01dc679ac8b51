//! What several hosts share. A store starts its servers, says how a host reaches them, and suffers faults of its own.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Result, bail};
use fastrand::Rng;

use super::forwarder::Upstream;
use super::jetstream::Servers;
use super::postgres::Cluster;
use crate::torture::history::Fault;

/// The engines whose stores this program can start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreKind {
    /// A PostgreSQL server, with a synchronous standby in some worlds.
    Postgres,
    /// Three NATS servers with a stream.
    Jetstream,
}

impl fmt::Display for StoreKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Postgres => "postgres",
            Self::Jetstream => "jetstream",
        })
    }
}

impl FromStr for StoreKind {
    type Err = anyhow::Error;

    fn from_str(word: &str) -> Result<Self> {
        match word {
            "postgres" => Ok(Self::Postgres),
            "jetstream" => Ok(Self::Jetstream),
            _ => bail!("no such engine; there are postgres and jetstream"),
        }
    }
}

/// What several hosts share. Dropping it ends its servers.
pub(super) trait Store {
    /// Where connections of hosts go, for each server that they know. A fault may change it, but not how many there are.
    fn upstreams(&self) -> Vec<Upstream>;

    /// The options of a host that reaches the servers at these ports of the loopback.
    fn options(&self, ports: &[u16]) -> Vec<String>;

    /// Injects a fault and waits until the store serves again; returns what was done.
    fn inject(&mut self, fault: Fault, random: &mut Rng) -> Result<String>;

    /// Called when the hosts have gone on after the fault: makes the store ready for the next one.
    fn mend(&mut self, fault: Fault) -> Result<()>;

    /// The directory with the logs of the servers.
    fn logs(&self) -> PathBuf;
}

impl StoreKind {
    /// The faults of hosts on this store: their own, and those of the store.
    #[must_use]
    pub fn faults(self) -> Vec<Fault> {
        let own: &[Fault] = match self {
            Self::Postgres => &Cluster::FAULTS,
            Self::Jetstream => &Servers::FAULTS,
        };
        [&Fault::OF_A_HOST, own].concat()
    }

    /// What is missing for the fault, if this machine cannot inject it into the store.
    pub(super) fn missing(self, fault: Fault) -> Option<String> {
        if !self.faults().contains(&fault) {
            return Some(format!("no fault of {self}"));
        }
        match self {
            Self::Postgres => Cluster::missing(fault),
            Self::Jetstream => Servers::missing(),
        }
    }

    /// Starts a store that can suffer these faults, with its files below the directory.
    pub(super) fn start(self, directory: &Path, faults: &[Fault]) -> Result<Box<dyn Store>> {
        Ok(match self {
            Self::Postgres => Box::new(Cluster::start(directory, faults)?),
            Self::Jetstream => Box::new(Servers::start()?),
        })
    }
}
