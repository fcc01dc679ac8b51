//! Changes of modules' files.

use std::io;
use std::sync::Arc;

use millrace_engine::contract::{CommitError, Expectation};
use millrace_model::Digest;
use tokio::task;

use super::LocalEngine;
use crate::keep::modules::ModuleFiles;

impl LocalEngine {
    /// Removes a module's file if all expectations hold.
    pub(super) async fn remove_module(
        &self,
        digest: Digest,
        expects: Vec<Expectation>,
    ) -> Result<(), CommitError> {
        let commits = Arc::clone(&self.commits);
        let removed = self.change_module(move |modules| {
            modules.remove_if(digest, || {
                // Nothing is applied until the file is removed.
                let state = commits.state.read();
                state.check_as_applied(&expects)?;
                Ok(state)
            })
        });
        removed.await?
    }

    /// Changes a module's file on a blocking thread.
    pub(super) async fn change_module<T: Send + 'static>(
        &self,
        change: impl FnOnce(&ModuleFiles) -> io::Result<T> + Send + 'static,
    ) -> Result<T, CommitError> {
        self.check_open()?;
        let modules = Arc::clone(&self.modules);
        match task::spawn_blocking(move || change(&modules)).await {
            Ok(Ok(changed)) => Ok(changed),
            Ok(Err(error)) if millrace_log::disk::is_full(&error) => Err(CommitError::DiskFull),
            Ok(Err(error)) => {
                self.commits.poison(&error.to_string());
                Err(self.why_stopped())
            }
            Err(_) => Err(self.why_stopped()),
        }
    }
}
