//! What works for the engine beside its callers, and the order in which it ends.

use std::sync::Arc;
use std::thread::JoinHandle;

use crate::keep::checkpoints::Checkpoints;
use crate::keep::pause::Pause;
use crate::start::lock::DirLock;
use crate::write::commits::Commits;
use crate::write::orders::Stop;

/// What works for the engine, and its right to do so.
pub(super) struct Threads {
    pub(super) committer: JoinHandle<()>,
    pub(super) syncers: Vec<JoinHandle<()>>,
    pub(super) flusher: JoinHandle<()>,
    pub(super) merger: JoinHandle<()>,
    pub(super) cleaner: JoinHandle<()>,
    pub(super) pause: Arc<Pause>,
    /// Released last.
    pub(super) _lock: DirLock,
}

impl Threads {
    pub(super) fn stop(self, commits: &Commits, checkpoints: &Checkpoints, how: Stop) {
        // A thread that panicked has poisoned the engine and said so.
        // The cleaner asks the others, so it goes before them.
        self.pause.end();
        let _ = self.cleaner.join();
        // What it has done by then the last checkpoint tells.
        checkpoints.merges.stop();
        let _ = self.merger.join();
        // The committer goes first: it may wait for the flusher to make room.
        let _ = self.committer.join();
        commits.pipeline.stop();
        for syncer in self.syncers {
            let _ = syncer.join();
        }
        commits.orders.ask(|orders| orders.stop = Some(how));
        let _ = self.flusher.join();
    }
}
