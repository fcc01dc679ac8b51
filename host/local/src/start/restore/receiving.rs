//! Receives a backup into a directory. An existing backup stays complete until the new one is.
//!
//! The files of each run are in their own directory, `run-NUMBER`. Unchanged files stay where an
//! earlier run put them. When everything is durable, the new manifest replaces the old one, and
//! then files that it does not name are removed.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use millrace_engine::backup::BackupRequest;
use millrace_log::disk::{FileSystem, final_error};
use millrace_log::{Disk, DiskFile, RealDisk};
use millrace_model::Digest;
use sha2::{Digest as _, Sha256};

use crate::ground::open_error::OpenError;
use crate::keep::backup::manifest::{
    BackupFile, MANIFEST, MANIFEST_BYTES_MAX, Manifest, ManifestError, is_of_backup, run_name,
    run_number,
};
use crate::keep::backup::tar::{Piece, Reader};
use crate::keep::backup::{CHECKPOINT, make_private};
use crate::start::lock::{DirLock, lock_file};

const UNFINISHED: &str = "backup.json.unfinished";
/// The lock file of a backup being written. It also marks the directory as one for backups.
const LOCK: &str = "backup.lock";
/// The prefix of temporary directories in which a backup is assembled for verification; leftover
/// ones can be removed.
pub(crate) const LOOKED_AT: &str = ".verify-";
/// Maximum number of files that a request lists as known; further ones are copied again.
const KNOWN_FILES_MAX: usize = 250_000;

/// Why no backup was received. An existing backup is unchanged.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The directory contains other files.
    #[error("{} contains files that are not part of a backup", dir.display())]
    NotOurs {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory belongs to a host.
    #[error("{} is in the data directory {}", dir.display(), data_dir.display())]
    InDataDirectory {
        /// The requested directory.
        dir: PathBuf,
        /// The host's data directory.
        data_dir: PathBuf,
    },
    /// Another backup is being written there.
    #[error("another backup is being written to {}", dir.display())]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// The existing backup cannot be continued.
    #[error(transparent)]
    Earlier(ManifestError),
    /// The archive ended before its manifest.
    #[error("the backup was interrupted")]
    BrokenOff,
    /// The archive does not match its manifest.
    #[error("the received data is not a backup, or was changed on its way: {0}")]
    Malformed(String),
    /// The directory's disk failed, or is full.
    #[error("{} cannot be written: {source}", path.display())]
    Io {
        /// The file or directory in question.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// A received backup.
#[derive(Clone, Debug)]
pub struct Received {
    /// The manifest of the backup that is there now.
    pub manifest: Manifest,
    /// The number of files that were sent, and their bytes.
    pub copied: (usize, u64),
}

/// A directory into which a backup is being written.
pub struct Receiver {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    run: String,
    earlier: Option<Manifest>,
    /// Whether the backup continues an earlier one.
    goes_on: bool,
    unpacking: Unpacking,
    reader: Reader,
    file_system: Arc<dyn FileSystem>,
    _lock: DirLock,
}

impl Receiver {
    /// Creates the directory if it does not exist, and checks its content. With `anew`, everything
    /// is copied again.
    ///
    /// # Errors
    /// [`ReceiveError`]; existing files are unchanged.
    pub fn begin(dir: &Path, anew: bool) -> Result<Self, ReceiveError> {
        Self::begin_on(Arc::new(RealDisk), dir, anew)
    }

    /// Like [`Receiver::begin`], with the files on `disk`; the lock is on the machine's own disk.
    ///
    /// # Errors
    /// [`ReceiveError`]; existing files are unchanged.
    pub fn begin_on(disk: Arc<dyn Disk>, dir: &Path, anew: bool) -> Result<Self, ReceiveError> {
        refuse_data_directory(dir)?;
        let io = |source| ReceiveError::Io {
            path: dir.to_owned(),
            source,
        };
        let earlier = match Manifest::read(&*disk, dir) {
            Ok(earlier) => Some(earlier),
            Err(ManifestError::Missing { .. }) => {
                refuse_other_files(&*disk, dir)?;
                None
            }
            Err(ManifestError::Damaged(_)) if anew => None,
            Err(error) => return Err(ReceiveError::Earlier(error)),
        };
        make_private(dir).map_err(io)?;
        disk.create_dir_all(dir).map_err(io)?;
        let lock = lock_file(dir, LOCK).map_err(|error| match error {
            OpenError::InUse { dir } => ReceiveError::InUse { dir },
            error => io(io::Error::other(error.to_string())),
        })?;
        let file_system = disk.file_system(dir).map_err(io)?;
        let runs = disk.list(dir).map_err(io)?;
        let last = runs.iter().filter_map(|name| run_number(name)).max();
        let run = run_name(last.unwrap_or(0) + 1);
        let root = dir.join(&run);
        let receiver = Self {
            unpacking: Unpacking::new(Arc::clone(&disk), root, CHECKPOINT),
            disk,
            dir: dir.to_owned(),
            run,
            goes_on: !anew,
            earlier,
            reader: Reader::default(),
            file_system,
            _lock: lock,
        };
        // Files left by an interrupted backup take space.
        if let Some(earlier) = &receiver.earlier {
            receiver.sweep(earlier).map_err(io)?;
        }
        Ok(receiver)
    }

    /// The request for the host.
    #[must_use]
    pub fn request(&self) -> BackupRequest {
        let earlier = self.earlier.as_ref();
        let mut known = earlier
            .filter(|_| self.goes_on)
            .map_or_else(Vec::new, |earlier| {
                let dir = &self.dir;
                let there = |file: &BackupFile| {
                    let found = self.disk.open(&file.stands_at(dir));
                    found
                        .and_then(|f| f.length())
                        .is_ok_and(|bytes| bytes == file.bytes)
                };
                let there: BTreeSet<&str> = earlier
                    .files
                    .iter()
                    .filter(|file| there(file))
                    .map(|file| &*file.path)
                    .collect();
                let mut known = earlier.known();
                known.retain(|known| there.contains(&*known.path));
                known
            });
        known.truncate(KNOWN_FILES_MAX);
        BackupRequest {
            directory: earlier.map(|earlier| earlier.directory.clone()),
            known,
        }
    }

    /// Receives the next bytes of the archive.
    ///
    /// # Errors
    /// [`ReceiveError`].
    pub fn take(&mut self, bytes: &[u8]) -> Result<(), ReceiveError> {
        let unpacking = &mut self.unpacking;
        let taken = self.reader.take(bytes, &mut |piece| unpacking.take(piece));
        taken.map_err(|error| unpacking.explain(error))
    }

    /// Replaces the old backup with the new one, once all of it is durable.
    ///
    /// # Errors
    /// [`ReceiveError`]; the old backup is unchanged.
    pub fn finish(mut self) -> Result<Received, ReceiveError> {
        let finished = self.try_finish();
        if finished.is_err() {
            // Its remains take space; the next backup would remove them too.
            let _ = self.disk.remove_dir_all(&self.dir.join(&self.run));
        }
        finished
    }

    fn try_finish(&mut self) -> Result<Received, ReceiveError> {
        if !self.reader.is_over() {
            return Err(ReceiveError::BrokenOff);
        }
        let mut manifest = self.unpacking.manifest()?;
        let earlier = self.earlier.take();
        let files = earlier.iter().flat_map(|earlier| &earlier.files);
        let known: BTreeMap<&str, &BackupFile> = files.map(|file| (&*file.path, file)).collect();
        let mut copied = (0, 0);
        let mut stayed = BTreeSet::new();
        for file in &mut manifest.files {
            if let Some(came) = self.unpacking.came.get(&file.path) {
                if *came != (file.bytes, file.sha256) {
                    return Err(changed(&file.path));
                }
                file.run.clone_from(&self.run);
                copied = (copied.0 + 1, copied.1 + file.bytes);
                continue;
            }
            let known = known.get(&*file.path);
            let same =
                |known: &&&BackupFile| (known.bytes, known.sha256) == (file.bytes, file.sha256);
            let Some(known) = known.filter(same) else {
                let what = format!("{} did not come", file.path);
                return Err(ReceiveError::Malformed(what));
            };
            file.run.clone_from(&known.run);
            stayed.insert(file.path.clone());
        }
        // Files that were not copied again are still as damaged as before.
        let flaws = earlier.iter().flat_map(|earlier| &earlier.damage);
        let flaws = flaws.filter(|flaw| stayed.contains(&flaw.path)).cloned();
        manifest.damage.extend(flaws);
        self.put(&manifest).map_err(|source| ReceiveError::Io {
            path: self.dir.join(MANIFEST),
            source,
        })?;
        // The backup is finished; remains of others only take space.
        let _ = self.sweep(&manifest);
        Ok(Received { manifest, copied })
    }

    fn put(&self, manifest: &Manifest) -> io::Result<()> {
        // All files and their names must be durable before the manifest names them.
        self.file_system.sync().map_err(final_error)?;
        let unfinished = self.dir.join(UNFINISHED);
        let file = self.disk.create(&unfinished)?;
        file.write_all_at(&manifest.encode()?, 0)?;
        file.sync_data().map_err(final_error)?;
        self.disk.rename(&unfinished, &self.dir.join(MANIFEST))?;
        self.disk.sync_dir(&self.dir).map_err(final_error)
    }

    /// Removes files that the manifest does not name.
    fn sweep(&self, manifest: &Manifest) -> io::Result<()> {
        let named: BTreeSet<PathBuf> = manifest
            .files
            .iter()
            .map(|file| file.stands_at(&self.dir))
            .collect();
        for name in self.disk.list(&self.dir)? {
            if run_number(&name).is_some() {
                sweep_under(&*self.disk, &self.dir.join(name), &named, RUN_DEPTH)?;
            }
        }
        // From a backup that a tar program unpacked here.
        for name in [CHECKPOINT, "topics", "modules", "state"] {
            sweep_under(&*self.disk, &self.dir.join(name), &named, RUN_DEPTH - 1)?;
        }
        Ok(())
    }
}

/// The depth of files in a run's directory.
const RUN_DEPTH: usize = 4;

/// Removes files that are not named, and directories without named files; true if anything is left.
fn sweep_under(
    disk: &dyn Disk,
    path: &Path,
    named: &BTreeSet<PathBuf>,
    depth: usize,
) -> io::Result<bool> {
    if named.contains(path) {
        return Ok(true);
    }
    let first = named.range(path.to_owned()..).next();
    if first.is_none_or(|first| !first.starts_with(path)) {
        // A file, or a directory without named files.
        return match disk.open(path) {
            Ok(_) => disk.remove(path).map(|()| false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(_) => disk.remove_dir_all(path).map(|()| false),
        };
    }
    if depth > 0 {
        for name in disk.list(path)? {
            sweep_under(disk, &path.join(name), named, depth - 1)?;
        }
    }
    Ok(true)
}

fn changed(path: &str) -> ReceiveError {
    ReceiveError::Malformed(format!("{path} is not as its SHA-256 says"))
}

/// Refuses a destination inside a data directory: the backup would be lost together with the
/// original, and would grow with every copy.
fn refuse_data_directory(dir: &Path) -> Result<(), ReceiveError> {
    let absolute = std::path::absolute(dir).map_err(|source| ReceiveError::Io {
        path: dir.to_owned(),
        source,
    })?;
    // Paths may contain symbolic links; the resolved path counts.
    let there = absolute.ancestors().find(|path| path.exists());
    let real = there.and_then(|there| there.canonicalize().ok());
    let real = real.unwrap_or(absolute);
    let is_data_directory = |path: &&Path| {
        let has = |name: &str| path.join(name).exists();
        !has(MANIFEST) && (has(CHECKPOINT) || has("journal")) && has("lock")
    };
    match real.ancestors().find(is_data_directory) {
        Some(data_dir) => Err(ReceiveError::InDataDirectory {
            dir: dir.to_owned(),
            data_dir: data_dir.to_owned(),
        }),
        None => Ok(()),
    }
}

/// Refuses a directory with other files: without a finished backup it must be empty, or an earlier
/// backup must have begun in it.
fn refuse_other_files(disk: &dyn Disk, dir: &Path) -> Result<(), ReceiveError> {
    let names = disk.list(dir).map_err(|source| ReceiveError::Io {
        path: dir.to_owned(),
        source,
    })?;
    let ours = |name: &String| {
        // Directories that a file system creates in its root do not count.
        [LOCK, UNFINISHED, "lost+found"].contains(&&**name)
            || run_number(name).is_some()
            || name.starts_with(LOOKED_AT)
    };
    match names.iter().all(ours) {
        true => Ok(()),
        false => Err(ReceiveError::NotOurs {
            dir: dir.to_owned(),
        }),
    }
}

/// An archive that is checked while it is passed on, not stored.
#[derive(Default)]
pub struct Passing {
    reader: Reader,
    in_manifest: bool,
    manifest: Vec<u8>,
}

impl Passing {
    /// Checks the next bytes.
    ///
    /// # Errors
    /// [`ReceiveError::Malformed`].
    pub fn take(&mut self, bytes: &[u8]) -> Result<(), ReceiveError> {
        let Self {
            in_manifest,
            manifest,
            ..
        } = self;
        let taken = self.reader.take(bytes, &mut |piece| {
            match piece {
                Piece::Begin { name, .. } => *in_manifest = name == MANIFEST,
                Piece::Data(data) if *in_manifest => manifest.extend_from_slice(data),
                Piece::Data(_) | Piece::End => {}
            }
            Ok(())
        });
        taken.map_err(|error| ReceiveError::Malformed(error.to_string()))
    }

    /// The manifest of the archive.
    ///
    /// # Errors
    /// [`ReceiveError`] if it was not a complete backup.
    pub fn finish(self) -> Result<Manifest, ReceiveError> {
        match self.reader.is_over() && !self.manifest.is_empty() {
            true => decoded(&self.manifest),
            false => Err(ReceiveError::BrokenOff),
        }
    }
}

fn decoded(manifest: &[u8]) -> Result<Manifest, ReceiveError> {
    let manifest = Manifest::decode(manifest);
    manifest.map_err(|error| match error {
        error @ ManifestError::Newer { .. } => ReceiveError::Earlier(error),
        error => ReceiveError::Malformed(error.to_string()),
    })
}

/// Writes the files of an archive under a directory.
pub(crate) struct Unpacking {
    disk: Arc<dyn Disk>,
    root: PathBuf,
    /// The name of the database's file there.
    checkpoint_name: &'static str,
    /// The directories created so far.
    made: BTreeSet<PathBuf>,
    present: Present,
    /// The received files with their lengths and digests.
    pub(crate) came: BTreeMap<String, (u64, Digest)>,
    manifest: Vec<u8>,
    has_manifest: bool,
    /// The path at which writing failed.
    failed_at: Option<PathBuf>,
}

enum Present {
    Nothing,
    Manifest,
    File {
        path: String,
        file: Arc<dyn DiskFile>,
        at: u64,
        sha256: Sha256,
    },
}

impl Unpacking {
    pub(crate) fn new(disk: Arc<dyn Disk>, root: PathBuf, checkpoint_name: &'static str) -> Self {
        Self {
            disk,
            root,
            checkpoint_name,
            made: BTreeSet::new(),
            present: Present::Nothing,
            came: BTreeMap::new(),
            manifest: Vec::new(),
            has_manifest: false,
            failed_at: None,
        }
    }

    /// The received manifest.
    pub(crate) fn manifest(&self) -> Result<Manifest, ReceiveError> {
        match self.has_manifest {
            true => decoded(&self.manifest),
            false => Err(ReceiveError::BrokenOff),
        }
    }

    pub(crate) fn take(&mut self, piece: Piece<'_>) -> io::Result<()> {
        match piece {
            Piece::Begin { name, bytes } => self.begin(name, bytes),
            Piece::Data(data) => match &mut self.present {
                Present::Nothing => Ok(()),
                Present::Manifest => {
                    self.manifest.extend_from_slice(data);
                    Ok(())
                }
                Present::File {
                    path,
                    file,
                    at,
                    sha256,
                } => {
                    sha256.update(data);
                    let written = file.write_all_at(data, *at);
                    *at += data.len() as u64;
                    if written.is_err() {
                        self.failed_at = Some(self.root.join(path));
                    }
                    written
                }
            },
            Piece::End => {
                let present = std::mem::replace(&mut self.present, Present::Nothing);
                match present {
                    Present::File {
                        path, at, sha256, ..
                    } => {
                        let sha256 = Digest(sha256.finalize().into());
                        self.came.insert(path, (at, sha256));
                    }
                    Present::Manifest => self.has_manifest = true,
                    Present::Nothing => {}
                }
                Ok(())
            }
        }
    }

    fn begin(&mut self, name: &str, bytes: u64) -> io::Result<()> {
        let invalid = |what: String| Err(io::Error::new(io::ErrorKind::InvalidData, what));
        if name == MANIFEST {
            if bytes > MANIFEST_BYTES_MAX {
                return invalid(format!("a manifest of {bytes} bytes"));
            }
            self.manifest.clear();
            self.present = Present::Manifest;
            return Ok(());
        }
        if !is_of_backup(name) || self.came.contains_key(name) {
            return invalid(format!("{name:?} has no place in a backup"));
        }
        let path = match name {
            CHECKPOINT => self.root.join(self.checkpoint_name),
            _ => self.root.join(name),
        };
        let file = self.create(&path);
        if file.is_err() {
            self.failed_at = Some(path);
        }
        self.present = Present::File {
            path: name.to_owned(),
            file: file?,
            at: 0,
            sha256: Sha256::new(),
        };
        Ok(())
    }

    fn create(&mut self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let dir = path.parent().unwrap_or(&self.root);
        if !self.made.contains(dir) {
            self.disk.create_dir_all(dir)?;
            self.made.insert(dir.to_owned());
        }
        self.disk.create(path)
    }

    pub(crate) fn explain(&mut self, error: io::Error) -> ReceiveError {
        match self.failed_at.take() {
            Some(path) => ReceiveError::Io {
                path,
                source: error,
            },
            None => ReceiveError::Malformed(error.to_string()),
        }
    }
}
