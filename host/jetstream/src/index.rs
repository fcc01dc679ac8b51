//! Where the messages of a partition are in the stream: the sequence and the offset of a batch now and then, so that a reader looks through
//! little before it finds its offset.

use std::collections::VecDeque;

use millrace_model::{Offset, Timestamp};

use crate::atomic::Note;

/// Bytes of batches in one block, unless a single batch is larger.
const BLOCK_BYTES_MAX: u64 = 64 << 10;
/// Places where readers stopped, per partition.
const CURSORS_MAX: usize = 32;

/// Messages that stand one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) base: Offset,
    /// The sequence of the first.
    pub(crate) seq: u64,
    pub(crate) bytes: u64,
    /// How many; `None` if some of them are gone.
    pub(crate) messages: Option<u64>,
    pub(crate) latest: Timestamp,
}

/// A place in a partition: the batch that begins with the offset has a higher sequence, and all before have this or lower ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Anchor {
    pub(crate) offset: Offset,
    pub(crate) seq: u64,
}

/// A batch as its headers describe it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub(crate) seq: u64,
    pub(crate) span: u64,
    pub(crate) messages: u64,
    pub(crate) latest: Timestamp,
    pub(crate) bytes: u64,
}

impl Piece {
    /// As the note of its first message says, whose body has so many bytes; `None` for another message.
    pub(crate) fn of(seq: u64, note: &Note, size: u64) -> Option<Self> {
        let (part, piece) = Self::part_of(seq, note, size)?;
        (part == 0).then_some(piece)
    }

    /// As the note of one of its messages says, and which part of it that is. Whatever has no such note has no offsets: whoever counts must
    /// count by this.
    pub(crate) fn part_of(seq: u64, note: &Note, size: u64) -> Option<(u64, Self)> {
        let number = |place| note.number(place);
        let (part, count) = (number(0)?, number(1)?);
        let piece = Self {
            seq,
            span: number(2)?,
            messages: number(3).unwrap_or_default(),
            latest: Timestamp(number(4).unwrap_or_default()),
            bytes: size.saturating_mul(count),
        };
        Some((part, piece))
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    /// It has everything after this.
    pub(crate) from: Anchor,
    blocks: VecDeque<Block>,
    cursors: VecDeque<Anchor>,
}

impl Index {
    pub(crate) fn beginning(from: Anchor) -> Self {
        Self {
            from,
            ..Self::default()
        }
    }

    /// A batch with this offset. One that is before the index is not needed: a block that began with it would begin with something that may
    /// be removed, and what comes first then would have its offset.
    pub(crate) fn push(&mut self, base: Offset, piece: Piece) {
        if base < self.from.offset {
            return;
        }
        if let Some(block) = self.blocks.back_mut()
            && block.bytes + piece.bytes <= BLOCK_BYTES_MAX
        {
            block.bytes += piece.bytes;
            block.messages = block.messages.map(|before| before + piece.messages);
            block.latest = block.latest.max(piece.latest);
            return;
        }
        self.blocks.push_back(Block {
            base,
            seq: piece.seq,
            bytes: piece.bytes,
            messages: Some(piece.messages),
            latest: piece.latest,
        });
    }

    /// What is before this is gone.
    pub(crate) fn trim(&mut self, anchor: Anchor) {
        while let Some(next) = self.blocks.get(1)
            && next.base <= anchor.offset
        {
            self.blocks.pop_front();
        }
        if let Some(first) = self.blocks.front_mut()
            && first.base < anchor.offset
        {
            first.base = anchor.offset;
            first.seq = anchor.seq + 1;
            first.messages = None;
        }
        self.cursors.retain(|cursor| cursor.offset >= anchor.offset);
        if self.from.offset < anchor.offset {
            self.from = anchor;
        }
    }

    /// The blocks before those that it has.
    pub(crate) fn prepend(&mut self, from: Anchor, blocks: Vec<Block>) {
        blocks
            .into_iter()
            .rev()
            .for_each(|block| self.blocks.push_front(block));
        self.from = from;
    }

    pub(crate) fn into_blocks(self) -> Vec<Block> {
        self.blocks.into()
    }

    pub(crate) fn blocks(&self) -> &VecDeque<Block> {
        &self.blocks
    }

    /// Where to begin to look for an offset: nothing before it matters. `None` if that is before the index.
    pub(crate) fn find(&self, offset: Offset) -> Option<Anchor> {
        if offset < self.from.offset {
            return None;
        }
        let after = self.blocks.partition_point(|block| block.base <= offset);
        let block = after.checked_sub(1).and_then(|at| self.blocks.get(at));
        let block = block.map_or(self.from, |block| Anchor {
            offset: block.base,
            seq: block.seq - 1,
        });
        let cursors = self.cursors.iter().filter(|c| c.offset <= offset);
        let nearest = cursors.max_by_key(|cursor| cursor.offset);
        let nearest = nearest.filter(|cursor| cursor.offset > block.offset);
        Some(nearest.copied().unwrap_or(block))
    }

    /// Where to begin to look for a sequence.
    pub(crate) fn find_seq(&self, seq: u64) -> Option<Anchor> {
        if seq <= self.from.seq {
            return None;
        }
        let after = self.blocks.partition_point(|block| block.seq <= seq);
        let block = after.checked_sub(1).and_then(|at| self.blocks.get(at));
        Some(block.map_or(self.from, |block| Anchor {
            offset: block.base,
            seq: block.seq - 1,
        }))
    }

    /// The offset of the batch with a sequence, if a block begins with it.
    pub(crate) fn begins_at(&self, seq: u64) -> Option<Offset> {
        let found = self.blocks.binary_search_by_key(&seq, |block| block.seq);
        Some(self.blocks.get(found.ok()?)?.base)
    }

    /// A reader stopped here.
    pub(crate) fn note(&mut self, cursor: Anchor) {
        self.cursors.retain(|known| known.offset != cursor.offset);
        if self.cursors.len() == CURSORS_MAX {
            self.cursors.pop_front();
        }
        self.cursors.push_back(cursor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(seq: u64, bytes: u64) -> Piece {
        Piece {
            seq,
            span: 2,
            messages: 2,
            latest: Timestamp(seq),
            bytes,
        }
    }

    fn filled() -> Index {
        let mut index = Index::default();
        for number in 0..10 {
            index.push(Offset(number * 2), piece(number * 10 + 5, 30 << 10));
        }
        index
    }

    #[test]
    fn a_reader_begins_at_the_block_that_has_its_offset() {
        let index = filled();
        assert_eq!(index.blocks().len(), 5);
        for (offset, begins, seq) in [(0, 0, 4), (3, 0, 4), (4, 4, 24), (19, 16, 84), (99, 16, 84)]
        {
            let found = index.find(Offset(offset)).expect("within");
            assert_eq!((found.offset, found.seq), (Offset(begins), seq), "{offset}");
        }
        assert_eq!(index.begins_at(25), Some(Offset(4)));
        assert_eq!(index.begins_at(35), None);
        assert_eq!(index.find_seq(25).map(|found| found.seq), Some(24));
        assert_eq!(index.find_seq(44).map(|found| found.seq), Some(24));
    }

    #[test]
    fn what_is_trimmed_is_not_looked_for() {
        let mut index = filled();
        index.trim(Anchor {
            offset: Offset(6),
            seq: 34,
        });
        assert_eq!(index.find(Offset(5)), None);
        let first = index.find(Offset(6)).expect("within");
        assert_eq!((first.offset, first.seq), (Offset(6), 34));
        assert_eq!(index.blocks()[0].messages, None);
        assert_eq!(index.blocks()[1].messages, Some(4));
    }

    #[test]
    fn what_is_before_the_start_has_no_block() {
        let mut index = Index::beginning(Anchor {
            offset: Offset(2),
            seq: 10,
        });
        // The start is known before this host has come to it.
        index.trim(Anchor {
            offset: Offset(6),
            seq: 30,
        });
        for number in 1..6 {
            index.push(Offset(number * 2), piece(number * 10 + 5, 20 << 10));
        }
        assert_eq!(index.blocks()[0].base, Offset(6));
        assert_eq!(index.blocks()[0].seq, 35);
        let first = index.find(Offset(7)).expect("within");
        assert_eq!((first.offset, first.seq), (Offset(6), 34));
    }

    #[test]
    fn a_reader_goes_on_where_one_stopped() {
        let mut index = filled();
        let stopped = Anchor {
            offset: Offset(6),
            seq: 30,
        };
        index.note(stopped);
        assert_eq!(index.find(Offset(7)), Some(stopped));
        assert_eq!(index.find(Offset(8)).map(|found| found.seq), Some(44));
        for number in 0..100 {
            index.note(Anchor {
                offset: Offset(number),
                seq: number,
            });
        }
        assert_eq!(index.cursors.len(), CURSORS_MAX);
    }
}
