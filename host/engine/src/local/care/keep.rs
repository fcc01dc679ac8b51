//! How the care thread commits what it noted: as entries of the catalogue, by the way that everybody's transactions take.

use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc, oneshot};

use super::Register;
use crate::contract::Transaction;
use crate::local::committer::Request;
use crate::local::submission::Submission;

/// Entries of one transaction; the rest comes with the next.
const ENTRIES_MAX: usize = 100;

/// The right to commit.
pub(in super::super) struct Keep {
    pub(in super::super) queue: mpsc::Sender<Request>,
    pub(in super::super) room: Arc<Semaphore>,
}

impl Keep {
    /// Writes down what is not written yet. What fails is tried again the next time; the record in memory serves meanwhile.
    pub(super) fn write(&self, register: &Register) {
        let mut entries = register.dirty();
        entries.truncate(ENTRIES_MAX);
        if entries.is_empty() {
            return;
        }
        let written = entries.clone();
        let submission = Submission::from(Transaction {
            entries,
            ..Transaction::default()
        });
        let bytes = submission.byte_count();
        let kib = u32::try_from(bytes / 1024 + 1).unwrap_or(u32::MAX);
        let Ok(room) = Arc::clone(&self.room).try_acquire_many_owned(kib) else {
            return;
        };
        let (answer, answered) = oneshot::channel();
        let request = Request::Commit {
            submission,
            bytes,
            answer,
            room,
        };
        if self.queue.blocking_send(request).is_ok()
            && matches!(answered.blocking_recv(), Ok(Ok(_)))
        {
            register.written(&written);
        }
    }
}
