//! Reads a run, many keys at once. The trailer is read when the run is opened, index and filter
//! when they are first needed, and a block for each access, from the page cache or the disk.
//! Everything read is checked.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::RwLock;

use super::block::Block;
use super::cursor::Cursor;
use super::filter::{Filter, hash};
use super::index::Index;
use super::{
    HEADER_BYTES, Item, MAGIC, PIECE_HEADER_BYTES, Piece, RunError, RunFacts, TRAILER_BYTES,
    body_bytes, u64_at,
};
use crate::cipher::Cipher;
use crate::disk::{Disk, DiskFile};
use crate::pace::Pace;

/// What a lookup may read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Only the page cache: never waits for the disk.
    Memory,
    /// Everything, also from the disk.
    Disk,
}

/// A key to look up, in one run or several.
#[derive(Clone, Copy, Debug)]
pub struct Sought<'a> {
    key: &'a [u8],
    hash: u64,
}

impl<'a> Sought<'a> {
    /// A lookup of this key.
    #[must_use]
    pub fn of(key: &'a [u8]) -> Self {
        let hash = hash(key);
        Self { key, hash }
    }
}

/// A key that may be in a block.
struct Look {
    /// Its index among the keys.
    place: usize,
    block: usize,
    /// The block's position and length.
    at: u64,
    bytes: usize,
}

/// An open run. It never changes, so reads continue even if its file's name is removed.
pub struct Run {
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    facts: RunFacts,
    cipher: Option<Arc<Cipher>>,
    map: RwLock<Option<Arc<Map>>>,
}

/// Index and filter, which lead to the blocks.
#[derive(Default)]
pub(super) struct Map {
    pub(super) index: Index,
    filter: Filter,
}

impl std::fmt::Debug for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Run").field(&self.facts).finish()
    }
}

impl Run {
    /// Opens the run with this number.
    ///
    /// # Errors
    /// [`RunError`], also for a file with a wrong length, and for another run.
    pub fn open(
        disk: &dyn Disk,
        path: &Path,
        number: u64,
        cipher: Option<Arc<Cipher>>,
    ) -> Result<Self, RunError> {
        let io = |source| RunError::Io {
            path: path.to_owned(),
            source,
        };
        let file = disk.open(path).map_err(io)?;
        let length = file.length().map_err(io)?;
        let damaged = |position, what| RunError::Damaged {
            path: path.to_owned(),
            position,
            what,
        };
        let mut header = [0; HEADER_BYTES];
        let mut trailer = [0; TRAILER_BYTES];
        let at = length.saturating_sub(TRAILER_BYTES as u64);
        let read = file.read_at(&mut header, 0).map_err(io)?;
        if read < HEADER_BYTES || !header.starts_with(MAGIC) || u64_at(&header, 8) != Some(number) {
            return Err(damaged(0, "it does not begin as this run"));
        }
        let read = file.read_at(&mut trailer, at).map_err(io)?;
        let facts = (read == TRAILER_BYTES).then(|| RunFacts::of_trailer(&trailer));
        let facts = facts.flatten().ok_or_else(|| damaged(at, "it is cut"))?;
        if facts.number != number || facts.file_bytes != length {
            return Err(damaged(at, "it is not as long as it was written"));
        }
        Ok(Self {
            file,
            path: path.to_owned(),
            facts,
            cipher,
            map: RwLock::default(),
        })
    }

    /// Facts about it.
    #[must_use]
    pub fn facts(&self) -> &RunFacts {
        &self.facts
    }

    /// Its file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes in memory.
    #[must_use]
    pub fn cost(&self) -> usize {
        let map = self.map.read();
        let of_map = |map: &Arc<Map>| map.index.cost() + map.filter.cost();
        map.as_ref().map_or(0, of_map) + size_of::<Self>()
    }

    /// Frees index and filter; they are read again when needed.
    pub fn forget_map(&self) {
        *self.map.write() = None;
    }

    /// Looks up ascending keys, and passes on each item found with the index of its key. Returns
    /// the indexes of keys for which the disk would have to be read; none with [`Reach::Disk`].
    ///
    /// # Errors
    /// [`RunError`]; items passed on before are valid.
    pub fn find(
        &self,
        keys: &[Sought<'_>],
        reach: Reach,
        mut found: impl FnMut(usize, Item<'_>),
    ) -> Result<Vec<usize>, RunError> {
        let Some(map) = self.map(reach)? else {
            return Ok((0..keys.len()).collect());
        };
        let (mut left, mut held) = (Vec::new(), None);
        let mut piece = Piece::default();
        for look in self.looks(&map, keys)? {
            let Look {
                place, block, at, ..
            } = look;
            if held != Some(block) {
                held = None;
                if !self.read_block(&look, reach, &mut piece)? {
                    left.push(place);
                    continue;
                }
                held = Some(block);
            }
            let key = keys[place].key;
            let find = |body| {
                let block = Block::of(body)?;
                let at = block.seek(key)?;
                match at < block.count() {
                    true => block.item(at).map(Some),
                    false => Some(None),
                }
            };
            let item = find(piece.body()).ok_or_else(|| self.malformed(Some(at)))?;
            if let Some(item) = item.filter(|item| item.key == key) {
                found(place, item);
            }
        }
        Ok(left)
    }

    /// The blocks that may contain the keys. It works in steps, each over all keys, so that memory
    /// for one key is fetched while others are checked.
    fn looks(&self, map: &Map, keys: &[Sought<'_>]) -> Result<Vec<Look>, RunError> {
        let maybe = map.filter.sift(keys.iter().map(|sought| sought.hash));
        let blocks = maybe.into_iter().filter_map(|place| {
            let block = map.index.block_of(keys[place].key)?;
            Some((place, block))
        });
        let blocks: Vec<(usize, usize)> = blocks.collect();
        let look = |(place, block)| {
            let (at, bytes) = self.extent(&map.index, block)?;
            Ok(Look {
                place,
                block,
                at,
                bytes,
            })
        };
        blocks.into_iter().map(look).collect()
    }

    /// All items from a key on, in order.
    ///
    /// # Errors
    /// [`RunError`].
    pub fn cursor(&self, from: &[u8]) -> Result<Cursor<'_>, RunError> {
        let map = self.map(Reach::Disk)?.unwrap_or_default();
        Cursor::begin(self, map, from, None)
    }

    /// All items, read at a pace, without keeping index and filter in memory.
    pub(super) fn cursor_at_pace(&self, pace: &Pace) -> Result<Cursor<'_>, RunError> {
        let held = self.map(Reach::Memory)?;
        let map = match held {
            Some(map) => map,
            None => Arc::new(Map {
                index: self.load_index()?,
                filter: Filter::default(),
            }),
        };
        Cursor::begin(self, map, b"", Some(Arc::clone(pace)))
    }

    /// Index and filter; `None` if the disk would have to be read for them.
    fn map(&self, reach: Reach) -> Result<Option<Arc<Map>>, RunError> {
        if let Some(map) = &*self.map.read() {
            return Ok(Some(Arc::clone(map)));
        }
        if reach == Reach::Memory {
            return Ok(None);
        }
        let map = Arc::new(self.load()?);
        *self.map.write() = Some(Arc::clone(&map));
        Ok(Some(map))
    }

    fn load(&self) -> Result<Map, RunError> {
        Ok(Map {
            index: self.load_index()?,
            filter: self.load_filter()?,
        })
    }

    pub(super) fn load_index(&self) -> Result<Index, RunError> {
        let mut index = Index::default();
        let (from, to) = (self.facts.index_at, self.facts.filter_at);
        self.each_piece(from, to, |body| index.add(body))?;
        index.make_searchable();
        let first = index.place(0).unwrap_or(HEADER_BYTES as u64);
        let last = index.len().checked_sub(1);
        let last = last.and_then(|last| index.place(last)).unwrap_or(first);
        let is_right = index.len() as u64 == self.facts.blocks
            && first == HEADER_BYTES as u64
            && (last < from || index.len() == 0);
        match is_right {
            true => Ok(index),
            false => Err(self.malformed(Some(from))),
        }
    }

    pub(super) fn load_filter(&self) -> Result<Filter, RunError> {
        let mut bytes = Vec::new();
        let from = self.facts.filter_at;
        let end = self.facts.file_bytes - TRAILER_BYTES as u64;
        self.each_piece(from, end, |body| {
            bytes.extend_from_slice(body);
            Some(())
        })?;
        let filter = Filter::of_bytes(&bytes);
        let filter = filter.filter(|_| bytes.len() as u64 == self.facts.filter_bytes);
        filter.ok_or_else(|| self.malformed(Some(from)))
    }

    fn each_piece(
        &self,
        mut at: u64,
        to: u64,
        mut see: impl FnMut(&[u8]) -> Option<()>,
    ) -> Result<(), RunError> {
        let mut piece = Piece::default();
        while at < to {
            let mut header = [0; PIECE_HEADER_BYTES];
            self.read(&mut header, at)?;
            let length = body_bytes(&header).ok_or_else(|| self.malformed(Some(at)))?;
            let bytes = (PIECE_HEADER_BYTES + length) as u64;
            if bytes > to - at {
                return Err(self.malformed(Some(at)));
            }
            self.read(piece.bytes(bytes as usize), at)?;
            self.open_piece(&mut piece, at)?;
            see(piece.body()).ok_or_else(|| self.malformed(Some(at)))?;
            at += bytes;
        }
        Ok(())
    }

    /// Reads a block's body; false if it is beyond `reach`.
    fn read_block(&self, look: &Look, reach: Reach, piece: &mut Piece) -> Result<bool, RunError> {
        let (at, bytes) = (look.at, look.bytes);
        match reach {
            Reach::Disk => self.read(piece.bytes(bytes), at)?,
            Reach::Memory => {
                let read = self.file.read_cached_at(piece.bytes(bytes), at);
                if read.map_err(|source| self.io(source))? != Some(bytes) {
                    return Ok(false);
                }
            }
        }
        self.open_piece(piece, at)?;
        Ok(true)
    }

    /// A block's position and length.
    pub(super) fn extent(&self, index: &Index, block: usize) -> Result<(u64, usize), RunError> {
        let at = index.place(block);
        let end = index.place(block + 1).unwrap_or(self.facts.index_at);
        let bytes = at.and_then(|at| usize::try_from(end.checked_sub(at)?).ok());
        let fits = bytes.filter(|&bytes| {
            bytes > PIECE_HEADER_BYTES && bytes <= PIECE_HEADER_BYTES + super::BODY_BYTES_MAX
        });
        at.zip(fits).ok_or_else(|| self.malformed(at))
    }

    /// Reads all of it.
    pub(super) fn read(&self, buffer: &mut [u8], at: u64) -> Result<(), RunError> {
        let read = self.file.read_at(buffer, at);
        match read.map_err(|source| self.io(source))? {
            count if count == buffer.len() => Ok(()),
            _ => Err(self.malformed(Some(at))),
        }
    }

    /// Like [`Run::read`], but from the disk itself, leaving nothing in the page cache.
    pub(super) fn read_beside_cache(&self, buffer: &mut [u8], at: u64) -> Result<(), RunError> {
        let length = buffer.len() as u64;
        self.file.forget_cached(at, length);
        let read = self.read(buffer, at);
        self.file.forget_cached(at, length);
        read
    }

    pub(super) fn open_piece(&self, piece: &mut Piece, at: u64) -> Result<(), RunError> {
        let opened = piece.open(self.facts.number, at, self.cipher.as_deref());
        opened.map_err(|error| error.at(&self.path, at))
    }

    pub(super) fn malformed(&self, at: Option<u64>) -> RunError {
        self.damaged(at.unwrap_or_default(), "what stands there is malformed")
    }

    pub(super) fn damaged(&self, position: u64, what: &'static str) -> RunError {
        RunError::Damaged {
            path: self.path.clone(),
            position,
            what,
        }
    }

    pub(super) fn io(&self, source: io::Error) -> RunError {
        RunError::Io {
            path: self.path.clone(),
            source,
        }
    }
}
