//! Whether the engine has failed for good: after an error of the disk nobody knows what is durable, so nothing is acknowledged any more
//! until the directory is opened again.

use std::sync::{Arc, OnceLock};

use millrace_engine::contract::CommitError;

/// Set once, by whoever finds out first.
#[derive(Default)]
pub(crate) struct Poison(OnceLock<Arc<str>>);

impl Poison {
    /// The first reason stays.
    pub(crate) fn set(&self, reason: &str) {
        if self.0.set(reason.into()).is_ok() {
            tracing::error!(reason, "the engine stopped: it is unknown what is durable");
        }
    }

    /// What everybody is told who asks for anything; `None` as long as nothing failed.
    pub(crate) fn poisoned(&self) -> Option<CommitError> {
        let reason = self.0.get()?;
        Some(CommitError::Poisoned(Arc::clone(reason)))
    }
}
