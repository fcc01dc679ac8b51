//! A run: a file of keys and values in the order of keys, written once and never changed (docs/adr/0020).
//!
//! ```text
//! header    0 "MILLRUN1"   8 number u64
//! blocks    pieces of about 2 KiB of items                      ([`block`])
//! index     pieces: of every block its first key and its place  ([`index`])
//! filter    pieces: which keys are certainly not there          ([`filter`])
//! trailer   what there is, and where index and filter begin     (80 bytes)
//! piece     0 length u32 (of the body)   4 CRC-32C u32 (of number, position and body)   8 body
//! ```
//! Little-endian. A piece's checksum covers the run's number and the piece's position in the file,
//! so a misplaced piece is detected. With a cipher, each body is encrypted and bound to the same
//! place. No read bytes are trusted: every length is checked before memory is allocated, and
//! malformed bytes are an error.

mod block;
mod cursor;
mod examine;
mod filter;
mod index;
mod merge;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::cipher::{self, Cipher, DecryptError};

pub use self::block::Item;
pub use self::cursor::Cursor;
pub use self::examine::{Fault, Met};
pub use self::merge::{Merged, merge};
pub use self::reader::{Reach, Run, Sought};
pub use self::writer::RunWriter;

const MAGIC: &[u8; 8] = b"MILLRUN1";
const HEADER_BYTES: usize = 16;
const TRAILER_BYTES: usize = 80;
const PIECE_HEADER_BYTES: usize = 8;
/// Bytes of a key.
pub const KEY_BYTES_MAX: usize = 2 << 10;
/// Bytes of a value.
pub const VALUE_BYTES_MAX: usize = 1 << 20;
/// Bytes of a block, unless a single item is larger. Readers use the index, so other versions may
/// use another size.
const BLOCK_BYTES: usize = 2 << 10;
/// Minimum bytes of an item, including its position in the block.
const ITEM_BYTES_MIN: u64 = 7;
/// Approximate bytes of a piece of the index or the filter.
const PIECE_BYTES: usize = 64 << 10;
/// Bytes of a piece's body; a longer one is damage.
const BODY_BYTES_MAX: usize = VALUE_BYTES_MAX + KEY_BYTES_MAX + PIECE_BYTES;

/// Why a run cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Stored bytes differ from what was written.
    #[error("{} is damaged at byte {position}: {what}", path.display())]
    Damaged {
        /// The file's path.
        path: PathBuf,
        /// The approximate position in it.
        position: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// A piece cannot be decrypted.
    #[error("{} at byte {position}: {source}", path.display())]
    Encrypted {
        /// The file's path.
        path: PathBuf,
        /// The position in it.
        position: u64,
        /// The error.
        source: DecryptError,
    },
    /// An error of the disk.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file's path.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

impl RunError {
    /// The problem, without file and position.
    fn reason(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Damaged { what, .. } => f.write_str(what),
            Self::Encrypted { source, .. } => fmt::Display::fmt(source, f),
            Self::Io { source, .. } => fmt::Display::fmt(source, f),
        }
    }
}

/// Facts about a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunFacts {
    /// The run's number; no two files of a directory ever have the same.
    pub number: u64,
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Items with a value.
    pub entries: u64,
    /// Items without a value: the keys that they remove may be in older runs.
    pub removals: u64,
    /// Number of blocks.
    blocks: u64,
    index_at: u64,
    filter_at: u64,
    filter_bytes: u64,
}

impl RunFacts {
    /// The number of items of both kinds.
    #[must_use]
    pub fn items(&self) -> u64 {
        self.entries.saturating_add(self.removals)
    }

    fn trailer(&self) -> [u8; TRAILER_BYTES] {
        let mut out = [0; TRAILER_BYTES];
        let numbers = [
            self.number,
            self.file_bytes,
            self.entries,
            self.removals,
            self.blocks,
            self.index_at,
            self.filter_at,
            self.filter_bytes,
        ];
        out[..8].copy_from_slice(MAGIC);
        for (place, number) in out[8..].chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        let crc = crc32c::crc32c(&out[..TRAILER_BYTES - 4]);
        out[TRAILER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// The facts in a trailer, if it is valid and its numbers are consistent.
    fn of_trailer(bytes: &[u8; TRAILER_BYTES]) -> Option<Self> {
        let (said, crc) = bytes.split_last_chunk::<4>()?;
        if crc32c::crc32c(said) != u32::from_le_bytes(*crc) || !said.starts_with(MAGIC) {
            return None;
        }
        let number = |index: usize| u64_at(said, 8 + index * 8);
        let facts = Self {
            number: number(0)?,
            file_bytes: number(1)?,
            entries: number(2)?,
            removals: number(3)?,
            blocks: number(4)?,
            index_at: number(5)?,
            filter_at: number(6)?,
            filter_bytes: number(7)?,
        };
        let end = facts.file_bytes.checked_sub(TRAILER_BYTES as u64)?;
        let in_order = HEADER_BYTES as u64 <= facts.index_at
            && facts.index_at <= facts.filter_at
            && facts.filter_at <= end;
        let fits = facts.filter_bytes <= end - facts.filter_at
            && facts.blocks <= facts.index_at / PIECE_HEADER_BYTES as u64
            && facts.items() <= facts.index_at / ITEM_BYTES_MIN;
        (in_order && fits).then_some(facts)
    }
}

/// The place that a piece's checksum and encryption are bound to.
fn place(number: u64, position: u64) -> [u8; 16] {
    let mut place = [0; 16];
    place[..8].copy_from_slice(&number.to_le_bytes());
    place[8..].copy_from_slice(&position.to_le_bytes());
    place
}

fn belongs_to(number: u64, position: u64) -> Vec<u8> {
    format!("run/{number}/{position}").into_bytes()
}

fn checksum(number: u64, position: u64, body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&place(number, position)), body)
}

/// Appends a piece for this position.
fn put_piece(out: &mut Vec<u8>, body: &[u8], number: u64, position: u64, cipher: Option<&Cipher>) {
    let encrypted = cipher.map(|cipher| cipher.encrypt(body, &belongs_to(number, position)));
    let body = encrypted.as_deref().unwrap_or(body);
    out.extend((body.len() as u32).to_le_bytes());
    out.extend(checksum(number, position, body).to_le_bytes());
    out.extend_from_slice(body);
}

/// The length of a piece's body, from its first bytes.
fn body_bytes(piece: &[u8]) -> Option<usize> {
    let length = u32_at(piece, 0)? as usize;
    (length <= BODY_BYTES_MAX + cipher::OVERHEAD_BYTES).then_some(length)
}

/// A piece as read, and its body.
#[derive(Default)]
struct Piece {
    bytes: Vec<u8>,
    /// The decrypted body, if it was encrypted.
    plain: Option<Vec<u8>>,
}

impl Piece {
    /// A buffer to read into; earlier content is dropped.
    fn bytes(&mut self, count: usize) -> &mut [u8] {
        self.bytes.resize(count, 0);
        &mut self.bytes
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.plain = None;
    }

    /// Checks and decrypts the bytes read at `position`.
    fn open(
        &mut self,
        number: u64,
        position: u64,
        cipher: Option<&Cipher>,
    ) -> Result<(), PieceError> {
        let length = body_bytes(&self.bytes).ok_or(PieceError::Malformed)?;
        let body = self.bytes.get(PIECE_HEADER_BYTES..);
        let body = body.filter(|body| body.len() == length);
        let body = body.ok_or(PieceError::Malformed)?;
        if u32_at(&self.bytes, 4) != Some(checksum(number, position, body)) {
            return Err(PieceError::Malformed);
        }
        if let Some(cipher) = cipher {
            let plain = self.plain.get_or_insert_default();
            plain.clear();
            let decrypted = cipher.decrypt_into(body, &belongs_to(number, position), plain);
            decrypted.map_err(PieceError::Encrypted)?;
        }
        Ok(())
    }

    /// The body of an opened piece; empty for a cleared one.
    fn body(&self) -> &[u8] {
        match &self.plain {
            Some(plain) => plain,
            None => self.bytes.get(PIECE_HEADER_BYTES..).unwrap_or_default(),
        }
    }
}

enum PieceError {
    Malformed,
    Encrypted(DecryptError),
}

impl PieceError {
    fn at(self, path: &Path, position: u64) -> RunError {
        let path = path.to_owned();
        match self {
            Self::Malformed => RunError::Damaged {
                path,
                position,
                what: "a piece is not as it was written",
            },
            Self::Encrypted(source) => RunError::Encrypted {
                path,
                position,
                source,
            },
        }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*bytes))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u64::from_le_bytes(*bytes))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_le_bytes(*bytes))
}
