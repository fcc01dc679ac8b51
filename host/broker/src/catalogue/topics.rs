//! Topics: made, listed, deleted. The engine keeps them; here stand the rules about who may have which name.

use std::collections::BTreeSet;
use std::fmt;

use millrace_engine::{
    CommitError, DamageReport, DamagedRange, Ends, ReadError, TopicError, Transaction,
};
use millrace_model::{
    Digest, Durability, GroupName, Offset, PartitionId, Processor, ProcessorName, ProcessorSpec,
    SettingError, Topic, TopicId, TopicName, TopicPartition, TopicSettings, TopicSpec,
};

use crate::catalogue::deciding::as_read;
use crate::catalogue::deciding::decision_errors;
use crate::catalogue::handle::Catalogue;
use crate::ground::own_topics::AUDIT_SUFFIX;
use crate::ground::own_topics::DEAD_LETTERS_SUFFIX;
use crate::ground::own_topics::REDRIVE_SUFFIX;
use crate::ground::partitioner::{PartitionerError, load_component};
use crate::handler::{AdmitError, Interface};

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

decision_errors! {
    TopicCreateError: TopicCreateError::Topic;
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
    /// Somebody would miss it.
    #[error("deleting topic {topic} would lose what is still needed: {}", texts(.losses))]
    Missed {
        /// Which topic.
        topic: TopicName,
        /// All that would be lost.
        losses: Vec<Loss>,
    },
    /// Whether anybody would miss it cannot be seen.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// It could not be made durable.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

decision_errors! {
    TopicDeleteError: TopicDeleteError::Commit;
}

/// What goes with a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Loss {
    /// A rollback of a processor leads to a revision that cannot do without it.
    WayBack {
        /// Whose revision.
        processor: ProcessorName,
        /// Which revision.
        revision: u32,
    },
    /// Messages in it wait for a processor that does not read it.
    Waiting {
        /// For whom they wait.
        processor: ProcessorName,
        /// How many.
        messages: u64,
        /// Whether the processor is deployed, without this topic.
        deployed: bool,
    },
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WayBack {
                processor,
                revision,
            } => write!(
                f,
                "revision {revision} of processor {processor}, to which a rollback leads, uses it"
            ),
            Self::Waiting {
                processor,
                messages,
                deployed: true,
            } => write!(
                f,
                "{messages} messages in it wait for processor {processor}, which was deployed without this topic since"
            ),
            Self::Waiting {
                processor,
                messages,
                deployed: false,
            } => write!(
                f,
                "{messages} messages in it wait for processor {processor}, which is deleted"
            ),
        }
    }
}

fn texts(losses: &[Loss]) -> String {
    let texts: Vec<String> = losses.iter().map(ToString::to_string).collect();
    texts.join("; ")
}

fn names(processors: &[ProcessorName]) -> String {
    let names: Vec<&str> = processors.iter().map(ProcessorName::as_str).collect();
    names.join(", ")
}

impl Catalogue {
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
        self.decide(|| self.create_topic_now(topic.clone())).await
    }

    async fn create_topic_now(&self, topic: NewTopic) -> Result<Topic, TopicCreateError> {
        let mut expects = Vec::new();
        if let Some(digest) = topic.partitioner {
            expects.push(self.module_as_now(digest));
            self.try_partitioner(digest, topic.name.as_str()).await?;
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
        Ok(self.inner.engine.create_topic(spec, expects).await?)
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
    /// that does not read it; gives what was lost so.
    ///
    /// # Errors
    /// [`TopicDeleteError`]; nothing was deleted.
    pub async fn delete_topic(
        &self,
        name: &TopicName,
        accept_loss: bool,
    ) -> Result<Vec<Loss>, TopicDeleteError> {
        self.delete_unless_missed(name, accept_loss, None).await
    }

    /// As [`delete_topic`](Self::delete_topic); what waits for `of` itself is meant to go.
    async fn delete_unless_missed(
        &self,
        name: &TopicName,
        accept_loss: bool,
        of: Option<&ProcessorName>,
    ) -> Result<Vec<Loss>, TopicDeleteError> {
        self.decide(|| self.delete_topic_now(name, accept_loss, of))
            .await
    }

    async fn delete_topic_now(
        &self,
        name: &TopicName,
        accept_loss: bool,
        of: Option<&ProcessorName>,
    ) -> Result<Vec<Loss>, TopicDeleteError> {
        let unknown = || TopicDeleteError::Unknown(name.clone());
        let topic = self.topic(name).ok_or_else(unknown)?;
        let expects = vec![self.all_as_known(), as_read(&topic)];
        let processors = self.users_of(&topic);
        if !processors.is_empty() {
            let topic = name.clone();
            return Err(TopicDeleteError::InUse { topic, processors });
        }
        let losses = self.losses_with(&topic, of).await?;
        if !losses.is_empty() && !accept_loss {
            let topic = name.clone();
            return Err(TopicDeleteError::Missed { topic, losses });
        }
        let deleted = self.inner.engine.delete_topic(name, expects).await;
        let id = deleted.map_err(|error| match error {
            TopicError::Commit(error) => TopicDeleteError::Commit(error),
            _ => unknown(),
        })?;
        self.forget_topic(id);
        let dependents = self.dependents();
        let about = dependents.as_ref().map(|all| all.entries_about(id));
        let forgotten = Transaction {
            entries: about.unwrap_or_default(),
            ..Transaction::default()
        };
        if !forgotten.entries.is_empty()
            && let Err(error) = self.inner.engine.commit(forgotten).await
        {
            // Nobody looks there any more: a topic of the same name is another one.
            tracing::warn!(topic = %name, %error, "what was redriven from the deleted topic stays on record");
        }
        for loss in &losses {
            // Its way back is another one from now on.
            if let Loss::WayBack { processor, .. } = loss {
                if let Some(dependents) = &dependents {
                    dependents.way_back_is_gone(processor).await;
                }
            }
        }
        Ok(losses)
    }

    /// What is kept of a topic beside the store, once it is gone.
    pub(crate) fn forget_topic(&self, id: TopicId) {
        self.inner.partitioners.forget(id);
        if let Some(dependents) = self.dependents() {
            dependents.deleted(id);
        }
    }

    /// What would be lost with the topic, but for what waits for `of`.
    async fn losses_with(
        &self,
        topic: &Topic,
        of: Option<&ProcessorName>,
    ) -> Result<Vec<Loss>, ReadError> {
        let processors: Vec<Processor> = {
            let all = self.inner.processors.read();
            all.values().map(|known| known.processor.clone()).collect()
        };
        let mut losses = Vec::new();
        for processor in &processors {
            let back = self.way_back(processor);
            if let Some(back) = back.filter(|back| uses(&back.spec, &topic.spec.name)) {
                losses.push(Loss::WayBack {
                    processor: processor.name.clone(),
                    revision: back.number,
                });
            }
        }
        // Whoever has progress in it, deployed or not; and whose own it is, of which it may have read nothing.
        let mut for_whom: BTreeSet<ProcessorName> = topic.spec.owner.clone().into_iter().collect();
        for partition in topic.partitions() {
            let groups = self.inner.engine.groups(partition).await?;
            for_whom.extend(groups.iter().filter_map(GroupName::as_processor));
        }
        for processor in for_whom.into_iter().filter(|name| Some(name) != of) {
            let group = processor.group();
            let touched = self.inner.engine.progress_partitions(&group).await?;
            let touched = touched.into_iter().collect();
            let waiting = self.waiting_in(&processor, topic, &touched).await?;
            let messages = waiting.parked + waiting.unread;
            if messages > 0 {
                losses.push(Loss::Waiting {
                    deployed: processors.iter().any(|known| known.name == processor),
                    processor,
                    messages,
                });
            }
        }
        Ok(losses)
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

    /// Deletes the topics that a processor made for itself, once it is gone: dead letters, redrives, their audit. Gives their names, and why
    /// others were kept that somebody else uses or would miss.
    ///
    /// # Errors
    /// [`TopicDeleteError`]; those before it are deleted.
    pub async fn delete_topics_of(
        &self,
        name: &ProcessorName,
    ) -> Result<(Vec<TopicName>, Vec<String>), TopicDeleteError> {
        let topics = self.topics().into_iter();
        let own = topics.filter(|topic| topic.spec.owner.as_ref() == Some(name));
        let names: Vec<TopicName> = own.map(|topic| topic.spec.name).collect();
        let (mut deleted, mut kept) = (Vec::new(), Vec::new());
        for topic in names {
            match self.delete_unless_missed(&topic, false, Some(name)).await {
                Ok(_) => deleted.push(topic),
                Err(error @ (TopicDeleteError::InUse { .. } | TopicDeleteError::Missed { .. })) => {
                    kept.push(error.to_string())
                }
                Err(error) => return Err(error),
            }
        }
        Ok((deleted, kept))
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

    /// Where a partition begins and ends, as new as it takes to know whether an offset is there: what this host has heard of the end may be late.
    ///
    /// # Errors
    /// [`ReadError::UnknownPartition`], or why the partition cannot be read there.
    pub async fn ends_about(
        &self,
        partition: TopicPartition,
        offset: Offset,
    ) -> Result<Ends, ReadError> {
        let engine = &self.inner.engine;
        let ends = engine.ends(partition)?;
        if offset <= ends.end {
            return Ok(ends);
        }
        let end = match engine.read(partition, offset, 1).await {
            Ok(_) => offset,
            Err(ReadError::PastEnd { end, .. }) => end,
            Err(error) => return Err(error),
        };
        Ok(Ends {
            end: ends.end.max(end),
            ..ends
        })
    }

    /// How many messages a partition has from an offset on and before another one.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn count(
        &self,
        partition: TopicPartition,
        from: Offset,
        to: Offset,
    ) -> Result<u64, ReadError> {
        self.inner.engine.count(partition, from, to).await
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
