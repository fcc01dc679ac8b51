//! The catalogue as this host knows it. A change reads, decides, and commits with the versions it read as expectations; if another host
//! was quicker, it reads and decides again. Changes by other hosts are followed here.

use std::collections::{HashMap, HashSet};
use std::sync::Weak;
use std::time::Duration;

use millrace_engine::{
    CommitError, Engine, Entry, EntryKind, Expectation, TopicError, Transaction, Version,
};
use millrace_model::{Digest, Durability, Processor, ProcessorName, Topic, TopicId};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::watch;

use crate::broker::{Broker, Deployed, Inner, entry};
use crate::canary::on_trial;
use crate::consumers::ConsumerError;
use crate::dead_letters::{DeadLetterError, none_waiting};
use crate::delays::DelayedError;
use crate::lifetime::TopicChangeError;
use crate::modules::ModuleError;
use crate::processors::ProcessorError;
use crate::produce::ProduceError;
use crate::schedules::ScheduleError;
use crate::states::StateAccessError;
use crate::topics::{TopicCreateError, TopicDeleteError};

/// How often a decision is repeated, because others were quicker, before the conflict is reported.
const DECISIONS_MAX: usize = 16;
/// How long to wait until this host sees another host's change.
const HEAR_WAIT: Duration = Duration::from_millis(500);

/// An error that a decision about the catalogue can end with.
pub(crate) trait DecisionError {
    /// The engine's error, if that was the cause.
    fn commit_error(&self) -> Option<&CommitError>;

    /// Whether someone else changed what the decision was based on.
    fn is_conflict(&self) -> bool {
        matches!(self.commit_error(), Some(CommitError::Conflict(_)))
    }
}

impl DecisionError for CommitError {
    fn commit_error(&self) -> Option<&CommitError> {
        Some(self)
    }
}

/// Errors that contain the engine's, directly or inside another one.
macro_rules! decision_errors {
    ($($error:ty: $($variant:path),+;)*) => {
        $(impl DecisionError for $error {
            fn commit_error(&self) -> Option<&CommitError> {
                match self {
                    $($variant(error) => error.commit_error(),)+
                    _ => None,
                }
            }
        })*
    };
}

decision_errors! {
    TopicError: TopicError::Commit;
    ProcessorError: ProcessorError::Commit, ProcessorError::Topic;
    ModuleError: ModuleError::Commit;
    ProduceError: ProduceError::Commit;
    ScheduleError: ScheduleError::Commit, ScheduleError::Message;
    TopicCreateError: TopicCreateError::Topic;
    TopicChangeError: TopicChangeError::Topic;
    TopicDeleteError: TopicDeleteError::Commit;
    DeadLetterError: DeadLetterError::Commit;
    StateAccessError: StateAccessError::Commit;
    DelayedError: DelayedError::Commit;
    ConsumerError: ConsumerError::Commit;
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

/// Decides and commits, again if someone else was quicker, up to [`DECISIONS_MAX`] times.
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
                // Deciding on the same knowledge again would only conflict again.
                let _ = tokio::time::timeout(HEAR_WAIT, heard.changed()).await;
            }
            // Someone else took over the claim meanwhile.
            Err(error) if matches!(error.commit_error(), Some(CommitError::Fenced { .. })) => {}
            done => return done,
        }
    }
    decision().await
}

/// Waits until the catalogue is known up to here: another host has written to it, and this host may not have seen that yet.
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

impl Broker {
    /// Decides something about the catalogue and commits it, one decision of this host at a time, and again if another host was
    /// quicker.
    pub(crate) async fn decide<T, E, F>(&self, decision: impl Fn() -> F) -> Result<T, E>
    where
        F: Future<Output = Result<T, E>>,
        E: DecisionError,
    {
        let _change = self.inner.changes.lock().await;
        decided(&*self.inner.engine, || async {
            self.catch_up().await;
            decision().await
        })
        .await
    }

    fn is_followed(&self) -> bool {
        let newest = self.inner.engine.version(EntryKind::Processor);
        self.inner.processors_followed.version() == newest
    }

    /// Follows changes of processors by others. The caller holds `changes`.
    async fn catch_up(&self) {
        if !self.is_followed() {
            self.take_over_all().await;
        }
    }

    async fn take_over_all(&self) {
        let newest = self.inner.engine.version(EntryKind::Processor);
        let entries = self.inner.engine.entries(EntryKind::Processor);
        let kept: HashSet<&str> = entries.iter().map(|(key, _)| key.as_str()).collect();
        let gone: Vec<ProcessorName> = {
            let known = self.inner.processors.read();
            let names = known.keys().filter(|name| !kept.contains(name.as_str()));
            names.cloned().collect()
        };
        for name in gone {
            self.forget_processor(&name).await;
        }
        for (key, entry) in &entries {
            let known = ProcessorName::parse(key).ok();
            let known = known.and_then(|name| self.deployed(&name));
            if known.is_none_or(|known| known.version != entry.version) {
                self.take_over(key, entry).await;
            }
        }
        self.inner.processors_followed.up_to(newest);
    }

    /// Creates a processor as another host has stored it.
    async fn take_over(&self, key: &str, entry: &Entry) {
        let processor = match serde_json::from_slice::<Processor>(&entry.value) {
            Ok(processor) => processor,
            Err(error) => {
                let why = format!(
                    "another host, perhaps with a newer version, wrote an entry that this one cannot read: {error}"
                );
                tracing::error!(processor = key, why, "a processor has stopped on this host");
                if let Ok(name) = ProcessorName::parse(key) {
                    self.stop_here(&name, why).await;
                }
                return;
            }
        };
        let name = processor.name.clone();
        let known = self.deployed(&name);
        let resumed = known.as_ref().and_then(|known| {
            let resumes = &processor.resumes;
            let is_meant = resumes.revision == processor.current;
            resumes.since(&known.processor.resumes).filter(|_| is_meant)
        });
        match known {
            // The running revision stays the same. If it had a problem, it is tried again: the problem may be gone.
            Some(known) if known.problem.is_none() && runs_alike(&known.processor, &processor) => {
                self.know_with(processor, entry.version, None, known.trial_problem);
                self.resume_here(&name, resumed);
                self.redrive_if_left(name);
                return;
            }
            _ if processor.paused => self.inner.supervisor.pause(&name),
            _ => {}
        }
        self.start_processor(processor, entry.version).await;
        self.resume_here(&name, resumed);
        if self
            .deployed(&name)
            .is_some_and(|known| known.problem.is_some())
        {
            // The previously running one is no longer wanted.
            self.inner.supervisor.stop(&name).await;
        }
        self.redrive_if_left(name);
    }

    /// The processor was resumed on another host, with dead letters accepted: this applies to its breaker here as well.
    fn resume_here(&self, name: &ProcessorName, resumed: Option<u64>) {
        if let Some(accepted) = resumed
            && let Some(gate) = self.inner.supervisor.gate(name)
        {
            gate.resume((accepted > 0).then_some(accepted));
        }
    }

    /// The processor continues elsewhere in a state that this host cannot read.
    async fn stop_here(&self, name: &ProcessorName, why: String) {
        if let Some(known) = self.inner.processors.write().get_mut(name) {
            known.problem = Some(why);
        }
        self.inner.supervisor.stop(name).await;
    }

    /// The processor was removed from the catalogue.
    pub(crate) async fn forget_processor(&self, name: &ProcessorName) {
        self.inner.supervisor.stop(name).await;
        self.inner.processors.write().remove(name);
        none_waiting(name);
        self.inner.modules.forget_logs(name);
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

/// Whether what should run stays the same.
fn runs_alike(one: &Processor, other: &Processor) -> bool {
    // A processor that was deleted and created again starts with the same numbers.
    let revision = |processor: &Processor, number| {
        let revision = processor.revision(number);
        revision.map(|r| (r.number, r.deployed_at, r.spec.clone()))
    };
    let what_runs = |processor: &Processor| {
        let share = processor.canary.as_ref().map(|canary| canary.percent);
        let trial = on_trial(processor).and_then(|number| revision(processor, number));
        (revision(processor, processor.current), trial, share)
    };
    one.paused == other.paused && one.replay == other.replay && what_runs(one) == what_runs(other)
}

/// Expects a topic to be as it was read.
pub(crate) fn as_read(topic: &Topic) -> Expectation {
    Expectation::Topic {
        name: topic.spec.name.clone(),
        topic: Some(topic.clone()),
    }
}

/// Follows changes by other hosts as they become visible, until told to stop or the broker is gone.
pub(crate) async fn follow(
    broker: Weak<Inner>,
    mut changed: watch::Receiver<u64>,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        match broker.upgrade() {
            Some(inner) => Broker { inner, by: None }.follow_once().await,
            None => return,
        }
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            // No engine, no changes.
            still = changed.changed() => if still.is_err() { return },
        }
    }
}

impl Broker {
    async fn follow_once(&self) {
        if !self.is_followed() {
            let _change = self.inner.changes.lock().await;
            self.catch_up().await;
        }
        self.follow_schedules().await;
        self.follow_topics().await;
    }

    /// Updates what depends on a topic's partition count, or was kept for a deleted topic, after a change by another host.
    async fn follow_topics(&self) {
        if !self.inner.hosts.had_others() {
            return;
        }
        let topics = self.topics();
        let now: HashMap<TopicId, u32> = topics
            .iter()
            .map(|topic| (topic.id, topic.spec.partitions))
            .collect();
        let before = std::mem::replace(&mut *self.inner.topics_followed.lock(), now.clone());
        for gone in before.keys().filter(|id| !now.contains_key(*id)) {
            self.forget_topic(*gone);
        }
        let has_grown = |topic: &&Topic| {
            let before = before.get(&topic.id);
            before.is_none_or(|before| *before < topic.spec.partitions)
        };
        let grown: Vec<&Topic> = topics.iter().filter(has_grown).collect();
        if grown.is_empty() {
            return;
        }
        let _change = self.inner.changes.lock().await;
        for topic in grown {
            self.tell(topic).await;
        }
        self.inner.growths.send_modify(|count| *count += 1);
    }
}
