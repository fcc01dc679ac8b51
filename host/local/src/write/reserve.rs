//! Reserved disk space, so that space can be freed even on a full disk: two files of empty blocks.
//! When a checkpoint finds the disk full, first one of them is given up, then the other; both are
//! restored when there is space. While any of it is missing, messages are refused.
//!
//! The first file is for batches in memory, which must be in the files before a checkpoint can
//! record a deletion. The last one is for the checkpoint itself: its rollback journal has a copy of
//! everything that it overwrites and may be as large as the database, so this reserve grows with
//! the database. For frames, the journal reserves some of its own files.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use millrace_log::Disk;
use millrace_log::disk::is_full;
use parking_lot::Mutex;

use crate::ground::keep_error::KeepError;
use crate::ground::options::LocalOptions;

/// The files, in the order in which they are given up.
pub(crate) const FILES: [&str; 2] = ["reserve-messages", "reserve-checkpoint"];
/// The unit of `st_blocks`, whatever the block size of the file system.
const BLOCK_BYTES: u64 = 512;
const LAST: usize = FILES.len() - 1;

pub(crate) struct Reserve {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    bytes: [u64; FILES.len()],
    /// Additional bytes of the last file, for a larger checkpoint.
    beyond: AtomicU64,
    /// Maximum bytes of changes of paged state, which are written before a checkpoint.
    state_bytes: u64,
    /// Whether there is paged state, for which the first file has additional bytes.
    has_state: AtomicBool,
    held: Mutex<Held>,
    is_full: AtomicBool,
}

struct Held {
    /// The first file that is not empty; it may be incomplete.
    first: usize,
    /// Whether the last file was given up and is not complete again.
    lacks_last: bool,
}

/// Bytes that a previous process reserved beyond the minimum of the last file, in whole steps. The
/// file's length does not show this.
fn beyond_of(dir: &Path, options: &LocalOptions) -> u64 {
    let least = options.reserved_bytes()[LAST];
    let found = std::fs::metadata(dir.join(FILES[LAST]));
    let blocks = found.map_or(0, |file| file.blocks() * BLOCK_BYTES);
    blocks.saturating_sub(least) / least.max(1) * least
}

impl Reserve {
    /// Adopts the files of a previous process until they are needed or restored.
    pub(crate) fn new(disk: Arc<dyn Disk>, dir: &Path, options: &LocalOptions) -> Self {
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

    /// Does work that frees space; on a full disk at the expense of the reserve.
    pub(crate) fn spend<T>(
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

    /// Gives up the next file; false if none is left.
    pub(crate) fn give_up(&self) -> bool {
        self.set_full(true);
        let mut held = self.held.lock();
        let Some(name) = FILES.get(held.first) else {
            return false;
        };
        // Space is free only once the removal is durable.
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

    /// Whether the remaining disk space is only for work that frees space.
    pub(crate) fn is_spent(&self) -> bool {
        self.held.lock().lacks_last
    }

    /// Adapts the reserve so that a checkpoint of this many bytes can be rewritten, and changes of
    /// paged state before it.
    pub(crate) fn fit(&self, checkpoint_bytes: u64, has_state: bool) {
        // The additional bytes are returned when the file is created again.
        if has_state && !self.has_state.swap(has_state, Ordering::Relaxed) && !self.is_full() {
            self.set_full(!self.fill());
        }
        self.has_state.store(has_state, Ordering::Relaxed);
        let step = self.bytes[LAST].max(1);
        let beyond = checkpoint_bytes / step * step;
        let before = self.beyond.load(Ordering::Relaxed);
        // Only in larger steps, so that small changes of the checkpoint's size cost nothing.
        let shrinks = beyond + 2 * step <= before;
        if before >= beyond && !shrinks || self.is_full() {
            self.beyond.fetch_max(beyond, Ordering::Relaxed);
            return;
        }
        // Space reserved beyond a file's end is released only with the file.
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

    /// Restores the files, the last one first; true if they are complete. Whatever there is room
    /// for is kept, so that nothing else takes it.
    pub(crate) fn fill(&self) -> bool {
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
        // Blocks that the file already has cost nothing.
        file.preallocate(self.wanted_bytes(at), false)
    }

    fn wanted_bytes(&self, at: usize) -> u64 {
        match at {
            LAST => self.bytes[at] + self.beyond.load(Ordering::Relaxed),
            _ if self.has_state.load(Ordering::Relaxed) => self.bytes[at] + self.state_bytes,
            _ => self.bytes[at],
        }
    }

    /// Whether messages are refused because the disk is full.
    pub(crate) fn is_full(&self) -> bool {
        self.is_full.load(Ordering::Relaxed)
    }

    /// Sets whether the disk is full; true if this is a change.
    pub(crate) fn set_full(&self, full: bool) -> bool {
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
