//! Between written and visible: transactions whose frames are in the journal wait here for the sync
//! that they need, while the committer continues. One sync covers every frame written before it
//! began; several run at a time, each on its own thread.
//!
//! A transaction needs the sync of its own frame if it must be durable. Otherwise it needs the
//! syncs of earlier transactions in the same partitions, because readers see them in order. A
//! transaction that needs no sync becomes visible and is answered at once.

use std::sync::Arc;

use millrace_engine::contract::CommitError;
use millrace_log::journal::{Preparation, SYNCS_AT_ONCE_MAX};
use millrace_model::Offset;
use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::watch;

use crate::decide::requests::Decided;
use crate::ground::tail::Partition;

/// The journal's handles with which the committer and the flusher sync; the syncers have the
/// others.
pub(crate) const COMMITTER: usize = 0;
pub(crate) const FLUSHER: usize = 1;
pub(crate) const SYNCERS: std::ops::Range<usize> = 2..SYNCS_AT_ONCE_MAX;

/// Concurrent syncs. Each slows the others down, and a sync for few waiting transactions is worth
/// less.
const SYNCS_UNDER_WAY_MAX: usize = 2;

/// A written transaction.
pub(crate) struct Written {
    /// The sequence that must be durable before it becomes visible.
    pub(crate) needs: u64,
    /// The new ends of its partitions.
    pub(crate) moved: Vec<(Arc<Partition>, Offset)>,
    pub(crate) answer: Decided,
}

impl Written {
    /// Makes it visible. Call it under the state's lock for all that become visible together, so
    /// that readers see all or none of it.
    pub(crate) fn show(&self) {
        for (partition, end) in &self.moved {
            partition.show(*end);
        }
    }

    /// Wakes readers and answers.
    pub(crate) fn tell(self) {
        self.moved.iter().for_each(|(p, _)| p.announce());
        self.answer.give();
    }
}

pub(crate) struct Pipeline {
    line: Mutex<Line>,
    work: Condvar,
    synced: watch::Sender<u64>,
}

/// The waiting transactions. Bounded by the room that they hold in the committer's queue.
#[derive(Default)]
pub(crate) struct Line {
    waiting: Vec<Written>,
    /// The highest sequence that any transaction needs.
    needed: u64,
    /// The highest sequence that a running sync covers.
    begun: u64,
    synced: u64,
    syncs_under_way: usize,
    /// Waiting transactions that a running sync covers, and those that it does not.
    covered: usize,
    uncovered: usize,
    preparation: Option<Preparation>,
    is_preparing: bool,
    is_stopping: bool,
    has_failed: bool,
    /// For tests: only the syncers sync.
    only_syncers: bool,
}

impl Line {
    pub(crate) fn synced(&self) -> u64 {
        self.synced
    }

    /// The sequence that must be durable before everything written so far is visible.
    pub(crate) fn needed(&self) -> u64 {
        self.needed
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(crate) fn wait(&mut self, written: Written) {
        self.needed = self.needed.max(written.needs);
        self.waiting.push(written);
        self.uncovered += 1;
    }

    /// Whether to start a sync. A second one starts only if at least as many transactions wait for
    /// it as for the first; otherwise callers that are about to return would find the disk busy for
    /// a few.
    fn needs_sync(&self) -> bool {
        let is_time = match self.syncs_under_way {
            0 => true,
            SYNCS_UNDER_WAY_MAX.. => false,
            _ => self.is_stopping || self.uncovered >= self.covered,
        };
        is_time && self.needed > self.begun
    }

    fn begin(&mut self) {
        self.begun = self.needed;
        self.syncs_under_way += 1;
        self.covered += std::mem::take(&mut self.uncovered);
    }

    /// Whether the next journal file may be prepared now: not during a sync, because transactions
    /// wait for that, unless the preparation has become urgent.
    fn may_prepare(&self) -> bool {
        let preparation = self.preparation.as_ref();
        preparation.is_some_and(|p| p.is_urgent || self.syncs_under_way == 0)
    }

    fn take_preparation(&mut self) -> Option<Preparation> {
        match self.may_prepare() {
            true => self.preparation.take(),
            false => None,
        }
    }

    fn take_ready(&mut self) -> Vec<Written> {
        let synced = self.synced;
        let ready = self.waiting.extract_if(.., |w| w.needs <= synced);
        let ready: Vec<Written> = ready.collect();
        // Transactions written after a sync was decided but before it began are covered too.
        self.covered = self
            .waiting
            .iter()
            .filter(|w| w.needs <= self.begun)
            .count();
        self.uncovered = self.waiting.len() - self.covered;
        ready
    }
}

/// The next work for a syncer.
pub(super) enum Work {
    Sync,
    Prepare(Preparation),
}

impl Pipeline {
    pub(crate) fn new(synced: u64) -> Self {
        let line = Line {
            synced,
            begun: synced,
            needed: synced,
            ..Line::default()
        };
        Self {
            line: Mutex::new(line),
            work: Condvar::new(),
            synced: watch::Sender::new(synced),
        }
    }

    /// Locks the line; lock it after the journal and the state.
    pub(crate) fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock()
    }

    /// Makes sure that waiting transactions are synced: by the caller if this returns true,
    /// otherwise by a syncer. An idle caller saves the switch to another thread.
    #[must_use]
    pub(crate) fn sync_soon(&self, caller_is_idle: bool) -> bool {
        let mut line = self.line.lock();
        if !line.needs_sync() {
            return false;
        }
        let by_caller = caller_is_idle && line.syncs_under_way == 0 && !line.only_syncers;
        if by_caller {
            line.begin();
        } else {
            self.work.notify_one();
        }
        by_caller
    }

    pub(super) fn end_preparation(&self) {
        self.line.lock().is_preparing = false;
    }

    /// Everything up to this sequence is durable: removes the transactions that waited for it, and
    /// makes them visible. Call it with the state locked, so that readers see all or none of it.
    /// `None` if the engine has failed meanwhile.
    pub(super) fn take_synced(&self, sequence: u64) -> Option<Vec<Written>> {
        let mut line = self.line.lock();
        if line.has_failed {
            return None;
        }
        line.synced = line.synced.max(sequence);
        let ready = line.take_ready();
        ready.iter().for_each(Written::show);
        Some(ready)
    }

    /// Wakes callers that wait until everything before a sequence is visible.
    pub(super) fn note_shown(&self, sequence: u64) {
        self.synced.send_if_modified(|synced| {
            let moved = *synced < sequence;
            *synced = sequence.max(*synced);
            moved
        });
    }

    /// For tests: keeps syncs from the committer, so that a hanging sync does not block it.
    #[cfg(test)]
    pub(crate) fn keep_syncs_from_the_committer(&self) {
        self.line.lock().only_syncers = true;
    }

    pub(crate) fn prepare_soon(&self, preparation: Preparation) {
        self.line.lock().preparation = Some(preparation);
        self.work.notify_one();
    }

    /// Waits until everything before `sequence` is visible, or never will be.
    pub(crate) async fn shown(&self, sequence: u64) {
        let mut synced = self.synced.subscribe();
        // The sender lives as long as `self`.
        let _ = synced.wait_for(|&synced| synced >= sequence).await;
    }

    /// Makes the syncers end once nothing waits any more.
    pub(crate) fn stop(&self) {
        self.line.lock().is_stopping = true;
        self.work.notify_all();
    }

    /// Answers all waiting transactions with this error; nothing becomes visible any more.
    pub(crate) fn fail(&self, error: &CommitError) {
        let waiting = {
            let mut line = self.line.lock();
            line.has_failed = true;
            std::mem::take(&mut line.waiting)
        };
        for written in waiting {
            written.answer.refuse(error.clone());
        }
        self.synced.send_replace(u64::MAX);
        self.work.notify_all();
    }

    pub(super) fn end_sync(&self) {
        let mut line = self.line.lock();
        line.syncs_under_way -= 1;
        if line.needs_sync() || line.may_prepare() {
            self.work.notify_one();
        }
    }

    /// Whether everything written is visible, and nothing happens until more is written.
    #[cfg(test)]
    pub(crate) fn is_at_rest(&self) -> bool {
        let line = self.line.lock();
        let works = line.is_preparing || line.preparation.is_some() || line.syncs_under_way > 0;
        !works && line.is_empty()
    }

    /// Notes that a sync began that covers everything up to this sequence.
    pub(super) fn note_begun(&self, sequence: u64) {
        let mut line = self.line.lock();
        if line.begun < sequence {
            line.begun = sequence;
            line.covered += std::mem::take(&mut line.uncovered);
        }
    }

    /// Waits for work; `None` when the syncers should end.
    pub(super) fn next_work(&self) -> Option<Work> {
        let mut line = self.line.lock();
        loop {
            if line.has_failed {
                return None;
            }
            if line.needs_sync() {
                line.begin();
                return Some(Work::Sync);
            }
            if line.is_stopping {
                return None;
            }
            if let Some(preparation) = line.take_preparation() {
                line.is_preparing = true;
                return Some(Work::Prepare(preparation));
            }
            self.work.wait(&mut line);
        }
    }
}
