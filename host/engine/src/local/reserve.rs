//! Room kept back on the disk, so that a full one keeps nobody from making room: two files that hold nothing but blocks. When a
//! checkpoint finds the disk full, one of them is given up, and then the other; both are made again when there is room. While
//! anything is missing, messages are refused.
//!
//! The first one is for what memory holds, which has to be in the files before a checkpoint can say that something is gone; the
//! last one is for the checkpoint itself, which keeps beside the database what it overwrites there, so that it may take as much
//! again: it grows with the database. For the journal's frames the journal keeps some of its own files back.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use millrace_log::Disk;
use millrace_log::disk::is_full;
use parking_lot::Mutex;

use super::keeper::KeepError;
use super::options::LocalOptions;

/// The files, the first to be given up first.
pub(super) const FILES: [&str; 2] = ["reserve-messages", "reserve-checkpoint"];
/// In which `st_blocks` counts, whatever the file system's own are.
const BLOCK_BYTES: u64 = 512;
const LAST: usize = FILES.len() - 1;

pub(super) struct Reserve {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    bytes: [u64; FILES.len()],
    /// What the last one has beyond that, for a checkpoint that is larger than it.
    beyond: AtomicU64,
    /// What changes of state that stands in files may come to, which are written down before a checkpoint is.
    state_bytes: u64,
    /// Whether there is such state, and the first one has as much beyond that.
    has_state: AtomicBool,
    held: Mutex<Held>,
    is_full: AtomicBool,
}

struct Held {
    /// The first file that holds anything, perhaps less than it should.
    first: usize,
    /// The last one was given up, and is not whole again.
    lacks_last: bool,
}

/// What a former process took beyond the least of the last file, in whole steps. The file's length does not say.
fn beyond_of(dir: &Path, options: &LocalOptions) -> u64 {
    let least = options.reserved_bytes()[LAST];
    let found = std::fs::metadata(dir.join(FILES[LAST]));
    let blocks = found.map_or(0, |file| file.blocks() * BLOCK_BYTES);
    blocks.saturating_sub(least) / least.max(1) * least
}

impl Reserve {
    /// What a former process left of it counts until it is needed, or made anew.
    pub(super) fn new(disk: Arc<dyn Disk>, dir: &Path, options: &LocalOptions) -> Self {
        Self {
            disk,
            dir: dir.to_owned(),
            bytes: options.reserved_bytes(),
            beyond: AtomicU64::new(beyond_of(dir, options)),
            state_bytes: options.state_changes_bytes() as u64,
            has_state: AtomicBool::new(false),
            held: Mutex::new(Held {
                first: 0,
                lacks_last: false,
            }),
            is_full: AtomicBool::new(false),
        }
    }

    /// Does what makes room; on a full disk at the cost of the reserve.
    pub(super) fn spend<T>(
        &self,
        mut act: impl FnMut() -> Result<T, KeepError>,
    ) -> Result<T, KeepError> {
        loop {
            match act() {
                Err(KeepError::Full) if self.give_up() => {}
                done => return done,
            }
        }
    }

    /// Gives up the next file; false if there is none left.
    pub(super) fn give_up(&self) -> bool {
        self.set_full(true);
        let mut held = self.held.lock();
        let Some(name) = FILES.get(held.first) else {
            return false;
        };
        // Only what is durably gone is free.
        let removed = self.disk.remove(&self.dir.join(name));
        let removed = removed.and_then(|()| self.disk.sync_dir(&self.dir));
        if let Err(error) = removed {
            tracing::warn!(file = name, %error, "the reserve could not be released");
            return false;
        }
        held.first += 1;
        held.lacks_last |= held.first > LAST;
        tracing::debug!(file = name, "the reserve was released for a checkpoint");
        true
    }

    /// Whether what is left on the disk is for what frees some, and for nothing else.
    pub(super) fn is_spent(&self) -> bool {
        self.held.lock().lacks_last
    }

    /// Sees to it that a checkpoint of so many bytes can be written over, and where state stands in files what changes of it before that.
    pub(super) fn fit(&self, checkpoint_bytes: u64, has_state: bool) {
        // What was held for it is given back when the file is made anew.
        if has_state && !self.has_state.swap(has_state, Ordering::Relaxed) && !self.is_full() {
            self.set_full(!self.fill());
        }
        self.has_state.store(has_state, Ordering::Relaxed);
        let step = self.bytes[LAST].max(1);
        let beyond = checkpoint_bytes / step * step;
        let before = self.beyond.load(Ordering::Relaxed);
        // Not for every step: a checkpoint that is now a little smaller and now a little larger costs nothing.
        let shrinks = beyond + 2 * step <= before;
        if before >= beyond && !shrinks || self.is_full() {
            self.beyond.fetch_max(beyond, Ordering::Relaxed);
            return;
        }
        // Room that was taken beyond a file's end goes only with the file.
        if shrinks && !self.remove_last() {
            return;
        }
        self.beyond.store(beyond, Ordering::Relaxed);
        if !self.fill() {
            self.set_full(true);
        }
    }

    fn remove_last(&self) -> bool {
        let _held = self.held.lock();
        let removed = self.disk.remove(&self.dir.join(FILES[LAST]));
        removed
            .inspect_err(|error| tracing::warn!(%error, "the reserve could not be restored"))
            .is_ok()
    }

    /// Makes it whole, the last to be given up first; whether it is. What there is room for is kept, so that nobody else takes it.
    pub(super) fn fill(&self) -> bool {
        let mut held = self.held.lock();
        for at in (0..FILES.len()).rev() {
            held.first = held.first.min(at);
            if let Err(error) = self.make(at) {
                if !is_full(&error) {
                    tracing::warn!(file = FILES[at], %error, "space could not be reserved");
                }
                return false;
            }
            held.lacks_last = false;
        }
        true
    }

    fn make(&self, at: usize) -> io::Result<()> {
        let path = self.dir.join(FILES[at]);
        let file = match self.disk.open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.disk.create(&path)?,
            opened => opened?,
        };
        // Blocks that it has already cost nothing again.
        file.preallocate(self.wanted_bytes(at), false)
    }

    fn wanted_bytes(&self, at: usize) -> u64 {
        match at {
            LAST => self.bytes[at] + self.beyond.load(Ordering::Relaxed),
            _ if self.has_state.load(Ordering::Relaxed) => self.bytes[at] + self.state_bytes,
            _ => self.bytes[at],
        }
    }

    /// Whether messages are refused for want of room.
    pub(super) fn is_full(&self) -> bool {
        self.is_full.load(Ordering::Relaxed)
    }

    /// Says whether there is room; whether that is new.
    pub(super) fn set_full(&self, full: bool) -> bool {
        let changes = self.is_full.swap(full, Ordering::Relaxed) != full;
        if changes && full {
            tracing::warn!(
                reserve_bytes = (0..FILES.len())
                    .map(|at| self.wanted_bytes(at))
                    .sum::<u64>(),
                "the disk is full, or has room for no more files (`df -i`), or a file may not grow (`ulimit -f`), or too many are open (`ulimit -n`): messages are refused. Free some space, \
                 or delete or trim topics; the engine goes on by itself when it could reserve as much again"
            );
        } else if changes {
            tracing::info!("the disk has space again: messages are accepted");
        }
        metrics::gauge!("millrace_disk_full").set(f64::from(u8::from(full)));
        changes
    }
}
