//! What several hosts share. A store starts its servers, says how a host reaches them, and suffers faults of its own.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Result, bail};
use fastrand::Rng;

use super::forwarder::Upstream;
use super::postgres::Cluster;
use crate::torture::history::Fault;

/// The engines whose stores this program can start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreKind {
    /// A PostgreSQL server, with a synchronous standby in some worlds.
    Postgres,
}

impl fmt::Display for StoreKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Postgres => "postgres",
        })
    }
}

impl FromStr for StoreKind {
    type Err = anyhow::Error;

    fn from_str(word: &str) -> Result<Self> {
        match word {
            "postgres" => Ok(Self::Postgres),
            _ => bail!("no such engine; there is postgres"),
        }
    }
}

/// What several hosts share. Dropping it ends its servers.
pub(super) trait Store {
    /// Where connections of hosts go. A fault may change it.
    fn upstream(&self) -> Upstream;

    /// The options of a host that reaches the store at this port of the loopback.
    fn options(&self, port: u16) -> Vec<String>;

    /// Injects a fault and waits until the store serves again; returns what was done.
    fn inject(&mut self, fault: Fault, random: &mut Rng) -> Result<String>;

    /// Called when the hosts have gone on after the fault: makes the store ready for the next one.
    fn mend(&mut self, fault: Fault) -> Result<()>;
}

impl StoreKind {
    /// What is missing for the fault, if this machine cannot inject it into the store.
    pub(super) fn missing(self, fault: Fault) -> Option<String> {
        match self {
            Self::Postgres => Cluster::missing(fault),
        }
    }

    /// Starts a store that can suffer these faults, with its files below the directory.
    pub(super) fn start(self, directory: &Path, faults: &[Fault]) -> Result<Box<dyn Store>> {
        Ok(match self {
            Self::Postgres => Box::new(Cluster::start(directory, faults)?),
        })
    }
}
