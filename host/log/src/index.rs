//! Where in a segment an offset stands: one entry for about every four kilobytes, so that a read begins close by.
//!
//! Stored beside a sealed segment; if that file is missing or damaged the index is built again by reading the segment.

use millrace_model::Offset;

/// Bytes between two entries, at least.
pub const INDEX_SPACING_BYTES: u64 = 4096;
const ENTRY_BYTES: usize = 16;
/// Entries of a stored index that are held against the segment before it is believed.
const PROBES: usize = 16;

/// A sparse index of one segment: offsets and positions, both ascending.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    entries: Vec<(Offset, u64)>,
    covered_bytes: u64,
}

impl Index {
    /// Notes that the batch at `position` begins with `offset` and ends at `end_position`. Batches are noted in order; one that
    /// does not follow what is covered is left to be found by reading.
    pub fn note(&mut self, offset: Offset, position: u64, end_position: u64) {
        if position != self.covered_bytes {
            return;
        }
        let last = self.entries.last().map(|&(_, position)| position);
        if last.is_none_or(|last| position - last >= INDEX_SPACING_BYTES) {
            self.entries.push((offset, position));
        }
        self.covered_bytes = end_position;
    }

    /// Goes over a damaged range: whatever is noted next stands at `position`.
    pub fn skip_to(&mut self, position: u64) {
        self.covered_bytes = self.covered_bytes.max(position);
    }

    /// Up to where the segment has been noted.
    #[must_use]
    pub fn covered_bytes(&self) -> u64 {
        self.covered_bytes
    }

    /// The last entry at or before `offset`.
    #[must_use]
    pub fn before(&self, offset: Offset) -> Option<(Offset, u64)> {
        let after = self.entries.partition_point(|&(entry, _)| entry <= offset);
        self.entries[..after].last().copied()
    }

    /// Whether this is the index of that segment, as far as a few of its entries tell: another one of the same length would
    /// make sound messages look damaged.
    pub(crate) fn describes(&self, segment: &[u8], base: Offset) -> bool {
        let begins = |&(offset, position): &(Offset, u64)| {
            let found = usize::try_from(position).ok();
            let found = found.and_then(|at| segment.get(at..)?.first_chunk::<8>());
            found.is_some_and(|found| u64::from_be_bytes(*found) == offset.0)
        };
        let step = self.entries.len().div_ceil(PROBES).max(1);
        let mut probed = self.entries.iter().step_by(step);
        self.entries.first().is_none_or(|first| *first == (base, 0)) && probed.all(begins)
    }

    /// As stored.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.entries.len() * ENTRY_BYTES + 12);
        for (offset, position) in &self.entries {
            bytes.extend(offset.0.to_le_bytes());
            bytes.extend(position.to_le_bytes());
        }
        bytes.extend(self.covered_bytes.to_le_bytes());
        bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
        bytes
    }

    /// Reads what [`Index::encode`] wrote for a segment of `segment_bytes`; `None` for anything else.
    #[must_use]
    pub fn decode(bytes: &[u8], segment_bytes: u64) -> Option<Self> {
        let (bytes, crc) = bytes.split_last_chunk::<4>()?;
        let (entries, covered) = bytes.split_last_chunk::<8>()?;
        let covered_bytes = u64::from_le_bytes(*covered);
        let sound = crc32c::crc32c(bytes) == u32::from_le_bytes(*crc);
        if !sound || covered_bytes != segment_bytes || entries.len() % ENTRY_BYTES != 0 {
            return None;
        }
        let word = |bytes: &[u8]| u64::from_le_bytes(std::array::from_fn(|i| bytes[i]));
        let entries = entries
            .chunks_exact(ENTRY_BYTES)
            .map(|entry| (Offset(word(&entry[..8])), word(&entry[8..])))
            .collect();
        Some(Self {
            entries,
            covered_bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_entry_before_an_offset_is_at_most_one_spacing_and_one_batch_away(
            sizes in proptest::collection::vec(1u64..9_000, 1..60),
            wanted: proptest::sample::Index,
        ) {
            let mut index = Index::default();
            let mut at = 0;
            let starts: Vec<u64> = sizes.iter().map(|size| { at += size; at - size }).collect();
            for (offset, (&start, size)) in starts.iter().zip(&sizes).enumerate() {
                index.note(Offset(offset as u64), start, start + size);
            }
            let wanted = wanted.index(sizes.len());
            let (offset, position) = index.before(Offset(wanted as u64)).unwrap();
            prop_assert_eq!(starts[offset.0 as usize], position);
            prop_assert!(starts[wanted] - position < INDEX_SPACING_BYTES);
            prop_assert_eq!(Index::decode(&index.encode(), at), Some(index));
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>, length: u64) {
            let _ = Index::decode(&bytes, length);
        }
    }
}
