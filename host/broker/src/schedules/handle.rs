//! The handle of schedules.

use std::sync::{Arc, Weak};

use millrace_engine::Engine;
use millrace_model::Clock;
use tokio::sync::Notify;

use crate::catalogue::handle::Catalogue;
use crate::ground::caller::Caller;
use crate::hosts::base::Base;
use crate::messages::handle::Messages;
use crate::schedules::known::KnownSchedules;

/// Schedules, which create messages for topics again and again. Cheap to clone.
#[derive(Clone)]
pub struct Schedules {
    pub(super) inner: Arc<Inner>,
    pub(super) caller: Caller,
}

pub(crate) struct Inner {
    pub(super) clock: Arc<dyn Clock>,
    pub(super) engine: Arc<dyn Engine>,
    pub(super) catalogue: Catalogue,
    pub(super) messages: Messages,
    pub(super) known: KnownSchedules,
}

impl Schedules {
    pub(crate) fn new(base: &Base, catalogue: Catalogue, messages: Messages) -> Self {
        let Base { clock, engine, .. } = base.clone();
        Self::of(Arc::new(Inner {
            clock,
            engine,
            catalogue,
            messages,
            known: KnownSchedules::default(),
        }))
    }

    /// The room for the host's own actions.
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

    /// Wakes the task that waits for the next due time.
    pub(crate) fn changed(&self) -> Arc<Notify> {
        self.inner.known.changed()
    }

    /// A weak reference, which does not keep the room alive.
    pub(crate) fn downgrade(&self) -> Weak<Inner> {
        Arc::downgrade(&self.inner)
    }
}
