//! How a host of the memory engine reaches the store: it may be cut off, or lose the answers to its commits.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::MemoryEngine;
use crate::contract::{CommitError, Transaction};

/// Why, as it is told.
pub(super) const CUT: &str = "cut off";

/// What becomes of a commit whose answer is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// It takes effect.
    Done,
    /// It takes effect after a while, if it still may by then.
    Late,
    /// It never arrives.
    Lost,
}

#[derive(Debug, Default)]
pub(super) struct Link {
    is_cut: AtomicBool,
    /// Whether nothing is heard of the catalogue.
    pub(super) is_deaf: AtomicBool,
    /// What becomes of the next commits, the last one first.
    doubts: Mutex<Vec<Doubt>>,
    /// Commits that are still on their way.
    pub(super) late: Mutex<Vec<Transaction>>,
}

impl Link {
    pub(super) fn check(&self) -> Result<(), CommitError> {
        match self.is_cut.load(Ordering::SeqCst) {
            true => Err(CommitError::Unavailable(CUT.into())),
            false => Ok(()),
        }
    }

    pub(super) fn doubt(&self) -> Option<Doubt> {
        match self.check() {
            Ok(()) => self.doubts.lock().pop(),
            Err(_) => None,
        }
    }

    pub(super) fn take_late(&self) -> Vec<Transaction> {
        std::mem::take(&mut self.late.lock())
    }
}

impl MemoryEngine {
    /// As if the host lost its connection to the store (or got it back): nothing is read or committed, and nothing heard of.
    pub fn cut_off(&self, is_cut: bool) {
        self.link.is_cut.store(is_cut, Ordering::SeqCst);
    }

    /// As if nothing of what changes in the catalogue arrived, all else being well.
    pub fn deafen(&self, is_deaf: bool) {
        self.link.is_deaf.store(is_deaf, Ordering::SeqCst);
    }

    /// The answer to the next commit is lost. Of a host that is not a [second](Self::second_host) one, what is late stays so for ever.
    pub fn doubt(&self, doubt: Doubt) {
        self.link.doubts.lock().push(doubt);
    }
}
