//! Produce: messages in, offsets out. One call is one commit: all of its messages are stored, or none. A call with a key takes effect
//! once, however often it is repeated.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use metrics::{Counter, counter};
use millrace_engine::{Append, CommitError, Receipt, RequestMark, Transaction};
use millrace_model::bounds::{PRODUCE_CALL_BYTES_MAX, REQUEST_NOTE_BYTES_MAX};
use millrace_model::{
    BatchBuilder, ColumnBatch, Compression, Header, Message, PartitionId, Quota, Timestamp, Topic,
    TopicName,
};
use tokio::sync::SemaphorePermit;

use crate::ground::meters::OverQuota;
use crate::ground::partitioner::{Partitioner, PartitionerError};
use crate::ground::standing::Forbidden;
use crate::ground::verbs::Verb;
use crate::ground::{columns, packing};
use crate::handler::AdmitError;
use crate::messages::call::{CallKey, NewMessage, Placed, Produced};
use crate::messages::checks::check;
use crate::messages::delays::delayed::{Delays, DelaysFull};
use crate::messages::delays::stored::{Additions, alone};
use crate::messages::handle::Messages;
use crate::messages::placement::{Place, Placement};
use crate::messages::produce_error::ProduceError;

impl Messages {
    /// Appends messages to a topic: all of them, or none. Returns the position of each one, in order. A message without a timestamp (0)
    /// gets the time of its arrival, and a delayed one that of its delivery.
    ///
    /// # Errors
    /// [`ProduceError`]; nothing was appended (unknown for [`CommitError::Poisoned`]).
    pub async fn produce(
        &self,
        topic: &TopicName,
        messages: Vec<NewMessage>,
    ) -> Result<Vec<Placed>, ProduceError> {
        self.may_produce(topic, &messages)?;
        let base = Transaction::default();
        let produced = self.produce_as(topic, messages, None, base).await?;
        Ok(produced.placed)
    }

    /// Like [`Messages::produce`], once: the same key returns the first answer, within the topic's window
    /// ([`REQUESTS_PER_TOPIC_MAX`](millrace_model::bounds::REQUESTS_PER_TOPIC_MAX) and the bounds after it). A repeat during the first
    /// call waits for it.
    ///
    /// # Errors
    /// As for [`Messages::produce`]; [`CommitError::RequestReused`] if the key was used for something else.
    pub async fn produce_once(
        &self,
        topic: &TopicName,
        messages: Vec<NewMessage>,
        key: CallKey,
    ) -> Result<Produced, ProduceError> {
        self.may_produce(topic, &messages)?;
        let base = Transaction::default();
        self.produce_as(topic, messages, Some(key), base).await
    }

    /// Whether the caller may send these messages, by the topic and by their keys.
    fn may_produce(&self, topic: &TopicName, messages: &[NewMessage]) -> Result<(), Forbidden> {
        let keys = messages.iter().map(|new| new.message.key.as_deref());
        self.caller
            .may_with_keys(Verb::Produce, topic.as_str(), keys)
    }

    /// Appends messages in a transaction that does `base` as well.
    pub(super) async fn produce_as(
        &self,
        topic: &TopicName,
        mut messages: Vec<NewMessage>,
        key: Option<CallKey>,
        base: Transaction,
    ) -> Result<Produced, ProduceError> {
        let before = self.inner.clock.monotonic();
        let topic = self.inner.catalogue.heard_topic(topic).await?;
        let now = self.inner.clock.wall();
        let bytes = check(&topic, &messages, now, self.call_bytes_max())?;
        self.sends(messages.len(), bytes)?;
        let _room = self.room(bytes)?;
        stamp(&mut messages, now);
        let partitions = self.partitions_of(&topic, &messages).await?;
        let delays = &self.inner.delays;
        let Grouped {
            mut appends,
            mut additions,
            placement,
        } = grouped(&topic, &messages, &partitions, bytes, delays);
        delays.check_room(&additions).await?;
        pack(&mut appends, topic.spec.settings.compression).await;
        let transaction = Transaction {
            request: key.map(|key| mark(&topic, key, &placement)).transpose()?,
            state: additions.take_writes(),
            durability: Some(topic.spec.durability),
            appends,
            ..base
        };
        delays.expect(&additions).await;
        let committed = self.inner.engine.commit(transaction).await;
        delays.expect(&additions).await;
        let committed = committed.map_err(|error| match error {
            CommitError::RoomFull(full) => DelaysFull::Host(full).into(),
            error => ProduceError::Commit(error),
        });
        let mut produced = produced(placement, &committed?)?;
        match produced.repeated {
            false => self.received(&topic).increment(messages.len() as u64),
            true => produced.gone = self.gone(&topic, &produced.placed).await,
        }
        let took = self.inner.clock.monotonic().saturating_sub(before);
        self.inner.publish_seconds.record(took.as_secs_f64());
        Ok(produced)
    }

    /// Counts what the caller sends, unless it has sent too much before.
    pub(super) fn sends(&self, messages: usize, bytes: usize) -> Result<(), OverQuota> {
        let now = self.inner.clock.monotonic();
        let quotas = [Quota::ProducedMessages, Quota::ProducedBytes];
        self.caller.check_quotas(&quotas, now)?;
        let [of_messages, of_bytes] = quotas;
        let amounts = [(of_messages, messages as u64), (of_bytes, bytes as u64)];
        self.caller.take(&amounts, now);
        Ok(())
    }

    /// The partitions that messages with these keys go to.
    ///
    /// # Errors
    /// [`ProduceError`] if the topic's partitioner fails.
    pub(crate) async fn partitions_of_keys(
        &self,
        topic: &Topic,
        keys: &[Bytes],
    ) -> Result<Vec<PartitionId>, ProduceError> {
        let keyed = |key: &Bytes| NewMessage {
            partition: None,
            message: Message {
                key: Some(key.clone()),
                ..Message::default()
            },
            deliver_at: None,
        };
        let messages: Vec<NewMessage> = keys.iter().map(keyed).collect();
        let partitions = self.partitions_of(topic, &messages).await?;
        Ok(partitions.into_iter().map(PartitionId).collect())
    }

    /// Maximum bytes of messages in one call: the product's bound, and no more than the engine accepts in one commit.
    pub(super) fn call_bytes_max(&self) -> usize {
        let limits = self.inner.engine.limits();
        PRODUCE_CALL_BYTES_MAX.min(limits.transaction_bytes_max)
    }

    /// Whether the topic would accept these messages now.
    pub(crate) fn check_produce(
        &self,
        topic: &TopicName,
        messages: &[NewMessage],
    ) -> Result<(), ProduceError> {
        let topic = self.inner.catalogue.known_topic(topic)?;
        let now = self.inner.clock.wall();
        check(&topic, messages, now, self.call_bytes_max()).map(drop)
    }

    /// Appends one message immediately, with the host's headers, in a transaction that does more.
    pub(crate) async fn produce_with(
        &self,
        topic: &TopicName,
        message: NewMessage,
        headers: Vec<Header>,
        transaction: Transaction,
    ) -> Result<Receipt, ProduceError> {
        let topic = self.inner.catalogue.heard_topic(topic).await?;
        let now = self.inner.clock.wall();
        let mut messages = vec![message];
        let bytes = check(&topic, &messages, now, self.call_bytes_max())?;
        stamp(&mut messages, now);
        messages[0].message.headers.extend(headers);
        let partitions = self.partitions_of(&topic, &messages).await?;
        let mut grouped = grouped(&topic, &messages, &partitions, bytes, &self.inner.delays);
        pack(&mut grouped.appends, topic.spec.settings.compression).await;
        let transaction = Transaction {
            appends: grouped.appends,
            ..transaction
        };
        let receipt = self.inner.engine.commit(transaction).await?;
        self.received(&topic).increment(1);
        Ok(receipt)
    }

    /// Reserves this many bytes on their way to the engine.
    pub(super) fn room(&self, bytes: usize) -> Result<SemaphorePermit<'_>, ProduceError> {
        // At least one permit: a flood of empty messages is a flood too.
        let permits = u32::try_from(bytes.max(1)).unwrap_or(u32::MAX);
        let room = self.inner.in_flight.try_acquire_many(permits);
        room.map_err(|_| ProduceError::Busy {
            max: self.inner.in_flight_bytes,
        })
    }

    pub(super) fn received(&self, topic: &Topic) -> Counter {
        let mut received = self.inner.received.lock();
        let new = || counter!("millrace_messages_in_total", "topic" => topic.spec.name.to_string());
        received.entry(topic.id).or_insert_with(new).clone()
    }

    /// The partition of each message.
    async fn partitions_of(
        &self,
        topic: &Topic,
        messages: &[NewMessage],
    ) -> Result<Vec<u32>, ProduceError> {
        let (engine, modules) = (&*self.inner.engine, &*self.inner.modules);
        let partitioner = self.inner.partitioners.of(topic, engine, modules).await;
        let partitioner = partitioner.map_err(|error| match error {
            PartitionerError::Admit(AdmitError::Stopping) => CommitError::Closed.into(),
            error => ProduceError::PartitionerGone(error.to_string()),
        })?;
        if partitioner.is_component() {
            return by_component(&partitioner, topic, messages).await;
        }
        let now = self.inner.clock.monotonic();
        let mut built_in = partitioner.built_in(topic.spec.partitions, now);
        let choose = |new: &NewMessage| match new.partition {
            Some(partition) => partition.0,
            None => built_in.choose(new.message.key.as_deref(), new.message.byte_count()),
        };
        Ok(messages.iter().map(choose).collect())
    }
}

async fn by_component(
    partitioner: &Partitioner,
    topic: &Topic,
    messages: &[NewMessage],
) -> Result<Vec<u32>, ProduceError> {
    let mut columns = ColumnBatch {
        topic: topic.spec.name.to_string(),
        ..ColumnBatch::default()
    };
    let unplaced = messages.iter().filter(|new| new.partition.is_none());
    unplaced.for_each(|new| columns::push_message(&mut columns, &new.message));
    let mut assigned = Vec::new();
    if !columns.is_empty() {
        let partitions = topic.spec.partitions;
        let answer = partitioner
            .by_component(partitions, &Arc::new(columns))
            .await;
        assigned = answer.map_err(ProduceError::Partitioner)?;
    }
    let mut assigned = assigned.into_iter();
    let choose = |new: &NewMessage| match new.partition {
        Some(partition) => partition.0,
        None => assigned.next().unwrap_or_default(),
    };
    Ok(messages.iter().map(choose).collect())
}

/// From here on, a message has a time of delivery only if it is in the future.
fn stamp(messages: &mut [NewMessage], now: Timestamp) {
    for new in messages {
        new.deliver_at = new.deliver_at.filter(|due| due.time > now);
        if new.message.timestamp == Timestamp::default() {
            new.message.timestamp = new.deliver_at.map_or(now, |due| due.time);
        }
        // A record's field is signed: a larger value would be stored and never read back.
        new.message.timestamp = new.message.timestamp.min(Timestamp(i64::MAX as u64));
    }
}

/// The transaction for a call.
struct Grouped {
    /// One batch per partition.
    appends: Vec<Append>,
    additions: Additions,
    /// The position of each message.
    placement: Placement,
}

fn grouped(
    topic: &Topic,
    messages: &[NewMessage],
    partitions: &[u32],
    bytes: usize,
    delays: &Delays,
) -> Grouped {
    let mut builders: Vec<(u32, BatchBuilder)> = Vec::new();
    let mut groups = HashMap::new();
    let mut places = Vec::with_capacity(messages.len());
    let mut additions = Additions::default();
    for (new, &partition) in messages.iter().zip(partitions) {
        let due = new
            .deliver_at
            .and_then(|due| Some((due, alone(&new.message)?)));
        if let Some((due, message)) = due {
            let id = delays.next_id(PartitionId(partition), due);
            additions.add(topic, id, &message);
            places.push(Place::Delayed(id));
            continue;
        }
        let group = *groups.entry(partition).or_insert_with(|| {
            let capacity = (bytes + messages.len() * 20) / (builders.len() + 1);
            builders.push((partition, BatchBuilder::with_capacity(capacity)));
            builders.len() - 1
        });
        let builder = &mut builders[group].1;
        places.push(Place::In(group as u32, builder.message_count() as u32));
        builder.push(&new.message);
    }
    let placement = Placement {
        partitions: builders.iter().map(|(partition, _)| *partition).collect(),
        places,
    };
    let append = |(partition, builder): (u32, BatchBuilder)| {
        let partition = topic.partition(PartitionId(partition))?;
        builder.finish().map(|batch| Append { partition, batch })
    };
    Grouped {
        appends: builders.into_iter().filter_map(append).collect(),
        additions,
        placement,
    }
}

fn mark(topic: &Topic, key: CallKey, placement: &Placement) -> Result<RequestMark, ProduceError> {
    let note = placement.encode();
    if note.len() > REQUEST_NOTE_BYTES_MAX {
        let (bytes, max) = (note.len(), REQUEST_NOTE_BYTES_MAX);
        return Err(ProduceError::Scattered { bytes, max });
    }
    Ok(RequestMark {
        topic: topic.id,
        key: key.key,
        fingerprint: key.fingerprint,
        note: note.into(),
    })
}

/// A repeat uses the first call's positions: a partitioner may choose differently now.
fn produced(placement: Placement, receipt: &Receipt) -> Result<Produced, ProduceError> {
    let placement = match receipt.repeated {
        true => Placement::decode(&receipt.note).ok_or(ProduceError::PlacesLost)?,
        false => placement,
    };
    let placed = placement.at(&receipt.base_offsets);
    Ok(Produced {
        placed: placed.ok_or(ProduceError::PlacesLost)?,
        repeated: receipt.repeated,
        gone: BTreeSet::new(),
    })
}

/// Compresses the batches as their topic requires.
pub(super) async fn pack(appends: &mut [Append], codec: Compression) {
    let batches = appends.iter().map(|append| append.batch.clone());
    let packed = packing::packed(batches.collect(), |_| codec).await;
    for (append, batch) in appends.iter_mut().zip(packed) {
        append.batch = batch;
    }
}
