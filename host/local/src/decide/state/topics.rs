//! Creating, changing, growing and deleting topics.

use millrace_engine::contract::{
    AdoptError, CommitError, Expectation, TopicChange, TopicError, changed, check_partitions,
};
use millrace_engine::entries;
use millrace_model::bounds::TOPIC_PARTITIONS_MAX;
use millrace_model::{Digest, Topic, TopicId, TopicName, TopicSpec};

use super::{Contradiction, Pending, Removed, State};
use crate::decide::codec::Operation;

impl State {
    /// Assigns an identity to the topic. Must be alone in its group, like a deletion.
    pub(crate) fn decide_create(
        &self,
        pending: &mut Pending,
        spec: TopicSpec,
        expects: &[Expectation],
    ) -> Result<Topic, TopicError> {
        self.check_expectations(pending, expects)?;
        let id = self.next_topic;
        let topic = Topic { id, spec };
        self.make_topic(pending, topic.clone())?;
        Ok(topic)
    }

    /// Takes over a topic of another store, under its id. Must be alone in its group.
    pub(super) fn decide_adopted_topic(
        &self,
        pending: &mut Pending,
        topic: Topic,
    ) -> Result<(), AdoptError> {
        let (id, next) = (topic.id, self.next_topic);
        if id < next || id.0 == u64::MAX {
            return Err(AdoptError::Id { id, next });
        }
        Ok(self.make_topic(pending, topic)?)
    }

    fn make_topic(&self, pending: &mut Pending, topic: Topic) -> Result<(), TopicError> {
        let spec = &topic.spec;
        if !(1..=TOPIC_PARTITIONS_MAX).contains(&spec.partitions) {
            return Err(TopicError::Partitions {
                asked: spec.partitions,
                max: TOPIC_PARTITIONS_MAX,
            });
        }
        if self.topics.contains_key(&spec.name) {
            return Err(TopicError::Exists(spec.name.clone()));
        }
        let partitions = self.partitions.len();
        check_partitions(&self.room, partitions, spec.partitions)?;
        pending.durable = true;
        pending.operations.push(Operation::CreateTopic(topic));
        Ok(())
    }

    pub(crate) fn decide_delete(
        &self,
        pending: &mut Pending,
        name: &TopicName,
        expects: &[Expectation],
    ) -> Result<TopicId, TopicError> {
        self.check_expectations(pending, expects)?;
        let topic = self.topics.get(name);
        let id = topic.ok_or_else(|| TopicError::Unknown(name.clone()))?.id;
        pending.durable = true;
        pending.operations.push(Operation::DeleteTopic(id));
        Ok(id)
    }

    /// Decides the new descriptions of the topics. Must be alone in its group.
    pub(crate) fn decide_change(
        &self,
        pending: &mut Pending,
        changes: Vec<(TopicName, TopicChange)>,
        expects: &[Expectation],
    ) -> Result<Vec<Topic>, TopicError> {
        self.check_expectations(pending, expects)?;
        let (topics, more) = changed(changes, |name| self.topic(name))?;
        if more > 0 {
            check_partitions(&self.room, self.partitions.len(), more)?;
        }
        for topic in &topics {
            if self.topics.get(&topic.spec.name) != Some(topic) {
                pending.durable = true;
                let change = Operation::ChangeTopic(topic.clone());
                pending.operations.push(change);
            }
        }
        Ok(topics)
    }

    /// Checks expectations when no decided change is still unapplied.
    pub(crate) fn check_as_applied(&self, expects: &[Expectation]) -> Result<(), CommitError> {
        let entry = |kind, key: &str| self.entries.get(kind, key).map(|entry| entry.version);
        let newest = |kind| self.entries.version(kind);
        let topic = |name: &_| self.topics.get(name);
        entries::check(expects, entry, newest, topic, |module| {
            self.is_partitioner(module)
        })
    }

    /// Whether a topic has the module as its partitioner.
    pub(super) fn is_partitioner(&self, module: Digest) -> bool {
        let mut topics = self.topics.values();
        topics.any(|topic| topic.spec.partitioner == Some(module))
    }

    pub(super) fn apply_create(&mut self, topic: Topic) {
        self.changed.topics.push(topic.id);
        for id in topic.partitions() {
            let partition = self.store.fresh(id, &topic.spec);
            self.insert_partition(partition);
        }
        self.insert_topic(topic);
    }

    /// New partitions begin without files; after a crash, their content is replayed.
    pub(super) fn apply_change(&mut self, topic: Topic) -> Result<(), Contradiction> {
        let known = self.topics.get(&topic.spec.name);
        let Some(known) = known.filter(|known| known.id == topic.id) else {
            return Err("it changes an unknown topic");
        };
        if known.spec.partitions > topic.spec.partitions {
            return Err("it takes partitions from a topic");
        }
        self.changed.topics.push(topic.id);
        for id in topic.partitions() {
            match self.partitions.get(&id) {
                Some(partition) => partition.configure(&topic.spec),
                None => self.insert_partition(self.store.fresh(id, &topic.spec)),
            }
        }
        self.insert_topic(topic);
        Ok(())
    }

    pub(super) fn apply_delete(&mut self, id: TopicId) {
        let Some(topic) = self.topics.values().find(|topic| topic.id == id) else {
            return;
        };
        let topic = topic.clone();
        let mut partitions = Vec::new();
        for partition in topic.partitions() {
            self.groups.remove(&partition);
            partitions.extend(self.partitions.remove(&partition));
        }
        partitions.iter().for_each(|p| p.end_watches());
        self.topics.remove(&topic.spec.name);
        self.idempotence.forget_topic(id, topic.partitions());
        let removed = Removed {
            topic: id,
            partitions,
        };
        self.changed.removed.push(removed);
    }
}
