//! What is loaded for a change of a processor. Nothing takes effect yet: dropping it leaves nothing
//! behind.

use std::sync::Arc;

use millrace_model::processor::Limits;
use millrace_model::{Digest, Processor, Revision, Timestamp, TopicId};

use crate::ground::partitioner::Partitioner;
use crate::handler::{BatchHandler, FailureHandler};

/// The purpose that a component is loaded for. A component loaded for another purpose cannot
/// replace it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Purpose {
    owner: String,
    /// When the processor was created; `None` if it did not exist. Data stored for its components,
    /// such as their log, goes with it.
    made_at: Option<Timestamp>,
    revision: u32,
    digest: Digest,
    limits: Limits,
}

impl Purpose {
    /// The purpose of a handler or an error handler of a revision.
    pub(super) fn of(
        revision: &Revision,
        owner: &str,
        made_at: Option<Timestamp>,
        digest: Digest,
    ) -> Self {
        Self {
            owner: owner.to_owned(),
            made_at,
            revision: revision.number,
            digest,
            limits: revision.spec.limits.clone(),
        }
    }
}

/// Loaded components.
#[derive(Clone, Default)]
pub(crate) struct Loaded {
    processors: Vec<(Purpose, Arc<dyn BatchHandler>)>,
    error_handlers: Vec<(Purpose, Arc<dyn FailureHandler>)>,
    partitioners: Vec<(TopicId, Arc<Partitioner>)>,
    /// The revision on trial that could not be loaded, and why.
    trial_problem: Option<(u32, String)>,
}

impl Loaded {
    pub(super) fn processor(&self, purpose: &Purpose) -> Option<Arc<dyn BatchHandler>> {
        found(&self.processors, purpose)
    }

    pub(super) fn add_processor(&mut self, purpose: Purpose, handler: Arc<dyn BatchHandler>) {
        self.processors.push((purpose, handler));
    }

    pub(super) fn error_handler(&self, purpose: &Purpose) -> Option<Arc<dyn FailureHandler>> {
        found(&self.error_handlers, purpose)
    }

    pub(super) fn add_error_handler(&mut self, purpose: Purpose, handler: Arc<dyn FailureHandler>) {
        self.error_handlers.push((purpose, handler));
    }

    pub(super) fn partitioner(&self, topic: TopicId) -> Option<Arc<Partitioner>> {
        found(&self.partitioners, &topic)
    }

    pub(super) fn add_partitioner(&mut self, topic: TopicId, partitioner: Arc<Partitioner>) {
        self.partitioners.push((topic, partitioner));
    }

    /// Why the revision on trial could not be loaded; `None` if it could.
    pub(super) fn trial_problem(&self, processor: &Processor) -> Option<&str> {
        let (revision, why) = self.trial_problem.as_ref()?;
        (processor.on_trial() == Some(*revision)).then_some(why)
    }

    /// The same components without the revision on trial, which could not be loaded for this
    /// reason.
    pub(super) fn without_trial(self, processor: &Processor, why: String) -> Self {
        Self {
            trial_problem: processor.on_trial().map(|revision| (revision, why)),
            ..self
        }
    }
}

fn found<K: PartialEq, T: ?Sized>(all: &[(K, Arc<T>)], wanted: &K) -> Option<Arc<T>> {
    let found = all.iter().find(|(known, _)| known == wanted);
    found.map(|(_, found)| Arc::clone(found))
}
