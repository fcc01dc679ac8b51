//! The catalogue as this host knows it. Whoever changes it reads, decides and commits on what was seen; if somebody else was quicker, it is
//! read and decided again. What others changed is taken over from there.

use std::time::Duration;

use millrace_engine::{
    CommitError, Engine, EntryKind, Expectation, TopicError, Transaction, Version,
};
use millrace_model::{Digest, Durability, ProcessorName, Topic};
use parking_lot::Mutex;
use serde::Serialize;

use crate::catalogue::deployed::Deployed;
use crate::catalogue::entries::entry;
use crate::catalogue::handle::Catalogue;

/// How often something is decided, because others were quicker, before that is told.
const DECISIONS_MAX: usize = 16;
/// How long is waited for what another host changed to be heard of here.
const HEAR_WAIT: Duration = Duration::from_millis(500);

/// An error that a decision about the catalogue can end with.
pub(crate) trait DecisionError {
    /// Why the engine did not take it, if that is why.
    fn commit_error(&self) -> Option<&CommitError>;

    /// Whether somebody else changed what it was made on.
    fn is_conflict(&self) -> bool {
        matches!(self.commit_error(), Some(CommitError::Conflict(_)))
    }
}

impl DecisionError for CommitError {
    fn commit_error(&self) -> Option<&CommitError> {
        Some(self)
    }
}

/// Says of errors that they hold the engine's, directly or within another one, and in which variants.
macro_rules! decision_errors {
    ($($error:ty: $($variant:path),+;)*) => {
        $(impl $crate::catalogue::deciding::DecisionError for $error {
            fn commit_error(&self) -> Option<&millrace_engine::CommitError> {
                match self {
                    $($variant(error) => $crate::catalogue::deciding::DecisionError::commit_error(error),)+
                    _ => None,
                }
            }
        })*
    };
}

pub(crate) use decision_errors;

decision_errors! {
    TopicError: TopicError::Commit;
}

/// Up to which of the catalogue's writes of a kind all is known here.
#[derive(Debug, Default)]
pub(crate) struct Followed(Mutex<Version>);

impl Followed {
    pub(crate) fn version(&self) -> Version {
        *self.0.lock()
    }

    /// All up to this one is known.
    pub(crate) fn up_to(&self, version: Version) {
        *self.0.lock() = version;
    }

    /// A write of this host's is known. If others wrote before it, their writes are still to come.
    pub(crate) fn own(&self, written: Version) {
        let mut version = self.0.lock();
        if written.0 == version.0 + 1 {
            *version = written;
        }
    }
}

/// Decides, and decides again as often as somebody else was quicker, up to [`DECISIONS_MAX`] times.
pub(crate) async fn decided<T, E, F>(engine: &dyn Engine, decision: impl Fn() -> F) -> Result<T, E>
where
    F: Future<Output = Result<T, E>>,
    E: DecisionError,
{
    let mut heard = engine.watch_catalogue();
    for _ in 1..DECISIONS_MAX {
        heard.borrow_and_update();
        match decision().await {
            Err(error) if error.is_conflict() => {
                // Decided on the same once more, it would be the same conflict.
                let _ = tokio::time::timeout(HEAR_WAIT, heard.changed()).await;
            }
            // Somebody took over what was claimed for it.
            Err(error) if matches!(error.commit_error(), Some(CommitError::Fenced { .. })) => {}
            done => return done,
        }
    }
    decision().await
}

/// What is known of the catalogue, once it is: another host has written it, and this one may not have heard of it yet.
pub(crate) async fn heard_of<T>(
    engine: &dyn Engine,
    mut look: impl FnMut() -> Option<T>,
) -> Option<T> {
    let mut heard = engine.watch_catalogue();
    let hearing = async {
        loop {
            heard.borrow_and_update();
            match look() {
                None => heard.changed().await.ok()?,
                found => return found,
            }
        }
    };
    let found = tokio::time::timeout(HEAR_WAIT, hearing).await;
    found.ok().flatten()
}

impl Catalogue {
    /// Decides something about the catalogue and commits it; by turns with all else that this host decides about it, and again as often as
    /// another one was quicker.
    pub(crate) async fn decide<T, E, F>(&self, decision: impl Fn() -> F) -> Result<T, E>
    where
        F: Future<Output = Result<T, E>>,
        E: DecisionError,
    {
        let _change = self.change().await;
        decided(&*self.inner.engine, || async {
            if let Some(dependents) = self.dependents() {
                dependents.catch_up().await;
            }
            decision().await
        })
        .await
    }

    /// Whether a processor's entry is the one that this host knows.
    pub(crate) fn is_entry_of(&self, known: &Deployed) -> bool {
        let name = known.processor.name.as_str();
        let entry = self.inner.engine.entry(EntryKind::Processor, name);
        entry.is_some_and(|entry| entry.version == known.version)
    }

    /// That a processor is in the catalogue as this host knows it, or is not there if this host knows none.
    pub(crate) fn as_known(&self, name: &ProcessorName) -> Expectation {
        let known = self.inner.processors.read();
        Expectation::Entry {
            kind: EntryKind::Processor,
            key: name.to_string(),
            version: known.get(name).map(|known| known.version),
        }
    }

    /// That all processors are as this host knows them, and that there are no others.
    pub(crate) fn all_as_known(&self) -> Expectation {
        Expectation::Kind {
            kind: EntryKind::Processor,
            version: self.inner.processors_followed.version(),
        }
    }

    /// That a module is in the catalogue as it is now, or is not there if it is not.
    pub(crate) fn module_as_now(&self, digest: Digest) -> Expectation {
        let (kind, key) = (EntryKind::Module, digest.to_string());
        let read = self.inner.engine.entry(kind, &key);
        Expectation::entry(kind, key, read.as_ref())
    }

    /// That no module came, changed or went since now.
    pub(crate) fn modules_as_now(&self) -> Expectation {
        let kind = EntryKind::Module;
        let version = self.inner.engine.version(kind);
        Expectation::Kind { kind, version }
    }

    /// Writes (or, with `None`, removes) one entry of the catalogue, if what it was decided on still holds; its version.
    pub(crate) async fn write_entry<T: Serialize + Sync>(
        &self,
        kind: EntryKind,
        key: String,
        value: Option<&T>,
        expects: Vec<Expectation>,
    ) -> Result<Version, CommitError> {
        let transaction = Transaction {
            entries: vec![entry(kind, key, value)],
            expects,
            durability: Some(Durability::Durable),
            ..Transaction::default()
        };
        let receipt = self.inner.engine.commit(transaction).await?;
        Ok(receipt.versions.last().copied().unwrap_or_default())
    }
}

/// That a topic is as it was read.
pub(crate) fn as_read(topic: &Topic) -> Expectation {
    Expectation::Topic {
        name: topic.spec.name.clone(),
        topic: Some(topic.clone()),
    }
}
