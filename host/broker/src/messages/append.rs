//! Append: record batches in, offsets out. The batches are stored as their producer sent them, so a door that speaks Kafka's format copies
//! nothing and decodes nothing. All checks of [`Messages::produce`] apply, on views of the records.

use millrace_engine::{Append, Transaction};
use millrace_model::{
    BatchError, Durability, Offset, PartitionId, ProducerId, RecordBatch, Timestamp, Topic,
    TopicName,
};

use millrace_model::batch::RecordView;

use crate::catalogue::unknown::known_partition;
use crate::ground::caller::Caller;
use crate::ground::keys::may_touch;
use crate::ground::packing;
use crate::ground::verbs::Verb;
use crate::messages::checks::{check_bytes, check_content, check_count, check_timestamp};
use crate::messages::handle::Messages;
use crate::messages::produce::pack;
use crate::messages::produce_error::ProduceError;

/// Batches for one topic, stored in one commit.
#[derive(Clone, Debug)]
pub struct AppendRequest {
    /// The topic.
    pub topic: TopicName,
    /// The batches, each for one partition. Batches of the same partition are stored in this order.
    pub batches: Vec<(PartitionId, RecordBatch)>,
    /// Minimum durability when the call returns; the topic may require more. `None` is what the topic requires.
    pub durability: Option<Durability>,
}

/// The result of an append.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appended {
    /// For each batch, in order, the offset of its first message.
    pub base_offsets: Vec<Offset>,
    /// Whether all of these batches, by their producers' numbers, were stored by an earlier call, and this one did nothing.
    pub repeated: bool,
}

impl Messages {
    /// Appends record batches to a topic: all of them, or none. A batch that its producer numbered is stored once, however often it is
    /// sent. A batch without timestamps gets the time of its arrival. A compressed batch keeps its codec; others are compressed as the
    /// topic requires.
    ///
    /// # Errors
    /// [`ProduceError`], with [`CommitError::OutOfOrderSequence`], [`CommitError::ProducerFenced`] and [`CommitError::UnknownProducer`]
    /// for numbered batches; nothing was appended (unknown for [`CommitError::InDoubt`] and [`CommitError::Poisoned`]).
    pub async fn append(&self, request: AppendRequest) -> Result<Appended, ProduceError> {
        self.caller.may(Verb::Produce, request.topic.as_str())?;
        let before = self.inner.clock.monotonic();
        let AppendRequest {
            topic,
            batches,
            durability,
        } = request;
        let topic = self.inner.catalogue.heard_topic(&topic).await?;
        let messages = batches.iter().map(|(_, batch)| batch.message_count()).sum();
        check_count(&topic, messages)?;
        let bytes = batches.iter().map(|(_, batch)| batch.byte_count()).sum();
        check_bytes(bytes, self.call_bytes_max())?;
        self.sends(messages, bytes)?;
        let _room = self.room(bytes)?;
        let now = self.inner.clock.wall();
        let mut appends = Vec::with_capacity(batches.len());
        let mut first = 0;
        for (index, (partition, batch)) in batches.into_iter().enumerate() {
            let known = known_partition(&topic, partition);
            let partition =
                known.map_err(|unknown| ProduceError::UnknownPartition { index, unknown })?;
            let place = (index, first);
            first += batch.message_count();
            let batch = checked(&self.caller, &topic, place, batch, now).await?;
            appends.push(Append { partition, batch });
        }
        pack(&mut appends, topic.spec.settings.compression).await;
        let transaction = Transaction {
            durability: durability.max(Some(topic.spec.durability)),
            ..Transaction::produce(appends)
        };
        let receipt = self.inner.engine.commit(transaction).await?;
        if !receipt.repeated {
            self.received(&topic).increment(messages as u64);
        }
        let took = self.inner.clock.monotonic().saturating_sub(before);
        self.inner.publish_seconds.record(took.as_secs_f64());
        Ok(Appended {
            base_offsets: receipt.base_offsets,
            repeated: receipt.repeated,
        })
    }

    /// Issues a producer's identity, with which it numbers its batches: a new id, or for a name its previous id in the next epoch, which
    /// fences the earlier ones. Durable on return.
    ///
    /// # Errors
    /// [`CommitError::ProducerName`] for a name that is too long or empty, or why the identity could not be stored.
    pub async fn init_producer(&self, name: Option<&str>) -> Result<ProducerId, ProduceError> {
        self.caller.may_with_some(Verb::Produce)?;
        Ok(self.inner.engine.init_producer(name).await?)
    }
}

/// The batch to store. `index` is its index in the call, and `first` that of its first message among all messages.
async fn checked(
    caller: &Caller,
    topic: &Topic,
    (index, first): (usize, usize),
    batch: RecordBatch,
    now: Timestamp,
) -> Result<RecordBatch, ProduceError> {
    let refused = |error| ProduceError::Batch { index, error };
    batch.check_produced().map_err(refused)?;
    let batch = match batch.is_timed() {
        true => batch,
        false => batch.arrived(now),
    };
    let plain = packing::readable(&batch).await.map_err(refused)?;
    let mut latest = Timestamp::default();
    for (at, record) in plain.records().map_err(refused)?.enumerate() {
        let record = record.map_err(refused)?;
        if record.offset != plain.base_offset().plus(at as u64) {
            let error = BatchError::Malformed("the records' offset deltas do not count from 0");
            return Err(refused(error));
        }
        let key = record.key.clone().map(|key| &plain.bytes()[key]);
        if !may_touch(caller.rights().keys(), key) {
            let name = topic.spec.name.as_str();
            return Err(caller.outside_keys(Verb::Produce, name).into());
        }
        let (names, bytes) = content(&record, plain.bytes());
        check_content(
            topic,
            first + at,
            record.key.is_some(),
            bytes,
            names.iter().copied(),
        )?;
        check_timestamp(first + at, record.timestamp, now, now)?;
        latest = latest.max(record.timestamp);
    }
    Ok(batch.latest(latest))
}

/// The names of a record's headers, and the bytes of its key, value and headers.
fn content<'a>(record: &RecordView, batch: &'a [u8]) -> (Vec<&'a [u8]>, usize) {
    let mut bytes = [&record.key, &record.value]
        .into_iter()
        .flatten()
        .map(ExactSizeIterator::len)
        .sum();
    let mut names = Vec::with_capacity(record.header_count());
    // A record is returned only if its headers are intact.
    for (name, value) in record.headers(batch).flatten() {
        bytes += name.len() + value.map_or(0, |value| value.len());
        names.push(&batch[name]);
    }
    (names, bytes)
}
