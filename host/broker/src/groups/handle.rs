//! The handle of groups.

use std::sync::Arc;

use millrace_engine::Engine;
use millrace_model::{Clock, TopicId};

use crate::catalogue::handle::Catalogue;
use crate::ground::caller::Caller;
use crate::groups::kept::Consumers;
use crate::hosts::base::Base;
use crate::messages::handle::Messages;

/// Named readers and their positions. Cheap to clone.
#[derive(Clone)]
pub struct Groups {
    pub(super) inner: Arc<Inner>,
    pub(super) caller: Caller,
}

pub(super) struct Inner {
    pub(super) clock: Arc<dyn Clock>,
    pub(super) engine: Arc<dyn Engine>,
    pub(super) catalogue: Catalogue,
    pub(super) messages: Messages,
    pub(super) consumers: Consumers,
}

impl Groups {
    pub(crate) fn new(base: &Base, catalogue: Catalogue, messages: Messages) -> Self {
        let Base {
            clock,
            engine,
            hosts,
            ..
        } = base.clone();
        let inner = Inner {
            consumers: Consumers::new(clock.monotonic(), &hosts),
            clock,
            engine,
            catalogue,
            messages,
        };
        Self {
            inner: Arc::new(inner),
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

    /// The topic was deleted, and its consumers with it.
    pub(crate) fn forget_topic(&self, id: TopicId) {
        self.inner.consumers.forget_topic(id);
    }
}
