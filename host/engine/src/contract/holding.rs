//! Hosts on one store, and how one of them comes to have work for itself.

use std::fmt;
use std::sync::Arc;

use tokio::sync::watch;

use super::lease::Lease;

/// A host for as long as its process lives: one that was started again is another one.
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
    /// Which one.
    pub id: HostId,
    /// Where other hosts and clients reach it; empty if it did not say.
    pub address: Arc<str>,
}

/// The work of a group in a partition: this host's alone, until it gives it back, is taken for dead, or somebody claims it.
#[derive(Clone, Debug)]
pub struct Hold {
    /// The right to commit.
    pub lease: Lease,
    /// Whether whoever had it before ended without giving it back: it may have ended in the middle of a call. Whoever gives the hold back says
    /// here whether that is to be told again.
    pub left: bool,
    lost: watch::Receiver<bool>,
}

impl Hold {
    /// A hold; `lost` turns true, or is closed, when it is lost.
    #[must_use]
    pub fn new(lease: Lease, left: bool, lost: watch::Receiver<bool>) -> Self {
        Self { lease, left, lost }
    }

    /// Whether it is known to be lost. What is committed under it then fails with [`CommitError::Fenced`](super::CommitError::Fenced); until this
    /// is known, too.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        *self.lost.borrow() || self.lost.has_changed().is_err()
    }

    /// Waits until it is lost.
    pub async fn lost(&mut self) {
        // A sender that is gone says it as well.
        let _ = self.lost.wait_for(|lost| *lost).await;
    }
}
