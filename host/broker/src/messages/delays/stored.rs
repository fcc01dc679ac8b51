//! How delayed messages are stored: as state of a reserved group, in the partition that they are
//! for. The key is the due time, followed by the order of arrival and a salt, which keeps keys
//! unique; the value is a record batch with the one message.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use millrace_engine::state::{
    NEVER, StateChange, StateEntry, StatePage, StateQuery, StateTable, StateValue, StateWrite,
    StateWrites,
};
use millrace_model::{
    BatchBuilder, Message, PartitionId, RecordBatch, Step, Timestamp, Topic, TopicName,
    TopicPartition,
};
use serde::{Serialize, Serializer};

use crate::hosts::holding::Share;

/// The group of delayed messages.
pub(crate) use millrace_engine::room::DELAYS_GROUP as GROUP;

const KEY_BYTES: usize = 20;
/// Bits of a salt: the delay was relative, and the message was moved.
const SPAN: u32 = 1;
const MOVED: u32 = 2;

/// The id of a delayed message until its delivery: its partition, its due time, and its order among
/// messages of that time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DelayedId {
    pub(crate) partition: PartitionId,
    pub(crate) due: Timestamp,
    /// The order of arrival.
    pub(crate) arrival: u64,
    /// The process that accepted it. The last bit says whether the delay was relative, the one before whether it was moved since.
    pub(crate) salt: u32,
}

/// The time at which a message is delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DueAt {
    /// By the current clock.
    pub time: Timestamp,
    /// Whether it was given as a relative delay, which moves with the clock, or as an absolute time, which does not.
    pub is_span: bool,
}

impl DueAt {
    /// This many milliseconds after `now`.
    #[must_use]
    pub fn after(now: Timestamp, delay_ms: u64) -> Self {
        Self {
            time: Timestamp(now.0.saturating_add(delay_ms)),
            is_span: true,
        }
    }
}

impl From<Timestamp> for DueAt {
    fn from(time: Timestamp) -> Self {
        Self {
            time,
            is_span: false,
        }
    }
}

impl DelayedId {
    /// Its partition.
    #[must_use]
    pub fn partition(&self) -> PartitionId {
        self.partition
    }

    /// Its time of delivery.
    #[must_use]
    pub fn due(&self) -> Timestamp {
        self.due
    }

    /// For a message with a relative or an absolute time.
    pub(super) fn salt(of_process: u32, is_span: bool) -> u32 {
        of_process & !(SPAN | MOVED) | if is_span { SPAN } else { 0 }
    }

    /// Whether the delay was relative. Some messages from versions that did not record this say so as well; they move with the clock.
    pub(super) fn is_span(&self) -> bool {
        self.salt & SPAN != 0
    }

    /// Whether its time may differ from that in the id that its sender got.
    pub(super) fn is_moved(&self) -> bool {
        self.salt & MOVED != 0
    }

    /// Its id after a clock step.
    pub(super) fn moved_by(self, step: Step) -> Self {
        Self {
            due: step.moved(self.due),
            salt: self.salt | MOVED,
            ..self
        }
    }

    /// Whether both ids belong to one message, before and after its time moved.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        (self.arrival, self.salt | MOVED) == (other.arrival, other.salt | MOVED)
    }

    pub(super) fn key(&self) -> [u8; KEY_BYTES] {
        let mut key = [0; KEY_BYTES];
        key[..8].copy_from_slice(&self.due.0.to_be_bytes());
        key[8..16].copy_from_slice(&self.arrival.to_be_bytes());
        key[16..].copy_from_slice(&self.salt.to_be_bytes());
        key
    }

    pub(super) fn of_key(partition: PartitionId, key: &[u8]) -> Option<Self> {
        let key: &[u8; KEY_BYTES] = key.try_into().ok()?;
        let number = |at: usize| key[at..at + 8].try_into().map(u64::from_be_bytes).ok();
        Some(Self {
            partition,
            due: Timestamp(number(0)?),
            arrival: number(8)?,
            salt: u32::from_be_bytes(key[16..].try_into().ok()?),
        })
    }
}

impl fmt::Display for DelayedId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (partition, due) = (self.partition, self.due.0);
        write!(f, "{partition}-{due}-{:x}-{:x}", self.arrival, self.salt)
    }
}

impl Serialize for DelayedId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A text that is not the id of a delayed message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is not the id of a delayed message; the answer of produce and the list contain ids")]
pub struct NotADelayedId;

impl FromStr for DelayedId {
    type Err = NotADelayedId;

    fn from_str(text: &str) -> Result<Self, NotADelayedId> {
        let mut parts = text.split('-');
        let mut part = || parts.next().ok_or(NotADelayedId);
        let hex = |text: &str| u64::from_str_radix(text, 16).map_err(|_| NotADelayedId);
        let id = Self {
            partition: PartitionId(part()?.parse().map_err(|_| NotADelayedId)?),
            due: Timestamp(part()?.parse().map_err(|_| NotADelayedId)?),
            arrival: hex(part()?)?,
            salt: u32::try_from(hex(part()?)?).map_err(|_| NotADelayedId)?,
        };
        // A message has only one id, in one notation.
        match id.to_string() == text {
            true => Ok(id),
            false => Err(NotADelayedId),
        }
    }
}

/// A message in its stored form.
pub(crate) fn alone(message: &Message) -> Option<RecordBatch> {
    let mut builder = BatchBuilder::with_capacity(message.byte_count());
    builder.push(message);
    builder.finish()
}

/// Decodes an entry; `None` if this file did not write it.
pub(super) fn read(entry: &StateEntry, partition: PartitionId) -> Option<(DelayedId, Message)> {
    let id = DelayedId::of_key(partition, &entry.key)?;
    let batch = RecordBatch::decode(&Bytes::copy_from_slice(entry.value.as_bytes())).ok()?;
    let view = batch.records().ok()?.next()?.ok()?;
    Some((id, view.to_message(batch.bytes()).ok()?))
}

/// Entries of a table of delayed messages. The table is always in memory, so reading cannot fail.
pub(super) fn page(table: &StateTable, query: &StateQuery) -> StatePage {
    table.page(query).unwrap_or_default()
}

/// Passes each key of a table of delayed messages to `see`.
pub(super) fn each_key(table: &StateTable, see: impl FnMut(&[u8])) {
    let read = table.each_key(see);
    debug_assert_eq!(read, Ok(()), "it is in memory");
}

/// The entry with exactly this id, if it exists.
pub(super) fn exactly(table: &StateTable, id: DelayedId) -> Option<StateEntry> {
    let query = StateQuery {
        prefix: id.key().to_vec(),
        entries_max: 1,
        ..StateQuery::default()
    };
    page(table, &query).entries.into_iter().next()
}

/// Delayed messages to be added by a transaction.
#[derive(Debug, Default)]
pub(crate) struct Additions(pub(super) BTreeMap<TopicPartition, Addition>);

/// The additions to one partition.
#[derive(Debug)]
pub(super) struct Addition {
    pub(super) topic: TopicName,
    pub(super) earliest: Timestamp,
    pub(super) bytes: usize,
    writes: StateWrites,
}

impl Additions {
    /// Adds one for an existing partition.
    pub(crate) fn add(&mut self, topic: &Topic, id: DelayedId, message: &RecordBatch) {
        let partition = TopicPartition {
            topic: topic.id,
            partition: id.partition,
        };
        let addition = self.0.entry(partition).or_insert_with(|| Addition {
            topic: topic.spec.name.clone(),
            earliest: id.due,
            bytes: 0,
            writes: StateWrites::default(),
        });
        let change = StateChange {
            key: id.key().as_slice().into(),
            value: Some(StateValue::new(message.bytes())),
            ends_at: NEVER,
        };
        addition.earliest = addition.earliest.min(id.due);
        addition.bytes += change.weight();
        addition.writes.changes.push(change);
    }

    /// Takes the additions as writes for the transaction.
    pub(crate) fn take_writes(&mut self) -> Vec<StateWrite> {
        let write = |(partition, addition): (&TopicPartition, &mut Addition)| {
            write(*partition, None, std::mem::take(&mut addition.writes))
        };
        self.0.iter_mut().map(write).collect()
    }
}

impl Addition {
    pub(super) fn messages(&self) -> usize {
        self.writes.changes.len()
    }
}

/// Removes delivered or cancelled messages.
pub(super) fn removal<'a>(
    partition: TopicPartition,
    share: &Share,
    keys: impl Iterator<Item = &'a Arc<[u8]>>,
) -> StateWrite {
    let change = |key: &Arc<[u8]>| StateChange {
        key: Arc::clone(key),
        value: None,
        ends_at: NEVER,
    };
    let writes = StateWrites {
        resets: false,
        changes: keys.map(change).collect(),
        adds: None,
    };
    write(partition, Some(share), writes)
}

/// Additions need no lease: its holder sees them sooner or later.
pub(super) fn write(
    partition: TopicPartition,
    share: Option<&Share>,
    writes: StateWrites,
) -> StateWrite {
    StateWrite {
        group: GROUP.clone(),
        partition,
        lease: share.and_then(Share::lease).cloned(),
        writes: Arc::new(writes),
    }
}

#[cfg(test)]
mod tests {
    use millrace_model::ProcessorName;
    use millrace_model::bounds::{
        DELAYED_MESSAGE_BYTES_MAX, MESSAGE_HEADERS_MAX, STATE_VALUE_BYTES_MAX,
    };
    use proptest::prelude::*;

    use super::*;

    fn id(partition: u32, due: u64, arrival: u64, salt: u32) -> DelayedId {
        DelayedId {
            partition: PartitionId(partition),
            due: Timestamp(due),
            arrival,
            salt,
        }
    }

    #[test]
    fn the_group_is_no_processors() {
        assert!(ProcessorName::parse(GROUP.as_str()).is_err());
    }

    #[test]
    fn what_is_not_an_id_is_refused() {
        for text in [
            "",
            "0",
            "0-1-2",
            "0-1-2-3-4",
            "+0-1-2-3",
            "0-1-G-3",
            "0-01-2-3",
            "0-1-2-100000000",
        ] {
            assert_eq!(text.parse::<DelayedId>(), Err(NotADelayedId), "{text}");
        }
        assert_eq!("0-1-2-3".parse(), Ok(id(0, 1, 2, 3)));
    }

    proptest! {
        #[test]
        fn an_id_is_the_same_as_text_and_as_key(partition: u32, due: u64, arrival: u64, salt: u32) {
            let id = id(partition, due, arrival, salt);
            prop_assert_eq!(id.to_string().parse(), Ok(id));
            prop_assert_eq!(DelayedId::of_key(id.partition, &id.key()), Some(id));
        }

        #[test]
        fn keys_stand_in_the_order_of_time_and_arrival(a: (u64, u64), b: (u64, u64)) {
            let (first, second) = (id(0, a.0, a.1, 7), id(0, b.0, b.1, 7));
            prop_assert_eq!(first.key().cmp(&second.key()), a.cmp(&b));
        }
    }

    #[test]
    fn the_largest_message_fits_into_an_entry() {
        let header = millrace_model::Header {
            name: "n".into(),
            value: None,
        };
        let headers = vec![header; MESSAGE_HEADERS_MAX];
        let bytes = DELAYED_MESSAGE_BYTES_MAX - headers.len() * 11;
        let message = Message {
            key: None,
            value: Some(vec![1; bytes].into()),
            headers,
            timestamp: Timestamp(i64::MAX as u64),
        };
        assert!(alone(&message).unwrap().byte_count() <= STATE_VALUE_BYTES_MAX);
    }
}
