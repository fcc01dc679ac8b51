//! Produce: messages in, offsets out. One call is one commit: all of its messages are stored, or none. A call with a key takes effect
//! once, however often it is repeated.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use metrics::{Counter, counter};
use millrace_engine::{Append, CommitError, Receipt, RequestMark, Transaction};
use millrace_model::bounds::{
    DELAY_MS_MAX, DELAYED_MESSAGE_BYTES_MAX, MESSAGE_BYTES_MAX, MESSAGE_HEADERS_MAX,
    PRODUCE_CALL_BYTES_MAX, PRODUCE_CALL_MESSAGES_MAX, REQUEST_NOTE_BYTES_MAX,
    TIMESTAMP_AHEAD_MS_MAX,
};
use millrace_model::unit::{OtherUnit, check_ms};
use millrace_model::{
    Advice, Advised, BatchBuilder, BatchError, Code, ColumnBatch, Compression, Header, Message,
    Offset, PartitionId, ProcessorName, Timestamp, Topic, TopicName,
};
use tokio::sync::SemaphorePermit;

use crate::catalogue::deciding::decision_errors;
use crate::catalogue::unknown::{CREATE_TOPIC, UnknownPartition, UnknownTopic, known_partition};
use crate::ground::partitioner::{Partitioner, PartitionerError};
use crate::ground::{columns, headers, packing};
use crate::handler::{AdmitError, CallError};
use crate::messages::delays::delayed::{Delays, DelaysFull};
use crate::messages::delays::stored::{Additions, DelayedId, DueAt, alone};
use crate::messages::handle::Messages;
use crate::messages::placement::{Place, Placement};

/// A message to produce.
#[derive(Clone, Debug)]
pub struct NewMessage {
    /// The partition; `None` leaves it to the topic's partitioner.
    pub partition: Option<PartitionId>,
    /// The message.
    pub message: Message,
    /// The time of delivery; `None`, or a time in the past, means at once.
    pub deliver_at: Option<DueAt>,
}

/// The position of a produced message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placed {
    /// It is in its partition.
    At {
        /// Its partition.
        partition: PartitionId,
        /// Its offset there.
        offset: Offset,
    },
    /// It is delayed.
    Delayed(DelayedId),
}

impl Placed {
    /// Its present or future partition.
    #[must_use]
    pub fn partition(&self) -> PartitionId {
        match self {
            Self::At { partition, .. } => *partition,
            Self::Delayed(id) => id.partition(),
        }
    }

    /// Its offset, unless it is delayed.
    #[must_use]
    pub fn offset(&self) -> Option<Offset> {
        match self {
            Self::At { offset, .. } => Some(*offset),
            Self::Delayed(_) => None,
        }
    }
}

/// Identifies a repeated call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallKey {
    /// A digest of the caller's key.
    pub key: [u8; 16],
    /// A digest of everything that the caller sent.
    pub fingerprint: [u8; 16],
}

/// The result of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Produced {
    /// The position of each message, in order.
    pub placed: Vec<Placed>,
    /// Whether an earlier call with the same key took effect, and this one did nothing.
    pub repeated: bool,
    /// For a repeat: which messages, by index, can no longer be read at their positions, because retention, compaction or a trim
    /// removed them. The key outlives them, so they are not added again.
    pub gone: BTreeSet<usize>,
}

/// Why nothing was produced. `index` counts the messages of the call from 0.
#[derive(Debug, thiserror::Error)]
pub enum ProduceError {
    /// No such topic.
    #[error(transparent)]
    UnknownTopic(#[from] UnknownTopic),
    /// The topic has fewer partitions.
    #[error("message {index}: {unknown}")]
    UnknownPartition {
        /// The message's index.
        index: usize,
        /// Its partition.
        unknown: UnknownPartition,
    },
    /// The topic belongs to a processor.
    #[error(
        "topic {topic} belongs to processor {owner}, and only that processor writes to it; produce to the processor's input, or redrive its dead letters"
    )]
    Owned {
        /// The topic's name.
        topic: TopicName,
        /// The processor.
        owner: ProcessorName,
    },
    /// A message without a key, which a compacted topic could never remove.
    #[error(
        "message {index} has no key, but topic {topic} is compacted: it keeps the latest value of each key"
    )]
    KeyMissing {
        /// The message's index.
        index: usize,
        /// The topic's name.
        topic: TopicName,
    },
    /// A message over [`MESSAGE_BYTES_MAX`](millrace_model::bounds::MESSAGE_BYTES_MAX).
    #[error(
        "message {index} has {bytes} bytes; the maximum is {max}: store large payloads elsewhere and send a reference"
    )]
    TooLarge {
        /// The message's index.
        index: usize,
        /// Its size.
        bytes: usize,
        /// The bound.
        max: usize,
    },
    /// A message over [`MESSAGE_HEADERS_MAX`](millrace_model::bounds::MESSAGE_HEADERS_MAX).
    #[error("message {index} has {headers} headers; the maximum is {max}")]
    TooManyHeaders {
        /// The message's index.
        index: usize,
        /// The number of its headers.
        headers: usize,
        /// The bound.
        max: usize,
    },
    /// A header that only the host writes.
    #[error(
        "message {index}: header {name:?} is reserved for the host; choose a name that does not begin with `millrace-`"
    )]
    ReservedHeader {
        /// The message's index.
        index: usize,
        /// The header's name.
        name: String,
    },
    /// A message to delay over [`DELAYED_MESSAGE_BYTES_MAX`](millrace_model::bounds::DELAYED_MESSAGE_BYTES_MAX).
    #[error(
        "message {index} has {bytes} bytes; the maximum for a delayed message is {max}: store the payload elsewhere and send a reference"
    )]
    DelayedTooLarge {
        /// The message's index.
        index: usize,
        /// Its size, counting ten bytes for each header.
        bytes: usize,
        /// The bound.
        max: usize,
    },
    /// A time of delivery beyond [`DELAY_MS_MAX`](millrace_model::bounds::DELAY_MS_MAX).
    #[error(
        "message {index} has the time of delivery {deliver_at}, more than {max_ms} ms from now; use milliseconds since the Unix epoch"
    )]
    TooFar {
        /// The message's index.
        index: usize,
        /// The requested time.
        deliver_at: u64,
        /// The bound.
        max_ms: u64,
    },
    /// A timestamp beyond [`TIMESTAMP_AHEAD_MS_MAX`](millrace_model::bounds::TIMESTAMP_AHEAD_MS_MAX).
    #[error(
        "message {index} has the timestamp {timestamp}, more than {max_ms} ms ahead; use milliseconds since the Unix epoch, or omit it"
    )]
    Ahead {
        /// The message's index.
        index: usize,
        /// Its timestamp.
        timestamp: u64,
        /// The bound.
        max_ms: u64,
    },
    /// A time in another unit than milliseconds.
    #[error("message {index}: {field} {unit}")]
    OtherUnit {
        /// The message's index.
        index: usize,
        /// Which of its times.
        field: &'static str,
        /// The unit that it seems to have.
        unit: OtherUnit,
    },
    /// No room for more delayed messages.
    #[error(transparent)]
    DelaysFull(#[from] DelaysFull),
    /// All messages of the call together are over the bound.
    #[error(
        "the messages of this call have {bytes} bytes; the maximum is {max}: send them in several calls"
    )]
    CallTooLarge {
        /// Their size.
        bytes: usize,
        /// The bound.
        max: usize,
    },
    /// More messages than one call may carry.
    #[error("this call has {messages} messages; the maximum is {max}: send them in several calls")]
    TooMany {
        /// The number of messages.
        messages: usize,
        /// The bound.
        max: usize,
    },
    /// A call without messages.
    #[error("there is nothing to send; include at least one message")]
    NothingToSend,
    /// The bound of bytes on their way to the engine is reached.
    #[error("{max} bytes, the maximum, are already being written; try again in a moment")]
    Busy {
        /// The bound.
        max: usize,
    },
    /// A record batch that producers may not send, or that cannot be read.
    #[error("batch {index}: {error}")]
    Batch {
        /// The batch's index in the call.
        index: usize,
        /// What is wrong with it.
        error: BatchError,
    },
    /// The partitioner could not be loaded.
    #[error(
        "the topic's partitioner cannot be loaded: {0}; name the partition, or see the host's log"
    )]
    PartitionerGone(String),
    /// The partitioner failed.
    #[error("the topic's partitioner failed: {0}")]
    Partitioner(CallError),
    /// The positions of the messages exceed what may be stored with a key.
    #[error(
        "with a key the positions of all messages are stored, which takes {bytes} bytes here; the maximum is {max}: send fewer \
         messages at once, or name their partitions in runs"
    )]
    Scattered {
        /// Their size.
        bytes: usize,
        /// The bound.
        max: usize,
    },
    /// The call took effect earlier, but the positions of its messages are lost.
    #[error(
        "the call took effect earlier, but the positions of its messages can no longer be read"
    )]
    PlacesLost,
    /// The engine refused the commit.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

decision_errors! {
    ProduceError: ProduceError::Commit;
}

impl Advised for ProduceError {
    fn advice(&self) -> Advice {
        let code = match self {
            Self::UnknownTopic(error) => return error.advice().hint(CREATE_TOPIC),
            Self::UnknownPartition { unknown, .. } => {
                let hint = "omit the partition to let the topic's partitioner choose";
                return unknown.advice().hint(hint);
            }
            Self::DelaysFull(error) => return error.advice(),
            Self::NothingToSend => return Code::Malformed.hint("send at least one message"),
            Self::Batch { .. } => {
                let hint = "send complete record batches in Kafka's format, magic 2";
                return Code::Malformed.hint(hint);
            }
            Self::Commit(error) => return error.advice(),
            Self::Owned { .. } => Code::OwnedTopic,
            Self::KeyMissing { .. } => Code::KeyMissing,
            Self::TooLarge { .. }
            | Self::TooManyHeaders { .. }
            | Self::DelayedTooLarge { .. }
            | Self::TooMany { .. }
            | Self::CallTooLarge { .. }
            | Self::Scattered { .. } => Code::TooLarge,
            Self::ReservedHeader { .. } => Code::ReservedHeader,
            Self::TooFar { .. } => Code::TooFarAway,
            Self::Ahead { .. } => Code::TimestampAhead,
            Self::OtherUnit { .. } => Code::OtherUnit,
            Self::Busy { .. } => Code::Busy,
            Self::Partitioner(CallError::Interrupted) => Code::Stopping,
            Self::PartitionerGone(_) | Self::Partitioner(_) => Code::PartitionerFailed,
            Self::PlacesLost => Code::Internal,
        };
        code.advice()
    }
}

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
        let produced = self.produce_as(topic, messages, None).await?;
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
        self.produce_as(topic, messages, Some(key)).await
    }

    async fn produce_as(
        &self,
        topic: &TopicName,
        mut messages: Vec<NewMessage>,
        key: Option<CallKey>,
    ) -> Result<Produced, ProduceError> {
        let before = self.inner.clock.monotonic();
        let topic = self.inner.catalogue.known_topic(topic)?;
        let now = self.inner.clock.wall();
        let bytes = check(&topic, &messages, now, self.call_bytes_max())?;
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
            ..Transaction::produce(appends)
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
        let topic = self.inner.catalogue.known_topic(topic)?;
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

/// Checks everything before anything is stored; returns the bytes of all messages.
fn check(
    topic: &Topic,
    messages: &[NewMessage],
    now: Timestamp,
    bytes_max: usize,
) -> Result<usize, ProduceError> {
    check_count(topic, messages.len())?;
    let mut bytes = 0;
    for (index, new) in messages.iter().enumerate() {
        let message_bytes = check_message(topic, index, new)?;
        check_times(index, new, now)?;
        check_delay(index, new, message_bytes, now)?;
        bytes += message_bytes;
    }
    check_bytes(bytes, bytes_max)?;
    Ok(bytes)
}

/// Whether producers may send to the topic, and this many messages in one call.
pub(super) fn check_count(topic: &Topic, messages: usize) -> Result<(), ProduceError> {
    if let Some(owner) = &topic.spec.owner {
        return Err(ProduceError::Owned {
            topic: topic.spec.name.clone(),
            owner: owner.clone(),
        });
    }
    match messages {
        0 => Err(ProduceError::NothingToSend),
        1..=PRODUCE_CALL_MESSAGES_MAX => Ok(()),
        _ => Err(ProduceError::TooMany {
            messages,
            max: PRODUCE_CALL_MESSAGES_MAX,
        }),
    }
}

/// Whether one call may carry this many bytes.
pub(super) fn check_bytes(bytes: usize, max: usize) -> Result<(), ProduceError> {
    match bytes <= max {
        true => Ok(()),
        false => Err(ProduceError::CallTooLarge { bytes, max }),
    }
}

fn check_message(topic: &Topic, index: usize, new: &NewMessage) -> Result<usize, ProduceError> {
    let message = &new.message;
    let names = message.headers.iter().map(|header| &header.name[..]);
    let bytes = message.byte_count();
    let bytes = check_content(topic, index, message.key.is_some(), bytes, names)?;
    match new.partition {
        None => Ok(bytes),
        Some(partition) => match known_partition(topic, partition) {
            Ok(_) => Ok(bytes),
            Err(unknown) => Err(ProduceError::UnknownPartition { index, unknown }),
        },
    }
}

/// Whether the topic takes a message with a key or without, of this many bytes, and with headers of these names. Returns its bytes with
/// the framing of its headers.
pub(super) fn check_content<'a>(
    topic: &Topic,
    index: usize,
    has_key: bool,
    bytes: usize,
    mut header_names: impl ExactSizeIterator<Item = &'a [u8]>,
) -> Result<usize, ProduceError> {
    if topic.spec.settings.compact && !has_key {
        let topic = topic.spec.name.clone();
        return Err(ProduceError::KeyMissing { index, topic });
    }
    // The framing of each header counts too, so that a batch of this many bytes always fits.
    let bytes = bytes + header_names.len() * 10;
    if bytes > MESSAGE_BYTES_MAX {
        let max = MESSAGE_BYTES_MAX;
        return Err(ProduceError::TooLarge { index, bytes, max });
    }
    if header_names.len() > MESSAGE_HEADERS_MAX {
        return Err(ProduceError::TooManyHeaders {
            index,
            headers: header_names.len(),
            max: MESSAGE_HEADERS_MAX,
        });
    }
    match header_names.find(|name| headers::is_reserved(name)) {
        Some(name) => {
            let name = String::from_utf8_lossy(name).into_owned();
            Err(ProduceError::ReservedHeader { index, name })
        }
        None => Ok(bytes),
    }
}

/// Whether its times are in milliseconds.
fn check_times(index: usize, new: &NewMessage, now: Timestamp) -> Result<(), ProduceError> {
    let due = new
        .deliver_at
        .map_or_else(Timestamp::default, |due| due.time);
    let field = "deliver_at";
    let checked = check_ms(due.0, now);
    checked.map_err(|unit| ProduceError::OtherUnit { index, field, unit })?;
    // A message's own timestamp may equal its time of delivery.
    check_timestamp(index, new.message.timestamp, now, now.max(due))
}

/// Whether a message's timestamp is in milliseconds, and not long after `latest`.
pub(super) fn check_timestamp(
    index: usize,
    timestamp: Timestamp,
    now: Timestamp,
    latest: Timestamp,
) -> Result<(), ProduceError> {
    let timestamp = check_ms(timestamp.0, now).map_err(|unit| ProduceError::OtherUnit {
        index,
        field: "timestamp",
        unit,
    })?;
    let max_ms = TIMESTAMP_AHEAD_MS_MAX;
    match timestamp <= latest.0.saturating_add(max_ms) {
        true => Ok(()),
        false => Err(ProduceError::Ahead {
            index,
            timestamp,
            max_ms,
        }),
    }
}

fn check_delay(
    index: usize,
    new: &NewMessage,
    bytes: usize,
    now: Timestamp,
) -> Result<(), ProduceError> {
    let Some(DueAt { time: at, .. }) = new.deliver_at else {
        return Ok(());
    };
    if bytes > DELAYED_MESSAGE_BYTES_MAX {
        let max = DELAYED_MESSAGE_BYTES_MAX;
        return Err(ProduceError::DelayedTooLarge { index, bytes, max });
    }
    match at.0 <= now.0.saturating_add(DELAY_MS_MAX) {
        true => Ok(()),
        false => Err(ProduceError::TooFar {
            index,
            deliver_at: at.0,
            max_ms: DELAY_MS_MAX,
        }),
    }
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
