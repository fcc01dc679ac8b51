//! Commits the care thread's records, as entries of the catalogue, through the same queue as all
//! transactions.

use std::sync::Arc;

use millrace_engine::contract::Transaction;
use tokio::sync::{Semaphore, mpsc};

use super::register::Register;
use crate::decide::requests::Request;
use crate::decide::requests::commit_own;

/// Records of damage written in one transaction; the rest follows in the next one.
const ENTRIES_MAX: usize = 100;

/// Access to the commit queue.
pub(crate) struct Keep {
    pub(crate) queue: mpsc::Sender<Request>,
    pub(crate) room: Arc<Semaphore>,
}

impl Keep {
    /// Commits records that are not committed yet. Failures are retried the next time; meanwhile
    /// the record in memory is used.
    pub(super) fn write(&self, register: &Register) {
        let mut entries = register.dirty();
        entries.truncate(ENTRIES_MAX);
        if entries.is_empty() {
            return;
        }
        let written = entries.clone();
        let transaction = Transaction {
            entries,
            ..Transaction::default()
        };
        if let Some(Ok(_)) = commit_own(&self.queue, &self.room, transaction) {
            register.written(&written);
        }
    }
}
