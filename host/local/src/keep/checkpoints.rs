//! Facts about past checkpoints, and tasks for the next one besides writing committed changes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::ground::tail::Partition;
use crate::keep::backup::desk::Desk;
use crate::keep::evidence::{Evidence, EvidenceFile};
use crate::keep::runs::Merges;
use crate::write::commits::Commits;

pub(crate) struct Checkpoints {
    commits: Arc<Commits>,
    /// The last checkpoint contains everything up to this transaction.
    checkpointed: AtomicU64,
    evidence: Mutex<EvidenceFile>,
    /// A backup's order for the next checkpoint.
    pub(crate) backups: Desk,
    /// Partitions that were compacted since the last one.
    pub(crate) compacted: Mutex<Vec<Arc<Partition>>>,
    /// Merges of runs of state.
    pub(crate) merges: Arc<Merges>,
}

impl Checkpoints {
    pub(crate) fn new(commits: Arc<Commits>, evidence: EvidenceFile) -> Self {
        let checkpointed = commits.journal.lock().last_sequence();
        Self {
            commits,
            checkpointed: AtomicU64::new(checkpointed),
            evidence: Mutex::new(evidence),
            backups: Desk::default(),
            compacted: Mutex::default(),
            merges: Arc::default(),
        }
    }

    /// Notes that a checkpoint contains everything up to this transaction, and this many bytes of
    /// the journal.
    pub(crate) fn note_made(&self, sequence: u64, journal_bytes: u64) {
        self.checkpointed.store(sequence, Ordering::Relaxed);
        self.commits.headroom.note_checkpoint(journal_bytes);
    }

    /// Records what is durable, for a start after a crash.
    pub(crate) fn note_durable(&self, is_closed: bool) {
        let mut evidence = self.evidence.lock();
        let checkpoint = self.checkpointed.load(Ordering::Relaxed);
        let (durable, journal_file) = self.commits.journal.lock().durable();
        evidence.write(Evidence {
            durable,
            checkpoint,
            journal_file,
            is_closed,
        });
    }
}
