//! A memory engine host's connection to the store: it can be cut, or lose the answers to commits.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::contract::{CommitError, Transaction};

/// The reason given in errors.
pub(super) const CUT: &str = "cut off";

/// What happens to a commit whose answer is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// It takes effect.
    Done,
    /// It takes effect later, if it is still valid then.
    Late,
    /// It never arrives.
    Lost,
}

#[derive(Debug, Default)]
pub(super) struct Link {
    pub(super) is_cut: AtomicBool,
    /// Whether no catalogue changes are heard.
    pub(super) is_deaf: AtomicBool,
    /// The results of the next commits, the last one first.
    pub(super) doubts: Mutex<Vec<Doubt>>,
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
