//! The journal: one per data directory, where every transaction becomes durable first.
//!
//! Numbered files of one fixed size, preallocated and recycled. A file begins with a header (its number, a fresh random salt,
//! the first sequence it holds); frames follow ([`crate::frame`]), their sequences without gaps. A file is used only after the
//! one before it is durable, and its header is durable before its first frame: so what may be missing after a crash is
//! always the end, and anything missing before that is damage, which [`scan`] refuses to take for a torn tail.

pub mod examine;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::disk::{Disk, DiskFile, final_error, is_full};
use crate::frame::{self, FRAME_ALIGN_BYTES, FRAME_HEADER_BYTES, Frame, FrameBuffer};

/// Bytes of one journal file, unless configured.
pub const JOURNAL_FILE_BYTES: u64 = 64 << 20;
/// Files kept for reuse; further ones are removed.
const SPARE_FILES_MAX: usize = 4;
/// Spares that appends leave alone: a checkpoint, which gives files back, needs a new one to begin with, and a full disk must
/// not keep it from that.
const SPARES_RESERVED: usize = 1;
const FILE_HEADER_BYTES: usize = 64;
const MAGIC: [u8; 8] = *b"MRJRNL01";
const SUFFIX: &str = ".journal";

/// Why a journal cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// A durable transaction is no longer there as it was written. Nothing was changed.
    #[error(
        "journal file {} is damaged at byte {position}: transaction {sequence} was durable and is not readable. Nothing was \
         changed. Restore the data directory from a backup, or move this file and those with higher numbers away to start \
         with what came before",
        path.display()
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Where in it.
        position: u64,
        /// The first sequence that is missing.
        sequence: u64,
    },
    /// The disk failed.
    #[error("the journal cannot be read: {0}")]
    Io(#[from] io::Error),
}

/// What a journal holds, checked to its end; nothing on disk was changed.
pub struct JournalScan {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    parts: Vec<ScannedFile>,
    last_sequence: u64,
    numbers: Vec<u64>,
    first_file: u64,
}

struct ScannedFile {
    number: u64,
    end: usize,
}

/// Checks the files from number `first_file` on, whose first frame follows `after_sequence`.
///
/// # Errors
/// [`JournalError::Damaged`] where something durable is missing. A torn tail is no error: it was never acknowledged as durable.
pub fn scan(
    disk: Arc<dyn Disk>,
    dir: &Path,
    first_file: u64,
    after_sequence: u64,
) -> Result<JournalScan, JournalError> {
    let mut scan = scan_unread(disk, dir, first_file, after_sequence)?;
    scan.walk()?;
    Ok(scan)
}

fn scan_unread(
    disk: Arc<dyn Disk>,
    dir: &Path,
    first_file: u64,
    after_sequence: u64,
) -> io::Result<JournalScan> {
    let mut numbers: Vec<u64> = disk
        .list(dir)?
        .iter()
        .filter_map(|name| number_of(name))
        .collect();
    numbers.sort_unstable();
    Ok(JournalScan {
        disk,
        dir: dir.to_owned(),
        parts: Vec::new(),
        last_sequence: after_sequence,
        numbers,
        first_file,
    })
}

impl JournalScan {
    fn walk(&mut self) -> Result<(), JournalError> {
        let first_live = self.numbers.partition_point(|&n| n < self.first_file);
        let live = self.numbers[first_live..].to_vec();
        for number in live {
            let bytes = read_whole(&*self.disk, &file_path(&self.dir, number))?;
            let expected = self.last_sequence + 1;
            let missing = self.first_file + self.parts.len() as u64 != number;
            let Some(salt) = salt_of(&bytes, number, expected) else {
                // Never used, unless what it holds says otherwise.
                self.refuse_evidence(number, &bytes, FILE_HEADER_BYTES, None)?;
                continue;
            };
            let first = FileHeader::decode(&bytes).map_or(expected, |header| header.first_sequence);
            if missing || first != expected {
                // The loss is at the end of what could be read before this file.
                let last = self.parts.last();
                let (number, end) = last.map_or((number, FILE_HEADER_BYTES), |p| (p.number, p.end));
                return Err(self.damaged(number, end));
            }
            let end = self.walk_frames(&bytes, salt);
            self.refuse_evidence(number, &bytes, end, Some(salt))?;
            self.parts.push(ScannedFile { number, end });
        }
        Ok(())
    }

    fn walk_frames(&mut self, bytes: &[u8], salt: u64) -> usize {
        let mut at = FILE_HEADER_BYTES;
        while let Some(frame) = next_frame(bytes, at, salt, self.last_sequence + 1) {
            self.last_sequence = frame.sequence;
            at += frame.stride;
        }
        at
    }

    /// A later frame that says "the one missing here was durable" makes this damage and not a torn tail.
    fn refuse_evidence(
        &self,
        number: u64,
        bytes: &[u8],
        from: usize,
        salt: Option<u64>,
    ) -> Result<(), JournalError> {
        let missing = self.last_sequence + 1;
        let contradicts = |at: usize| {
            let Some(header) = bytes
                .get(at..)
                .and_then(|b| b.first_chunk::<FRAME_HEADER_BYTES>())
            else {
                return false;
            };
            let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| header[at + i]));
            // The cheap questions first: the checksum is asked only of what looks like a frame of ours.
            word(24) >= missing
                && word(16) > word(24)
                && salt.is_none_or(|salt| word(8) == salt)
                && frame::decode(&bytes[at..]).is_some_and(|frame| frame.synced >= missing)
        };
        if (from..bytes.len())
            .step_by(FRAME_ALIGN_BYTES)
            .any(contradicts)
        {
            return Err(self.damaged(number, from));
        }
        Ok(())
    }

    fn damaged(&self, number: u64, position: usize) -> JournalError {
        JournalError::Damaged {
            path: file_path(&self.dir, number),
            position: position as u64,
            sequence: self.last_sequence + 1,
        }
    }

    /// The sequence of the last frame, or the one that the scan began after.
    #[must_use]
    pub fn last_sequence(&self) -> u64 {
        self.last_sequence
    }

    /// A number that no file has had: where the journal goes on.
    #[must_use]
    pub fn next_file(&self) -> u64 {
        let highest = self.numbers.last().copied().unwrap_or(0);
        self.first_file.max(highest + 1)
    }

    /// Gives every frame's sequence and body, in order.
    ///
    /// # Errors
    /// What `visit` returns, or the disk's error.
    pub fn replay<E: From<io::Error>>(
        &self,
        mut visit: impl FnMut(u64, Bytes) -> Result<(), E>,
    ) -> Result<(), E> {
        for part in &self.parts {
            let bytes = read_whole(&*self.disk, &file_path(&self.dir, part.number))?;
            let mut at = FILE_HEADER_BYTES;
            while at < part.end {
                let frame = frame::decode(bytes.get(at..).unwrap_or_default())
                    .ok_or_else(|| io::Error::other("the journal changed while it was read"))?;
                visit(frame.sequence, bytes.slice_ref(frame.body))?;
                at += frame.stride;
            }
        }
        Ok(())
    }
}

fn next_frame(bytes: &[u8], at: usize, salt: u64, sequence: u64) -> Option<Frame<'_>> {
    frame::decode(bytes.get(at..)?).filter(|frame| frame.salt == salt && frame.sequence == sequence)
}

/// The salt that the file's frames carry; `None` if the file was not put to use under this number.
fn salt_of(bytes: &[u8], number: u64, expected: u64) -> Option<u64> {
    match FileHeader::decode(bytes) {
        Some(header) => (header.number == number).then_some(header.salt),
        // A damaged header before a sound first frame costs nothing: the frame knows its salt. An old frame cannot have
        // the expected sequence at this place: what stands first in a file was durable, or was never readable.
        None => frame::decode(bytes.get(FILE_HEADER_BYTES..)?)
            .filter(|frame| frame.sequence == expected)
            .map(|frame| frame.salt),
    }
}

struct FileHeader {
    number: u64,
    salt: u64,
    first_sequence: u64,
}

impl FileHeader {
    fn new(number: u64, first_sequence: u64) -> Self {
        Self {
            number,
            salt: fastrand::u64(..),
            first_sequence,
        }
    }

    fn encode(&self) -> [u8; FILE_HEADER_BYTES] {
        let mut bytes = [0; FILE_HEADER_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..16].copy_from_slice(&self.number.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.salt.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.first_sequence.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..32]);
        bytes[32..36].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.first_chunk::<FILE_HEADER_BYTES>()?;
        let crc = u32::from_le_bytes([bytes[32], bytes[33], bytes[34], bytes[35]]);
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        (bytes[..8] == MAGIC && crc32c::crc32c(&bytes[..32]) == crc).then(|| Self {
            number: word(8),
            salt: word(16),
            first_sequence: word(24),
        })
    }
}

/// The journal, being written.
pub struct Journal {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    file_bytes: u64,
    file: Arc<dyn DiskFile>,
    number: u64,
    salt: u64,
    position: u64,
    last_sequence: u64,
    synced_sequence: u64,
    /// Files before the current one that the checkpoint still needs, then those that may be used again.
    kept: Vec<u64>,
    spares: Vec<u64>,
    written_bytes: u64,
    /// After an error that leaves it unknown what is on the disk nothing more is written, by whichever thread: a frame in this
    /// file would contradict the next file's header, and a second sync would lie.
    broken: bool,
}

impl Journal {
    /// Goes on after what `scan` found, in a new file; every older file is free to be used again, so all that it holds must be
    /// durable elsewhere.
    ///
    /// # Errors
    /// The disk's.
    pub fn start(scan: JournalScan, file_bytes: u64) -> io::Result<Self> {
        let number = scan.next_file();
        let JournalScan {
            disk,
            dir,
            last_sequence,
            numbers: mut spares,
            ..
        } = scan;
        let first = last_sequence + 1;
        let header = FileHeader::new(number, first);
        let (file, salt) = take_file(&*disk, &dir, &mut spares, 0, header, file_bytes)?;
        if spares.is_empty() {
            // The reserved one. It can wait for room: a checkpoint will leave spares.
            match make(&*disk, &file_path(&dir, number - 1), file_bytes) {
                Err(error) if !is_full(&error) => return Err(error),
                made => spares.extend(made.ok().map(|_| number - 1)),
            }
        }
        let mut journal = Self {
            disk,
            dir,
            file_bytes,
            file,
            number,
            salt,
            position: FILE_HEADER_BYTES as u64,
            last_sequence,
            synced_sequence: last_sequence,
            kept: Vec::new(),
            spares,
            written_bytes: 0,
            broken: false,
        };
        journal.drop_spares()?;
        Ok(journal)
    }

    /// The largest body that one frame can carry when files have `file_bytes`.
    #[must_use]
    pub fn body_bytes_max(file_bytes: u64) -> usize {
        let overhead = (FILE_HEADER_BYTES + FRAME_HEADER_BYTES + FRAME_ALIGN_BYTES) as u64;
        usize::try_from(file_bytes.saturating_sub(overhead)).unwrap_or(usize::MAX)
    }

    /// Writes a frame; it is in the page cache then. Returns its sequence.
    ///
    /// # Errors
    /// If the disk is full ([`is_full`]) nothing was written, and the same call may succeed later. After any other error it is
    /// not known what was.
    pub fn append(&mut self, frame: &mut FrameBuffer) -> io::Result<u64> {
        self.unless_broken(|journal| journal.append_frame(frame))
    }

    fn append_frame(&mut self, frame: &mut FrameBuffer) -> io::Result<u64> {
        let stride = (FRAME_HEADER_BYTES + frame.body_bytes()).next_multiple_of(FRAME_ALIGN_BYTES);
        if self.position + stride as u64 > self.file_bytes {
            self.go_on(SPARES_RESERVED)?;
        }
        assert!(
            self.position + stride as u64 <= self.file_bytes,
            "a frame fits one file"
        );
        let sequence = self.last_sequence + 1;
        let bytes = frame.finish(self.salt, sequence, self.synced_sequence);
        self.file.write_all_at(bytes, self.position)?;
        self.position += stride as u64;
        self.written_bytes += stride as u64;
        self.last_sequence = sequence;
        Ok(sequence)
    }

    /// Makes every frame durable.
    ///
    /// # Errors
    /// The disk's; it is final: nobody knows then what is durable, and a second try would lie.
    pub fn sync(&mut self) -> io::Result<()> {
        self.unless_broken(Self::sync_file)
    }

    fn sync_file(&mut self) -> io::Result<()> {
        self.file.sync_data().map_err(final_error)?;
        self.synced_sequence = self.last_sequence;
        Ok(())
    }

    fn unless_broken<T>(&mut self, act: impl FnOnce(&mut Self) -> io::Result<T>) -> io::Result<T> {
        if self.broken {
            return Err(io::Error::other("the journal failed before; start again"));
        }
        let done = act(self);
        self.broken = done.as_ref().is_err_and(|error| !is_full(error));
        done
    }

    /// Goes on in a new file, everything before it being durable. Returns the new file's number: a checkpoint that holds
    /// everything up to now needs the files from this number on.
    ///
    /// # Errors
    /// As [`Journal::append`].
    pub fn rotate(&mut self) -> io::Result<u64> {
        if self.position == FILE_HEADER_BYTES as u64 {
            return Ok(self.number); // nothing in it yet
        }
        self.unless_broken(|journal| journal.go_on(0))
    }

    /// Goes on in the next file, leaving `reserved` spares alone.
    fn go_on(&mut self, reserved: usize) -> io::Result<u64> {
        if self.synced_sequence < self.last_sequence {
            self.sync_file()?;
        }
        let next = self.number + 1;
        let first = self.last_sequence + 1;
        let (file, salt) = take_file(
            &*self.disk,
            &self.dir,
            &mut self.spares,
            reserved,
            FileHeader::new(next, first),
            self.file_bytes,
        )?;
        self.kept.push(self.number);
        (self.file, self.salt, self.number) = (file, salt, next);
        self.position = FILE_HEADER_BYTES as u64;
        Ok(next)
    }

    /// Says that a checkpoint made the files before `number` needless.
    ///
    /// # Errors
    /// The disk's; the files that could not be removed are only room.
    pub fn recycle_before(&mut self, number: u64) -> io::Result<()> {
        let (free, kept) = self.kept.drain(..).partition(|&kept| kept < number);
        self.kept = kept;
        let free: Vec<u64> = free;
        self.spares.extend(free);
        self.drop_spares()
    }

    fn drop_spares(&mut self) -> io::Result<()> {
        while self.spares.len() > SPARE_FILES_MAX {
            if let Some(number) = self.spares.pop() {
                self.disk.remove(&file_path(&self.dir, number))?;
            }
        }
        Ok(())
    }

    /// The sequence of the last frame written.
    #[must_use]
    pub fn last_sequence(&self) -> u64 {
        self.last_sequence
    }

    /// Bytes written since the start, over all files.
    #[must_use]
    pub fn written_bytes(&self) -> u64 {
        self.written_bytes
    }
}

/// A file of the right size, its header durable: a used one, unless only `reserved` of them are left, or else a new one.
/// Returns it with its salt.
fn take_file(
    disk: &dyn Disk,
    dir: &Path,
    spares: &mut Vec<u64>,
    reserved: usize,
    header: FileHeader,
    file_bytes: u64,
) -> io::Result<(Arc<dyn DiskFile>, u64)> {
    let path = file_path(dir, header.number);
    let file = match reuse(disk, dir, spares, reserved, &path, file_bytes)? {
        Some(file) => file,
        None => make(disk, &path, file_bytes)?,
    };
    file.write_all_at(&header.encode(), 0)?;
    file.sync_data().map_err(final_error)?;
    disk.sync_dir(dir).map_err(final_error)?;
    Ok((file, header.salt))
}

fn reuse(
    disk: &dyn Disk,
    dir: &Path,
    spares: &mut Vec<u64>,
    reserved: usize,
    path: &Path,
    file_bytes: u64,
) -> io::Result<Option<Arc<dyn DiskFile>>> {
    while spares.len() > reserved {
        let Some(spare) = spares.pop() else { break };
        let old = file_path(dir, spare);
        let file = disk.open(&old)?;
        if file.length()? == file_bytes {
            disk.rename(&old, path)?;
            return Ok(Some(file));
        }
        disk.remove(&old)?; // of another configuration
    }
    Ok(None)
}

fn make(disk: &dyn Disk, path: &Path, file_bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
    let file = disk.create(path)?;
    match file.preallocate(file_bytes, true) {
        Ok(()) => Ok(file),
        Err(error) => {
            if is_full(&error) {
                // What was reserved before the disk was full is given back; if that fails too, the next try reuses it.
                let _ = disk.remove(path);
            }
            Err(error)
        }
    }
}

fn read_whole(disk: &dyn Disk, path: &Path) -> io::Result<Bytes> {
    let file = disk.open(path)?;
    let mut bytes = vec![0; usize::try_from(file.length()?).map_err(io::Error::other)?];
    let count = file.read_at(&mut bytes, 0)?;
    bytes.truncate(count);
    Ok(bytes.into())
}

fn file_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(file_name(number))
}

fn file_name(number: u64) -> String {
    format!("{number:012}{SUFFIX}")
}

/// Whether a file of that name is the journal's.
#[must_use]
pub fn is_file_name(name: &str) -> bool {
    number_of(name).is_some()
}

/// The number of a file that is named as ours are; other names that hold a number are not ours.
fn number_of(name: &str) -> Option<u64> {
    let number = name.strip_suffix(SUFFIX)?.parse().ok()?;
    (file_name(number) == name).then_some(number)
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
