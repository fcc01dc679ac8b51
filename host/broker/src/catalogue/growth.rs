//! Adding partitions to a topic in use: who depends on where keys are, which topics grow with it, and who is notified.
//!
//! The topic and the topics that processors own beside it grow in one step of the engine. Everyone who uses the number of partitions is
//! notified after that, and finds it at the next start otherwise: the engine's catalogue is authoritative.

use std::collections::BTreeSet;
use std::fmt;

use millrace_engine::{CommitError, ReadError, TopicChange, TopicError};
use millrace_model::processor::Order;
use millrace_model::{Processor, ProcessorName, Topic, TopicName};
use tokio::sync::watch;

use crate::catalogue::deciding::as_read;
use crate::catalogue::deployed::Deployed;
use crate::catalogue::handle::Catalogue;
use crate::catalogue::lifetime::TopicChangeError;
use crate::ground::own_topics::{AUDIT_SUFFIX, DEAD_LETTERS_SUFFIX, REDRIVE_SUFFIX, own_name};

/// A use that depends on all messages of a key being in one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyedUse {
    /// Compaction keeps the latest message of each key per partition.
    Compaction,
    /// This processor processes messages in order, and order exists only within a partition.
    Order(ProcessorName),
    /// This processor has state, which belongs to the partition that its messages came from.
    State(ProcessorName),
}

impl fmt::Display for KeyedUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Compaction => f.write_str(
                "The topic is compacted: the latest message of a key that moves stays in its old partition next to the one in the new partition",
            ),
            Self::Order(processor) => write!(
                f,
                "Processor {processor} processes the messages of a key in order: for a key that moves, it may process new messages before older ones"
            ),
            Self::State(processor) => write!(
                f,
                "Processor {processor} has state: for a key that moves it starts without state, and the old state stays with the old partition"
            ),
        }
    }
}

pub(crate) fn listed(uses: &[KeyedUse]) -> String {
    let uses: Vec<String> = uses.iter().map(KeyedUse::to_string).collect();
    uses.join(". ")
}

/// A topic after a change.
#[derive(Clone, Debug)]
pub struct ChangedTopic {
    /// As it is now.
    pub topic: Topic,
    /// The consequences of added partitions; `None` if the number stayed the same.
    pub grown: Option<Growth>,
}

/// A topic has more partitions.
#[derive(Clone, Debug)]
pub struct Growth {
    /// How many it had.
    pub before: u32,
    /// Topics of processors that grew with it.
    pub along: Vec<TopicName>,
    /// Uses that depended on the positions of keys; it was accepted that some move.
    pub uses: Vec<KeyedUse>,
}

impl Catalogue {
    /// Wakes when any topic gets more partitions.
    #[must_use]
    pub fn growths(&self) -> watch::Receiver<u64> {
        self.inner.growths.subscribe()
    }

    /// Like [`change_topic`](Self::change_topic), for more partitions. The caller holds the lock of changes.
    pub(crate) async fn grow(
        &self,
        topic: &Topic,
        change: TopicChange,
        accept_moved_keys: bool,
    ) -> Result<ChangedTopic, TopicChangeError> {
        let (name, before) = (&topic.spec.name, topic.spec.partitions);
        if let Some(owner) = &topic.spec.owner {
            let (topic, owner) = (name.clone(), owner.clone());
            return Err(TopicChangeError::Follows { topic, owner });
        }
        let asked = change.partitions.unwrap_or(before);
        let growing = self.growing(topic, asked);
        let becomes_compacted = change.settings.as_ref().is_some_and(|s| s.compact);
        let mut expects = vec![self.all_as_known()];
        expects.extend(growing.iter().map(as_read));
        let mut uses = Vec::new();
        if becomes_compacted || growing.iter().any(|topic| topic.spec.settings.compact) {
            uses.push(KeyedUse::Compaction);
        }
        for topic in &growing {
            let own = self.own_topics_beside(&topic.spec.name);
            let further = self.keyed_uses(topic, &own).await.map_err(unread)?;
            let further = further.into_iter();
            let further: Vec<KeyedUse> = further.filter(|one| !uses.contains(one)).collect();
            uses.extend(further);
        }
        let more = TopicChange {
            partitions: Some(asked),
            ..TopicChange::default()
        };
        let follow = growing.into_iter().skip(1);
        let along: Vec<TopicName> = follow.map(|own| own.spec.name).collect();
        let mut changes = vec![(name.clone(), change)];
        changes.extend(along.iter().map(|own| (own.clone(), more.clone())));
        if !uses.is_empty() && !accept_moved_keys {
            return Err(TopicChangeError::KeysMove {
                topic: name.clone(),
                have: before,
                asked,
                uses,
            });
        }
        let grown = self.inner.engine.change_topics(changes, expects).await?;
        tracing::info!(topic = %name, before, now = asked, ?along, "a topic was given more partitions");
        for topic in &grown {
            self.tell(topic).await;
        }
        self.inner.growths.send_modify(|count| *count += 1);
        let topic = grown.into_iter().next().unwrap_or_else(|| topic.clone());
        let grown = Some(Growth {
            before,
            along,
            uses,
        });
        Ok(ChangedTopic { topic, grown })
    }

    /// Notifies everyone who uses the number of partitions: writers to the topic, the processors that read it, and waiting readers.
    pub(crate) async fn tell(&self, topic: &Topic) {
        self.inner.partitioners.grow(topic);
        if let Some(dependents) = self.dependents() {
            dependents.grown(topic).await;
        }
    }

    /// The topic and those that grow with it: the topics that processors own beside it, and those beside them, if they are read.
    fn growing(&self, topic: &Topic, asked: u32) -> Vec<Topic> {
        let mut growing = vec![topic.clone()];
        let mut looked_at = 0;
        while let Some(next) = growing.get(looked_at) {
            let own = self.own_topics_beside(&next.spec.name).into_iter();
            let is_more = |own: &Topic| {
                own.spec.partitions < asked && growing.iter().all(|known| known.id != own.id)
            };
            let more: Vec<Topic> = own.filter(is_more).collect();
            growing.extend(more);
            looked_at += 1;
        }
        growing
    }

    /// Processors with a running revision that reads the topic.
    pub(crate) fn readers_of(&self, topic: &TopicName) -> Vec<Deployed> {
        let processors = self.inner.processors.read();
        let reads = |deployed: &&Deployed| orders(&deployed.processor, topic).next().is_some();
        processors.values().filter(reads).cloned().collect()
    }

    /// The topics that processors, including deleted ones, own beside this one.
    fn own_topics_beside(&self, input: &TopicName) -> Vec<Topic> {
        let is_own = |topic: &Topic| {
            let Some(owner) = &topic.spec.owner else {
                return false;
            };
            let suffixes = [DEAD_LETTERS_SUFFIX, REDRIVE_SUFFIX, AUDIT_SUFFIX];
            let mut names = suffixes
                .map(|suffix| own_name(input, owner, suffix))
                .into_iter();
            names.any(|name| name.as_ref() == Ok(&topic.spec.name))
        };
        let topics = self.topics().into_iter();
        topics.filter(is_own).collect()
    }

    /// The uses by processors, including deleted ones that would continue where they were.
    async fn keyed_uses(&self, topic: &Topic, own: &[Topic]) -> Result<Vec<KeyedUse>, ReadError> {
        let mut uses = Vec::new();
        let readers = self.readers_of(&topic.spec.name);
        let mut names: BTreeSet<ProcessorName> = own
            .iter()
            .filter_map(|own| own.spec.owner.clone())
            .collect();
        for Deployed { processor, .. } in readers {
            // A replay ends with the messages that existed when it was created.
            let is_replay = processor.replay.is_some();
            let is_ordered = orders(&processor, &topic.spec.name).any(|order| order != Order::None);
            if is_ordered && !is_replay {
                uses.push(KeyedUse::Order(processor.name.clone()));
            }
            names.insert(processor.name);
        }
        names.extend(self.inner.processors.read().keys().cloned());
        for name in names {
            let partitions = self.inner.engine.state_partitions(&name.group()).await?;
            if partitions.iter().any(|at| at.topic == topic.id) {
                uses.push(KeyedUse::State(name));
            }
        }
        Ok(uses)
    }
}

fn unread(error: ReadError) -> TopicError {
    CommitError::from(error).into()
}

/// The orders in which running revisions process the topic's messages; none if they do not read it.
fn orders<'a>(processor: &'a Processor, topic: &'a TopicName) -> impl Iterator<Item = Order> + 'a {
    let revisions = processor.revisions.iter();
    let running = revisions.filter(|revision| processor.runs(revision.number));
    let reading = running.filter(|revision| revision.spec.topics.contains(topic));
    reading.map(|revision| revision.spec.order)
}
