//! The command of a processor's workers.

use std::sync::Arc;
use std::time::Duration;

use crate::dispatch::live::Live;
use crate::dispatch::shadow::Shadow;
use crate::dispatch::sides::Canary;

/// What the workers of a processor must do from their next batch on.
#[derive(Clone)]
pub(crate) struct Command {
    pub(crate) live: Arc<Live>,
    pub(crate) canary: Option<Arc<Canary>>,
    pub(crate) shadow: Option<Arc<Shadow>>,
    pub(crate) paused: bool,
    pub(crate) stopped: bool,
    /// The time, by the monotonic clock, until which a call may continue whose result is no longer
    /// needed.
    pub(crate) patience: Duration,
}

impl Command {
    /// The canary, unless its breaker has opened.
    pub(crate) fn canary(&self) -> Option<&Arc<Canary>> {
        self.canary.as_ref().filter(|canary| !canary.gate.is_open())
    }

    /// Whether the revision takes batches.
    pub(crate) fn runs(&self, revision: u32) -> bool {
        let canary = self.canary.as_ref().map(|canary| canary.live.revision);
        self.live.revision == revision || canary == Some(revision)
    }

    /// The revisions, and how messages are divided between them.
    pub(crate) fn revisions(&self) -> (u32, Option<(u32, u32)>) {
        let canary = self.canary.as_ref();
        let canary = canary.map(|canary| (canary.live.revision, canary.percent));
        (self.live.revision, canary)
    }
}
