//! Consumers: named readers of a topic, whose positions the host stores (docs/consumers.md).
//!
//! A consumer is an entry of the host's own state in the topic's first partition (docs/adr/0017), so a commit of many partitions is one
//! write, and deleting a topic deletes its consumers. `rules` decides who may read and how a commit changes positions, `leases` knows
//! when leases end, and this file does the work.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use millrace_engine::room::CONSUMERS_GROUP;
use millrace_engine::{Ends, ReadError};
use millrace_model::bounds::CONSUMER_LEASE_MS_MAX;
use millrace_model::{
    Consumer, ConsumerName, Durability, LeaseId, Noted, Offset, PartitionId, ReadLease, Timestamp,
    Topic, TopicId, TopicName, TopicPartition,
};

use crate::catalogue::deciding::decided;
use crate::catalogue::unknown::known_partition;
use crate::ground::verbs::Verb;
use crate::groups::error::{ConsumerError, lost, unknown};
use crate::groups::handle::{Groups, Inner};
use crate::groups::rules;
use crate::groups::rules::{Hold, Taken};
use crate::groups::shapes::{
    ConsumerCommit, ConsumerPlace, ConsumerStatus, HoldRequest, Key, ReaderStatus,
};
use crate::groups::stored::{decoded, explained, home};
use crate::hosts::holding::Share;
use crate::messages::beginning::BeginAt;

/// A shorter lease would end between two requests.
const LEASE_MS_MIN: u32 = 100;
/// The lease of a consumer. A new one ends if this is dropped before [`kept`](HeldConsumer::kept), because its reader never learns of
/// it.
pub struct HeldConsumer {
    inner: Arc<Inner>,
    key: Key,
    /// The lease.
    pub lease: LeaseId,
    length: Duration,
    /// Whether the consumer was created by this request.
    pub created: bool,
    is_new: bool,
    /// The committed position of each partition, in order; if an offset is no longer kept, reading continues at the first one that is.
    pub positions: Vec<(PartitionId, Offset)>,
}

impl HeldConsumer {
    /// The reader gets its answer: the lease counts from now on. Returns when it ends; `None` if another reader or a reset took it.
    #[must_use]
    pub fn kept(mut self) -> Option<Timestamp> {
        self.is_new = false;
        let clock = &self.inner.clock;
        let until = clock.monotonic().saturating_add(self.length);
        let leases = &self.inner.consumers.leases;
        let is_newest = leases.renew(&self.key, self.lease, until);
        is_newest.then(|| clock.wall().after(self.length))
    }
}

impl Drop for HeldConsumer {
    fn drop(&mut self) {
        if self.is_new {
            let leases = &self.inner.consumers.leases;
            leases.end(&self.key, self.lease);
        }
    }
}

impl Groups {
    /// Creates a consumer; an existing one stays unchanged. Returns whether it was created.
    ///
    /// # Errors
    /// [`ConsumerError`]; nothing was created.
    pub async fn make_consumer(
        &self,
        topic: &TopicName,
        name: &ConsumerName,
        begin_at: Option<BeginAt>,
    ) -> Result<(ConsumerStatus, bool), ConsumerError> {
        self.caller.may(Verb::KeepPositions, topic.as_str())?;
        let topic = self.inner.catalogue.known_topic(topic)?;
        let topic = &topic;
        self.in_right(topic, name, |share| async move {
            let known = self.stored_consumer(topic, name).await?;
            let made = known.is_none();
            let consumer = match known {
                Some(known) => known,
                None => {
                    self.make_stored(topic, name, begin_at, &share, |_| {})
                        .await?
                }
            };
            let ends = self.all_ends(topic);
            let status = self.consumer_status(topic, name, &consumer, &ends).await?;
            Ok((status, made))
        })
        .await
    }

    /// Changes a consumer exclusively: its lock excludes other tasks of this host, the lease to
    /// write excludes other hosts.
    async fn in_right<T, F>(
        &self,
        topic: &Topic,
        name: &ConsumerName,
        change: impl Fn(Arc<Share>) -> F,
    ) -> Result<T, ConsumerError>
    where
        F: Future<Output = Result<T, ConsumerError>>,
    {
        let key = (topic.id, name.clone());
        let Inner {
            clock,
            consumers,
            engine,
            ..
        } = &*self.inner;
        let _lock = consumers.lock(&key).await;
        decided(&**engine, || async {
            // Another host may have renewed the leases until just now.
            let anew = || consumers.leases.begin_anew(topic.id, clock.monotonic());
            let share = consumers.rights.take(home(topic), anew).await;
            let share = share.map_err(|error| explained(error, topic))?;
            change(share).await
        })
        .await
    }

    /// Adjusts the consumers of all topics to the messages that recovery kept. Must run before anything is appended, because new
    /// messages get the offsets of lost ones. A full disk does not keep the host from starting.
    ///
    /// # Errors
    /// The engine's error if it cannot say which topics have consumers.
    pub(crate) async fn recover_consumers(&self) -> Result<(), ReadError> {
        let with = self.inner.engine.state_partitions(&CONSUMERS_GROUP).await?;
        let topics = self.inner.catalogue.topics().into_iter();
        for topic in topics.filter(|topic| with.contains(&home(topic))) {
            let recovered = async {
                self.recover_consumers_of(&topic).await?;
                self.recover_positions_of(&topic).await
            };
            if let Err(error) = recovered.await {
                tracing::error!(topic = %topic.spec.name, %error, "positions of consumers past the end could not be moved back after lost messages, so they may miss new ones; restart the host when there is space");
            }
        }
        Ok(())
    }

    async fn recover_consumers_of(&self, topic: &Topic) -> Result<(), ConsumerError> {
        let keeps_all = topic.spec.durability == Durability::Durable;
        for (name, value) in self.stored_consumers(topic).await? {
            let before = decoded(&value);
            let mut after = before.clone();
            let ends = |partition| self.inner.catalogue.ends(topic, partition);
            for (partition, position, end) in rules::after_recovery(&mut after, keeps_all, ends) {
                tracing::warn!(topic = %topic.spec.name, consumer = %name, %partition, %position, %end, "the partition ends before the committed position; continuing at its end");
            }
            if after != before {
                let (name, after) = (&name, &after);
                self.in_right(topic, name, |share| async move {
                    let mut after = after.clone();
                    self.store_consumer(topic, name, &share, Some(&mut after))
                        .await
                })
                .await?;
            }
        }
        Ok(())
    }

    /// The consumers of a topic, by name.
    ///
    /// # Errors
    /// [`ConsumerError`].
    pub async fn consumers(&self, topic: &TopicName) -> Result<Vec<ConsumerStatus>, ConsumerError> {
        self.caller.may(Verb::SeeConsumers, topic.as_str())?;
        let topic = self.inner.catalogue.known_topic(topic)?;
        let ends = self.all_ends(&topic);
        let mut listed = Vec::new();
        // One at a time: decoded positions of all consumers take many times the stored size.
        for (name, value) in self.stored_consumers(&topic).await? {
            let consumer = decoded(&value);
            let status = self
                .consumer_status(&topic, &name, &consumer, &ends)
                .await?;
            listed.push(ConsumerStatus {
                partitions: Vec::new(),
                ..status
            });
            tokio::task::yield_now().await;
        }
        Ok(listed)
    }

    /// The consumers of all topics, by topic and name. A topic deleted meanwhile is left out.
    ///
    /// # Errors
    /// [`ConsumerError`].
    pub async fn all_consumers(&self) -> Result<Vec<ConsumerStatus>, ConsumerError> {
        let with = self.inner.engine.state_partitions(&CONSUMERS_GROUP).await?;
        let with: Vec<TopicId> = with.into_iter().map(|place| place.topic).collect();
        let mut all = Vec::new();
        let topics = self.inner.catalogue.topics().into_iter();
        for topic in topics.filter(|topic| with.contains(&topic.id)) {
            all.extend(self.consumers(&topic.spec.name).await.unwrap_or_default());
        }
        Ok(all)
    }

    /// One consumer.
    ///
    /// # Errors
    /// [`ConsumerError`].
    pub async fn consumer(
        &self,
        topic: &TopicName,
        name: &ConsumerName,
    ) -> Result<ConsumerStatus, ConsumerError> {
        self.caller.may(Verb::SeeConsumers, topic.as_str())?;
        let topic = self.inner.catalogue.known_topic(topic)?;
        let consumer = self.known_consumer(&topic, name).await?;
        let ends = self.all_ends(&topic);
        self.consumer_status(&topic, name, &consumer, &ends).await
    }

    /// Takes or renews the lease of a consumer, and may create the consumer.
    ///
    /// # Errors
    /// [`ConsumerError`].
    pub async fn hold_consumer(
        &self,
        topic: &Topic,
        name: &ConsumerName,
        request: HoldRequest,
    ) -> Result<HeldConsumer, ConsumerError> {
        self.caller
            .may(Verb::KeepPositions, topic.spec.name.as_str())?;
        self.in_right(topic, name, |share| async move {
            self.hold_under(topic, name, request, &share).await
        })
        .await
    }

    async fn hold_under(
        &self,
        topic: &Topic,
        name: &ConsumerName,
        request: HoldRequest,
        share: &Share,
    ) -> Result<HeldConsumer, ConsumerError> {
        let key = (topic.id, name.clone());
        let Inner {
            clock, consumers, ..
        } = &*self.inner;
        let known = match request.makes && request.lease.is_none() {
            true => self.stored_consumer(topic, name).await?,
            false => Some(self.known_consumer(topic, name).await?),
        };
        let created = known.is_none();
        let lease_ms = u32::try_from(request.lease_ms).unwrap_or(u32::MAX);
        let new = ReadLease {
            id: LeaseId(fastrand::u64(..)),
            length_ms: lease_ms.clamp(LEASE_MS_MIN, CONSUMER_LEASE_MS_MAX),
            by: self.asker().to_owned(),
        };
        let (consumer, lease) = match known {
            None => {
                let lease = new.clone();
                let take = |consumer: &mut Consumer| consumer.lease = Some(new);
                let made = self
                    .make_stored(topic, name, request.begin_at, share, take)
                    .await?;
                tracing::info!(topic = %topic.spec.name, consumer = %name, by = lease.by, "a consumer was created by its first reader");
                (made, lease)
            }
            Some(mut known) => {
                let left = consumers
                    .leases
                    .left(&key, known.lease.as_ref(), clock.monotonic());
                let lease = match rules::hold(&known, request.lease, left) {
                    Hold::Renewed(lease) => lease,
                    Hold::Free => {
                        known.lease = Some(new.clone());
                        new
                    }
                    Hold::Busy { by } => {
                        return Err(ConsumerError::Busy {
                            topic: topic.spec.name.clone(),
                            name: name.clone(),
                            by,
                            until: clock.wall().after(left),
                            left_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
                        });
                    }
                    Hold::Lost { why } => return Err(lost(topic, name, why)),
                };
                if request.lease != Some(lease.id) {
                    self.store_consumer(topic, name, share, Some(&mut known))
                        .await?;
                }
                (known, lease)
            }
        };
        let length = Duration::from_millis(u64::from(lease.length_ms));
        let until = clock.monotonic() + length + request.wait;
        consumers.leases.give(&key, lease.id, until);
        let places = topic.partitions();
        Ok(HeldConsumer {
            inner: Arc::clone(&self.inner),
            key,
            lease: lease.id,
            length,
            created,
            is_new: request.lease.is_none(),
            positions: places
                .map(|at| (at.partition, consumer.position(at.partition)))
                .collect(),
        })
    }

    /// Commits the positions of any number of partitions in one step and renews the lease; returns when it ends, unless it was
    /// released. Repeating a commit changes nothing.
    ///
    /// # Errors
    /// [`ConsumerError`]; nothing was committed.
    pub async fn commit_consumer(
        &self,
        topic: &TopicName,
        name: &ConsumerName,
        commit: ConsumerCommit,
    ) -> Result<Option<Timestamp>, ConsumerError> {
        self.caller.may(Verb::KeepPositions, topic.as_str())?;
        let topic = self.inner.catalogue.known_topic(topic)?;
        for &partition in commit.positions.keys() {
            known_partition(&topic, partition)?;
        }
        let (topic, commit) = (&topic, &commit);
        self.in_right(topic, name, |share| async move {
            self.commit_under(topic, name, commit, &share).await
        })
        .await
    }

    async fn commit_under(
        &self,
        topic: &Topic,
        name: &ConsumerName,
        commit: &ConsumerCommit,
        share: &Share,
    ) -> Result<Option<Timestamp>, ConsumerError> {
        let key = (topic.id, name.clone());
        let Inner {
            clock, consumers, ..
        } = &*self.inner;
        let mut consumer = self.known_consumer(topic, name).await?;
        let mut known = BTreeMap::new();
        for (&partition, &position) in &commit.positions {
            let place = known_partition(topic, partition)?;
            known.insert(
                partition,
                self.inner.catalogue.ends_about(place, position).await?,
            );
        }
        let ends = |partition| known.get(&partition).copied();
        let taken = rules::commit(&mut consumer, commit, ends);
        let Taken { moved, gave_back } = match taken {
            Ok(taken) => taken,
            Err(rules::Refused::Lost { why }) => return Err(lost(topic, name, why)),
            Err(rules::Refused::Position(error)) => return Err(error),
        };
        if moved {
            consumer.committed = Some(self.note());
        }
        if moved || gave_back {
            self.store_consumer(topic, name, share, Some(&mut consumer))
                .await?;
        }
        let held = consumer.lease.filter(|lease| lease.length_ms > 0);
        let Some(lease) = held else {
            consumers.leases.end(&key, commit.lease);
            return Ok(None);
        };
        let length = Duration::from_millis(u64::from(lease.length_ms));
        consumers
            .leases
            .give(&key, lease.id, clock.monotonic() + length);
        Ok(Some(clock.wall().after(length)))
    }

    /// Sets the positions of all partitions, or of one. The current reader loses its lease.
    ///
    /// # Errors
    /// [`ConsumerError`]; nothing was changed.
    pub async fn reset_consumer(
        &self,
        topic: &TopicName,
        name: &ConsumerName,
        partition: Option<PartitionId>,
        begin_at: BeginAt,
    ) -> Result<ConsumerStatus, ConsumerError> {
        self.caller.may(Verb::ResetConsumer, topic.as_str())?;
        let topic = self.inner.catalogue.known_topic(topic)?;
        let places: &[TopicPartition] = &match partition {
            None => topic.partitions().collect::<Vec<_>>(),
            Some(partition) => vec![known_partition(&topic, partition)?],
        };
        let topic = &topic;
        self.in_right(topic, name, |share| async move {
            let mut consumer = self.known_consumer(topic, name).await?;
            for &place in places {
                let offset = self.inner.messages.first_of(place, begin_at).await?;
                consumer.move_to(place.partition, offset);
            }
            consumer.lease = None;
            consumer.reset = Some(self.note());
            self.store_consumer(topic, name, &share, Some(&mut consumer))
                .await?;
            let key = (topic.id, name.clone());
            self.inner.consumers.leases.forget(&key);
            let ends = self.all_ends(topic);
            self.consumer_status(topic, name, &consumer, &ends).await
        })
        .await
    }

    /// Deletes a consumer and its positions, even while it is being read.
    ///
    /// # Errors
    /// [`ConsumerError`].
    pub async fn delete_consumer(
        &self,
        topic: &TopicName,
        name: &ConsumerName,
    ) -> Result<(), ConsumerError> {
        self.caller.may(Verb::DeleteConsumer, topic.as_str())?;
        let topic = self.inner.catalogue.known_topic(topic)?;
        let topic = &topic;
        self.in_right(topic, name, |share| async move {
            match self.stored_consumer(topic, name).await {
                // An unreadable entry can be deleted.
                Ok(Some(_)) | Err(ConsumerError::Unreadable { .. }) => {}
                Ok(None) => return Err(unknown(topic, name)),
                Err(error) => return Err(error),
            }
            self.store_consumer(topic, name, &share, None).await?;
            let key = (topic.id, name.clone());
            self.inner.consumers.leases.forget(&key);
            Ok(())
        })
        .await
    }

    fn asker(&self) -> &str {
        self.caller.signature()
    }

    fn note(&self) -> Noted {
        Noted {
            at: self.inner.clock.wall(),
            by: self.asker().to_owned(),
        }
    }

    fn all_ends(&self, topic: &Topic) -> Vec<Ends> {
        let ends = |at: TopicPartition| {
            self.inner
                .catalogue
                .ends(topic, at.partition)
                .unwrap_or_default()
        };
        topic.partitions().map(ends).collect()
    }

    async fn consumer_status(
        &self,
        topic: &Topic,
        name: &ConsumerName,
        consumer: &Consumer,
        ends: &[Ends],
    ) -> Result<ConsumerStatus, ConsumerError> {
        let Inner {
            clock,
            consumers,
            engine,
            ..
        } = &*self.inner;
        let key = (topic.id, name.clone());
        let left = consumers
            .leases
            .left(&key, consumer.lease.as_ref(), clock.monotonic());
        let reader = consumer.lease.as_ref().filter(|_| !left.is_zero());
        let mut partitions = Vec::with_capacity(ends.len());
        for (at, &Ends { start, end }) in topic.partitions().zip(ends) {
            let position = consumer.position(at.partition);
            partitions.push(ConsumerPlace {
                partition: at.partition,
                position,
                start,
                end,
                lag: engine.count(at, position, end).await?,
            });
        }
        Ok(ConsumerStatus {
            topic: topic.spec.name.clone(),
            name: name.clone(),
            created_at: consumer.created_at,
            reader: reader.map(|lease| ReaderStatus {
                by: lease.by.clone(),
                until: clock.wall().after(left),
            }),
            committed: consumer.committed.clone(),
            reset: consumer.reset.clone(),
            lag: partitions.iter().map(|place| place.lag).sum(),
            partitions,
        })
    }
}
