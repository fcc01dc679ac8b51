//! How much more may be written before space must be freed: in memory for messages, in the journal,
//! for changes of state, and on the disk. Writers ask here first, wait at the bounds, and call the
//! flusher before the bounds are reached.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use millrace_engine::contract::CommitError;
use parking_lot::{Condvar, Mutex};

use crate::decide::state::Paging;
use crate::ground::options::{JOURNAL_BYTES_FACTOR_MAX, LocalOptions};
use crate::write::orders::OrderBook;
use crate::write::poison::Poison;
use crate::write::reserve::Reserve;

/// Longest sleep of the committer before it checks for room again.
const ROOM_WAIT: Duration = Duration::from_millis(50);

/// How long the committer waits on a full disk for a checkpoint that frees journal files.
const CHECKPOINT_PATIENCE: Duration = Duration::from_secs(5);

/// The remaining room. (Not to be confused with the engine's [`Room`](millrace_engine::Room), the
/// bounds for stored data.)
pub(crate) struct Headroom {
    orders: Arc<OrderBook>,
    reserve: Arc<Reserve>,
    poison: Arc<Poison>,
    /// The memory of state, and the amount at which a checkpoint is made.
    pub(crate) paging: Paging,
    tail_bytes_max: usize,
    checkpoint_journal_bytes: u64,
    /// The weight of batches in memory.
    tail_bytes: AtomicUsize,
    checkpoints_made: AtomicU64,
    /// Journal bytes written; `checkpointed_bytes` has their number when the last checkpoint was
    /// decided.
    journal_bytes: AtomicU64,
    checkpointed_bytes: AtomicU64,
    waiting: Mutex<()>,
    changed: Condvar,
}

impl Headroom {
    pub(crate) fn new(
        options: &LocalOptions,
        paging: Paging,
        orders: Arc<OrderBook>,
        reserve: Arc<Reserve>,
        poison: Arc<Poison>,
    ) -> Self {
        Self {
            orders,
            reserve,
            poison,
            paging,
            tail_bytes_max: options.tail_bytes_max,
            checkpoint_journal_bytes: options.checkpoint_journal_bytes,
            tail_bytes: AtomicUsize::new(0),
            checkpoints_made: AtomicU64::new(0),
            journal_bytes: AtomicU64::new(0),
            checkpointed_bytes: AtomicU64::new(0),
            waiting: Mutex::new(()),
            changed: Condvar::new(),
        }
    }

    /// The weight of batches in memory.
    pub(crate) fn tail_bytes(&self) -> usize {
        self.tail_bytes.load(Ordering::Relaxed)
    }

    /// Notes that batches left memory.
    pub(crate) fn release(&self, weight: usize) {
        if weight > 0 {
            self.tail_bytes.fetch_sub(weight, Ordering::Relaxed);
            self.wake_committer();
        }
    }

    pub(crate) fn set_disk_full(&self, full: bool) {
        if self.reserve.set_full(full) {
            self.wake_committer();
        }
    }

    /// Notes what a group added, and calls the flusher when needed.
    pub(crate) fn note_growth(&self, weight: usize, journal_bytes: u64) {
        // Visible batches of the group may already have left memory for the files before they are
        // counted here.
        let before = self.tail_bytes.fetch_add(weight, Ordering::Relaxed);
        let held = before.wrapping_add(weight);
        let flush = held > self.tail_bytes_max / 2;
        self.journal_bytes.store(journal_bytes, Ordering::Relaxed);
        let checkpoint = self.journal_is_long() || self.paging.is_due();
        if flush || checkpoint {
            self.orders.ask(|orders| {
                orders.flush |= flush;
                orders.checkpoint |= checkpoint;
            });
        }
    }

    /// Waits until memory has room for more messages, and for values of state if the group adds
    /// some.
    ///
    /// # Errors
    /// [`CommitError::DiskFull`] if messages are refused until space is freed.
    pub(crate) fn wait(&self, brings_state: bool) -> Result<(), CommitError> {
        if self.reserve.is_full() {
            return Err(CommitError::DiskFull);
        }
        let has_room = || self.has_room() && !(brings_state && self.paging.is_full());
        if has_room() {
            return Ok(());
        }
        metrics::counter!("millrace_commit_stalls_total").increment(1);
        let mut guard = self.waiting.lock();
        loop {
            if let Some(poisoned) = self.poison.poisoned() {
                return Err(poisoned);
            }
            if has_room() {
                return Ok(());
            }
            self.orders.ask(|orders| {
                orders.flush = true;
                orders.checkpoint |= self.journal_is_long() || self.paging.is_due();
            });
            if self.reserve.is_full() {
                return Err(CommitError::DiskFull);
            }
            self.changed.wait_for(&mut guard, ROOM_WAIT);
        }
    }

    /// The number of checkpoints since the start; each freed journal files.
    pub(crate) fn checkpoints_made(&self) -> u64 {
        self.checkpoints_made.load(Ordering::Acquire)
    }

    pub(crate) fn note_recycled(&self) {
        self.checkpoints_made.fetch_add(1, Ordering::Release);
        self.wake_committer();
    }

    /// Waits until more than this many checkpoints were made; false if it takes too long.
    pub(crate) fn wait_for_checkpoint(&self, made: u64) -> bool {
        let mut waited = Duration::ZERO;
        let mut guard = self.waiting.lock();
        while self.checkpoints_made() == made {
            if waited >= CHECKPOINT_PATIENCE || self.poison.poisoned().is_some() {
                return false;
            }
            self.changed.wait_for(&mut guard, ROOM_WAIT);
            waited += ROOM_WAIT;
        }
        true
    }

    fn has_room(&self) -> bool {
        let journal_bytes_max = self.checkpoint_journal_bytes;
        let journal_bytes_max = journal_bytes_max.saturating_mul(JOURNAL_BYTES_FACTOR_MAX);
        self.tail_bytes.load(Ordering::Relaxed) <= self.tail_bytes_max
            && self.journal_bytes_since_checkpoint() <= journal_bytes_max
    }

    fn journal_bytes_since_checkpoint(&self) -> u64 {
        let checkpointed = self.checkpointed_bytes.load(Ordering::Relaxed);
        let written = self.journal_bytes.load(Ordering::Relaxed);
        written.saturating_sub(checkpointed)
    }

    /// Whether the journal is long enough for a checkpoint.
    pub(crate) fn journal_is_long(&self) -> bool {
        self.journal_bytes_since_checkpoint() >= self.checkpoint_journal_bytes
    }

    /// Notes that a checkpoint contains this many bytes of the journal: those written when it was
    /// decided.
    pub(crate) fn note_checkpoint(&self, journal_bytes: u64) {
        self.checkpointed_bytes
            .store(journal_bytes, Ordering::Relaxed);
        self.wake_committer();
    }

    /// Makes the waiting committer check again.
    pub(crate) fn wake_committer(&self) {
        let _guard = self.waiting.lock();
        self.changed.notify_all();
    }
}
