//! The turn to read a table and then write it.

use std::sync::Arc;

use tokio::sync::{Mutex, OwnedMutexGuard};

use super::StateTable;

/// The exclusive right to read and then write.
#[derive(Debug)]
pub struct Turn {
    table: Arc<StateTable>,
    held: Option<HeldTurn>,
    version: u64,
}

/// A turn that lasts until everybody has dropped it: a committer passes it along with its writes, so that nobody else reads before they
/// are applied, even if the committer goes away.
#[derive(Clone, Debug)]
pub struct HeldTurn {
    guard: Arc<OwnedMutexGuard<()>>,
}

impl HeldTurn {
    async fn of(turn: &Arc<Mutex<()>>) -> Self {
        Self {
            guard: Arc::new(Arc::clone(turn).lock_owned().await),
        }
    }

    /// The turn, if it is free.
    pub(super) fn try_of(turn: &Arc<Mutex<()>>) -> Option<Self> {
        let guard = Arc::clone(turn).try_lock_owned().ok()?;
        Some(Self {
            guard: Arc::new(guard),
        })
    }

    /// Whether it is a turn of this table.
    pub fn is_of(&self, table: &StateTable) -> bool {
        Arc::ptr_eq(OwnedMutexGuard::mutex(&self.guard), table.turn_mutex())
    }
}

impl Turn {
    pub(super) async fn of(table: &Arc<StateTable>) -> Self {
        let held = HeldTurn::of(table.turn_mutex()).await;
        Self {
            version: table.version(),
            table: Arc::clone(table),
            held: Some(held),
        }
    }

    /// Pauses the right: a holder that has to wait lets others write.
    pub fn pause(&mut self) {
        self.version = self.table.version();
        self.held = None;
    }

    /// Resumes it after a pause; returns whether nobody wrote meanwhile, so that earlier reads are still valid.
    pub async fn resume(&mut self) -> bool {
        if self.held.is_none() {
            self.held = Some(HeldTurn::of(self.table.turn_mutex()).await);
        }
        self.version == self.table.version()
    }

    /// The turn to pass along with writes; `None` during a pause.
    #[must_use]
    pub fn held(&self) -> Option<HeldTurn> {
        self.held.clone()
    }
}
