//! What the worker passes to a shadow: settled batches, and if the shadow uses state, batches about to be settled.

use std::sync::Arc;
use std::time::Duration;

use super::Worker;
use crate::dispatch::answer::Verdict;
use crate::dispatch::batcher::Batch;
use crate::dispatch::command::Command;
use crate::dispatch::live::Live;
use crate::dispatch::shadow::{Echo, Settled};
use crate::handler::CallError;

/// The shadow's answer before the commit, if it was called.
pub(super) type Glance = Option<Result<Verdict, CallError>>;

impl Worker {
    /// Uses the present shadow.
    pub(super) fn attend(&mut self, command: &Command) {
        let heard = self.echo.as_ref().map(|echo| Arc::as_ptr(&echo.shadow));
        if heard != command.shadow.as_ref().map(Arc::as_ptr) {
            self.echo = command.shadow.clone().map(Echo::new);
        }
    }

    /// Calls a shadow that uses state, while nobody else can write any.
    pub(super) async fn glance(&mut self, batch: &Batch, took: Duration) -> Glance {
        let shadow = &self.echo.as_ref()?.shadow;
        let live = Arc::clone(&shadow.live);
        let home = self.home(&live).await.ok()??;
        let now = self.now();
        let echo = self.echo.as_mut()?;
        echo.glance(&batch.columns, home.table, now, took).await
    }

    /// Passes settled batches to the shadow.
    pub(super) fn show_shadow(
        &self,
        live: &Arc<Live>,
        batch: &Batch,
        verdict: Verdict,
        glance: Glance,
    ) {
        let Some(echo) = &self.echo else { return };
        echo.offer(Settled {
            topic: self.input.topic.spec.name.clone(),
            partition: self.input.partition,
            columns: Arc::clone(&batch.columns),
            offsets: batch.offsets.clone(),
            live: Arc::clone(live),
            verdict: Verdict {
                state: None,
                ..verdict
            },
            glance,
        });
    }
}
