//! How much more may be written before somebody has to make room: of messages in memory, of the journal, of changes of state, and on the
//! disk. Whoever writes asks here first, waits at the bounds, and calls the flusher before they are reached.

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

/// How long the committer sleeps at most before it looks again whether there is room.
const ROOM_WAIT: Duration = Duration::from_millis(50);

/// How long the committer waits for a checkpoint that gives it journal files back, where a full disk has no others.
const CHECKPOINT_PATIENCE: Duration = Duration::from_secs(5);

/// What there is of it. (The engine's own [`Room`](millrace_engine::Room) is another one: what a host may keep for others.)
pub(crate) struct Headroom {
    orders: Arc<OrderBook>,
    reserve: Arc<Reserve>,
    poison: Arc<Poison>,
    /// How much state memory has, and for how much of it a checkpoint is to be made.
    pub(crate) paging: Paging,
    tail_bytes_max: usize,
    checkpoint_journal_bytes: u64,
    /// What batches in memory weigh.
    tail_bytes: AtomicUsize,
    checkpoints_made: AtomicU64,
    /// Journal bytes written, and how many were when the last checkpoint was decided.
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

    /// What batches in memory weigh.
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

    /// Notes what a group added, and calls the flusher when it is time.
    pub(crate) fn note_growth(&self, weight: usize, journal_bytes: u64) {
        // What the group showed to readers may be in the files and out of memory again before it is counted here.
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

    /// Waits until memory has room for more, for values of state if it brings some.
    ///
    /// # Errors
    /// [`CommitError::DiskFull`] where nobody is to write messages before somebody frees space.
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

    /// Since the start; each gave journal files back.
    pub(crate) fn checkpoints_made(&self) -> u64 {
        self.checkpoints_made.load(Ordering::Acquire)
    }

    pub(crate) fn note_recycled(&self) {
        self.checkpoints_made.fetch_add(1, Ordering::Release);
        self.wake_committer();
    }

    /// Waits until another one was made than these; false if it takes too long.
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

    /// Whether it is time for a checkpoint.
    pub(crate) fn journal_is_long(&self) -> bool {
        self.journal_bytes_since_checkpoint() >= self.checkpoint_journal_bytes
    }

    /// Notes that a checkpoint holds so many bytes of the journal, which were written when it was decided.
    pub(crate) fn note_checkpoint(&self, journal_bytes: u64) {
        self.checkpointed_bytes
            .store(journal_bytes, Ordering::Relaxed);
        self.wake_committer();
    }

    /// Has whoever waits look again.
    pub(crate) fn wake_committer(&self) {
        let _guard = self.waiting.lock();
        self.changed.notify_all();
    }
}
