//! Committed and pending data: the journal, the state that follows from it, and the pipeline of
//! transactions that are written but not visible yet. All threads of the engine share it.

use std::sync::Arc;

use millrace_engine::contract::CommitError;
use millrace_log::Journal;
use millrace_model::Clock;
use parking_lot::{Mutex, RwLock};

use crate::decide::state::{Paging, State};
use crate::ground::options::LocalOptions;
use crate::ground::tail::Partition;
use crate::write::headroom::Headroom;
use crate::write::orders::OrderBook;
use crate::write::pipeline::Pipeline;
use crate::write::poison::Poison;
use crate::write::reserve::Reserve;

pub(crate) struct Commits {
    pub(crate) options: LocalOptions,
    pub(crate) clock: Arc<dyn Clock>,
    /// Locked before `state`, by the committer for a group, by the flusher for a snapshot.
    pub(crate) journal: Mutex<Journal>,
    /// Locked for writing once for a whole group, and once for everything that becomes visible
    /// together, so that a reader sees whole transactions.
    pub(crate) state: RwLock<State>,
    /// Locked after `journal` and `state`.
    pub(crate) pipeline: Pipeline,
    pub(crate) orders: Arc<OrderBook>,
    pub(crate) reserve: Arc<Reserve>,
    pub(crate) headroom: Headroom,
    poison: Arc<Poison>,
}

impl Commits {
    pub(crate) fn new(
        options: LocalOptions,
        clock: Arc<dyn Clock>,
        journal: Journal,
        state: State,
        reserve: Arc<Reserve>,
    ) -> Self {
        let (orders, poison) = <(Arc<OrderBook>, Arc<Poison>)>::default();
        let headroom = Headroom::new(
            &options,
            Paging::new(&state.room, &options),
            Arc::clone(&orders),
            Arc::clone(&reserve),
            Arc::clone(&poison),
        );
        Self {
            options,
            clock,
            pipeline: Pipeline::new(journal.synced_sequence()),
            journal: Mutex::new(journal),
            state: RwLock::new(state),
            orders,
            reserve,
            headroom,
            poison,
        }
    }

    /// All current partitions.
    pub(crate) fn partitions(&self) -> Vec<Arc<Partition>> {
        self.state.read().partitions.values().cloned().collect()
    }

    /// Poisons the engine: nothing is acknowledged any more. The first reason is kept.
    pub(crate) fn poison(&self, reason: &str) {
        self.poison.set(reason);
        if let Some(poisoned) = self.poisoned() {
            self.pipeline.fail(&poisoned);
        }
        self.headroom.wake_committer();
    }

    pub(crate) fn poisoned(&self) -> Option<CommitError> {
        self.poison.poisoned()
    }
}

/// Poisons the engine if a thread panics, because it is unknown what the thread had done.
pub(crate) struct PoisonOnPanic<'a>(pub(crate) &'a Commits);

impl Drop for PoisonOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0
                .poison("a thread of the engine panicked; please report this");
        }
    }
}
