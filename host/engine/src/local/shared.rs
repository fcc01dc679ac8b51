//! What the engine's threads and its callers share.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use millrace_log::Journal;
use millrace_model::Clock;
use parking_lot::{Condvar, Mutex, RwLock};

use super::backup::Desk;
use super::evidence::{Evidence, EvidenceFile};
use super::flusher::OrderBook;
use super::options::LocalOptions;
use super::pipeline::Pipeline;
use super::reserve::Reserve;
use super::runs::Merges;
use super::state::{Paging, State};
use super::tail::Partition;
use crate::contract::CommitError;

/// How long the committer sleeps at most before it looks again whether there is room.
const ROOM_WAIT: Duration = Duration::from_millis(50);

/// How long the committer waits for a checkpoint that gives it journal files back, where a full disk has no others.
const CHECKPOINT_PATIENCE: Duration = Duration::from_secs(5);

/// Checkpoints' worth of journal that may be written before a checkpoint is durable; at the bound commits wait. It bounds what a
/// start has to replay.
pub(super) const JOURNAL_BYTES_FACTOR_MAX: u64 = 4;

pub(super) struct Shared {
    pub(super) options: LocalOptions,
    pub(super) clock: Arc<dyn Clock>,
    /// Locked before `state`, by the committer for a group, by the flusher for a snapshot.
    pub(super) journal: Mutex<Journal>,
    /// Written for a group at once, and for what is shown at once: so a reader sees a transaction whole.
    pub(super) state: RwLock<State>,
    /// Locked after `journal` and `state`.
    pub(super) pipeline: Pipeline,
    /// What batches in memory weigh.
    pub(super) tail_bytes: AtomicUsize,
    checkpoints_made: AtomicU64,
    /// Up to which transaction the last checkpoint holds everything.
    checkpointed: AtomicU64,
    evidence: Mutex<EvidenceFile>,
    /// Journal bytes written, and how many were when the last checkpoint was decided.
    journal_bytes: AtomicU64,
    checkpointed_bytes: AtomicU64,
    pub(super) orders: OrderBook,
    /// What the next checkpoint has to keep for a backup.
    pub(super) backups: Desk,
    /// Partitions that were compacted since the last checkpoint.
    pub(super) compacted: Mutex<Vec<Arc<Partition>>>,
    pub(super) room: Mutex<()>,
    pub(super) room_changed: Condvar,
    pub(super) reserve: Arc<Reserve>,
    /// Runs of state that are to be one.
    pub(super) merges: Arc<Merges>,
    /// How much state memory has, and for how much of it a checkpoint is to be made.
    pub(super) paging: Paging,
    poison: OnceLock<Arc<str>>,
}

impl Shared {
    pub(super) fn new(
        options: LocalOptions,
        clock: Arc<dyn Clock>,
        journal: Journal,
        state: State,
        evidence: EvidenceFile,
        reserve: Arc<Reserve>,
    ) -> Self {
        let checkpointed = AtomicU64::new(journal.last_sequence());
        let paging = Paging::new(&state.room, &options);
        Self {
            options,
            clock,
            pipeline: Pipeline::new(journal.synced_sequence()),
            journal: Mutex::new(journal),
            state: RwLock::new(state),
            tail_bytes: AtomicUsize::new(0),
            checkpoints_made: AtomicU64::new(0),
            checkpointed,
            evidence: Mutex::new(evidence),
            journal_bytes: AtomicU64::new(0),
            checkpointed_bytes: AtomicU64::new(0),
            orders: OrderBook::default(),
            backups: Desk::default(),
            compacted: Mutex::default(),
            room: Mutex::new(()),
            room_changed: Condvar::new(),
            reserve,
            merges: Arc::default(),
            paging,
            poison: OnceLock::new(),
        }
    }

    /// All partitions, as of now.
    pub(super) fn partitions(&self) -> Vec<Arc<Partition>> {
        self.state.read().partitions.values().cloned().collect()
    }

    /// After this nothing is acknowledged any more. The first reason stays.
    pub(super) fn poison(&self, reason: &str) {
        if self.poison.set(reason.into()).is_ok() {
            tracing::error!(reason, "the engine stopped: it is unknown what is durable");
        }
        if let Some(poisoned) = self.poisoned() {
            self.pipeline.fail(&poisoned);
        }
        self.wake_committer();
    }

    pub(super) fn poisoned(&self) -> Option<CommitError> {
        let reason = self.poison.get()?;
        Some(CommitError::Poisoned(Arc::clone(reason)))
    }

    /// Writes down what is durable by now, for the start after an accident.
    pub(super) fn note_durable(&self, is_closed: bool) {
        let mut evidence = self.evidence.lock();
        let checkpoint = self.checkpointed.load(Ordering::Relaxed);
        let (durable, journal_file) = self.journal.lock().durable();
        evidence.write(Evidence {
            durable,
            checkpoint,
            journal_file,
            is_closed,
        });
    }

    /// Notes that batches left memory.
    pub(super) fn release(&self, weight: usize) {
        if weight > 0 {
            self.tail_bytes.fetch_sub(weight, Ordering::Relaxed);
            self.wake_committer();
        }
    }

    pub(super) fn set_disk_full(&self, full: bool) {
        if self.reserve.set_full(full) {
            self.wake_committer();
        }
    }

    /// Notes what a group added, and calls the flusher when it is time.
    pub(super) fn note_growth(&self, weight: usize, journal_bytes: u64) {
        // What the group showed to readers may be in the files and out of memory again before it is counted here.
        let before = self.tail_bytes.fetch_add(weight, Ordering::Relaxed);
        let held = before.wrapping_add(weight);
        let flush = held > self.options.tail_bytes_max / 2;
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
    pub(super) fn wait_for_room(&self, brings_state: bool) -> Result<(), CommitError> {
        if self.reserve.is_full() {
            return Err(CommitError::DiskFull);
        }
        let has_room = || self.has_room() && !(brings_state && self.paging.is_full());
        if has_room() {
            return Ok(());
        }
        metrics::counter!("millrace_commit_stalls_total").increment(1);
        let mut guard = self.room.lock();
        loop {
            if let Some(poisoned) = self.poisoned() {
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
            self.room_changed.wait_for(&mut guard, ROOM_WAIT);
        }
    }

    /// Since the start; each gave journal files back.
    pub(super) fn checkpoints_made(&self) -> u64 {
        self.checkpoints_made.load(Ordering::Acquire)
    }

    pub(super) fn note_recycled(&self) {
        self.checkpoints_made.fetch_add(1, Ordering::Release);
        self.wake_committer();
    }

    /// Waits until another one was made than these; false if it takes too long.
    pub(super) fn wait_for_checkpoint(&self, made: u64) -> bool {
        let mut waited = Duration::ZERO;
        let mut guard = self.room.lock();
        while self.checkpoints_made() == made {
            if waited >= CHECKPOINT_PATIENCE || self.poisoned().is_some() {
                return false;
            }
            self.room_changed.wait_for(&mut guard, ROOM_WAIT);
            waited += ROOM_WAIT;
        }
        true
    }

    fn has_room(&self) -> bool {
        let journal_bytes_max = self.options.checkpoint_journal_bytes;
        let journal_bytes_max = journal_bytes_max.saturating_mul(JOURNAL_BYTES_FACTOR_MAX);
        self.tail_bytes.load(Ordering::Relaxed) <= self.options.tail_bytes_max
            && self.journal_bytes_since_checkpoint() <= journal_bytes_max
    }

    fn journal_bytes_since_checkpoint(&self) -> u64 {
        let checkpointed = self.checkpointed_bytes.load(Ordering::Relaxed);
        let written = self.journal_bytes.load(Ordering::Relaxed);
        written.saturating_sub(checkpointed)
    }

    /// Whether it is time for a checkpoint.
    pub(super) fn journal_is_long(&self) -> bool {
        self.journal_bytes_since_checkpoint() >= self.options.checkpoint_journal_bytes
    }

    /// Notes that a checkpoint holds what was written of the journal when it was decided.
    pub(super) fn note_checkpoint(&self, sequence: u64, journal_bytes: u64) {
        self.checkpointed.store(sequence, Ordering::Relaxed);
        self.checkpointed_bytes
            .store(journal_bytes, Ordering::Relaxed);
        self.wake_committer();
    }

    fn wake_committer(&self) {
        let _guard = self.room.lock();
        self.room_changed.notify_all();
    }
}

/// A thread that panics leaves it unknown what it had done.
pub(super) struct PoisonOnPanic<'a>(pub(super) &'a Shared);

impl Drop for PoisonOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0
                .poison("a thread of the engine panicked; please report this");
        }
    }
}
