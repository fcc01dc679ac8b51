//! A segment's index: positions of offsets and times, one entry for about every four kilobytes, so
//! that a read starts near its target.
//!
//! It is stored beside a sealed segment. If that file is missing, damaged or of an earlier version,
//! the index is rebuilt by reading the segment.

use millrace_model::{Offset, RecordBatch, Timestamp};

/// Minimum distance between two entries, in bytes.
pub const INDEX_SPACING_BYTES: u64 = 4096;
/// Bytes of the footer of a stored index, which describes the whole segment.
pub const FOOTER_BYTES: usize = 48;
/// The same in the previous version, which had no count of messages.
const FOOTER_BYTES_UNCOUNTED: usize = 40;
/// The same in the version before that, which also did not know about tombstones.
const FOOTER_BYTES_BEFORE: usize = 36;
const ENTRY_BYTES: usize = 24;
/// Represents an unknown count.
const UNCOUNTED: u64 = u64::MAX;
/// Marks the current version.
const MAGIC: [u8; 4] = *b"MRX4";
/// Marks the previous version.
const MAGIC_UNCOUNTED: [u8; 4] = *b"MRX3";
/// Marks the version before that; earlier ones had no times.
const MAGIC_BEFORE: [u8; 4] = *b"MRX2";
/// Entries of a stored index that are compared with the segment before the index is trusted.
const PROBES: usize = 16;

/// A sparse index of one segment: offsets, positions and times, all ascending.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    entries: Vec<Entry>,
    footer: Footer,
    /// Whether parts of the segment could not be indexed. Not stored, because such an index is
    /// never stored.
    has_gaps: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    offset: Offset,
    position: u64,
    /// The largest timestamp before this position.
    time_before: Timestamp,
}

/// Facts about a whole segment, as its index has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footer {
    /// The position up to which the segment is indexed.
    pub covered_bytes: u64,
    /// The largest timestamp in it.
    pub max_timestamp: Timestamp,
    /// When the segment ended, by the host's clock; 0 if unknown.
    pub sealed_at: Timestamp,
    /// Whether it contains tombstones.
    pub tombstones: Tombstones,
    /// The number of its messages; `None` if unknown.
    pub messages: Option<u64>,
}

/// Facts about a batch for the index.
#[derive(Clone, Copy, Debug)]
pub struct Noted {
    /// Its first offset.
    pub offset: Offset,
    /// Its latest timestamp.
    pub max_timestamp: Timestamp,
    /// Messages in it.
    pub messages: u64,
}

impl Noted {
    /// From a batch, as stored or as produced.
    #[must_use]
    pub fn of(batch: &RecordBatch) -> Self {
        Self {
            offset: batch.base_offset(),
            max_timestamp: batch.max_timestamp(),
            messages: batch.messages_within(Offset(0), Offset::MAX),
        }
    }
}

/// Whether a segment contains messages that delete their key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tombstones {
    /// Not known.
    #[default]
    Unknown,
    /// It has none.
    None,
    /// It has at least one.
    Some,
}

impl Index {
    /// Adds the batch between two positions. Batches are added in order; one that does not follow
    /// the covered part is ignored, and reading will find it.
    pub fn note(&mut self, batch: Noted, position: u64, end_position: u64) {
        let Noted {
            offset,
            max_timestamp,
            messages,
        } = batch;
        if position != self.footer.covered_bytes {
            return;
        }
        let last = self.entries.last().map(|entry| entry.position);
        if last.is_none_or(|last| position - last >= INDEX_SPACING_BYTES) {
            self.entries.push(Entry {
                offset,
                position,
                time_before: self.footer.max_timestamp,
            });
        }
        self.footer.covered_bytes = end_position;
        self.footer.max_timestamp = self.footer.max_timestamp.max(max_timestamp);
        self.footer.messages = self.footer.messages.map(|before| before + messages);
    }

    /// Skips a damaged range: the next batch is at `position`.
    pub fn skip_to(&mut self, position: u64) {
        self.has_gaps = true;
        self.footer.covered_bytes = self.footer.covered_bytes.max(position);
    }

    /// Whether parts of the segment were skipped.
    #[must_use]
    pub fn has_gaps(&self) -> bool {
        self.has_gaps
    }

    /// Sets when the segment ended.
    pub fn seal(&mut self, at: Timestamp) {
        self.footer.sealed_at = at;
    }

    /// Sets whether there are tombstones.
    pub fn set_tombstones(&mut self, tombstones: Tombstones) {
        self.footer.tombstones = tombstones;
    }

    /// Sets the number of messages.
    pub fn set_messages(&mut self, messages: u64) {
        self.footer.messages = Some(messages);
    }

    /// The position up to which the segment is indexed.
    #[must_use]
    pub fn covered_bytes(&self) -> u64 {
        self.footer.covered_bytes
    }

    /// The facts about the whole segment.
    #[must_use]
    pub fn footer(&self) -> Footer {
        self.footer
    }

    /// The last entry at or before `offset`.
    #[must_use]
    pub fn before(&self, offset: Offset) -> Option<(Offset, u64)> {
        let after = self.entries.partition_point(|entry| entry.offset <= offset);
        self.entries[..after].last().map(Entry::place)
    }

    /// The last entry before which everything is earlier than `at`. The first batch that is not
    /// earlier is after it, within about one spacing.
    #[must_use]
    pub fn before_time(&self, at: Timestamp) -> Option<(Offset, u64)> {
        let earlier = |entry: &Entry| entry.position == 0 || entry.time_before < at;
        let after = self.entries.partition_point(earlier);
        self.entries[..after].last().map(Entry::place)
    }

    /// Whether this is the index of that segment, judging by a few of its entries. The index of
    /// another segment of the same length would make valid messages look damaged.
    pub(crate) fn describes(&self, segment: &[u8], base: Offset) -> bool {
        let begins = |entry: &Entry| {
            let found = usize::try_from(entry.position).ok();
            let found = found.and_then(|at| segment.get(at..)?.first_chunk::<8>());
            found.is_some_and(|found| u64::from_be_bytes(*found) == entry.offset.0)
        };
        let step = self.entries.len().div_ceil(PROBES).max(1);
        let mut probed = self.entries.iter().step_by(step);
        self.entries
            .first()
            .is_none_or(|first| first.place() == (base, 0))
            && probed.all(begins)
    }

    /// The index in its stored form.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.entries.len() * ENTRY_BYTES + FOOTER_BYTES);
        for entry in &self.entries {
            bytes.extend(entry.offset.0.to_le_bytes());
            bytes.extend(entry.position.to_le_bytes());
            bytes.extend(entry.time_before.0.to_le_bytes());
        }
        let entries_crc = crc32c::crc32c(&bytes);
        let footer_at = bytes.len();
        bytes.extend(self.footer.covered_bytes.to_le_bytes());
        bytes.extend(self.footer.max_timestamp.0.to_le_bytes());
        bytes.extend(self.footer.sealed_at.0.to_le_bytes());
        bytes.extend(entries_crc.to_le_bytes());
        bytes.extend((self.footer.tombstones as u32).to_le_bytes());
        bytes.extend(self.footer.messages.unwrap_or(UNCOUNTED).to_le_bytes());
        bytes.extend(MAGIC);
        bytes.extend(crc32c::crc32c(&bytes[footer_at..]).to_le_bytes());
        bytes
    }

    /// Reads what [`Index::encode`] wrote for a segment of `segment_bytes`; `None` for anything else.
    #[must_use]
    pub fn decode(bytes: &[u8], segment_bytes: u64) -> Option<Self> {
        let (footer, footer_bytes) = Footer::decode_with_length(bytes, segment_bytes)?;
        let (entries, stored) = bytes.split_at(bytes.len() - footer_bytes);
        let entries_crc = word(&stored[24..28]) as u32;
        if crc32c::crc32c(entries) != entries_crc || entries.len() % ENTRY_BYTES != 0 {
            return None;
        }
        let entry = |entry: &[u8]| Entry {
            offset: Offset(word(&entry[..8])),
            position: word(&entry[8..16]),
            time_before: Timestamp(word(&entry[16..])),
        };
        let entries = entries.chunks_exact(ENTRY_BYTES).map(entry).collect();
        Some(Self {
            entries,
            footer,
            has_gaps: false,
        })
    }
}

impl Default for Footer {
    /// An empty index.
    fn default() -> Self {
        Self {
            covered_bytes: 0,
            max_timestamp: Timestamp::default(),
            sealed_at: Timestamp::default(),
            tombstones: Tombstones::default(),
            messages: Some(0),
        }
    }
}

impl Entry {
    fn place(&self) -> (Offset, u64) {
        (self.offset, self.position)
    }
}

impl Footer {
    /// Reads the last [`FOOTER_BYTES`] of a stored index of a segment of `segment_bytes`, or more of them; `None` for anything else.
    #[must_use]
    pub fn decode(bytes: &[u8], segment_bytes: u64) -> Option<Self> {
        Some(Self::decode_with_length(bytes, segment_bytes)?.0)
    }

    /// Also returns the footer's length.
    fn decode_with_length(bytes: &[u8], segment_bytes: u64) -> Option<(Self, usize)> {
        let (rest, _) = bytes.split_last_chunk::<4>()?;
        let length = match *rest.last_chunk::<4>()? {
            MAGIC => FOOTER_BYTES,
            MAGIC_UNCOUNTED => FOOTER_BYTES_UNCOUNTED,
            MAGIC_BEFORE => FOOTER_BYTES_BEFORE,
            _ => return None,
        };
        let footer = &bytes[bytes.len().checked_sub(length)?..];
        let (footer, crc) = footer.split_last_chunk::<4>()?;
        let tombstones = (length > FOOTER_BYTES_BEFORE).then(|| word(&footer[28..32]));
        let messages = (length == FOOTER_BYTES).then(|| word(&footer[32..40]));
        let decoded = Self {
            covered_bytes: word(&footer[..8]),
            max_timestamp: Timestamp(word(&footer[8..16])),
            sealed_at: Timestamp(word(&footer[16..24])),
            tombstones: match tombstones {
                Some(1) => Tombstones::None,
                Some(2) => Tombstones::Some,
                _ => Tombstones::Unknown,
            },
            messages: messages.filter(|&messages| messages != UNCOUNTED),
        };
        let sound = crc32c::crc32c(footer) == u32::from_le_bytes(*crc);
        (sound && decoded.covered_bytes == segment_bytes).then_some((decoded, length))
    }
}

/// Up to eight little-endian bytes.
fn word(bytes: &[u8]) -> u64 {
    let byte = |i| bytes.get(i).copied().unwrap_or(0);
    u64::from_le_bytes(std::array::from_fn(byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// One of two messages.
    fn batch(offset: u64, time: u64) -> Noted {
        Noted {
            offset: Offset(offset),
            max_timestamp: Timestamp(time),
            messages: 2,
        }
    }

    proptest! {
        #[test]
        fn the_entry_before_an_offset_or_a_time_is_at_most_one_spacing_and_one_batch_away(
            batches in proptest::collection::vec((1u64..9_000, 0u64..50), 1..60),
            wanted: proptest::sample::Index,
            at in 0u64..60,
        ) {
            let mut index = Index::default();
            let mut end = 0;
            let starts: Vec<u64> = batches.iter().map(|(size, _)| { end += size; end - size }).collect();
            for (offset, (&start, (size, time))) in starts.iter().zip(&batches).enumerate() {
                index.note(batch(offset as u64, *time), start, start + size);
            }
            let wanted = wanted.index(batches.len());
            let (offset, position) = index.before(Offset(wanted as u64)).unwrap();
            prop_assert_eq!(starts[offset.0 as usize], position);
            prop_assert!(starts[wanted] - position < INDEX_SPACING_BYTES);
            let (from, position) = index.before_time(Timestamp(at)).unwrap();
            prop_assert_eq!(starts[from.0 as usize], position);
            match batches.iter().position(|&(_, time)| time >= at) {
                Some(first) => {
                    prop_assert!(from.0 as usize <= first);
                    prop_assert!(starts[first] - position < INDEX_SPACING_BYTES);
                }
                None => prop_assert!(index.footer().max_timestamp < Timestamp(at)),
            }
            index.seal(Timestamp(at));
            index.set_tombstones([Tombstones::Unknown, Tombstones::None, Tombstones::Some][at as usize % 3]);
            prop_assert_eq!(index.footer().messages, Some(2 * batches.len() as u64));
            prop_assert_eq!(Index::decode(&index.encode(), end), Some(index));
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>, length: u64) {
            let _ = Index::decode(&bytes, length);
        }
    }

    #[test]
    fn an_index_of_a_version_that_knew_less_is_read() {
        let mut index = Index::default();
        index.note(batch(7, 5), 0, 100);
        index.seal(Timestamp(9));
        index.set_tombstones(Tombstones::Some);
        let versions = [
            (32, MAGIC_UNCOUNTED, Tombstones::Some),
            (28, MAGIC_BEFORE, Tombstones::Unknown),
        ];
        for (kept, magic, tombstones) in versions {
            let mut old = index.encode();
            let at = old.len() - FOOTER_BYTES;
            let mut footer = old[at..at + kept].to_vec();
            footer.extend(magic);
            footer.extend(crc32c::crc32c(&footer).to_le_bytes());
            old.truncate(at);
            old.extend(footer);
            let expected = Footer {
                tombstones,
                messages: None,
                ..index.footer()
            };
            let mut read = Index::decode(&old, 100).expect("an index");
            assert_eq!(read.footer(), expected);
            let last = &old[old.len() - FOOTER_BYTES..];
            assert_eq!(Footer::decode(last, 100), Some(expected));
            // A segment that was not counted from its beginning stays uncounted.
            read.note(batch(9, 6), 100, 200);
            assert_eq!(read.footer().messages, None);
            assert_eq!(Index::decode(&read.encode(), 200), Some(read));
        }
    }

    #[test]
    fn an_index_of_the_version_without_times_is_built_again() {
        let mut old = Vec::new();
        for number in [0u64, 0, 4] {
            old.extend(number.to_le_bytes());
        }
        old.extend(crc32c::crc32c(&old).to_le_bytes());
        assert_eq!(Index::decode(&old, 4), None);
    }
}
