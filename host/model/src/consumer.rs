//! A consumer: a named reader of a topic, and its committed position in each partition.
//!
//! The encoding is our own, version first, little-endian, and has a fixed size for a given number of partitions: a commit needs no more
//! room than the previous one, so none is refused because other data has filled the host.

use std::fmt;
use std::str::FromStr;

use crate::bounds::{CONSUMER_BY_BYTES_MAX, TOPIC_PARTITIONS_MAX};
use crate::clock::Timestamp;
use crate::offset::{Offset, PartitionId};

/// The stored part of a consumer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Consumer {
    /// When it was created.
    pub created_at: Timestamp,
    /// The next offset to read of each partition, in order. A partition added later is read from its first message.
    pub positions: Vec<Offset>,
    /// The newest lease; none after a reset.
    pub lease: Option<ReadLease>,
    /// The last commit.
    pub committed: Option<Noted>,
    /// The last reset.
    pub reset: Option<Noted>,
}

/// A consumer's lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadLease {
    /// Its number.
    pub id: LeaseId,
    /// How many milliseconds it lasts after its reader's last request; 0 if it was released.
    pub length_ms: u32,
    /// The reader's name, as it claims.
    pub by: String,
}

/// When and by whom something was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Noted {
    /// When.
    pub at: Timestamp,
    /// By whom, as claimed.
    pub by: String,
}

/// A lease's number; no two leases have the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub u64);

/// A text that is not a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is not a lease; answers with messages contain one")]
pub struct NotALease;

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for LeaseId {
    type Err = NotALease;

    fn from_str(text: &str) -> Result<Self, NotALease> {
        let id = u64::from_str_radix(text, 16).map_err(|_| NotALease)?;
        // A lease has only one text form.
        match Self(id).to_string() == text {
            true => Ok(Self(id)),
            false => Err(NotALease),
        }
    }
}

const VERSION: u8 = 1;

impl Consumer {
    /// The next offset to read in a partition.
    #[must_use]
    pub fn position(&self, partition: PartitionId) -> Offset {
        let known = self.positions.get(partition.0 as usize);
        known.copied().unwrap_or_default()
    }

    /// Moves to another offset.
    pub fn move_to(&mut self, partition: PartitionId, offset: Offset) {
        let at = partition.0 as usize;
        if self.positions.len() <= at {
            self.positions.resize(at + 1, Offset::default());
        }
        self.positions[at] = offset;
    }

    /// As stored.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.extend(self.created_at.0.to_le_bytes());
        let lease = self.lease.as_ref();
        out.push(u8::from(lease.is_some()));
        out.extend(lease.map_or(0, |lease| lease.id.0).to_le_bytes());
        out.extend(lease.map_or(0, |lease| lease.length_ms).to_le_bytes());
        put_name(&mut out, lease.map_or("", |lease| &lease.by));
        for noted in [&self.committed, &self.reset] {
            let noted = noted.as_ref();
            out.push(u8::from(noted.is_some()));
            out.extend(noted.map_or(0, |noted| noted.at.0).to_le_bytes());
            put_name(&mut out, noted.map_or("", |noted| &noted.by));
        }
        out.extend((self.positions.len() as u32).to_le_bytes());
        let positions = self.positions.iter();
        out.extend(positions.flat_map(|position| position.0.to_le_bytes()));
        out
    }

    /// Reads what [`Consumer::encode`] wrote; `None` for anything else.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = Reader(bytes);
        if rest.take()? != [VERSION] {
            return None;
        }
        let created_at = Timestamp(rest.u64()?);
        let lease = rest.lease()?;
        let committed = rest.noted()?;
        let reset = rest.noted()?;
        let count = rest.u32()?;
        if count > TOPIC_PARTITIONS_MAX {
            return None;
        }
        let positions = (0..count).map(|_| rest.u64().map(Offset));
        let positions = positions.collect::<Option<Vec<_>>>()?;
        rest.0.is_empty().then_some(Self {
            created_at,
            positions,
            lease,
            committed,
            reset,
        })
    }
}

/// A name, cut to the bound and padded to the longest size.
fn put_name(out: &mut Vec<u8>, name: &str) {
    let cut = &name[..name.floor_char_boundary(CONSUMER_BY_BYTES_MAX)];
    out.push(cut.len() as u8);
    out.extend(cut.as_bytes());
    out.resize(out.len() + CONSUMER_BY_BYTES_MAX - cut.len(), 0);
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn is_there(&mut self) -> Option<bool> {
        match self.take()? {
            [0] => Some(false),
            [1] => Some(true),
            _ => None,
        }
    }

    fn name(&mut self) -> Option<String> {
        let [length] = self.take()?;
        let bytes = self.take::<CONSUMER_BY_BYTES_MAX>()?;
        let name = bytes.get(..usize::from(length))?;
        String::from_utf8(name.to_vec()).ok()
    }

    fn lease(&mut self) -> Option<Option<ReadLease>> {
        let is_there = self.is_there()?;
        let lease = ReadLease {
            id: LeaseId(self.u64()?),
            length_ms: self.u32()?,
            by: self.name()?,
        };
        Some(is_there.then_some(lease))
    }

    fn noted(&mut self) -> Option<Option<Noted>> {
        let is_there = self.is_there()?;
        let noted = Noted {
            at: Timestamp(self.u64()?),
            by: self.name()?,
        };
        Some(is_there.then_some(noted))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::bounds::STATE_VALUE_BYTES_MAX;

    fn any_noted() -> impl Strategy<Value = Option<Noted>> {
        let noted = (any::<u64>(), "[a-zé ]{0,30}");
        proptest::option::of(noted.prop_map(|(at, by)| Noted {
            at: Timestamp(at),
            by,
        }))
    }

    fn any_consumer() -> impl Strategy<Value = Consumer> {
        let lease = (any::<u64>(), any::<u32>(), "[a-zé ]{0,30}");
        let lease = lease.prop_map(|(id, length_ms, by)| ReadLease {
            id: LeaseId(id),
            length_ms,
            by,
        });
        let positions = proptest::collection::vec(any::<u64>().prop_map(Offset), 0..9);
        let lease = proptest::option::of(lease);
        (any::<u64>(), positions, lease, any_noted(), any_noted()).prop_map(
            |(created_at, positions, lease, committed, reset)| Consumer {
                created_at: Timestamp(created_at),
                positions,
                lease,
                committed,
                reset,
            },
        )
    }

    proptest! {
        #[test]
        fn a_consumer_reads_back_as_written(consumer in any_consumer()) {
            prop_assert_eq!(Consumer::decode(&consumer.encode()), Some(consumer));
        }

        #[test]
        fn it_takes_the_same_room_whatever_it_says(consumer in any_consumer()) {
            let plain = Consumer { positions: vec![Offset(0); consumer.positions.len()], ..Consumer::default() };
            prop_assert_eq!(consumer.encode().len(), plain.encode().len());
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            let _ = Consumer::decode(&bytes);
        }

        #[test]
        fn cut_bytes_are_no_consumer(consumer in any_consumer(), cut in 1_usize..50) {
            let bytes = consumer.encode();
            let cut = bytes.len().saturating_sub(cut);
            prop_assert_eq!(Consumer::decode(&bytes[..cut]), None);
        }

        #[test]
        fn a_lease_has_one_name(id: u64) {
            let text = LeaseId(id).to_string();
            prop_assert_eq!(text.parse(), Ok(LeaseId(id)));
            prop_assert_eq!(text.trim_start_matches('0').parse::<LeaseId>().is_ok(), !text.starts_with('0'));
        }
    }

    #[test]
    fn what_is_no_lease_is_refused() {
        for text in [
            "",
            "1",
            "+000000000000001",
            "000000000000000G",
            "ABCDEF0123456789",
        ] {
            assert_eq!(text.parse::<LeaseId>(), Err(NotALease), "{text}");
        }
    }

    #[test]
    fn one_of_the_largest_topic_fits_into_an_entry_of_state() {
        let consumer = Consumer {
            positions: vec![Offset::MAX; TOPIC_PARTITIONS_MAX as usize],
            ..Consumer::default()
        };
        assert!(consumer.encode().len() <= STATE_VALUE_BYTES_MAX);
    }

    #[test]
    fn a_name_that_is_too_long_is_cut_where_a_character_ends() {
        let long = Noted {
            at: Timestamp(1),
            by: "é".repeat(CONSUMER_BY_BYTES_MAX),
        };
        let consumer = Consumer {
            committed: Some(long),
            ..Consumer::default()
        };
        let read = Consumer::decode(&consumer.encode()).expect("it reads back");
        let by = read.committed.expect("it is there").by;
        assert_eq!(by.len(), CONSUMER_BY_BYTES_MAX);
    }

    #[test]
    fn a_partition_that_came_later_is_read_from_its_first_message_on() {
        let mut consumer = Consumer::default();
        consumer.move_to(PartitionId(2), Offset(7));
        assert_eq!(consumer.position(PartitionId(2)), Offset(7));
        assert_eq!(consumer.position(PartitionId(1)), Offset(0));
        assert_eq!(consumer.position(PartitionId(9)), Offset(0));
    }
}
