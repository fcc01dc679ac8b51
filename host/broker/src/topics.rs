//! Topics: made, listed, deleted. The engine keeps them; here stand the rules about who may have which name.

use millrace_engine::{CommitError, DamageReport, DamagedRange, Ends, TopicError};
use millrace_model::{
    Digest, Durability, NameError, Offset, PartitionId, Processor, ProcessorName, ProcessorSpec,
    SettingError, Topic, TopicName, TopicSettings, TopicSpec,
};

use crate::broker::Broker;
use crate::handler::{AdmitError, Interface};
use crate::partitioner::{PartitionerError, load_component};

/// How the names of dead-letter topics end: `<topic>.<processor>.dlq`.
pub(crate) const DEAD_LETTERS_SUFFIX: &str = ".dlq";
/// How the names of topics end through which dead letters are sent again: `<topic>.<processor>.redrive`.
pub(crate) const REDRIVE_SUFFIX: &str = ".redrive";
/// How the names of topics end that say what was done with dead letters: `<topic>.<processor>.audit`. In directories of earlier versions
/// others may end so, too.
pub(crate) const AUDIT_SUFFIX: &str = ".audit";

/// The name of a topic that a processor keeps for itself beside one of its inputs.
pub(crate) fn own_name(
    input: &TopicName,
    processor: &ProcessorName,
    suffix: &str,
) -> Result<TopicName, NameError> {
    TopicName::parse(&format!("{input}.{processor}{suffix}"))
}

/// What a new topic is asked to be.
#[derive(Clone, Debug)]
pub struct NewTopic {
    /// Its name.
    pub name: TopicName,
    /// How many partitions.
    pub partitions: u32,
    /// When appends are acknowledged.
    pub durability: Durability,
    /// A module that exports `partitioner`; `None` is the built-in one.
    pub partitioner: Option<Digest>,
    /// What may be changed later.
    pub settings: TopicSettings,
}

/// Why a topic was not made.
#[derive(Debug, thiserror::Error)]
pub enum TopicCreateError {
    /// The engine's answer: it exists, has no valid number of partitions, or could not be kept.
    #[error(transparent)]
    Topic(#[from] TopicError),
    /// A name that ends like those that processors make for themselves.
    #[error(
        "topic names that end in `{suffix}` are made by processors for themselves; choose another name"
    )]
    Reserved {
        /// The ending.
        suffix: &'static str,
    },
    /// On a command line the name would be taken for a flag.
    #[error(
        "a new topic cannot be named {0:?}: on a command line that is a flag; begin with a letter, a digit, '.' or '_'"
    )]
    LooksLikeFlag(TopicName),
    /// A setting outside its bounds.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// The partitioner was not uploaded.
    #[error("module {0} is not here; upload it first")]
    UnknownModule(Digest),
    /// The module is no partitioner.
    #[error("module {digest} exports {has:?}, a partitioner exports {needs:?}")]
    WrongInterface {
        /// Which module.
        digest: Digest,
        /// What it must export.
        needs: Interface,
        /// What it does export.
        has: Vec<Interface>,
    },
    /// The partitioner could not be loaded.
    #[error("the partitioner cannot be loaded: {0}")]
    Partitioner(#[from] AdmitError),
}

/// Why a topic was not deleted.
#[derive(Debug, thiserror::Error)]
pub enum TopicDeleteError {
    /// No such topic.
    #[error("topic {0} does not exist")]
    Unknown(TopicName),
    /// Processors read it, write to it or keep their dead letters in it.
    #[error("topic {topic} is used by {}; delete or change them first", names(.processors))]
    InUse {
        /// Which topic.
        topic: TopicName,
        /// Whose.
        processors: Vec<ProcessorName>,
    },
    /// A rollback of a processor would lead to a revision that cannot do without it.
    #[error(
        "topic {topic} is used by revision {revision} of processor {processor}, to which a rollback leads"
    )]
    WayBack {
        /// Which topic.
        topic: TopicName,
        /// Whose revision.
        processor: ProcessorName,
        /// Which revision.
        revision: u32,
    },
    /// Messages of it wait for a processor that no longer reads it.
    #[error(
        "{messages} messages of topic {topic} wait for their next attempt by processor {processor}, which was deployed without this topic since"
    )]
    Waiting {
        /// Which topic.
        topic: TopicName,
        /// For whom they wait.
        processor: ProcessorName,
        /// How many.
        messages: usize,
    },
    /// It could not be made durable.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

fn names(processors: &[ProcessorName]) -> String {
    let names: Vec<&str> = processors.iter().map(ProcessorName::as_str).collect();
    names.join(", ")
}

impl Broker {
    /// Makes a topic.
    ///
    /// # Errors
    /// [`TopicCreateError`]; nothing was made.
    pub async fn create_topic(&self, topic: NewTopic) -> Result<Topic, TopicCreateError> {
        let name = topic.name.as_str();
        if name.starts_with('-') {
            return Err(TopicCreateError::LooksLikeFlag(topic.name));
        }
        for suffix in [DEAD_LETTERS_SUFFIX, REDRIVE_SUFFIX, AUDIT_SUFFIX] {
            // In any case of its letters: people would take the one for the other.
            if name.to_ascii_lowercase().ends_with(suffix) {
                return Err(TopicCreateError::Reserved { suffix });
            }
        }
        topic.settings.check()?;
        let _change = self.inner.changes.lock().await;
        if let Some(digest) = topic.partitioner {
            self.try_partitioner(digest, name).await?;
        }
        let spec = TopicSpec {
            name: topic.name,
            partitions: topic.partitions,
            durability: topic.durability,
            partitioner: topic.partitioner,
            owner: None,
            created_at: self.inner.clock.wall(),
            settings: topic.settings,
        };
        Ok(self.inner.engine.create_topic(spec).await?)
    }

    /// A topic whose partitioner does not load would take no messages: better told now.
    async fn try_partitioner(&self, digest: Digest, topic: &str) -> Result<(), TopicCreateError> {
        let module = self.module_of(digest);
        let module = module.ok_or(TopicCreateError::UnknownModule(digest))?;
        if !module.facts.exports.contains(&Interface::Partitioner) {
            return Err(TopicCreateError::WrongInterface {
                digest,
                needs: Interface::Partitioner,
                has: module.facts.exports,
            });
        }
        let (engine, modules) = (&*self.inner.engine, &*self.inner.modules);
        match load_component(digest, topic, engine, modules).await {
            Ok(_) => Ok(()),
            Err(PartitionerError::UnknownModule(digest)) => {
                Err(TopicCreateError::UnknownModule(digest))
            }
            Err(PartitionerError::Admit(error)) => Err(error.into()),
            Err(PartitionerError::Read(error)) => Err(AdmitError::Host(error.to_string()).into()),
        }
    }

    /// Deletes a topic and its messages. With `accept_loss` also where a rollback would need it, or messages in it wait for a processor
    /// that no longer reads it.
    ///
    /// # Errors
    /// [`TopicDeleteError`]; nothing was deleted.
    pub async fn delete_topic(
        &self,
        name: &TopicName,
        accept_loss: bool,
    ) -> Result<(), TopicDeleteError> {
        let _change = self.inner.changes.lock().await;
        let unknown = || TopicDeleteError::Unknown(name.clone());
        let topic = self.topic(name).ok_or_else(unknown)?;
        let processors = self.users_of(&topic);
        if !processors.is_empty() {
            let topic = name.clone();
            return Err(TopicDeleteError::InUse { topic, processors });
        }
        if !accept_loss {
            self.check_loss(&topic).await?;
        }
        let deleted = self.inner.engine.delete_topic(name).await;
        let id = deleted.map_err(|error| match error {
            TopicError::Commit(error) => TopicDeleteError::Commit(error),
            _ => unknown(),
        })?;
        self.inner.consumers.forget_topic(id);
        self.inner.partitioners.forget(id);
        self.inner.received.lock().remove(&id);
        Ok(())
    }

    /// Whether nobody would miss the topic.
    async fn check_loss(&self, topic: &Topic) -> Result<(), TopicDeleteError> {
        let processors: Vec<Processor> = {
            let all = self.inner.processors.read();
            all.values().map(|known| known.processor.clone()).collect()
        };
        for processor in processors {
            let back = processor.way_back();
            if let Some(back) = back.filter(|back| uses(&back.spec, &topic.spec.name)) {
                return Err(TopicDeleteError::WayBack {
                    topic: topic.spec.name.clone(),
                    processor: processor.name.clone(),
                    revision: back.number,
                });
            }
            let messages = self.waiting_in(&processor.name, topic).await;
            if messages > 0 {
                return Err(TopicDeleteError::Waiting {
                    topic: topic.spec.name.clone(),
                    processor: processor.name,
                    messages,
                });
            }
        }
        Ok(())
    }

    /// Messages of a topic that wait for a processor, as far as it is committed.
    pub(crate) async fn waiting_in(&self, processor: &ProcessorName, topic: &Topic) -> usize {
        let mut messages = 0;
        for partition in topic.partitions() {
            let progress = self
                .inner
                .engine
                .progress(processor.as_str(), partition)
                .await;
            let progress = progress.ok().flatten();
            messages += progress.map_or(0, |progress| progress.parked.len());
        }
        messages
    }

    /// Processors that read the topic, write to it or own it.
    fn users_of(&self, topic: &Topic) -> Vec<ProcessorName> {
        let name = &topic.spec.name;
        let is_used = |processor: &Processor| {
            let owned = topic.spec.owner.as_ref() == Some(&processor.name);
            let mut running = processor
                .revisions
                .iter()
                .filter(|revision| processor.runs(revision.number));
            owned || running.any(|revision| uses(&revision.spec, name))
        };
        let processors = self.inner.processors.read();
        let users = processors
            .values()
            .filter(|entry| is_used(&entry.processor));
        users.map(|entry| entry.processor.name.clone()).collect()
    }

    /// Deletes the topics that a processor made for itself, once it is gone: dead letters, redrives, their audit. Gives their names.
    ///
    /// # Errors
    /// [`TopicDeleteError`]; those before it are deleted.
    pub async fn delete_topics_of(
        &self,
        name: &ProcessorName,
    ) -> Result<Vec<TopicName>, TopicDeleteError> {
        let topics = self.topics().into_iter();
        let own = topics.filter(|topic| topic.spec.owner.as_ref() == Some(name));
        let names: Vec<TopicName> = own.map(|topic| topic.spec.name).collect();
        for name in &names {
            self.delete_topic(name, true).await?;
        }
        Ok(names)
    }

    /// All topics, by name.
    #[must_use]
    pub fn topics(&self) -> Vec<Topic> {
        self.inner.engine.topics()
    }

    /// One topic.
    #[must_use]
    pub fn topic(&self, name: &TopicName) -> Option<Topic> {
        self.inner.engine.topic(name)
    }

    /// What is known to be damaged.
    #[must_use]
    pub fn damage(&self) -> DamageReport {
        self.inner.engine.damage()
    }

    /// Gives up the damaged messages within these offsets: processors that wait before them go on after them. Gives the ranges;
    /// none if nothing that is known to be damaged lies wholly within.
    ///
    /// # Errors
    /// [`CommitError`]; nothing was accepted.
    pub async fn accept_damage(
        &self,
        topic: &Topic,
        partition: PartitionId,
        from: Offset,
        to: Offset,
    ) -> Result<Vec<DamagedRange>, CommitError> {
        let Some(partition) = topic.partition(partition) else {
            return Ok(Vec::new());
        };
        self.inner.engine.accept_damage(partition, from, to).await
    }

    /// Where a partition begins and ends; `None` if it does not exist.
    #[must_use]
    pub fn ends(&self, topic: &Topic, partition: PartitionId) -> Option<Ends> {
        self.inner.engine.ends(topic.partition(partition)?).ok()
    }
}

/// Whether a specification reads the topic, or writes to it.
fn uses(spec: &ProcessorSpec, topic: &TopicName) -> bool {
    let written = spec.output.iter().chain(&spec.grants);
    spec.topics.iter().chain(written).any(|used| used == topic)
}
