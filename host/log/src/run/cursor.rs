//! Iterates over a run in the order of its keys, with read-ahead.

use std::sync::Arc;

use super::block::{Block, Spot};
use super::reader::{Map, Run};
use super::{Item, Piece, RunError};
use crate::pace::Pace;

/// Approximate bytes read at once by a long iteration.
const AHEAD_BYTES: usize = 256 << 10;
/// Bytes read first, because many iterations need only a few items.
const FIRST_AHEAD_BYTES: usize = 16 << 10;

/// A position in a run.
pub struct Cursor<'a> {
    run: &'a Run,
    map: Arc<Map>,
    /// The current block.
    block: usize,
    piece: Piece,
    item: usize,
    /// The number of items in the block, and the index of the current one.
    count: usize,
    spot: Spot,
    /// Pieces read ahead, and their position.
    ahead: Vec<u8>,
    ahead_at: u64,
    /// Bytes to read next time.
    next_ahead: usize,
    pace: Option<Pace>,
}

impl<'a> Cursor<'a> {
    pub(super) fn begin(
        run: &'a Run,
        map: Arc<Map>,
        from: &[u8],
        pace: Option<Pace>,
    ) -> Result<Self, RunError> {
        let block = map.index.block_of(from).unwrap_or_default();
        let mut cursor = Self {
            run,
            map,
            block,
            piece: Piece::default(),
            item: 0,
            count: 0,
            spot: Spot::default(),
            ahead: Vec::new(),
            ahead_at: 0,
            // A paced iteration reads everything.
            next_ahead: match pace {
                Some(_) => AHEAD_BYTES,
                None => FIRST_AHEAD_BYTES,
            },
            pace,
        };
        cursor.load()?;
        if !cursor.piece.body().is_empty() {
            let item = Block::of(cursor.piece.body()).and_then(|block| block.seek(from));
            cursor.item = item.ok_or_else(|| cursor.malformed())?;
            cursor.enter()?;
        }
        Ok(cursor)
    }

    /// The current item; `None` at the end.
    ///
    /// # Errors
    /// [`RunError`].
    pub fn item(&self) -> Result<Option<Item<'_>>, RunError> {
        if self.piece.body().is_empty() {
            return Ok(None);
        }
        let item = self.spot.item(self.piece.body());
        item.map(Some).ok_or_else(|| self.malformed())
    }

    /// Moves to the next item.
    ///
    /// # Errors
    /// [`RunError`].
    pub fn advance(&mut self) -> Result<(), RunError> {
        self.item += 1;
        self.enter()
    }

    /// Enters the current item, or the next block if it is past the end of this one.
    fn enter(&mut self) -> Result<(), RunError> {
        if self.item >= self.count && !self.piece.body().is_empty() {
            self.block += 1;
            self.item = 0;
            self.load()?;
        }
        if self.piece.body().is_empty() {
            return Ok(());
        }
        let spot = Block::of(self.piece.body()).and_then(|block| block.spot(self.item));
        self.spot = spot.ok_or_else(|| self.malformed())?;
        Ok(())
    }

    /// Reads the current block; nothing past the last one.
    fn load(&mut self) -> Result<(), RunError> {
        self.piece.clear();
        if self.block >= self.map.index.len() {
            return Ok(());
        }
        let (at, bytes) = self.run.extent(&self.map.index, self.block)?;
        let held = self.ahead_at..self.ahead_at + self.ahead.len() as u64;
        if !(held.contains(&at) && held.end - at >= bytes as u64) {
            self.read_ahead(at, bytes)?;
        }
        let from = (at - self.ahead_at) as usize;
        let read = &self.ahead[from..from + bytes];
        self.piece.bytes(bytes).copy_from_slice(read);
        self.run.open_piece(&mut self.piece, at)?;
        let block = Block::of(self.piece.body());
        self.count = block.ok_or_else(|| self.malformed())?.count();
        Ok(())
    }

    fn read_ahead(&mut self, at: u64, bytes: usize) -> Result<(), RunError> {
        let left = self.run.facts().index_at.saturating_sub(at);
        let wanted = left.min(self.next_ahead.max(bytes) as u64) as usize;
        self.next_ahead = (self.next_ahead * 2).min(AHEAD_BYTES);
        self.ahead.resize(wanted.max(bytes), 0);
        if let Some(pace) = &self.pace {
            pace(wanted as u64).map_err(|source| self.run.io(source))?;
        }
        self.ahead_at = at;
        self.run.read(&mut self.ahead, at)
    }

    pub(super) fn malformed(&self) -> RunError {
        self.run.malformed(self.map.index.place(self.block))
    }
}
