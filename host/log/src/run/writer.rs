//! Writes a run, from its first key to its last. It counts only after [`RunWriter::finish`] has
//! returned and the directory is synced.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::block::BlockBuilder;
use super::filter::{Filter, hash};
use super::index::Index;
use super::{
    HEADER_BYTES, Item, KEY_BYTES_MAX, MAGIC, PIECE_BYTES, RunFacts, VALUE_BYTES_MAX, put_piece,
};
use crate::cipher::Cipher;
use crate::disk::{Disk, DiskFile, final_error};

/// Bytes written at once, always at a multiple of this. Small enough that the processor still has
/// them cached, and for larger writes the kernel would first allocate large pages.
const WRITE_BYTES: usize = 32 << 10;
/// Keys added to the filter at once, so that its memory is fetched for several of them at a time.
const HASHES_AT_ONCE: usize = 256;

/// A run that is being written. If it is dropped, the file that it leaves is not a run.
pub struct RunWriter {
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    cipher: Option<Arc<Cipher>>,
    facts: RunFacts,
    block: BlockBuilder,
    body: Vec<u8>,
    /// Bytes that are not in the file yet; the file ends at `written`.
    out: Vec<u8>,
    written: u64,
    index: Index,
    filter: Filter,
    /// Hashes of keys that are not in the filter yet.
    hashes: Vec<u64>,
    last_key: Vec<u8>,
}

impl RunWriter {
    /// Creates the file, replacing an existing one. The filter is sized for about this many items.
    ///
    /// # Errors
    /// The disk's.
    pub fn create(
        disk: &dyn Disk,
        path: &Path,
        number: u64,
        items: u64,
        cipher: Option<Arc<Cipher>>,
    ) -> io::Result<Self> {
        let mut out = Vec::with_capacity(WRITE_BYTES + (64 << 10));
        out.extend_from_slice(MAGIC);
        out.extend(number.to_le_bytes());
        debug_assert_eq!(out.len(), HEADER_BYTES);
        Ok(Self {
            file: disk.create(path)?,
            path: path.to_owned(),
            cipher,
            facts: RunFacts {
                number,
                ..RunFacts::default()
            },
            block: BlockBuilder::default(),
            body: Vec::new(),
            out,
            written: 0,
            index: Index::default(),
            filter: Filter::for_keys(items),
            hashes: Vec::with_capacity(HASHES_AT_ONCE),
            last_key: Vec::new(),
        })
    }

    /// Adds an item, whose key must come after all earlier ones.
    ///
    /// # Errors
    /// The disk's.
    pub fn add(&mut self, item: &Item<'_>) -> io::Result<()> {
        assert!(self.comes_next(item), "the keys of a run ascend");
        self.put_next(item)
    }

    /// Like [`RunWriter::add`], for callers who have checked the order.
    pub(super) fn put_next(&mut self, item: &Item<'_>) -> io::Result<()> {
        let value_bytes = item.value.map_or(0, <[u8]>::len);
        assert!(
            item.key.len() <= KEY_BYTES_MAX && value_bytes <= VALUE_BYTES_MAX,
            "keys and values are within their bounds before they come to a run"
        );
        if !self.block.has_room_for(item) {
            self.end_block()?;
        }
        self.block.push(item);
        match item.value {
            Some(_) => self.facts.entries += 1,
            None => self.facts.removals += 1,
        }
        if self.hashes.len() == HASHES_AT_ONCE {
            self.fill_filter();
        }
        self.hashes.push(hash(item.key));
        self.last_key.clear();
        self.last_key.extend_from_slice(item.key);
        Ok(())
    }

    /// Completes the run, and makes its bytes durable.
    ///
    /// # Errors
    /// The disk's; that of a sync is final.
    pub fn finish(mut self) -> io::Result<RunFacts> {
        if !self.block.is_empty() {
            self.end_block()?;
        }
        self.facts.blocks = self.index.len() as u64;
        self.facts.index_at = self.position();
        for piece in self.index.pieces() {
            self.put(&piece)?;
        }
        self.facts.filter_at = self.position();
        self.fill_filter();
        let filter = self.filter.bytes();
        self.facts.filter_bytes = filter.len() as u64;
        for piece in filter.chunks(PIECE_BYTES) {
            self.put(piece)?;
        }
        self.facts.file_bytes = self.position() + super::TRAILER_BYTES as u64;
        self.out.extend(self.facts.trailer());
        self.write(self.out.len())?;
        self.file.sync_data().map_err(final_error)?;
        Ok(self.facts)
    }

    /// Whether the item's key comes after all added keys.
    pub(super) fn comes_next(&self, item: &Item<'_>) -> bool {
        self.facts.items() == 0 || *item.key > *self.last_key
    }

    fn fill_filter(&mut self) {
        self.hashes.drain(..).for_each(|hash| self.filter.add(hash));
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn position(&self) -> u64 {
        self.written + self.out.len() as u64
    }

    fn end_block(&mut self) -> io::Result<()> {
        let place = self.position();
        self.index.push(self.block.first_key(), place);
        let mut body = std::mem::take(&mut self.body);
        self.block.take(&mut body);
        let put = self.put(&body);
        self.body = body;
        put
    }

    fn put(&mut self, body: &[u8]) -> io::Result<()> {
        let (number, position) = (self.facts.number, self.position());
        put_piece(
            &mut self.out,
            body,
            number,
            position,
            self.cipher.as_deref(),
        );
        if self.out.len() >= WRITE_BYTES {
            self.write(self.out.len() / WRITE_BYTES * WRITE_BYTES)?;
        }
        Ok(())
    }

    /// Writes this many of the pending bytes.
    fn write(&mut self, count: usize) -> io::Result<()> {
        self.file.write_all_at(&self.out[..count], self.written)?;
        self.written += count as u64;
        self.out.drain(..count);
        Ok(())
    }
}
