//! Changes a processor in turns, with loading between them.
//!
//! A turn decides about the processor as it is, under the catalogue's lock, and commits. Loading
//! compiles and starts components; it happens between turns, without the lock, so a slow load
//! delays no other change. A turn that lacks a component ends without any effect. After the load,
//! the next turn decides from the beginning, because everything may have changed; loaded components
//! are reused where they still fit. So everything a change depends on holds when it is committed,
//! and a change that is not made leaves nothing behind.

use std::sync::Arc;

use millrace_engine::{CommitError, ReadError, TopicError};
use millrace_model::{Processor, ProcessorName};

use crate::catalogue::deciding::DecisionError;
use crate::processors::error::ProcessorError;
use crate::processors::handle::Processors;
use crate::processors::loaded::Loaded;

/// Maximum number of turns of a change. If the loaded components still do not fit, it fails with a
/// conflict.
const TURNS_MAX: usize = 16;

/// Why a turn did not make the change.
#[derive(Debug)]
pub(crate) enum TurnError {
    /// A component must be loaded first.
    NotLoaded(Box<Lacking>),
    /// The change is refused.
    Refused(ProcessorError),
}

/// A changed processor of which some components are not loaded.
#[derive(Debug)]
pub(crate) struct Lacking {
    pub(super) processor: Processor,
    /// Whether the current revision runs alone if the one on trial cannot be loaded.
    pub(super) runs_alone: bool,
}

impl TurnError {
    pub(super) fn not_loaded(processor: &Processor) -> Self {
        Self::NotLoaded(Box::new(Lacking {
            processor: processor.clone(),
            runs_alone: false,
        }))
    }
}

impl From<ProcessorError> for TurnError {
    fn from(error: ProcessorError) -> Self {
        Self::Refused(error)
    }
}

impl From<CommitError> for TurnError {
    fn from(error: CommitError) -> Self {
        Self::Refused(error.into())
    }
}

impl From<TopicError> for TurnError {
    fn from(error: TopicError) -> Self {
        Self::Refused(error.into())
    }
}

impl From<ReadError> for TurnError {
    fn from(error: ReadError) -> Self {
        Self::Refused(error.into())
    }
}

impl DecisionError for TurnError {
    fn commit_error(&self) -> Option<&CommitError> {
        match self {
            Self::NotLoaded(_) => None,
            Self::Refused(error) => error.commit_error(),
        }
    }
}

impl Processors {
    /// Decides about a processor and commits it, in turns.
    pub(super) async fn decide<T, F>(
        &self,
        name: &ProcessorName,
        decision: impl Fn(Arc<Loaded>) -> F,
    ) -> Result<T, ProcessorError>
    where
        F: Future<Output = Result<T, TurnError>>,
    {
        // A stop waits for this change, as it would if the whole change held the lock.
        let _under_way = self.inner.changes_under_way.read().await;
        let decision = &decision;
        let turn = |loaded: Arc<Loaded>| async move {
            let catalogue = &self.inner.catalogue;
            catalogue.decide(|| decision(Arc::clone(&loaded))).await
        };
        self.load_between(name, turn).await
    }

    /// Waits until no change is between two turns.
    pub(crate) async fn changes_rest(&self) {
        drop(self.inner.changes_under_way.write().await);
    }

    /// Loads what a turn lacked and tries again, until nothing is lacking.
    pub(super) async fn load_between<T, F>(
        &self,
        name: &ProcessorName,
        turn: impl Fn(Arc<Loaded>) -> F,
    ) -> Result<T, ProcessorError>
    where
        F: Future<Output = Result<T, TurnError>>,
    {
        let mut loaded = Arc::<Loaded>::default();
        for _ in 0..TURNS_MAX {
            match turn(Arc::clone(&loaded)).await {
                Ok(done) => return Ok(done),
                Err(TurnError::Refused(error)) => return Err(error),
                Err(TurnError::NotLoaded(lacking)) => {
                    loaded = Arc::new(self.load_lacking(&lacking, &loaded).await?);
                }
            }
        }
        let changed = self.inner.catalogue.as_known(name);
        Err(CommitError::Conflict(Arc::new(changed)).into())
    }

    async fn load_lacking(
        &self,
        lacking: &Lacking,
        before: &Loaded,
    ) -> Result<Loaded, ProcessorError> {
        let processor = &lacking.processor;
        match self.load_all(processor, before).await {
            Err(error) if lacking.runs_alone => {
                let alone = self.load_all(&without_trial(processor), before).await?;
                Ok(alone.without_trial(processor, error.to_string()))
            }
            loaded => loaded,
        }
    }
}

/// The processor with its current revision alone.
pub(super) fn without_trial(processor: &Processor) -> Processor {
    Processor {
        trial: None,
        ..processor.clone()
    }
}
