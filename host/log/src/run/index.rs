//! Where each block of a run begins, and with which key: held in memory, and searched.

use super::{PIECE_BYTES, u16_at, u64_at};

#[derive(Debug, Default)]
pub(super) struct Index {
    /// All first keys, one after the other, and where each ends.
    keys: Vec<u8>,
    ends: Vec<u64>,
    /// The first eight bytes of each, as a number: most searches need no more.
    heads: Vec<u64>,
    /// Where each block begins.
    places: Vec<u64>,
}

impl Index {
    pub(super) fn push(&mut self, first_key: &[u8], place: u64) {
        self.keys.extend_from_slice(first_key);
        self.ends.push(self.keys.len() as u64);
        self.heads.push(head(first_key));
        self.places.push(place);
    }

    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// Where a block begins.
    pub(super) fn place(&self, block: usize) -> Option<u64> {
        self.places.get(block).copied()
    }

    /// Where the next block begins after this place.
    pub(super) fn place_after(&self, place: u64) -> Option<u64> {
        self.place(self.places.partition_point(|&p| p <= place))
    }

    /// The first key of the block that begins here.
    pub(super) fn first_key_at(&self, place: u64) -> Option<&[u8]> {
        let block = self.places.binary_search(&place).ok()?;
        Some(self.key(block))
    }

    fn key(&self, block: usize) -> &[u8] {
        let from = block.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.keys[from as usize..self.ends[block] as usize]
    }

    /// The block that a key stands in if it is there; `None` if it comes before all.
    pub(super) fn block_of(&self, key: &[u8]) -> Option<usize> {
        self.block_from(0, key)
    }

    /// As [`Index::block_of`], where the block is this one or a later one: for keys in order.
    pub(super) fn block_from(&self, first: usize, key: &[u8]) -> Option<usize> {
        let head = head(key);
        let (mut from, mut step) = (first.min(self.len()), 16);
        while self.heads.get(from + step).is_some_and(|&h| h < head) {
            from += step;
            step *= 2;
        }
        let to = (from + step + 1).min(self.len());
        let mut next = from + self.heads[from..to].partition_point(|&h| h < head);
        while self.heads.get(next) == Some(&head) && self.key(next) <= key {
            next += 1;
        }
        next.checked_sub(1)
    }

    /// As pieces to be stored.
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

    /// Adds what a piece says; `None` if it is malformed, or places and keys do not ascend.
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
        self.keys.len() + self.len() * 3 * size_of::<u64>()
    }
}

fn head(key: &[u8]) -> u64 {
    let mut head = [0; 8];
    let bytes = key.len().min(8);
    head[..bytes].copy_from_slice(&key[..bytes]);
    u64::from_be_bytes(head)
}
