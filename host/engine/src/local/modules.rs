//! Modules' bytes: a file each, named by its digest. Beside the journal, for they are large, never change, and mean nothing
//! before an entry names them.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use millrace_log::disk::final_error;
use millrace_log::pace::Pace;
use millrace_log::{Disk, DiskFile};
use millrace_model::Digest;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

pub(super) const SUFFIX: &str = ".wasm";
pub(super) const UNFINISHED_SUFFIX: &str = ".unfinished";

pub(super) struct ModuleFiles {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    /// One writer at a time.
    writing: Mutex<()>,
}

impl ModuleFiles {
    /// The files in `dir`; those that a crash left unfinished are removed, and the others are durable on return: a process that
    /// was killed may have left names that only the page cache knows.
    pub(super) fn open(disk: Arc<dyn Disk>, dir: PathBuf) -> io::Result<Self> {
        for name in disk.list(&dir)? {
            if name.ends_with(UNFINISHED_SUFFIX) {
                disk.remove(&dir.join(name))?;
            }
        }
        disk.sync_dir(&dir).map_err(final_error)?;
        Ok(Self {
            disk,
            dir,
            writing: Mutex::new(()),
        })
    }

    /// Keeps a module, durable on return: whole under its name, or not there.
    pub(super) fn put(&self, digest: Digest, bytes: &[u8]) -> io::Result<()> {
        let _writing = self.writing.lock();
        if self.read_file(digest)?.is_some_and(|kept| kept == bytes) {
            return Ok(());
        }
        let unfinished = self.dir.join(format!("{digest}{UNFINISHED_SUFFIX}"));
        let written = self.write(&unfinished, bytes);
        if written.is_err() {
            // What is left of it takes room; opening the directory again removes it, too.
            let _ = self.disk.remove(&unfinished);
        }
        written?;
        self.disk.rename(&unfinished, &self.path(digest))?;
        self.disk.sync_dir(&self.dir).map_err(final_error)
    }

    fn write(&self, path: &std::path::Path, bytes: &[u8]) -> io::Result<()> {
        let file = self.disk.create(path)?;
        file.write_all_at(bytes, 0)?;
        file.sync_data().map_err(final_error)
    }

    /// A module's bytes, as put.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] if they are others by now.
    pub(super) fn read(&self, digest: Digest) -> io::Result<Option<Bytes>> {
        let bytes = self.read_file(digest)?;
        match bytes.as_ref().is_none_or(|bytes| is_sound(digest, bytes)) {
            true => Ok(bytes),
            false => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Reads all modules from the disk, at a pace; which of them are sound.
    pub(super) fn verify(&self, pace: &Pace) -> io::Result<Vec<(Digest, bool)>> {
        let mut found = Vec::new();
        for name in self.disk.list(&self.dir)? {
            let digest = name.strip_suffix(SUFFIX).and_then(|d| d.parse().ok());
            let Some(digest) = digest else { continue };
            let Some(file) = self.open_file(digest)? else {
                continue;
            };
            let length = file.length()?;
            pace(length)?;
            file.forget_cached(0, length);
            // One at a time is in memory; modules are bounded where they are admitted.
            if let Some(bytes) = self.read_file(digest)? {
                found.push((digest, is_sound(digest, &bytes)));
            }
        }
        Ok(found)
    }

    fn open_file(&self, digest: Digest) -> io::Result<Option<Arc<dyn DiskFile>>> {
        match self.disk.open(&self.path(digest)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            file => file.map(Some),
        }
    }

    fn read_file(&self, digest: Digest) -> io::Result<Option<Bytes>> {
        let Some(file) = self.open_file(digest)? else {
            return Ok(None);
        };
        let length = usize::try_from(file.length()?).map_err(io::Error::other)?;
        let mut bytes = vec![0; length];
        let count = file.read_at(&mut bytes, 0)?;
        bytes.truncate(count);
        Ok(Some(bytes.into()))
    }

    /// Forgets a module.
    pub(super) fn remove(&self, digest: Digest) -> io::Result<()> {
        let _writing = self.writing.lock();
        self.disk.remove(&self.path(digest))?;
        self.disk.sync_dir(&self.dir).map_err(final_error)
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.dir.join(format!("{digest}{SUFFIX}"))
    }
}

fn is_sound(digest: Digest, bytes: &[u8]) -> bool {
    digest.0[..] == Sha256::digest(bytes)[..]
}
