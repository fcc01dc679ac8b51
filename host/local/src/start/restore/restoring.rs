//! A data directory made of a backup. Until all is there a host refuses to start on it.
//!
//! What is restored is another directory than the one that was backed up: the old one may have gone on, and have given ids to producers
//! that nobody knows here. So those that are given from now on are others.

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

/// Where the database stands until it takes its place.
const UNFINISHED: &str = "checkpoint.restored";
/// What stands in its place until then; a host refuses it as no database.
const PLACEHOLDER: &[u8] = b"A backup was being restored here, and that did not come to its end. Remove this directory and restore again.\n";

/// Why nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// Something is there, and is not written over.
    #[error("{} is not empty", dir.display())]
    NotEmpty {
        /// The directory.
        dir: PathBuf,
    },
    /// Another process is at it.
    #[error("{} is used by another millrace process", dir.display())]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// It is none, or cannot be read.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// It is not whole.
    #[error("this is not a complete backup: {0}")]
    Malformed(String),
    /// Without it the rest is of no use.
    #[error("the backup's checkpoint is damaged: {0}")]
    Checkpoint(String),
    /// No room for it.
    #[error("the disk under {} is full", dir.display())]
    DiskFull {
        /// The directory.
        dir: PathBuf,
    },
    /// A disk failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// What was restored.
#[derive(Clone, Debug)]
pub struct Restored {
    /// Of which backup.
    pub manifest: Manifest,
    /// What is damaged in it; all else is as it was.
    pub flaws: Vec<Flaw>,
    /// Topics by name, with how many partitions each has.
    pub topics: Vec<(String, u32)>,
}

/// A data directory that is being made of an archive, or of a backup's directory.
pub struct Restorer {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    unpacking: Unpacking,
    reader: Reader,
    file_system: Arc<dyn FileSystem>,
    _lock: DirLock,
}

/// Makes a data directory of the backup in a directory. Blocks, and must not be called from within an async runtime. `progress` is told of bytes that were read, and of how many there are.
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
            // It could not be read.
            error => flaws.push(Flaw {
                path: entry.path.clone(),
                what: format!("it is missing, or cannot be read ({error})"),
            }),
        }
    }
    restorer.finish_of(manifest, flaws)
}

impl Restorer {
    /// Begins with an empty directory, or makes one.
    ///
    /// # Errors
    /// [`RestoreError`]; nothing that was there is changed.
    pub fn begin(dir: &Path) -> Result<Self, RestoreError> {
        // The database is on the machine's own disk in any case.
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

    /// Takes the next bytes of an archive.
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

    /// Makes a data directory of what came. Blocks, and must not be called from within an async runtime.
    ///
    /// # Errors
    /// [`RestoreError`]; a host refuses to start on what is there.
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

    /// Makes the database one of another directory; its topics.
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
