//! When memory asks for a checkpoint, so that state stands in files: how much of it changed, and how much of it there is altogether.
//! Which tables go into files the checkpoint decides ([`State::to_be_paged`](super::State)).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use millrace_engine::room::{Kept, Room};

use super::tables::of_all;
use crate::ground::options::LocalOptions;

/// Which part of the memory for state is to be taken more before the next checkpoint is made for it.
const STEP_PART: usize = 8;

pub(crate) struct Paging {
    room: Arc<Room>,
    /// Bytes of memory of what changed in tables that stand in files, and is not in one yet, at the most.
    changes_bytes_max: usize,
    /// As much of it as the checkpoint under way writes down.
    handed: AtomicUsize,
    /// What state takes of memory before a checkpoint is made for it.
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

    /// Whether a checkpoint is to be made for what memory has, beside the one that may be under way.
    pub(crate) fn is_due(&self) -> bool {
        let fresh = self.room.unwritten();
        let fresh = fresh.saturating_sub(self.handed.load(Relaxed));
        fresh > self.changes_bytes_max / 2
            || self.room.held(Kept::State) > self.due_at.load(Relaxed)
    }

    /// Whether nobody is to bring values of state before a checkpoint is made: too much changed, or memory has more of it than there is
    /// for it, and the checkpoint under way takes some out.
    pub(crate) fn is_full(&self) -> bool {
        let is_under_way = self.due_at.load(Relaxed) == usize::MAX;
        self.room.unwritten() > self.changes_bytes_max
            || is_under_way && self.room.held(Kept::State) > self.room.state_budget()
    }

    /// A checkpoint is decided: it writes down all that changed until now, and what is large.
    pub(crate) fn note_begun(&self) {
        self.handed.store(self.room.unwritten(), Relaxed);
        self.due_at.store(usize::MAX, Relaxed);
    }

    /// It is over, whatever came of it. What is left in memory it could not do anything about, so only more asks for another one.
    pub(crate) fn note_over(&self) {
        self.handed.store(0, Relaxed);
        let step = self.room.bounds().state_bytes / STEP_PART;
        let most = of_all(&self.room).max(self.room.held(Kept::State));
        self.due_at.store(most.saturating_add(step), Relaxed);
    }
}
