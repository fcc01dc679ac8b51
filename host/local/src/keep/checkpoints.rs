//! What is known of the checkpoints that were made, and what the next one has to see to beside what was committed.

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
    /// Up to which transaction the last one holds everything.
    checkpointed: AtomicU64,
    evidence: Mutex<EvidenceFile>,
    /// What the next one has to keep for a backup.
    pub(crate) backups: Desk,
    /// Partitions that were compacted since the last one.
    pub(crate) compacted: Mutex<Vec<Arc<Partition>>>,
    /// Runs of state that are to be one.
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

    /// Notes that one holds everything up to this transaction, and so many bytes of the journal.
    pub(crate) fn note_made(&self, sequence: u64, journal_bytes: u64) {
        self.checkpointed.store(sequence, Ordering::Relaxed);
        self.commits.headroom.note_checkpoint(journal_bytes);
    }

    /// Writes down what is durable by now, for the start after an accident.
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
