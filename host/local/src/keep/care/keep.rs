//! How the care thread commits what it noted: as entries of the catalogue, by the way that everybody's transactions take.

use std::sync::Arc;

use millrace_engine::contract::Transaction;
use tokio::sync::{Semaphore, mpsc};

use super::register::Register;
use crate::decide::requests::Request;
use crate::decide::requests::commit_own;

/// Entries of one transaction; the rest comes with the next.
const ENTRIES_MAX: usize = 100;

/// The right to commit.
pub(crate) struct Keep {
    pub(crate) queue: mpsc::Sender<Request>,
    pub(crate) room: Arc<Semaphore>,
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
        let transaction = Transaction {
            entries,
            ..Transaction::default()
        };
        if let Some(Ok(_)) = commit_own(&self.queue, &self.room, transaction) {
            register.written(&written);
        }
    }
}
