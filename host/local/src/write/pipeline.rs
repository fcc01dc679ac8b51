//! Between written and shown: transactions whose frame is in the journal wait here for the sync that they need, while the
//! committer goes on. One sync covers every frame written before it began; several run at a time, each on its own thread.
//!
//! A transaction needs the sync of its own frame if it must be durable. Otherwise it needs what the transactions before it
//! in the same partitions need, for those stand before it. What needs nothing is shown and answered at once.

use std::sync::Arc;

use millrace_engine::contract::CommitError;
use millrace_log::journal::{Preparation, SYNCS_AT_ONCE_MAX};
use millrace_model::Offset;
use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::watch;

use crate::decide::requests::Decided;
use crate::ground::tail::Partition;

/// By which handles of the journal the committer syncs, and the flusher; the syncers have the others.
pub(crate) const COMMITTER: usize = 0;
pub(crate) const FLUSHER: usize = 1;
pub(crate) const SYNCERS: std::ops::Range<usize> = 2..SYNCS_AT_ONCE_MAX;

/// Syncs under way at the same time, at most: each is the slower for the others, and the fewer transactions wait for one the less it
/// is worth.
const SYNCS_UNDER_WAY_MAX: usize = 2;

/// A transaction that is written.
pub(crate) struct Written {
    /// The sequence that must be durable before anybody may see it.
    pub(crate) needs: u64,
    /// How far it moves the ends of its partitions.
    pub(crate) moved: Vec<(Arc<Partition>, Offset)>,
    pub(crate) answer: Decided,
}

impl Written {
    /// To be called for all that are shown at once under the state's lock, so that readers see all or none of it.
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

/// What waits. Bounded by the room that its transactions hold in the committer's queue.
#[derive(Default)]
pub(crate) struct Line {
    waiting: Vec<Written>,
    /// The highest sequence that somebody needs.
    needed: u64,
    /// The highest one that a sync under way covers.
    begun: u64,
    synced: u64,
    syncs_under_way: usize,
    /// Transactions that wait for a sync that began, and for one that did not.
    covered: usize,
    uncovered: usize,
    preparation: Option<Preparation>,
    is_preparing: bool,
    is_stopping: bool,
    has_failed: bool,
    /// For tests: nobody syncs but they.
    only_syncers: bool,
}

impl Line {
    pub(crate) fn synced(&self) -> u64 {
        self.synced
    }

    /// The sequence that must be durable for everything written so far to be shown.
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

    /// Whether it is time for a sync: beside another one only for as many as wait for that, or those who will be answered soon and come
    /// again would find the disk busy with a few.
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

    /// Somebody may wait for a sync that is under way, and for this nobody yet, unless it has been put off for long.
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
        // Those written after a sync was decided and before it began are covered, too.
        self.covered = self
            .waiting
            .iter()
            .filter(|w| w.needs <= self.begun)
            .count();
        self.uncovered = self.waiting.len() - self.covered;
        ready
    }
}

/// What a syncer has to do next.
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

    /// To be locked after the journal and the state.
    pub(crate) fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock()
    }

    /// Sees to it that what waits is synced: by the caller, if that is told, or by a syncer. A caller with nothing else to do
    /// saves the way to another thread.
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

    /// Everything up to this one is durable: takes what waited for that out of the line, and shows it. To be called with the state locked, so
    /// that readers see all or none of it. `None` if the engine has failed meanwhile.
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

    /// Wakes those who wait until everything before some sequence is shown.
    pub(super) fn note_shown(&self, sequence: u64) {
        self.synced.send_if_modified(|synced| {
            let moved = *synced < sequence;
            *synced = sequence.max(*synced);
            moved
        });
    }

    /// So that a sync that hangs does not keep the committer.
    #[cfg(test)]
    pub(crate) fn keep_syncs_from_the_committer(&self) {
        self.line.lock().only_syncers = true;
    }

    pub(crate) fn prepare_soon(&self, preparation: Preparation) {
        self.line.lock().preparation = Some(preparation);
        self.work.notify_one();
    }

    /// Waits until everything before `sequence` is shown, or never will be.
    pub(crate) async fn shown(&self, sequence: u64) {
        let mut synced = self.synced.subscribe();
        // The sender lives as long as this.
        let _ = synced.wait_for(|&synced| synced >= sequence).await;
    }

    /// The syncers end when nothing waits any more.
    pub(crate) fn stop(&self) {
        self.line.lock().is_stopping = true;
        self.work.notify_all();
    }

    /// Nobody will be shown or told anything any more but this.
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

    /// Whether everything written is shown, and nothing will be done before more is.
    #[cfg(test)]
    pub(crate) fn is_at_rest(&self) -> bool {
        let line = self.line.lock();
        let works = line.is_preparing || line.preparation.is_some() || line.syncs_under_way > 0;
        !works && line.is_empty()
    }

    /// A sync began that covers everything up to this one.
    pub(super) fn note_begun(&self, sequence: u64) {
        let mut line = self.line.lock();
        if line.begun < sequence {
            line.begun = sequence;
            line.covered += std::mem::take(&mut line.uncovered);
        }
    }

    /// Waits for it; `None` if there is nothing to do any more.
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
