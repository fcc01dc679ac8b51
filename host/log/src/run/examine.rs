//! Reads a whole run despite damage, for the background search and the doctor.
//!
//! It walks blocks by their own lengths, so that items are found even if the index is lost. After a
//! damaged block, the index has the position of the next one. If the index is lost too, the block's
//! own length is tried; if that leads nowhere, the rest cannot be read.

use std::fmt;
use std::io;
use std::ops::Range;

use super::block::Block;
use super::filter::{Filter, hash};
use super::index::Index;
use super::reader::Run;
use super::{HEADER_BYTES, Item, PIECE_HEADER_BYTES, Piece, RunError, body_bytes};
use crate::pace::Pace;

/// Approximate bytes read at once.
const AHEAD_BYTES: usize = 256 << 10;

/// An event of the examination, in order.
#[derive(Debug)]
pub enum Met<'a> {
    /// Bytes read since the last event of this kind.
    Read(u64),
    /// An item of a valid block.
    Item(Item<'a>),
    /// Something that differs from what was written.
    Fault(Fault),
}

/// A single problem.
#[derive(Debug)]
pub enum Fault {
    /// Items cannot be read.
    Items {
        /// Their bytes in the file.
        bytes: Range<u64>,
        /// The last readable key before them; `None` if they are at the beginning of the run.
        after: Option<Vec<u8>>,
        /// The first readable key after them; `None` if they are at the end of the run.
        before: Option<Vec<u8>>,
        /// What is wrong with the first of them.
        error: RunError,
    },
    /// The index or the filter cannot be read, or does not match the run. All items are intact.
    Map(RunError),
    /// All items can be read, but their number differs from the trailer's.
    Counts {
        /// Items with a value.
        entries: u64,
        /// Items without one.
        removals: u64,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Items { bytes, error, .. } => {
                write!(f, "bytes {} to {} cannot be read: ", bytes.start, bytes.end)?;
                error.reason(f)
            }
            Self::Map(error) => {
                write!(f, "every entry is there, and they cannot be found: ")?;
                error.reason(f)
            }
            Self::Counts { entries, removals } => write!(
                f,
                "it has {entries} entries and {removals} removals, which is not what it says"
            ),
        }
    }
}

impl Run {
    /// Reads everything at a pace, bypassing the page cache. Items of a damaged block are not
    /// shown.
    ///
    /// # Errors
    /// Only those of the pace; errors of the disk are a [`Fault`].
    pub fn examine(&self, pace: &Pace, visit: &mut dyn FnMut(Met<'_>)) -> io::Result<()> {
        let facts = *self.facts();
        pace(facts.file_bytes - facts.index_at)?;
        let (index, filter) = (self.load_index(), self.load_filter());
        let mut examination = Examination {
            run: self,
            pace,
            visit,
            ahead: Vec::new(),
            ahead_at: 0,
            last_key: None,
            gap: None,
            has_gaps: false,
            entries: 0,
            removals: 0,
            blocks: 0,
            denied: false,
            misled: false,
        };
        examination.walk(index.as_ref().ok(), filter.as_ref().ok())?;
        examination.conclude();
        let map = [index.err(), filter.err()];
        let map = map.into_iter().flatten();
        map.for_each(|error| visit(Met::Fault(Fault::Map(error))));
        visit(Met::Read(
            facts.file_bytes - facts.index_at + HEADER_BYTES as u64,
        ));
        Ok(())
    }
}

struct Examination<'a> {
    run: &'a Run,
    pace: &'a Pace,
    visit: &'a mut dyn FnMut(Met<'_>),
    /// Bytes read ahead, and their position.
    ahead: Vec<u8>,
    ahead_at: u64,
    /// The last key of the last valid block.
    last_key: Option<Vec<u8>>,
    /// The unreadable part since then.
    gap: Option<(Range<u64>, RunError)>,
    has_gaps: bool,
    entries: u64,
    removals: u64,
    blocks: u64,
    /// Whether the filter denies an existing key.
    denied: bool,
    /// Whether the index has a valid block in a wrong place, or not at all.
    misled: bool,
}

/// Why a block is not shown.
enum Failed {
    Pace(io::Error),
    Here(RunError),
}

impl Examination<'_> {
    fn walk(&mut self, index: Option<&Index>, filter: Option<&Filter>) -> io::Result<()> {
        let end = self.run.facts().index_at;
        let mut at = HEADER_BYTES as u64;
        let mut piece = Piece::default();
        while at < end {
            let next = match self.look_at(at, &mut piece, index, filter) {
                Ok(next) => next,
                Err(Failed::Pace(error)) => return Err(error),
                Err(Failed::Here(error)) => {
                    let next = index.map(|index| index.place_after(at).unwrap_or(end));
                    let next = next.or_else(|| self.end_of_piece(at));
                    let next = next.filter(|&next| next <= end).unwrap_or(end);
                    self.skip(at..next, error);
                    next
                }
            };
            (self.visit)(Met::Read(next - at));
            at = next;
        }
        Ok(())
    }

    /// Shows the block that begins here; returns its end.
    fn look_at(
        &mut self,
        at: u64,
        piece: &mut Piece,
        index: Option<&Index>,
        filter: Option<&Filter>,
    ) -> Result<u64, Failed> {
        let run = self.run;
        let malformed = || Failed::Here(run.malformed(Some(at)));
        self.read(at, PIECE_HEADER_BYTES)?;
        let next = self.end_of_piece(at).ok_or_else(malformed)?;
        let bytes = (next - at) as usize;
        self.read(at, bytes)?;
        let from = (at - self.ahead_at) as usize;
        let read = &self.ahead[from..from + bytes];
        piece.bytes(bytes).copy_from_slice(read);
        run.open_piece(piece, at).map_err(Failed::Here)?;
        let block = Block::of(piece.body()).ok_or_else(malformed)?;
        if !block.ascends_after(self.last_key.as_deref()) {
            return Err(malformed());
        }
        self.show(&block, filter).ok_or_else(malformed)?;
        let first_key = block.item(0).map(|item| item.key);
        self.misled |= index.is_some_and(|index| index.first_key_at(at) != first_key);
        self.blocks += 1;
        Ok(next)
    }

    /// Shows the items of a checked block.
    fn show(&mut self, block: &Block<'_>, filter: Option<&Filter>) -> Option<()> {
        self.end_gap(Some(block.item(0)?.key));
        for place in 0..block.count() {
            let item = block.item(place)?;
            match item.value {
                Some(_) => self.entries += 1,
                None => self.removals += 1,
            }
            self.denied |= filter.is_some_and(|filter| !filter.may_have(hash(item.key)));
            (self.visit)(Met::Item(item));
        }
        let last = block.item(block.count().checked_sub(1)?)?;
        let last_key = self.last_key.get_or_insert_default();
        last_key.clear();
        last_key.extend_from_slice(last.key);
        Some(())
    }

    fn skip(&mut self, bytes: Range<u64>, error: RunError) {
        self.has_gaps = true;
        match &mut self.gap {
            Some((before, _)) => before.end = bytes.end,
            None => self.gap = Some((bytes, error)),
        }
    }

    fn end_gap(&mut self, before: Option<&[u8]>) {
        if let Some((bytes, error)) = self.gap.take() {
            (self.visit)(Met::Fault(Fault::Items {
                bytes,
                after: self.last_key.clone(),
                before: before.map(<[u8]>::to_vec),
                error,
            }));
        }
    }

    /// Makes the checks that are possible only at the end.
    fn conclude(&mut self) {
        self.end_gap(None);
        let facts = self.run.facts();
        let said = (facts.entries, facts.removals, facts.blocks);
        if !self.has_gaps && said != (self.entries, self.removals, self.blocks) {
            let (entries, removals) = (self.entries, self.removals);
            (self.visit)(Met::Fault(Fault::Counts { entries, removals }));
        }
        let misleading = [
            (self.misled, facts.index_at, "the index leads elsewhere"),
            (self.denied, facts.filter_at, "the filter denies a key"),
        ];
        for (_, position, what) in misleading.into_iter().filter(|(is_so, ..)| *is_so) {
            let error = self.run.damaged(position, what);
            (self.visit)(Met::Fault(Fault::Map(error)));
        }
    }

    /// The end of a piece by its own length, if the length is readable and possible.
    fn end_of_piece(&self, at: u64) -> Option<u64> {
        let from = usize::try_from(at.checked_sub(self.ahead_at)?).ok()?;
        let length = body_bytes(self.ahead.get(from..)?)?;
        let end = at + (PIECE_HEADER_BYTES + length) as u64;
        (length > 0 && end <= self.run.facts().index_at).then_some(end)
    }

    /// Makes these bytes available, and reads ahead if the disk allows it.
    fn read(&mut self, at: u64, bytes: usize) -> Result<(), Failed> {
        let held = self.ahead_at..self.ahead_at + self.ahead.len() as u64;
        if held.contains(&at) && held.end - at >= bytes as u64 {
            return Ok(());
        }
        let left = self.run.facts().index_at - at;
        if left < bytes as u64 {
            return Err(Failed::Here(self.run.malformed(Some(at))));
        }
        let ahead = left.min(AHEAD_BYTES.max(bytes) as u64) as usize;
        (self.pace)(ahead as u64).map_err(Failed::Pace)?;
        self.ahead_at = at;
        for wanted in [ahead, bytes] {
            self.ahead.resize(wanted, 0);
            match self.run.read_beside_cache(&mut self.ahead, at) {
                // One failing sector must not make the blocks read ahead unreadable.
                Err(_) if wanted > bytes => {}
                read => return read.map_err(|error| self.failed(error)),
            }
        }
        Ok(())
    }

    fn failed(&mut self, error: RunError) -> Failed {
        self.ahead.clear();
        Failed::Here(error)
    }
}
