//! Restores a data directory from a backup. Until it is complete, a host refuses to start on it.
//!
//! A restored directory is a different one from the original, which may have continued and issued
//! producer ids that are unknown here. So ids issued here from now on are different ones.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use millrace_log::disk::{FileSystem, final_error, is_full};
use millrace_log::inspect::ReadOnlyDisk;
use millrace_log::{Disk, RealDisk};

use super::receiving::{ReceiveError, Unpacking};
use crate::ground::open_error::OpenError;
use crate::keep::backup::manifest::{Flaw, Manifest, ManifestError};
use crate::keep::backup::tar::{Piece, Reader};
use crate::keep::backup::{CHECKPOINT, PIECE_BYTES, make_private};
use crate::keep::checkpoint::CheckpointStore;
use crate::keep::runs;
use crate::start::lock::{DirLock, lock};

/// The name of the database until the restore is complete.
const UNFINISHED: &str = "checkpoint.restored";
/// The content of its final path until then; a host refuses this, because it is not a database.
const PLACEHOLDER: &[u8] = b"A backup was being restored here, and that did not come to its end. Remove this directory and restore again.\n";

/// Why nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The directory is not empty; existing files are not overwritten.
    #[error("{} is not empty", dir.display())]
    NotEmpty {
        /// The directory.
        dir: PathBuf,
    },
    /// Another process uses the directory.
    #[error("{} is used by another millrace process", dir.display())]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// There is no backup, or it cannot be read.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The backup is incomplete.
    #[error("this is not a complete backup: {0}")]
    Malformed(String),
    /// The checkpoint is unusable; the rest is useless without it.
    #[error("the backup's checkpoint is damaged: {0}")]
    Checkpoint(String),
    /// The disk is full.
    #[error("the disk under {} is full", dir.display())]
    DiskFull {
        /// The directory.
        dir: PathBuf,
    },
    /// A disk failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory in question.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// What was restored.
#[derive(Clone, Debug)]
pub struct Restored {
    /// The manifest of the backup.
    pub manifest: Manifest,
    /// Damaged files; all others are as they were.
    pub flaws: Vec<Flaw>,
    /// Topics by name, with their partition counts.
    pub topics: Vec<(String, u32)>,
}

/// A data directory that is being restored from an archive or a backup's directory.
pub struct Restorer {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    unpacking: Unpacking,
    reader: Reader,
    file_system: Arc<dyn FileSystem>,
    _lock: DirLock,
}

/// Restores a data directory from a backup's directory. Blocks, and must not be called within an
/// async runtime. `progress` gets the bytes read and the total.
///
/// # Errors
/// [`RestoreError`].
pub fn restore(
    from: &Path,
    to: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Restored, RestoreError> {
    let disk = ReadOnlyDisk;
    let manifest = Manifest::read(&disk, from)?;
    let mut restorer = Restorer::begin(to)?;
    let (mut read, total) = (0, manifest.byte_count());
    let mut flaws = Vec::new();
    for entry in &manifest.files {
        let path = entry.stands_at(from);
        let mut copy = || -> io::Result<()> {
            let file = disk.open(&path)?;
            let (name, bytes) = (&*entry.path, entry.bytes);
            restorer.unpacking.take(Piece::Begin { name, bytes })?;
            let mut piece = vec![0; PIECE_BYTES];
            let mut at = 0;
            loop {
                let count = file.read_at(&mut piece, at)?;
                if count == 0 {
                    break;
                }
                restorer.unpacking.take(Piece::Data(&piece[..count]))?;
                at += count as u64;
                read += count as u64;
                progress(read, total);
            }
            restorer.unpacking.take(Piece::End)
        };
        let Err(error) = copy() else { continue };
        match restorer.unpacking.explain(error) {
            ReceiveError::Io { path, source } => return Err(restorer.failed(path, source)),
            // The file could not be read.
            error => flaws.push(Flaw {
                path: entry.path.clone(),
                what: format!("it is missing, or cannot be read ({error})"),
            }),
        }
    }
    restorer.finish_of(manifest, flaws)
}

impl Restorer {
    /// Begins in an empty directory, or creates one.
    ///
    /// # Errors
    /// [`RestoreError`]; existing files are unchanged.
    pub fn begin(dir: &Path) -> Result<Self, RestoreError> {
        // The database is always on the machine's own disk.
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let io = |source| RestoreError::Io {
            path: dir.to_owned(),
            source,
        };
        let is_other = |name: &String| name != "lost+found";
        if disk.list(dir).map_err(io)?.iter().any(is_other) {
            return Err(RestoreError::NotEmpty {
                dir: dir.to_owned(),
            });
        }
        make_private(dir).map_err(io)?;
        let lock = lock(dir).map_err(|error| match error {
            OpenError::InUse { dir } => RestoreError::InUse { dir },
            error => io(io::Error::other(error.to_string())),
        })?;
        let restorer = Self {
            file_system: disk.file_system(dir).map_err(io)?,
            unpacking: Unpacking::new(Arc::clone(&disk), dir.to_owned(), UNFINISHED),
            reader: Reader::default(),
            disk,
            dir: dir.to_owned(),
            _lock: lock,
        };
        restorer.prepare().map_err(io)?;
        Ok(restorer)
    }

    fn prepare(&self) -> io::Result<()> {
        let placeholder = self.disk.create(&self.dir.join(CHECKPOINT))?;
        placeholder.write_all_at(PLACEHOLDER, 0)?;
        placeholder.sync_data()?;
        for name in ["journal", "topics", "modules", runs::DIRECTORY] {
            self.disk.create_dir_all(&self.dir.join(name))?;
        }
        self.disk.sync_dir(&self.dir)
    }

    /// Receives the next bytes of an archive.
    ///
    /// # Errors
    /// [`RestoreError`].
    pub fn take(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        let unpacking = &mut self.unpacking;
        let taken = self.reader.take(bytes, &mut |piece| unpacking.take(piece));
        let Err(error) = taken else { return Ok(()) };
        match unpacking.explain(error) {
            ReceiveError::Io { path, source } => Err(self.failed(path, source)),
            error => Err(RestoreError::Malformed(error.to_string())),
        }
    }

    /// Completes the data directory. Blocks, and must not be called within an async runtime.
    ///
    /// # Errors
    /// [`RestoreError`]; a host refuses to start on the incomplete directory.
    pub fn finish(self) -> Result<Restored, RestoreError> {
        let manifest = match self.reader.is_over() {
            true => self.unpacking.manifest(),
            false => Err(ReceiveError::BrokenOff),
        };
        let manifest = manifest.map_err(|error| match error {
            ReceiveError::Earlier(error) => error.into(),
            error => RestoreError::Malformed(error.to_string()),
        })?;
        self.finish_of(manifest, Vec::new())
    }

    fn finish_of(self, manifest: Manifest, mut flaws: Vec<Flaw>) -> Result<Restored, RestoreError> {
        for file in &manifest.files {
            let what = match self.unpacking.came.get(&file.path) {
                Some(came) if *came == (file.bytes, file.sha256) => continue,
                Some(_) => "its bytes are not those that were backed up",
                None if flaws.iter().any(|flaw| flaw.path == file.path) => continue,
                None => "it did not come",
            };
            flaws.push(Flaw {
                path: file.path.clone(),
                what: what.to_owned(),
            });
        }
        if let Some(flaw) = flaws.iter().find(|flaw| flaw.path == CHECKPOINT) {
            return Err(RestoreError::Checkpoint(flaw.what.clone()));
        }
        flaws.extend(manifest.damage.iter().cloned());
        let topics = self.renew()?;
        let put = || -> io::Result<()> {
            self.file_system.sync().map_err(final_error)?;
            self.disk
                .rename(&self.dir.join(UNFINISHED), &self.dir.join(CHECKPOINT))?;
            self.disk.sync_dir(&self.dir).map_err(final_error)
        };
        put().map_err(|source| self.failed(self.dir.clone(), source))?;
        Ok(Restored {
            manifest,
            flaws,
            topics,
        })
    }

    /// Turns the database into one of a different directory; returns its topics.
    fn renew(&self) -> Result<Vec<(String, u32)>, RestoreError> {
        let path = self.dir.join(UNFINISHED);
        let mut store = CheckpointStore::open(&path, None);
        let renewed = store.as_mut().map_err(|error| error.clone());
        let renewed = renewed.and_then(CheckpointStore::renew);
        renewed.map_err(|error| match error {
            OpenError::DiskFull { dir } => RestoreError::DiskFull { dir },
            OpenError::Checkpoint { reason, .. } => RestoreError::Checkpoint(reason),
            error => RestoreError::Checkpoint(error.to_string()),
        })
    }

    fn failed(&self, path: PathBuf, source: io::Error) -> RestoreError {
        match is_full(&source) {
            true => RestoreError::DiskFull {
                dir: self.dir.clone(),
            },
            false => RestoreError::Io { path, source },
        }
    }
}
