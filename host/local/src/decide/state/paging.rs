//! Decides when memory requires a checkpoint that moves state to files: by how much state changed,
//! and by how much there is in total. The checkpoint decides which tables move
//! ([`State::to_be_paged`](super::State)).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use millrace_engine::room::{Kept, Room};

use super::tables::of_all;
use crate::ground::options::LocalOptions;

/// State must grow by this fraction of its memory before the next checkpoint is made for it.
const STEP_PART: usize = 8;

pub(crate) struct Paging {
    room: Arc<Room>,
    /// Maximum bytes of memory for changes in paged tables that are not in a file yet.
    changes_bytes_max: usize,
    /// The part of these changes that the running checkpoint writes.
    handed: AtomicUsize,
    /// The memory of state at which a checkpoint is made for it.
    due_at: AtomicUsize,
}

impl Paging {
    pub(crate) fn new(room: &Arc<Room>, options: &LocalOptions) -> Self {
        let paging = Self {
            room: Arc::clone(room),
            changes_bytes_max: options.state_changes_bytes(),
            handed: AtomicUsize::new(0),
            due_at: AtomicUsize::new(0),
        };
        paging.note_over();
        paging
    }

    /// Whether memory requires another checkpoint besides one that may be running.
    pub(crate) fn is_due(&self) -> bool {
        let fresh = self.room.unwritten();
        let fresh = fresh.saturating_sub(self.handed.load(Relaxed));
        fresh > self.changes_bytes_max / 2
            || self.room.held(Kept::State) > self.due_at.load(Relaxed)
    }

    /// Whether additions of state must wait for a checkpoint: too much has changed, or state takes
    /// more memory than it may and the running checkpoint will free some.
    pub(crate) fn is_full(&self) -> bool {
        let is_under_way = self.due_at.load(Relaxed) == usize::MAX;
        self.room.unwritten() > self.changes_bytes_max
            || is_under_way && self.room.held(Kept::State) > self.room.state_budget()
    }

    /// Notes that a checkpoint was decided: it writes all changes until now, and large tables.
    pub(crate) fn note_begun(&self) {
        self.handed.store(self.room.unwritten(), Relaxed);
        self.due_at.store(usize::MAX, Relaxed);
    }

    /// Notes that the checkpoint ended, whether it succeeded or not. It could not move what is left
    /// in memory, so only further growth requests another one.
    pub(crate) fn note_over(&self) {
        self.handed.store(0, Relaxed);
        let step = self.room.bounds().state_bytes / STEP_PART;
        let most = of_all(&self.room).max(self.room.held(Kept::State));
        self.due_at.store(most.saturating_add(step), Relaxed);
    }
}
