//! Topics: created, listed, deleted. The engine stores them; this file has the rules for names.

use std::collections::BTreeSet;
use std::fmt;

use millrace_engine::{
    CommitError, DamageReport, DamagedRange, Ends, ReadError, TopicError, Transaction,
};
use millrace_model::{
    Advice, Advised, Code, Digest, Durability, GroupName, Offset, PartitionId, Processor,
    ProcessorName, ProcessorSpec, SettingError, Topic, TopicId, TopicName, TopicPartition,
    TopicSettings, TopicSpec,
};

use crate::catalogue::deciding::{as_read, decision_errors};
use crate::catalogue::handle::Catalogue;
use crate::catalogue::signatures::DistrustError;
use crate::catalogue::unknown::UnknownTopic;
use crate::ground::own_topics::{AUDIT_SUFFIX, DEAD_LETTERS_SUFFIX, REDRIVE_SUFFIX};
use crate::ground::partitioner::{PartitionerError, load_component};
use crate::ground::standing::Forbidden;
use crate::ground::verbs::Verb;
use crate::handler::{AdmitError, Interface};

/// A new topic's parameters.
#[derive(Clone, Debug)]
pub struct NewTopic {
    /// Its name.
    pub name: TopicName,
    /// The number of partitions.
    pub partitions: u32,
    /// When appends are acknowledged.
    pub durability: Durability,
    /// A module that exports `partitioner`; `None` is the built-in one.
    pub partitioner: Option<Digest>,
    /// The settings that can be changed later.
    pub settings: TopicSettings,
}

/// Why a topic was not created.
#[derive(Debug, thiserror::Error)]
pub enum TopicCreateError {
    /// The caller may not do it.
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
    /// The engine's error: it exists, the number of partitions is invalid, or it could not be stored.
    #[error(transparent)]
    Topic(#[from] TopicError),
    /// The name has a suffix that is reserved for topics owned by processors.
    #[error(
        "topic names that end in `{suffix}` are reserved for topics of processors; choose another name"
    )]
    Reserved {
        /// The suffix.
        suffix: &'static str,
    },
    /// The command line would take the name for a flag.
    #[error(
        "a new topic cannot be named {0:?}: the command line would take it for a flag; begin with a letter, a digit, '.' or '_'"
    )]
    LooksLikeFlag(TopicName),
    /// A setting is out of its range.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// The partitioner was not uploaded.
    #[error("module {0} does not exist; upload it first")]
    UnknownModule(Digest),
    /// The module is not a partitioner.
    #[error("module {digest} exports {}; a partitioner must export {needs}", Interface::listed(.has))]
    WrongInterface {
        /// The module.
        digest: Digest,
        /// The required interface.
        needs: Interface,
        /// Its exports.
        has: Vec<Interface>,
    },
    /// The partitioner could not be loaded.
    #[error("the partitioner cannot be loaded: {0}")]
    Partitioner(#[from] AdmitError),
    /// The partitioner's signature does not allow its use.
    #[error(transparent)]
    Distrust(#[from] DistrustError),
}

decision_errors! {
    TopicCreateError: TopicCreateError::Topic;
}

impl Advised for TopicCreateError {
    fn advice(&self) -> Advice {
        match self {
            Self::Forbidden(error) => error.advice(),
            Self::Topic(error) => error.advice(),
            Self::Reserved { .. } | Self::LooksLikeFlag(_) => Code::ReservedName.advice(),
            Self::Setting(error) => error.advice(),
            Self::UnknownModule(_) => Code::UnknownModule.advice(),
            Self::WrongInterface { .. } => Code::WrongInterface.advice(),
            Self::Distrust(error) => error.advice(),
            Self::Partitioner(error) => error.advice(),
        }
    }
}

/// Why a topic was not deleted.
#[derive(Debug, thiserror::Error)]
pub enum TopicDeleteError {
    /// The caller may not do it.
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
    /// No such topic.
    #[error(transparent)]
    UnknownTopic(#[from] UnknownTopic),
    /// Processors read it, write to it or own it.
    #[error("topic {topic} is used by {}; delete or change them first", names(.processors))]
    InUse {
        /// The topic's name.
        topic: TopicName,
        /// The processors.
        processors: Vec<ProcessorName>,
    },
    /// Something still needed would be lost.
    #[error("deleting topic {topic} would lose what is still needed: {}", texts(.losses))]
    Missed {
        /// The topic's name.
        topic: TopicName,
        /// Everything that would be lost.
        losses: Vec<Loss>,
    },
    /// Whether anything would be lost cannot be determined.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// It could not be made durable.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

decision_errors! {
    TopicDeleteError: TopicDeleteError::Commit;
}

impl Advised for TopicDeleteError {
    fn advice(&self) -> Advice {
        match self {
            Self::Forbidden(error) => error.advice(),
            Self::UnknownTopic(error) => error.advice(),
            Self::InUse { .. } => Code::InUse.advice(),
            Self::Missed { losses, .. } => instead(losses),
            Self::Read(error) => error.advice(),
            Self::Commit(error) => error.advice(),
        }
    }
}

/// What can be done instead of deleting a topic that is still needed, and how to delete it anyway.
fn instead(losses: &[Loss]) -> Advice {
    let is_way_back = |loss: &Loss| matches!(loss, Loss::WayBack { .. });
    let code = match losses.iter().any(is_way_back) {
        true => Code::WayBack,
        false => Code::MessagesWait,
    };
    let readers = losses.iter().filter_map(|loss| match loss {
        Loss::WayBack { .. } => None,
        Loss::Waiting { processor, .. } => Some(processor.as_str()),
    });
    let mut readers: Vec<&str> = readers.collect();
    readers.dedup();
    match readers.is_empty() {
        true => code.advice(),
        false => code.hint(format!(
            "keep it; the messages are processed once {} reads them (deploy it with this topic as input), {ANYWAY}",
            readers.join(", ")
        )),
    }
}

/// How a topic is deleted although it is still needed.
const ANYWAY: &str = "or delete it anyway with accept_loss=true (`millrace topic delete NAME --accept-loss`): then all of that is lost";

/// What is lost with a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Loss {
    /// A rollback would return to a revision that needs it.
    WayBack {
        /// The processor.
        processor: ProcessorName,
        /// The revision.
        revision: u32,
    },
    /// Messages in it wait for a processor that does not read it.
    Waiting {
        /// The processor.
        processor: ProcessorName,
        /// Their number.
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
                "revision {revision} of processor {processor}, to which a rollback would return, uses it"
            ),
            Self::Waiting {
                processor,
                messages,
                deployed: true,
            } => write!(
                f,
                "{messages} messages in it wait for processor {processor}, which was later deployed without this topic"
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

/// Why damage was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum DamageError {
    /// The caller may not do it.
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
    /// The engine refused it.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

impl Advised for DamageError {
    fn advice(&self) -> Advice {
        match self {
            Self::Forbidden(error) => error.advice(),
            Self::Commit(error) => error.advice(),
        }
    }
}

impl Catalogue {
    /// Whether the caller may see a topic.
    fn sees(&self, topic: &TopicName) -> bool {
        self.caller.sees(Verb::SeeTopic, topic.as_str())
    }

    /// Creates a topic.
    ///
    /// # Errors
    /// [`TopicCreateError`]; nothing was created.
    pub async fn create_topic(&self, topic: NewTopic) -> Result<Topic, TopicCreateError> {
        self.caller.may(Verb::CreateTopic, topic.name.as_str())?;
        let name = topic.name.as_str();
        if name.starts_with('-') {
            return Err(TopicCreateError::LooksLikeFlag(topic.name));
        }
        for suffix in [DEAD_LETTERS_SUFFIX, REDRIVE_SUFFIX, AUDIT_SUFFIX] {
            // Names that differ only in case would be confused by people.
            if name.to_ascii_lowercase().ends_with(suffix) {
                return Err(TopicCreateError::Reserved { suffix });
            }
        }
        topic.settings.check()?;
        self.decide(|| self.create_topic_now(topic.clone())).await
    }

    /// Creates a topic of the host's own, whose name may have a reserved suffix.
    ///
    /// # Errors
    /// [`TopicCreateError`].
    pub(crate) async fn create_own_topic(
        &self,
        topic: NewTopic,
    ) -> Result<Topic, TopicCreateError> {
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

    /// A topic whose partitioner does not load would accept no messages: better to say so now.
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
        self.check_trusted(digest).await?;
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

    /// Deletes a topic and its messages. With `accept_loss` also if a rollback would need it, or messages in it wait for a processor
    /// that does not read it; returns what was lost.
    ///
    /// # Errors
    /// [`TopicDeleteError`]; nothing was deleted.
    pub async fn delete_topic(
        &self,
        name: &TopicName,
        accept_loss: bool,
    ) -> Result<Vec<Loss>, TopicDeleteError> {
        self.caller.may(Verb::DeleteTopic, name.as_str())?;
        self.delete_unless_missed(name, accept_loss, None).await
    }

    /// Like [`delete_topic`](Self::delete_topic); messages that wait for `of` itself may go.
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
        let topic = self.known_topic(name)?;
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
            _ => UnknownTopic(name.clone()).into(),
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
            // Stale entries do no harm: a new topic of the same name has another id.
            tracing::warn!(topic = %name, %error, "the record of redrives from the deleted topic could not be removed");
        }
        for loss in &losses {
            // Its way back may change.
            if let Loss::WayBack { processor, .. } = loss
                && let Some(dependents) = &dependents
            {
                dependents.way_back_is_gone(processor).await;
            }
        }
        Ok(losses)
    }

    /// Removes what is stored about a deleted topic outside the engine.
    pub(crate) fn forget_topic(&self, id: TopicId) {
        self.inner.partitioners.forget(id);
        if let Some(dependents) = self.dependents() {
            dependents.deleted(id);
        }
    }

    /// What would be lost with the topic, except what waits for `of`.
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
        // Processors with progress in the topic, deployed or not, and its owner, which may not have
        // read any of it yet.
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

    /// Whether the caller may delete the topics that a processor owns: to be asked before the processor is deleted.
    ///
    /// # Errors
    /// [`TopicDeleteError::Forbidden`].
    pub fn may_delete_topics_of(&self, name: &ProcessorName) -> Result<(), TopicDeleteError> {
        let topics = self.inner.engine.topics().into_iter();
        for topic in topics.filter(|topic| topic.spec.owner.as_ref() == Some(name)) {
            self.caller
                .may(Verb::DeleteTopic, topic.spec.name.as_str())?;
        }
        Ok(())
    }

    /// Deletes the topics that a deleted processor owned: dead letters, redrives, audit trail. Returns their names, and why others that
    /// are used elsewhere were kept.
    ///
    /// # Errors
    /// [`TopicDeleteError`]; topics before the failed one are deleted.
    pub async fn delete_topics_of(
        &self,
        name: &ProcessorName,
    ) -> Result<(Vec<TopicName>, Vec<String>), TopicDeleteError> {
        let topics = self.inner.engine.topics().into_iter();
        let own = topics.filter(|topic| topic.spec.owner.as_ref() == Some(name));
        let names: Vec<TopicName> = own.map(|topic| topic.spec.name).collect();
        for topic in &names {
            self.caller.may(Verb::DeleteTopic, topic.as_str())?;
        }
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
        let mut topics = self.inner.engine.topics();
        topics.retain(|topic| self.sees(&topic.spec.name));
        topics
    }

    /// One topic.
    #[must_use]
    pub fn topic(&self, name: &TopicName) -> Option<Topic> {
        let topic = self.inner.engine.topic(name);
        topic.filter(|topic| self.sees(&topic.spec.name))
    }

    /// The known damage.
    #[must_use]
    pub fn damage(&self) -> DamageReport {
        match self.caller.sees(Verb::SeeHost, "") {
            true => self.inner.engine.damage(),
            false => DamageReport::default(),
        }
    }

    /// Accepts the loss of the damaged messages within these offsets: processors that wait before them continue after them. Returns the
    /// ranges; none if no known damage is entirely inside.
    ///
    /// # Errors
    /// [`CommitError`]; nothing was accepted.
    pub async fn accept_damage(
        &self,
        topic: &Topic,
        partition: PartitionId,
        from: Offset,
        to: Offset,
    ) -> Result<Vec<DamagedRange>, DamageError> {
        self.caller
            .may(Verb::AcceptDamage, topic.spec.name.as_str())?;
        let Some(partition) = topic.partition(partition) else {
            return Ok(Vec::new());
        };
        Ok(self.inner.engine.accept_damage(partition, from, to).await?)
    }

    /// A partition's start and end, recent enough to know whether an offset exists: this host's view of the end may lag behind.
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

    /// A partition's start and end; `None` if it does not exist.
    #[must_use]
    pub fn ends(&self, topic: &Topic, partition: PartitionId) -> Option<Ends> {
        self.inner.engine.ends(topic.partition(partition)?).ok()
    }
}

/// Whether a specification reads the topic, or writes to it.
fn uses(spec: &ProcessorSpec, topic: &TopicName) -> bool {
    let written = spec.output.iter().chain(&spec.grants.topics);
    spec.topics.iter().chain(written).any(|used| used == topic)
}
