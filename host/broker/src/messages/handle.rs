//! The handle of messages: produce calls under way, and delayed messages.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use metrics::{Counter, Histogram, histogram};
use millrace_engine::Engine;
use millrace_model::{Clock, TopicId};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::catalogue::handle::Catalogue;
use crate::ground::caller::Caller;
use crate::ground::partitioner::Partitioners;
use crate::handler::ModuleHost;
use crate::hosts::base::Base;
use crate::messages::delays::delayed::Delays;

/// Produced, read and delayed messages. Cheap to clone.
#[derive(Clone)]
pub struct Messages {
    pub(super) inner: Arc<Inner>,
    pub(super) caller: Caller,
}

pub(crate) struct Inner {
    pub(super) clock: Arc<dyn Clock>,
    pub(super) engine: Arc<dyn Engine>,
    pub(super) modules: Arc<dyn ModuleHost>,
    pub(super) partitioners: Arc<Partitioners>,
    pub(super) catalogue: Catalogue,
    pub(super) delays: Arc<Delays>,
    /// Bytes of produce calls on their way to the engine.
    pub(super) in_flight: Semaphore,
    /// The maximum of `in_flight`.
    pub(super) in_flight_bytes: usize,
    pub(super) publish_seconds: Histogram,
    /// Counters of received messages, by topic.
    pub(super) received: Mutex<HashMap<TopicId, Counter>>,
}

impl Messages {
    /// For tasks, which end with the broker.
    pub(crate) fn downgrade(&self) -> Weak<Inner> {
        Arc::downgrade(&self.inner)
    }

    pub(crate) fn new(
        base: &Base,
        catalogue: Catalogue,
        delays: Arc<Delays>,
        in_flight_bytes: usize,
    ) -> Self {
        let Base {
            clock,
            engine,
            modules,
            partitioners,
            ..
        } = base.clone();
        let inner = Inner {
            clock,
            engine,
            modules,
            partitioners,
            catalogue,
            delays,
            in_flight: Semaphore::new(in_flight_bytes),
            in_flight_bytes,
            publish_seconds: histogram!("millrace_publish_seconds"),
            received: Mutex::default(),
        };
        Self::of(Arc::new(inner))
    }

    /// The handle for what the host does by itself.
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

    /// The delayed messages.
    pub(crate) fn delays(&self) -> &Arc<Delays> {
        &self.inner.delays
    }

    /// Stops counting the messages of a deleted topic.
    pub(crate) fn forget_topic(&self, id: TopicId) {
        self.inner.received.lock().remove(&id);
    }
}
