//! Hosts on one store, and how one of them gets exclusive work.

use std::fmt;
use std::sync::Arc;

use tokio::sync::watch;

use super::lease::Lease;

/// A host for the life of its process: a restarted one is a different host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostId(pub u64);

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A living host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostInfo {
    /// Its id.
    pub id: HostId,
    /// The address for other hosts and clients; empty if it gave none.
    pub address: Arc<str>,
}

impl HostInfo {
    /// What people call it: its address, or its id if it gave none.
    #[must_use]
    pub fn name(&self) -> String {
        match self.address.is_empty() {
            true => self.id.to_string(),
            false => self.address.to_string(),
        }
    }
}

/// A group's work in a partition: exclusive to this host until it releases it, is considered dead, or the work is claimed.
#[derive(Clone, Debug)]
pub struct Hold {
    /// The lease to commit with.
    pub lease: Lease,
    /// Whether the previous holder ended without releasing it, perhaps in the middle of a call. On release, the holder sets whether
    /// this should be reported again.
    pub left: bool,
    lost: watch::Receiver<bool>,
}

impl Hold {
    /// A hold; `lost` turns true, or is closed, when it is lost.
    #[must_use]
    pub fn new(lease: Lease, left: bool, lost: watch::Receiver<bool>) -> Self {
        Self { lease, left, lost }
    }

    /// Whether it is known to be lost. Commits under it then fail with [`CommitError::Fenced`](super::CommitError::Fenced), and even
    /// before that is known.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        *self.lost.borrow() || self.lost.has_changed().is_err()
    }

    /// Waits until it is lost.
    pub async fn lost(&mut self) {
        // A closed sender means the same.
        let _ = self.lost.wait_for(|lost| *lost).await;
    }
}
