//! The flusher's thread: writes tails to files when memory fills, and makes checkpoints, after which journal files are used
//! again. Nobody waits for it but the committer, at the bound on memory.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use millrace_model::Offset;
use parking_lot::{Condvar, Mutex};

use super::keeper::{KeepError, Keeper};
use super::pipeline::FLUSHER;
use super::shared::{PoisonOnPanic, Shared};
use super::state::Changes;
use super::tail::Partition;

/// How long the flusher waits for room on a full disk before it tries again.
const FULL_RETRY_DELAY: Duration = Duration::from_millis(100);

/// What the flusher is asked to do.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Orders {
    pub(super) flush: bool,
    pub(super) checkpoint: bool,
    pub(super) stop: Option<Stop>,
}

/// How to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// With a last checkpoint, so that the next start has nothing to replay.
    InOrder,
    /// At once; the journal has everything.
    AtOnce,
}

/// Where orders are left.
#[derive(Default)]
pub(super) struct OrderBook {
    orders: Mutex<Orders>,
    changed: Condvar,
}

impl OrderBook {
    /// Adds to what is asked for.
    pub(super) fn ask(&self, change: impl FnOnce(&mut Orders)) {
        change(&mut self.orders.lock());
        self.changed.notify_one();
    }

    /// Waits for orders, at most so long; takes them.
    fn take(&self, patience: Duration) -> Orders {
        let mut orders = self.orders.lock();
        if !orders.flush && !orders.checkpoint && orders.stop.is_none() {
            self.changed.wait_for(&mut orders, patience);
        }
        let stop = orders.stop;
        let taken = std::mem::take(&mut *orders);
        orders.stop = stop;
        taken
    }
}

pub(super) struct Flusher {
    pub(super) shared: Arc<Shared>,
    pub(super) keeper: Keeper,
    /// What a checkpoint that found the disk full was to write.
    unsaved: Option<Changes>,
    /// What the last checkpoint holds.
    sequence: u64,
    made_at: Duration,
}

impl Flusher {
    pub(super) fn new(shared: Arc<Shared>, keeper: Keeper) -> Self {
        let sequence = shared.journal.lock().last_sequence();
        let made_at = shared.clock.monotonic();
        Self {
            shared,
            keeper,
            unsaved: None,
            sequence,
            made_at,
        }
    }

    /// Works until told to stop, or until the disk fails.
    pub(super) fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let _poison = PoisonOnPanic(&shared);
        let mut waits_for_room = false;
        loop {
            let patience = if waits_for_room {
                FULL_RETRY_DELAY
            } else {
                shared.options.checkpoint_interval
            };
            let orders = shared.orders.take(patience);
            if orders.stop == Some(Stop::AtOnce) || shared.poisoned().is_some() {
                return;
            }
            waits_for_room = match self.work(orders) {
                Ok(()) => false,
                Err(KeepError::Full) => true,
                Err(KeepError::Failed(reason)) => return shared.poison(&reason),
            };
            shared.set_disk_full(waits_for_room);
            if orders.stop.is_some() {
                return;
            }
        }
    }

    fn work(&mut self, orders: Orders) -> Result<(), KeepError> {
        self.flush_tails()?;
        self.evict();
        let due = self.shared.clock.monotonic().saturating_sub(self.made_at)
            >= self.shared.options.checkpoint_interval;
        let asked = orders.checkpoint || orders.stop.is_some() || self.unsaved.is_some();
        if due || asked || self.shared.state.read().has_removed_topics() {
            self.checkpoint()?;
            self.evict();
        }
        Ok(())
    }

    fn flush_tails(&mut self) -> Result<(), KeepError> {
        let partitions: Vec<Arc<Partition>> = {
            let state = self.shared.state.read();
            let unflushed = state.partitions.values().filter(|p| p.is_unflushed());
            unflushed.cloned().collect()
        };
        for partition in partitions {
            self.keeper.flush(&partition, Offset::MAX)?;
        }
        Ok(())
    }

    /// Halves memory, if it is more than half full: the newest batches stay for readers that keep up.
    fn evict(&self) {
        let wanted = self.shared.options.tail_bytes_max / 2;
        let held = self.shared.tail_bytes.load(Ordering::Relaxed);
        let mut excess = held.saturating_sub(wanted);
        if excess == 0 {
            return;
        }
        let partitions: Vec<Arc<Partition>> = self
            .shared
            .state
            .read()
            .partitions
            .values()
            .cloned()
            .collect();
        for partition in partitions {
            let evicted = partition.evict(excess);
            self.shared.release(evicted);
            excess = excess.saturating_sub(evicted);
            if excess == 0 {
                return;
            }
        }
    }

    fn checkpoint(&mut self) -> Result<(), KeepError> {
        self.made_at = self.shared.clock.monotonic();
        let snapshot = self.snapshot()?;
        if snapshot.sequence == self.sequence && self.unsaved.is_none() {
            return Ok(());
        }
        let changes = match self.unsaved.take() {
            Some(mut earlier) => {
                earlier.merge(snapshot.changes);
                earlier
            }
            None => snapshot.changes,
        };
        let made = self.write(
            snapshot.sequence,
            snapshot.journal_file,
            &snapshot.ends,
            &changes,
        );
        if let Err(error) = made {
            self.unsaved = Some(changes);
            return Err(error);
        }
        self.sequence = snapshot.sequence;
        let removed = changes.removed.iter().flat_map(|r| &r.partitions);
        removed.for_each(|partition| self.shared.release(partition.clear()));
        self.keeper.sweep();
        metrics::counter!("millrace_checkpoints_total").increment(1);
        let mut journal = self.shared.journal.lock();
        journal.recycle_before(snapshot.journal_file)?;
        let written = journal.written_bytes();
        self.shared
            .checkpointed_bytes
            .store(written, Ordering::Relaxed);
        Ok(())
    }

    /// Everything as of one moment between two groups; the journal goes on in a new file from there.
    fn snapshot(&self) -> Result<Snapshot, KeepError> {
        let mut journal = self.shared.journal.lock();
        if !self.shared.pipeline.line().is_empty() {
            // What it holds must be shown, or the files would end before it does.
            let settled = self.shared.settle(&mut journal, FLUSHER);
            settled.map_err(|error| KeepError::Failed(error.to_string()))?;
        }
        let sequence = journal.last_sequence();
        let journal_file = journal.rotate()?;
        let mut state = self.shared.state.write();
        let unflushed = state.partitions.values().filter(|p| p.is_unflushed());
        let ends = unflushed.map(|p| (Arc::clone(p), p.end())).collect();
        Ok(Snapshot {
            sequence,
            journal_file,
            ends,
            changes: state.take_changes(),
        })
    }

    fn write(
        &mut self,
        sequence: u64,
        journal_file: u64,
        ends: &[(Arc<Partition>, Offset)],
        changes: &Changes,
    ) -> Result<(), KeepError> {
        for (partition, end) in ends {
            self.keeper.flush(partition, *end)?;
        }
        self.keeper.checkpoint(sequence, journal_file, changes)
    }
}

struct Snapshot {
    sequence: u64,
    journal_file: u64,
    ends: Vec<(Arc<Partition>, Offset)>,
    changes: Changes,
}
