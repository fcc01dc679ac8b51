//! The engine's threads, and the order in which they end.

use std::sync::Arc;
use std::thread::JoinHandle;

use crate::keep::checkpoints::Checkpoints;
use crate::keep::pause::Pause;
use crate::start::lock::DirLock;
use crate::write::commits::Commits;
use crate::write::orders::Stop;

/// The engine's threads, and its lock on the directory.
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
        // A thread that panicked has poisoned the engine and reported it. The cleaner needs the
        // others, so it ends before them.
        self.pause.end();
        let _ = self.cleaner.join();
        // The last checkpoint records what it has done until then.
        checkpoints.merges.stop();
        let _ = self.merger.join();
        // The committer ends first, because it may wait for the flusher to free room.
        let _ = self.committer.join();
        commits.pipeline.stop();
        for syncer in self.syncers {
            let _ = syncer.join();
        }
        commits.orders.ask(|orders| orders.stop = Some(how));
        let _ = self.flusher.join();
    }
}
