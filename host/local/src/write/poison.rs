//! Whether the engine has failed permanently: after a disk error it is unknown what is durable, so
//! nothing is acknowledged any more until the directory is opened again.

use std::sync::{Arc, OnceLock};

use millrace_engine::contract::CommitError;

/// The reason, set once by the first thread that fails.
#[derive(Default)]
pub(crate) struct Poison(OnceLock<Arc<str>>);

impl Poison {
    /// Sets the reason, unless there already is one.
    pub(crate) fn set(&self, reason: &str) {
        if self.0.set(reason.into()).is_ok() {
            tracing::error!(reason, "the engine stopped: it is unknown what is durable");
        }
    }

    /// The error for all further calls; `None` if nothing has failed.
    pub(crate) fn poisoned(&self) -> Option<CommitError> {
        let reason = self.0.get()?;
        Some(CommitError::Poisoned(Arc::clone(reason)))
    }
}
