//! The catalogue's handle: what this host knows about topics, modules and processors, and the lock
//! under which it changes them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, OnceLock, Weak};

use async_trait::async_trait;
use millrace_engine::{Engine, EntryKind, EntryWrite};
use millrace_model::{Clock, Digest, Processor, ProcessorName, Topic, TopicId, TopicName};
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use tokio::sync::{MutexGuard, watch};

use crate::catalogue::admissions::Admissions;
use crate::catalogue::configs::Configs;
use crate::catalogue::deciding::Followed;
use crate::catalogue::deployed::Deployed;
use crate::catalogue::policy::ModulePolicy;
use crate::ground::caller::Caller;
use crate::ground::partitioner::Partitioners;
use crate::handler::{LiveConfig, ModuleHost};
use crate::hosts::base::Base;
use crate::hosts::living::Hosts;

/// Whatever depends on the catalogue, in the rooms above, and is notified of its changes. The
/// broker, which builds the rooms, connects them.
#[async_trait]
pub(crate) trait Dependents: Send + Sync {
    /// Applies other hosts' changes of processors. The caller holds the lock of changes.
    async fn catch_up(&self);

    /// A topic has more partitions, which its readers must read as well. The caller holds the lock
    /// of changes.
    async fn grown(&self, topic: &Topic);

    /// The revision to which a rollback of the processor would lead is gone. The caller holds the
    /// lock of changes.
    async fn way_back_is_gone(&self, processor: &ProcessorName);

    /// Messages of the topic were removed.
    fn trimmed(&self, topic: &TopicName);

    /// The topic was deleted.
    fn deleted(&self, topic: TopicId);

    /// The entries that must be removed with a topic.
    fn entries_about(&self, topic: TopicId) -> Vec<EntryWrite>;
}

/// The catalogue: topics, modules, and deployed processors. Cheap to clone.
#[derive(Clone)]
pub struct Catalogue {
    pub(super) inner: Arc<Inner>,
    pub(super) caller: Caller,
}

pub(super) struct Inner {
    pub(super) clock: Arc<dyn Clock>,
    pub(super) engine: Arc<dyn Engine>,
    pub(super) modules: Arc<dyn ModuleHost>,
    pub(super) partitioners: Arc<Partitioners>,
    hosts: Arc<Hosts>,
    pub(super) policy: ModulePolicy,
    /// Modules whose signatures were found good since the start, at most [`VERIFIED_MODULES_MAX`](super::signatures::VERIFIED_MODULES_MAX).
    pub(super) verified: Mutex<HashSet<Digest>>,
    /// Uploads that are being admitted, and refused ones.
    pub(super) admissions: Admissions,
    /// The processors, with the reason for each that does not run.
    pub(super) processors: RwLock<BTreeMap<ProcessorName, Deployed>>,
    /// The settings that components of processors read, shared with their instances.
    configs: Configs,
    /// Up to which version this host knows the catalogue's entries of processors.
    pub(super) processors_followed: Followed,
    /// Topics and their partition counts as this host last saw them, if there are other hosts.
    topics_followed: Mutex<HashMap<TopicId, u32>>,
    /// Locked during each decision of this host. Other hosts may decide at the same time, so each
    /// commit names what it expects to be unchanged.
    changes: tokio::sync::Mutex<()>,
    /// Counts additions of partitions to topics.
    pub(super) growths: watch::Sender<u64>,
    dependents: OnceLock<Weak<dyn Dependents>>,
}

impl Catalogue {
    pub(crate) fn new(base: &Base, policy: ModulePolicy) -> Self {
        let Base {
            clock,
            engine,
            modules,
            partitioners,
            hosts,
        } = base.clone();
        let inner = Inner {
            clock,
            engine,
            modules,
            partitioners,
            hosts,
            policy,
            verified: Mutex::default(),
            admissions: Admissions::default(),
            processors: RwLock::default(),
            configs: Configs::default(),
            processors_followed: Followed::default(),
            topics_followed: Mutex::default(),
            changes: tokio::sync::Mutex::default(),
            growths: watch::Sender::new(0),
            dependents: OnceLock::new(),
        };
        Self {
            inner: Arc::new(inner),
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

    /// Sets whom to notify from now on. Only the first call counts.
    pub(crate) fn tell_of_changes(&self, dependents: Weak<dyn Dependents>) {
        let _ = self.inner.dependents.set(dependents);
    }

    /// Whom to notify; `None` once the broker is gone.
    pub(super) fn dependents(&self) -> Option<Arc<dyn Dependents>> {
        self.inner.dependents.get()?.upgrade()
    }

    /// Takes the lock under which this host makes all decisions about the catalogue.
    pub(crate) async fn change(&self) -> MutexGuard<'_, ()> {
        self.inner.changes.lock().await
    }

    /// The processors as this host knows them now.
    pub(crate) fn processors(&self) -> RwLockReadGuard<'_, BTreeMap<ProcessorName, Deployed>> {
        self.inner.processors.read()
    }

    /// Up to which version the entries of processors are known.
    pub(crate) fn followed(&self) -> &Followed {
        &self.inner.processors_followed
    }

    /// Whether all entries of processors that were written are known.
    pub(crate) fn is_followed(&self) -> bool {
        let newest = self.inner.engine.version(EntryKind::Processor);
        self.inner.processors_followed.version() == newest
    }

    /// Whether another host was seen since this one started: it may have left work behind.
    pub(crate) fn had_other_hosts(&self) -> bool {
        self.inner.hosts.had_others()
    }

    /// Replaces what is known of a processor by the result of `learn`, which gets what was known
    /// before.
    pub(crate) fn learn(
        &self,
        name: ProcessorName,
        learn: impl FnOnce(Option<&Deployed>) -> Deployed,
    ) {
        let mut all = self.inner.processors.write();
        let known = learn(all.get(&name));
        self.configure(&known.processor);
        all.insert(name, known);
    }

    /// Changes what is known of a processor, if it is known; returns the result of `amend`.
    pub(crate) fn amend<T>(
        &self,
        name: &ProcessorName,
        amend: impl FnOnce(&mut Deployed) -> T,
    ) -> Option<T> {
        self.inner.processors.write().get_mut(name).map(amend)
    }

    /// Forgets a processor.
    pub(crate) fn unlearn(&self, name: &ProcessorName) {
        self.inner.processors.write().remove(name);
        self.inner.configs.forget(name);
    }

    /// The settings that the processor's component reads. They follow each change, also of a
    /// processor that does not exist yet.
    pub(crate) fn config_of(&self, name: &ProcessorName) -> LiveConfig {
        // Locked until the settings are in place, so that no change falls in between.
        let known = self.inner.processors.read();
        let config = known.get(name).map(|known| &known.processor.config);
        self.inner.configs.of(name, config)
    }

    /// Gives the processor's settings to its component.
    pub(crate) fn configure(&self, processor: &Processor) {
        self.inner
            .configs
            .change(&processor.name, &processor.config);
    }

    /// The names of all processors.
    #[must_use]
    pub fn processor_names(&self) -> Vec<ProcessorName> {
        self.inner.processors.read().keys().cloned().collect()
    }

    /// A processor, if it is known.
    pub(crate) fn deployed(&self, name: &ProcessorName) -> Option<Deployed> {
        self.inner.processors.read().get(name).cloned()
    }

    /// Updates what depends on a topic's partition count, or was kept for a deleted topic, after a change by another host.
    pub(crate) async fn follow_topics(&self) {
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
