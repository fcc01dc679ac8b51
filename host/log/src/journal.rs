//! The journal: one per data directory. Every transaction becomes durable here first.
//!
//! It consists of numbered files of one fixed size, preallocated and recycled. A file begins with a
//! header (its number, a fresh random salt, and what was durable when the file was prepared),
//! followed by frames ([`crate::frame`]) with sequences without gaps. A file's header is durable
//! before its first frame is written. A sync makes the files durable in order, so only the end can
//! be missing after a crash. If something is missing although a later header or frame says that it
//! was durable, that is damage, and [`scan`] does not accept it as a torn tail.
//!
//! One thread at a time writes frames; several syncs may run meanwhile ([`Journal::begin_sync`]).

pub mod examine;
mod files;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

pub use self::files::is_file_name;
use self::files::{FILE_HEADER_BYTES, FileHeader, NextFiles, Ready, file_path, number_of};
use crate::disk::{Disk, DiskFile, final_error, is_full};
use crate::frame::{self, FRAME_ALIGN_BYTES, FRAME_HEADER_BYTES, Frame, FrameBuffer};

/// Default size of a journal file in bytes.
pub const JOURNAL_FILE_BYTES: u64 = 64 << 20;
/// Threads that may sync at the same time. Each has its own file handle, because the kernel reports
/// a failure once to each handle.
pub const SYNCS_AT_ONCE_MAX: usize = 5;
const SUFFIX: &str = ".journal";

/// Why a journal cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// A durable transaction is damaged or missing. Nothing was changed.
    #[error(
        "journal file {} is damaged at byte {position}: transaction {sequence} was durable and is not readable. Nothing was \
         changed. Restore the data directory from a backup; `millrace doctor --repair` goes on with what came before, and says \
         what is lost",
        path.display()
    )]
    Damaged {
        /// The file's path.
        path: PathBuf,
        /// The position in it.
        position: u64,
        /// The first sequence that is missing.
        sequence: u64,
    },
    /// The disk failed.
    #[error("the journal cannot be read: {0}")]
    Io(#[from] io::Error),
}

/// The content of a journal, checked to its end; nothing on disk was changed.
pub struct JournalScan {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    parts: Vec<ScannedFile>,
    last_sequence: u64,
    /// The file, and the position in it, where the last frame ends.
    reached: (u64, usize),
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
/// [`JournalError::Damaged`] if something durable is missing. A torn tail is not an error: it was
/// never acknowledged as durable.
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
        reached: (first_file, FILE_HEADER_BYTES),
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
            let salt = salt_of(&bytes, number, self.last_sequence + 1);
            let header = FileHeader::decode(&bytes).filter(|header| header.number == number);
            if header.is_some_and(|header| header.synced > self.last_sequence) {
                return Err(self.damaged());
            }
            let Some(salt) = salt else {
                // Never used, unless its content says otherwise.
                self.refuse_evidence(&bytes, FILE_HEADER_BYTES, None)?;
                continue;
            };
            if frame::decode(bytes.get(FILE_HEADER_BYTES..).unwrap_or_default()).is_none() {
                // If anything is missing here, it is missing from the beginning.
                self.reached = (number, FILE_HEADER_BYTES);
            }
            let end = self.walk_frames(&bytes, number, salt);
            self.refuse_evidence(&bytes, end, Some(salt))?;
            self.parts.push(ScannedFile { number, end });
        }
        Ok(())
    }

    /// If a file does not continue the previous ones, none of its frames counts.
    fn walk_frames(&mut self, bytes: &[u8], number: u64, salt: u64) -> usize {
        let mut at = FILE_HEADER_BYTES;
        while let Some(frame) = next_frame(bytes, at, salt, self.last_sequence + 1) {
            self.last_sequence = frame.sequence;
            at += frame.stride;
            self.reached = (number, at);
        }
        at
    }

    /// Looks for later frames that say that the missing frame was durable: then this is damage and
    /// not a torn tail.
    fn refuse_evidence(
        &self,
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
            // Cheap checks first: the checksum is computed only for bytes that look like our frame.
            word(24) >= missing
                && word(16) > word(24)
                && salt.is_none_or(|salt| word(8) == salt)
                && frame::decode(&bytes[at..]).is_some_and(|frame| frame.synced >= missing)
        };
        if (from..bytes.len())
            .step_by(FRAME_ALIGN_BYTES)
            .any(contradicts)
        {
            return Err(self.damaged());
        }
        Ok(())
    }

    fn damaged(&self) -> JournalError {
        let (number, position) = self.reached;
        JournalError::Damaged {
            path: file_path(&self.dir, number),
            position: position as u64,
            sequence: self.last_sequence + 1,
        }
    }

    /// The sequence of the last frame, or the one after which the scan began.
    #[must_use]
    pub fn last_sequence(&self) -> u64 {
        self.last_sequence
    }

    /// A number that no file has had, with which the journal continues. Numbers below it are left
    /// for reserved files.
    #[must_use]
    pub fn next_file(&self) -> u64 {
        let highest = self.numbers.last().copied().unwrap_or(0);
        let reserved = files::LEFT_BY_MESSAGES as u64;
        self.first_file.max(highest + 1).max(reserved)
    }

    /// Visits every frame's sequence and body, in order.
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

/// The salt of the file's frames; `None` if the file was not used under this number.
fn salt_of(bytes: &[u8], number: u64, expected: u64) -> Option<u64> {
    match FileHeader::decode(bytes) {
        Some(header) => (header.number == number).then_some(header.salt),
        // A damaged header before a valid first frame does no harm, because the frame has the salt.
        // Frames of an earlier use are made unreadable before the file is reused.
        None => frame::decode(bytes.get(FILE_HEADER_BYTES..)?)
            .filter(|frame| frame.sequence == expected)
            .map(|frame| frame.salt),
    }
}

/// The journal, open for writing.
pub struct Journal {
    dir: PathBuf,
    file_bytes: u64,
    file: Ready,
    position: u64,
    last_sequence: u64,
    synced_sequence: Arc<AtomicU64>,
    /// Earlier files that may not be durable yet, with their last sequences.
    unsynced: Vec<(u64, Ready)>,
    /// Earlier files that the checkpoint still needs.
    kept: Vec<u64>,
    next: Arc<Mutex<NextFiles>>,
    written_bytes: u64,
    /// Set after an error that makes the disk's content unknown. No thread writes any more then: a
    /// frame in this file would contradict the next file's header, and a second sync could falsely
    /// succeed.
    broken: Arc<AtomicBool>,
}

/// A sync of everything written before it began.
#[must_use]
pub struct JournalSync {
    files: Vec<Arc<dyn DiskFile>>,
    sequence: u64,
    synced_sequence: Arc<AtomicU64>,
    broken: Arc<AtomicBool>,
}

impl JournalSync {
    /// The last sequence that it covers.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Runs the sync; frames may be written meanwhile.
    ///
    /// # Errors
    /// The disk's, and final: it is unknown then what is durable, and a second try could falsely
    /// succeed.
    pub fn run(self) -> io::Result<u64> {
        refuse_broken(&self.broken)?;
        let synced = self.files.iter().try_for_each(|file| file.sync_data());
        let synced = synced.map_err(final_error);
        break_if_failed(&self.broken, &synced);
        synced?;
        self.synced_sequence
            .fetch_max(self.sequence, Ordering::AcqRel);
        Ok(self.sequence)
    }
}

/// Prepares the next file before it is needed.
#[must_use]
pub struct Preparation {
    /// Whether the current file is nearly full.
    pub is_urgent: bool,
    next: Arc<Mutex<NextFiles>>,
    number: u64,
    synced: u64,
    broken: Arc<AtomicBool>,
}

impl Preparation {
    /// Runs the preparation; frames may be written meanwhile, as long as they fit into the current
    /// file.
    ///
    /// # Errors
    /// The disk's; final if it is the error of a sync. A full disk is not an error here: the append
    /// that needs the file will meet it.
    pub fn run(self) -> io::Result<()> {
        refuse_broken(&self.broken)?;
        let mut next = self.next.lock();
        let prepared = next.prepare(self.number, files::LEFT_BY_MESSAGES, self.synced);
        drop(next);
        break_if_failed(&self.broken, &prepared);
        unless_full(prepared)
    }
}

fn unless_full(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if is_full(&error) => Ok(()),
        done => done,
    }
}

fn refuse_broken(broken: &AtomicBool) -> io::Result<()> {
    if broken.load(Ordering::Acquire) {
        return Err(io::Error::other("the journal failed before; start again"));
    }
    Ok(())
}

fn break_if_failed<T>(broken: &AtomicBool, done: &io::Result<T>) {
    if done.as_ref().is_err_and(|error| !is_full(error)) {
        broken.store(true, Ordering::Release);
    }
}

impl Journal {
    /// Continues after the end of `scan`, in a new file. All older files may be reused from now on,
    /// so their content must be durable elsewhere.
    ///
    /// # Errors
    /// The disk's.
    pub fn start(scan: JournalScan, file_bytes: u64) -> io::Result<Self> {
        let number = scan.next_file();
        let JournalScan {
            disk,
            dir,
            last_sequence,
            numbers: spares,
            ..
        } = scan;
        let mut next = NextFiles::new(disk, dir.clone(), file_bytes, spares);
        let file = next.take(number, 0, last_sequence)?;
        // It can wait until there is room.
        unless_full(next.reserve(number, &[]))?;
        Ok(Self {
            dir,
            file_bytes,
            file,
            position: FILE_HEADER_BYTES as u64,
            last_sequence,
            synced_sequence: Arc::new(AtomicU64::new(last_sequence)),
            unsynced: Vec::new(),
            kept: Vec::new(),
            next: Arc::new(Mutex::new(next)),
            written_bytes: 0,
            broken: Arc::default(),
        })
    }

    /// The largest body of a frame when files have `file_bytes`.
    #[must_use]
    pub fn body_bytes_max(file_bytes: u64) -> usize {
        let overhead = (FILE_HEADER_BYTES + FRAME_HEADER_BYTES + FRAME_ALIGN_BYTES) as u64;
        usize::try_from(file_bytes.saturating_sub(overhead)).unwrap_or(usize::MAX)
    }

    /// Makes sure that there is room for a frame with a body of at most this many bytes. Some files
    /// are reserved for frames without messages. If the journal may not grow, only existing files
    /// are used.
    ///
    /// # Errors
    /// Like [`Journal::append`].
    pub fn make_room(
        &mut self,
        body_bytes: usize,
        brings_messages: bool,
        may_grow: bool,
    ) -> io::Result<()> {
        let number = self.file.number + 1;
        let most = (FRAME_HEADER_BYTES + body_bytes).next_multiple_of(FRAME_ALIGN_BYTES);
        if self.position + most as u64 <= self.file_bytes {
            return Ok(());
        }
        let left = match brings_messages {
            true => files::LEFT_BY_MESSAGES,
            false => files::LEFT_BY_FRAMES,
        };
        let synced = self.synced_sequence();
        self.unless_broken(|journal| {
            let mut next = journal.next.lock();
            if !may_grow && next.lacks(number) && !next.has_spare(left) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            next.prepare(number, left, synced)
        })
    }

    /// Whether all reserved files exist; this is not so while a checkpoint is running.
    #[must_use]
    pub fn has_reserved(&self) -> bool {
        self.next.lock().has_reserved()
    }

    /// Creates missing reserved files, and removes spares beyond them: for a full disk.
    ///
    /// # Errors
    /// Like [`Journal::append`].
    pub fn reserve(&mut self) -> io::Result<()> {
        self.unless_broken(|journal| {
            let below = journal.file.number;
            let mut next = journal.next.lock();
            next.give_up_others()?;
            next.reserve(below, &journal.kept)
        })
    }

    /// Writes a frame to the page cache; returns its sequence.
    ///
    /// # Errors
    /// If the disk is full ([`crate::disk::is_full`]), nothing was written, and the same call may
    /// succeed later. After any other error it is unknown what was written.
    pub fn append(&mut self, frame: &mut FrameBuffer) -> io::Result<u64> {
        self.unless_broken(|journal| journal.append_frame(frame))
    }

    fn append_frame(&mut self, frame: &mut FrameBuffer) -> io::Result<u64> {
        let stride = frame.stride();
        if self.position + stride > self.file_bytes {
            self.next_file(files::LEFT_BY_FRAMES)?;
        }
        assert!(
            self.position + stride <= self.file_bytes,
            "a frame fits one file"
        );
        let sequence = self.last_sequence + 1;
        let synced = self.synced_sequence();
        frame.write(
            &*self.file.handles[0],
            self.position,
            [self.file.salt, sequence, synced],
        )?;
        self.position += stride;
        self.written_bytes += stride;
        self.last_sequence = sequence;
        Ok(sequence)
    }

    /// A sync of every frame so far, with the handles of number `who`, below [`SYNCS_AT_ONCE_MAX`].
    pub fn begin_sync(&mut self, who: usize) -> JournalSync {
        let synced = self.synced_sequence();
        self.unsynced.retain(|(last, _)| *last > synced);
        let before = self.unsynced.iter().map(|(_, file)| &file.handles);
        let files = before.chain([&self.file.handles]);
        JournalSync {
            files: files.map(|handles| Arc::clone(&handles[who])).collect(),
            sequence: self.last_sequence,
            synced_sequence: Arc::clone(&self.synced_sequence),
            broken: Arc::clone(&self.broken),
        }
    }

    /// Makes every frame durable.
    ///
    /// # Errors
    /// Like [`JournalSync::run`].
    pub fn sync(&mut self) -> io::Result<()> {
        self.begin_sync(0).run().map(drop)
    }

    fn unless_broken<T>(&mut self, act: impl FnOnce(&mut Self) -> io::Result<T>) -> io::Result<T> {
        refuse_broken(&self.broken)?;
        let done = act(self);
        break_if_failed(&self.broken, &done);
        done
    }

    /// The preparation of the next file, once the current one is half full.
    pub fn preparation(&self) -> Option<Preparation> {
        let number = self.file.number + 1;
        // A running preparation holds the lock.
        let is_due = self.position > self.file_bytes / 2
            && self.next.try_lock().is_some_and(|next| next.lacks(number));
        is_due.then(|| Preparation {
            is_urgent: self.position > self.file_bytes / 4 * 3,
            next: Arc::clone(&self.next),
            number,
            synced: self.synced_sequence(),
            broken: Arc::clone(&self.broken),
        })
    }

    /// Continues in a new file and returns its number: a checkpoint of everything up to now needs
    /// only files from this number on.
    ///
    /// # Errors
    /// Like [`Journal::append`].
    pub fn rotate(&mut self) -> io::Result<u64> {
        if self.position == FILE_HEADER_BYTES as u64 {
            return Ok(self.file.number); // nothing in it yet
        }
        self.unless_broken(|journal| journal.next_file(0))
    }

    /// Continues in the next file, leaving `reserved` spares unused.
    fn next_file(&mut self, reserved: usize) -> io::Result<u64> {
        let number = self.file.number + 1;
        let synced = self.synced_sequence();
        let next = self.next.lock().take(number, reserved, synced)?;
        let before = std::mem::replace(&mut self.file, next);
        self.kept.push(before.number);
        self.unsynced.push((self.last_sequence, before));
        self.position = FILE_HEADER_BYTES as u64;
        Ok(number)
    }

    /// Frees the files before `number`, which a checkpoint has made unnecessary.
    ///
    /// # Errors
    /// The disk's; files that could not be removed only take space.
    pub fn recycle_before(&mut self, number: u64) -> io::Result<()> {
        let (free, kept) = self.kept.drain(..).partition(|&kept| kept < number);
        self.kept = kept;
        self.unsynced.retain(|(_, file)| file.number >= number);
        let free: Vec<u64> = free;
        self.next.lock().give_back(free)
    }

    /// The sequence of the last frame written.
    #[must_use]
    pub fn last_sequence(&self) -> u64 {
        self.last_sequence
    }

    /// The highest sequence known to be durable.
    #[must_use]
    pub fn synced_sequence(&self) -> u64 {
        self.synced_sequence.load(Ordering::Acquire)
    }

    /// The sequence up to which everything is known to be durable, and the number of the current
    /// file.
    #[must_use]
    pub fn durable(&self) -> (u64, u64) {
        (self.synced_sequence(), self.file.number)
    }

    /// Bytes written since the start, over all files.
    #[must_use]
    pub fn written_bytes(&self) -> u64 {
        self.written_bytes
    }

    /// Where the files are.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

fn read_whole(disk: &dyn Disk, path: &Path) -> io::Result<Bytes> {
    let file = disk.open(path)?;
    let mut bytes = vec![0; usize::try_from(file.length()?).map_err(io::Error::other)?];
    let count = file.read_at(&mut bytes, 0)?;
    bytes.truncate(count);
    Ok(bytes.into())
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
