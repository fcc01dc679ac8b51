//! How a group's position is stored: as an entry beside the topic's consumers, in the first
//! partition of its topic. Plain code.
//!
//! The key is a mark, the length of the group's name, the name, and the partition. Numbers are
//! big-endian, so that a group's entries are adjacent and sorted by partition. No name contains the
//! mark, and it sorts after all characters of names.

use millrace_model::{GroupName, Offset, PartitionId, Timestamp};

/// The first byte of a key. No UTF-8 text contains it.
pub(super) const MARK: u8 = 0xff;
const VERSION: u8 = 1;
/// Stored if there is no leader epoch.
const NO_EPOCH: u32 = u32::MAX;

/// The stored part of a position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PositionEntry {
    pub(super) offset: Offset,
    pub(super) leader_epoch: Option<u32>,
    pub(super) committed_at: Timestamp,
    pub(super) note: String,
}

/// The beginning of the keys of a group's positions. The name has at most
/// [`GROUP_NAME_BYTES_MAX`](millrace_model::bounds::GROUP_NAME_BYTES_MAX) bytes.
pub(super) fn prefix(group: &GroupName) -> Vec<u8> {
    let name = group.as_str().as_bytes();
    let mut prefix = vec![MARK];
    prefix.extend((name.len() as u16).to_be_bytes());
    prefix.extend(name);
    prefix
}

pub(super) fn key(group: &GroupName, partition: PartitionId) -> Vec<u8> {
    let mut key = prefix(group);
    key.extend(partition.0.to_be_bytes());
    key
}

/// The group and the partition of a key; `None` if it is not a position's.
pub(super) fn read_key(key: &[u8]) -> Option<(GroupName, PartitionId)> {
    let rest = key.strip_prefix(&[MARK])?;
    let (length, rest) = rest.split_first_chunk::<2>()?;
    let (name, partition) = rest.split_at_checked(u16::from_be_bytes(*length).into())?;
    let partition = u32::from_be_bytes(partition.try_into().ok()?);
    let name = str::from_utf8(name).ok()?;
    Some((GroupName::stored(name), PartitionId(partition)))
}

impl PositionEntry {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.extend(self.offset.0.to_le_bytes());
        out.extend(self.leader_epoch.unwrap_or(NO_EPOCH).to_le_bytes());
        out.extend(self.committed_at.0.to_le_bytes());
        out.extend(self.note.as_bytes());
        out
    }

    /// `None` if the bytes are not a position of this version.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(&[VERSION])?;
        let (offset, rest) = rest.split_first_chunk()?;
        let (epoch, rest) = rest.split_first_chunk()?;
        let (at, note) = rest.split_first_chunk()?;
        let epoch = u32::from_le_bytes(*epoch);
        Some(Self {
            offset: Offset(u64::from_le_bytes(*offset)),
            leader_epoch: (epoch != NO_EPOCH).then_some(epoch),
            committed_at: Timestamp(u64::from_le_bytes(*at)),
            note: str::from_utf8(note).ok()?.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use millrace_model::ConsumerName;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_key_reads_back_as_written_and_is_no_consumers(name in ".{0,40}", partition in any::<u32>()) {
            let group = GroupName::consumer(&name);
            let written = key(&group, PartitionId(partition));
            prop_assert!(written.starts_with(&prefix(&group)));
            prop_assert_eq!(read_key(&written), Some((group, PartitionId(partition))));
            let text = str::from_utf8(&written);
            prop_assert!(text.is_err() || ConsumerName::parse(text.unwrap()).is_err());
        }

        #[test]
        fn an_entry_reads_back_as_written(
            offset in any::<u64>(), epoch in proptest::option::of(0..NO_EPOCH), at in any::<u64>(), note in ".{0,40}",
        ) {
            let entry = PositionEntry {
                offset: Offset(offset),
                leader_epoch: epoch,
                committed_at: Timestamp(at),
                note,
            };
            prop_assert_eq!(PositionEntry::decode(&entry.encode()), Some(entry));
        }

        #[test]
        fn other_bytes_are_refused_or_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Some(entry) = PositionEntry::decode(&bytes) {
                prop_assert_eq!(entry.encode(), bytes.clone());
            }
            if let Some((group, partition)) = read_key(&bytes) {
                prop_assert_eq!(key(&group, partition), bytes);
            }
        }
    }

    #[test]
    fn no_groups_entries_are_among_those_of_another() {
        let (short, long) = (GroupName::consumer("a"), GroupName::consumer("ab"));
        assert!(!key(&long, PartitionId(0)).starts_with(&prefix(&short)));
    }
}
