//! The catalogue as this host knows it. A change reads, decides, and commits with the versions it read as expectations; if another host
//! was quicker, it reads and decides again. Changes by other hosts are followed here.

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

/// How often a decision is repeated, because others were quicker, before the conflict is reported.
const DECISIONS_MAX: usize = 16;
/// How long to wait for another host's change before deciding again.
const HEAR_WAIT: Duration = Duration::from_millis(500);
/// How long to wait for the store to say what others have changed, and for what is known to have been changed.
const HEAR_DURATION_MAX: Duration = Duration::from_secs(2);

/// An error that a decision about the catalogue can end with.
pub(crate) trait DecisionError {
    /// The engine's error, if the decision failed because of it.
    fn commit_error(&self) -> Option<&CommitError>;

    /// Whether another host changed what the decision was based on.
    fn is_conflict(&self) -> bool {
        matches!(self.commit_error(), Some(CommitError::Conflict(_)))
    }
}

impl DecisionError for CommitError {
    fn commit_error(&self) -> Option<&CommitError> {
        Some(self)
    }
}

/// Implements [`DecisionError`] for errors that contain the engine's, directly or in another error;
/// names the variants.
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

/// How far this host knows the catalogue's writes of one kind.
#[derive(Debug, Default)]
pub(crate) struct Followed(Mutex<Version>);

impl Followed {
    pub(crate) fn version(&self) -> Version {
        *self.0.lock()
    }

    /// All writes up to this one are known.
    pub(crate) fn up_to(&self, version: Version) {
        *self.0.lock() = version;
    }

    /// Marks a write by this host as known. Earlier writes by others are still to come.
    pub(crate) fn own(&self, written: Version) {
        let mut version = self.0.lock();
        if written.0 == version.0 + 1 {
            *version = written;
        }
    }
}

/// Brings what this host knows up to what others have changed. If the store is out of reach or does not answer in time, what is known counts.
pub(crate) async fn hear(engine: &dyn Engine) {
    let heard = tokio::time::timeout(HEAR_DURATION_MAX, engine.hear()).await;
    if !matches!(heard, Ok(Ok(()))) {
        tracing::debug!("what other hosts have changed cannot be asked now");
    }
}

/// Decides and commits. After a conflict with another host it does both again, up to
/// [`DECISIONS_MAX`] times in all.
pub(crate) async fn decided<T, E, F>(engine: &dyn Engine, decision: impl Fn() -> F) -> Result<T, E>
where
    F: Future<Output = Result<T, E>>,
    E: DecisionError,
{
    let mut heard = engine.watch_catalogue();
    for _ in 1..DECISIONS_MAX {
        // What another host has created seems not to exist until this host hears of it.
        hear(engine).await;
        heard.borrow_and_update();
        match decision().await {
            Err(error) if error.is_conflict() => {
                // Deciding on the same knowledge again would only conflict again.
                let _ = tokio::time::timeout(HEAR_WAIT, heard.changed()).await;
            }
            // Another host took over the claim meanwhile.
            Err(error) if matches!(error.commit_error(), Some(CommitError::Fenced { .. })) => {}
            done => return done,
        }
    }
    decision().await
}

/// Waits until this host knows the catalogue up to a version that another host has written.
pub(crate) async fn heard_of<T>(
    engine: &dyn Engine,
    mut look: impl FnMut() -> Option<T>,
) -> Option<T> {
    let mut heard = engine.watch_catalogue();
    hear(engine).await;
    let hearing = async {
        loop {
            heard.borrow_and_update();
            match look() {
                None => heard.changed().await.ok()?,
                found => return found,
            }
        }
    };
    let found = tokio::time::timeout(HEAR_DURATION_MAX, hearing).await;
    found.ok().flatten()
}

impl Catalogue {
    /// Decides something about the catalogue and commits it, one decision of this host at a time, and again if another host was
    /// quicker.
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

    /// Expects a processor's entry to be as this host knows it, or absent if this host knows none.
    pub(crate) fn as_known(&self, name: &ProcessorName) -> Expectation {
        let known = self.inner.processors.read();
        Expectation::Entry {
            kind: EntryKind::Processor,
            key: name.to_string(),
            version: known.get(name).map(|known| known.version),
        }
    }

    /// Expects all processors to be as this host knows them, and that there are no others.
    pub(crate) fn all_as_known(&self) -> Expectation {
        Expectation::Kind {
            kind: EntryKind::Processor,
            version: self.inner.processors_followed.version(),
        }
    }

    /// Expects a module's entry to be as it is now, or absent if it is absent.
    pub(crate) fn module_as_now(&self, digest: Digest) -> Expectation {
        let (kind, key) = (EntryKind::Module, digest.to_string());
        let read = self.inner.engine.entry(kind, &key);
        Expectation::entry(kind, key, read.as_ref())
    }

    /// Expects that no module is added, changed or removed from now on.
    pub(crate) fn modules_as_now(&self) -> Expectation {
        let kind = EntryKind::Module;
        let version = self.inner.engine.version(kind);
        Expectation::Kind { kind, version }
    }

    /// Writes one entry of the catalogue (with `None`, removes it) if the expectations still hold; returns its version.
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

/// Expects a topic to be as it was read.
pub(crate) fn as_read(topic: &Topic) -> Expectation {
    Expectation::Topic {
        name: topic.spec.name.clone(),
        topic: Some(topic.clone()),
    }
}
