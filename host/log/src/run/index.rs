//! The index of a run: position and first key of each block, searched in memory.

use std::cmp::Ordering;

use millrace_model::order::head;

use super::{PIECE_BYTES, u16_at, u64_at};

/// Heads per head of the level above: two lines of memory.
const FANOUT: usize = 16;
/// Levels above the heads: for a run of ten million small entries, the highest one has a few
/// thousand bytes.
const LEVELS: usize = 2;

#[derive(Debug, Default)]
pub(super) struct Index {
    /// All first keys, one after the other; `ends` has the end of each.
    keys: Vec<u8>,
    ends: Vec<u64>,
    /// The position of each block.
    places: Vec<u64>,
    /// The length of the common prefix of all first keys.
    common: usize,
    /// For each first key, the eight bytes after the common prefix, as a number: most searches need
    /// no more.
    heads: Vec<u64>,
    /// Every `FANOUT`-th head, and every `FANOUT`-th of those.
    levels: [Vec<u64>; LEVELS],
}

impl Index {
    pub(super) fn push(&mut self, first_key: &[u8], place: u64) {
        self.keys.extend_from_slice(first_key);
        self.ends.push(self.keys.len() as u64);
        self.places.push(place);
    }

    /// Prepares the complete index for searches.
    pub(super) fn make_searchable(&mut self) {
        let Some(last) = self.len().checked_sub(1) else {
            return;
        };
        // The common prefix of the first and the last key is common to all between them.
        let (first, last) = (self.key(0), self.key(last));
        self.common = first.iter().zip(last).take_while(|(a, b)| a == b).count();
        let heads = (0..self.len()).map(|block| head(&self.key(block)[self.common..]));
        self.heads = heads.collect();
        let mut below = &self.heads;
        for level in &mut self.levels {
            *level = below.iter().copied().step_by(FANOUT).collect();
            below = level;
        }
    }

    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// The position of a block.
    pub(super) fn place(&self, block: usize) -> Option<u64> {
        self.places.get(block).copied()
    }

    /// The position of the next block after this position.
    pub(super) fn place_after(&self, place: u64) -> Option<u64> {
        self.place(self.places.partition_point(|&p| p <= place))
    }

    /// The first key of the block at this position.
    pub(super) fn first_key_at(&self, place: u64) -> Option<&[u8]> {
        let block = self.places.binary_search(&place).ok()?;
        Some(self.key(block))
    }

    fn key(&self, block: usize) -> &[u8] {
        let from = block.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.keys[from as usize..self.ends[block] as usize]
    }

    /// The block that contains a key, if it exists; `None` if the key comes before all blocks. The
    /// index must be searchable.
    pub(super) fn block_of(&self, key: &[u8]) -> Option<usize> {
        let (begin, rest) = key.split_at(key.len().min(self.common));
        match begin.cmp(self.keys.get(..self.common)?) {
            Ordering::Less => return None,
            Ordering::Greater => return self.len().checked_sub(1),
            Ordering::Equal => {}
        }
        let head = head(rest);
        let mut next = 0_usize;
        for (depth, level) in self.levels.iter().rev().chain([&self.heads]).enumerate() {
            // Searches the heads below the last head of the level above that is before the key; at
            // the top, all heads.
            let from = next.saturating_sub(1) * FANOUT;
            let to = match depth {
                0 => level.len(),
                _ => level.len().min(from + FANOUT),
            };
            let some = level.get(from..to).unwrap_or_default();
            next = from + some.partition_point(|&h| h < head);
        }
        let alike = self.heads.get(next..).unwrap_or_default();
        if alike.first() == Some(&head) {
            let (mut to, mut step) = (1, 1);
            while alike.get(to) == Some(&head) {
                to = (to + step).min(alike.len());
                step *= 2;
            }
            next = self.first_after(key, next, next + to);
        }
        next.checked_sub(1)
    }

    /// The first of these blocks whose first key comes after this one.
    fn first_after(&self, key: &[u8], mut from: usize, mut to: usize) -> usize {
        while from < to {
            let middle = from.midpoint(to);
            match self.key(middle) <= key {
                true => from = middle + 1,
                false => to = middle,
            }
        }
        from
    }

    /// The index as pieces for storing.
    pub(super) fn pieces(&self) -> Vec<Vec<u8>> {
        let mut pieces = vec![Vec::new()];
        for (block, place) in self.places.iter().enumerate() {
            if pieces.last().is_none_or(|piece| piece.len() > PIECE_BYTES) {
                pieces.push(Vec::new());
            }
            let key = self.key(block);
            let piece = pieces.last_mut().into_iter();
            piece.for_each(|piece| {
                piece.extend(place.to_le_bytes());
                piece.extend((key.len() as u16).to_le_bytes());
                piece.extend_from_slice(key);
            });
        }
        pieces
    }

    /// Adds the entries of a stored piece; `None` if it is malformed, or if positions and keys do
    /// not ascend.
    pub(super) fn add(&mut self, mut piece: &[u8]) -> Option<()> {
        while !piece.is_empty() {
            let place = u64_at(piece, 0)?;
            let key_bytes = usize::from(u16_at(piece, 8)?);
            let (key, rest) = piece.get(10..)?.split_at_checked(key_bytes)?;
            if let Some(last) = self.len().checked_sub(1) {
                let ascends = self.places[last] < place && self.key(last) < key;
                ascends.then_some(())?;
            }
            self.push(key, place);
            piece = rest;
        }
        Some(())
    }

    /// Bytes in memory.
    pub(super) fn cost(&self) -> usize {
        let above: usize = self.levels.iter().map(Vec::len).sum();
        let numbers = self.ends.len() + self.places.len() + self.heads.len() + above;
        self.keys.len() + numbers * size_of::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A linear search, for comparison.
    fn plainly(keys: &[Vec<u8>], key: &[u8]) -> Option<usize> {
        keys.iter().rposition(|first| **first <= *key)
    }

    #[test]
    fn a_block_is_found_whatever_keys_have_in_common() {
        let mut random = fastrand::Rng::with_seed(6);
        for prefix in ["", "a", "the-same-for-all-", "customer"] {
            for count in [0, 1, 2, 15, 16, 17, 255, 256, 257, 3_000] {
                for width in [1, 4, 20] {
                    let key = |number: u32| format!("{prefix}{number:0width$}").into_bytes();
                    let mut keys: Vec<_> = (0..count).map(|n| key(n * 7)).collect();
                    if random.bool() {
                        keys.extend((0..count).map(|n| [&[0][..], &key(n)].concat()));
                    }
                    keys.sort();
                    keys.dedup();
                    let mut index = Index::default();
                    for (block, key) in keys.iter().enumerate() {
                        index.push(key, block as u64);
                    }
                    index.make_searchable();
                    let others = (0..200).map(|_| key(random.u32(..count * 8 + 2)));
                    let mut asked: Vec<_> = others.chain(keys.iter().take(300).cloned()).collect();
                    asked.extend([vec![], vec![0], vec![255; 30], prefix.into()]);
                    asked.push(prefix.as_bytes()[..prefix.len() / 2].into());
                    for key in asked {
                        assert_eq!(index.block_of(&key), plainly(&keys, &key), "{key:?}");
                    }
                }
            }
        }
    }
}
