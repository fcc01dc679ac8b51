//! The handle of dead letters.

use std::collections::HashSet;
use std::sync::Arc;

use millrace_engine::Engine;
use millrace_model::bounds::DRY_RUNS_MAX;
use millrace_model::{Clock, ProcessorName};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::catalogue::handle::Catalogue;
use crate::ground::caller::Caller;
use crate::hosts::base::Base;
use crate::hosts::living::Hosts;
use crate::messages::handle::Messages;
use crate::processors::handle::Processors;

/// Messages that processors gave up, and the ways to send them again. Cheap to clone.
#[derive(Clone)]
pub struct DeadLetters {
    pub(super) inner: Arc<Inner>,
    pub(super) caller: Caller,
}

pub(crate) struct Inner {
    pub(super) clock: Arc<dyn Clock>,
    pub(super) engine: Arc<dyn Engine>,
    pub(super) hosts: Arc<Hosts>,
    pub(super) catalogue: Catalogue,
    pub(super) messages: Messages,
    pub(super) processors: Processors,
    /// Locked while sending dead letters again, so that redrives need not retry on conflicts.
    pub(super) redrives: tokio::sync::Mutex<()>,
    /// Processors whose due redrives are running here.
    pub(super) redriving: Mutex<HashSet<ProcessorName>>,
    /// Limits dry runs: each has an extra revision loaded, and dead letters in memory.
    pub(super) dry_runs: Semaphore,
}

impl DeadLetters {
    pub(crate) fn new(
        base: &Base,
        catalogue: Catalogue,
        messages: Messages,
        processors: Processors,
    ) -> Self {
        let Base {
            clock,
            engine,
            hosts,
            ..
        } = base.clone();
        Self::of(Arc::new(Inner {
            clock,
            engine,
            hosts,
            catalogue,
            messages,
            processors,
            redrives: tokio::sync::Mutex::default(),
            redriving: Mutex::default(),
            dry_runs: Semaphore::new(DRY_RUNS_MAX),
        }))
    }

    /// The room for the host's own actions, recorded without a name.
    pub(super) fn of(inner: Arc<Inner>) -> Self {
        Self {
            inner,
            caller: Caller::default(),
        }
    }

    /// The same room for this caller.
    #[must_use]
    pub(crate) fn called_by(&self, caller: &Caller) -> Self {
        Self {
            caller: caller.clone(),
            ..self.clone()
        }
    }

    /// The same room for the host's own actions.
    pub(super) fn by_itself(&self) -> Self {
        self.called_by(&Caller::host())
    }
}
