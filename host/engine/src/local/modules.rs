//! Modules' bytes: a file each, named by its digest. Beside the journal, for they are large, never change, and mean nothing
//! before an entry names them.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use millrace_log::Disk;
use millrace_log::disk::final_error;
use millrace_model::Digest;
use parking_lot::Mutex;

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
        if self.read(digest)?.is_some_and(|kept| kept == bytes) {
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
    pub(super) fn read(&self, digest: Digest) -> io::Result<Option<Bytes>> {
        let file = match self.disk.open(&self.path(digest)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
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
