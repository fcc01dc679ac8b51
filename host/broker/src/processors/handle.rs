//! The handle of processors.

use std::sync::{Arc, OnceLock, Weak};

use millrace_engine::Engine;
use millrace_model::{Clock, ProcessorName};
use tokio::sync::RwLock;

use crate::catalogue::handle::Catalogue;
use crate::dispatch::supervisor::Supervisor;
use crate::ground::caller::Caller;
use crate::ground::partitioner::Partitioners;
use crate::handler::ModuleHost;
use crate::hosts::base::Base;
use crate::hosts::living::Hosts;
use crate::messages::handle::Messages;
use crate::processors::heard::Heard;
use crate::processors::status::LastShown;

/// Redrives dead letters that are due because a revision was rolled back. Implemented by the part
/// that owns dead letters, which depends on this one and cannot be called directly.
pub(crate) trait SendsAgain: Send + Sync {
    /// The processor may have dead letters that this host must redrive.
    fn send_what_is_due(&self, name: &ProcessorName);

    /// The processor may have dead letters that another host was to redrive and may have left.
    fn send_what_was_left(&self, name: &ProcessorName);
}

/// Deployed processors and their revisions. Cheap to clone.
#[derive(Clone)]
pub struct Processors {
    pub(super) inner: Arc<Inner>,
    pub(super) caller: Caller,
}

pub(crate) struct Inner {
    pub(super) clock: Arc<dyn Clock>,
    pub(super) engine: Arc<dyn Engine>,
    pub(super) modules: Arc<dyn ModuleHost>,
    pub(super) partitioners: Arc<Partitioners>,
    pub(super) hosts: Arc<Hosts>,
    pub(super) supervisor: Supervisor,
    pub(super) catalogue: Catalogue,
    pub(super) messages: Messages,
    /// Every change holds this for reading from its first turn to its last. A stop takes it for
    /// writing, and so waits for all changes.
    pub(super) changes_under_way: RwLock<()>,
    sends_again: OnceLock<Weak<dyn SendsAgain>>,
    /// The most that was shown of progress.
    pub(super) last_shown: LastShown,
    /// What this host has heard of and not started yet.
    pub(super) heard: Arc<Heard>,
}

impl Processors {
    pub(crate) fn new(
        base: &Base,
        supervisor: Supervisor,
        catalogue: Catalogue,
        messages: Messages,
    ) -> Self {
        let Base {
            clock,
            engine,
            modules,
            partitioners,
            hosts,
        } = base.clone();
        Self::of(Arc::new(Inner {
            clock,
            engine,
            modules,
            partitioners,
            hosts,
            supervisor,
            catalogue,
            messages,
            changes_under_way: RwLock::default(),
            sends_again: OnceLock::new(),
            last_shown: LastShown::default(),
            heard: Arc::default(),
        }))
    }

    /// The handle for actions of the host itself, without a caller's name.
    pub(super) fn of(inner: Arc<Inner>) -> Self {
        Self {
            inner,
            caller: Caller::default(),
        }
    }

    /// The same handle for a caller.
    #[must_use]
    pub(crate) fn called_by(&self, caller: &Caller) -> Self {
        Self {
            caller: caller.clone(),
            ..self.clone()
        }
    }

    /// The same handle for actions of the host itself.
    pub(super) fn by_itself(&self) -> Self {
        self.called_by(&Caller::host())
    }

    /// Sets the part that redrives dead letters. Only the first call counts.
    pub(crate) fn send_again_by(&self, whom: Weak<dyn SendsAgain>) {
        let _ = self.inner.sends_again.set(whom);
    }

    pub(super) fn sends_again(&self) -> Option<Arc<dyn SendsAgain>> {
        self.inner.sends_again.get()?.upgrade()
    }

    /// What this host has heard of and not started yet.
    pub(crate) fn heard(&self) -> Arc<Heard> {
        Arc::clone(&self.inner.heard)
    }

    pub(crate) fn supervisor(&self) -> &Supervisor {
        &self.inner.supervisor
    }

    /// A weak reference, which does not keep the processors alive.
    pub(crate) fn downgrade(&self) -> Weak<Inner> {
        Arc::downgrade(&self.inner)
    }
}
