//! Modules' bytes: one file each, named by its digest. They are not in the journal, because they
//! are large, never change, and have no meaning until an entry names them.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use millrace_log::cipher::{self, Cipher, DecryptError};
use millrace_log::disk::final_error;
use millrace_log::pace::Pace;
use millrace_log::{Disk, DiskFile};
use millrace_model::Digest;
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use sha2::{Digest as _, Sha256};

pub(crate) const SUFFIX: &str = ".wasm";
pub(crate) const UNFINISHED_SUFFIX: &str = ".unfinished";

/// The beginning of an encrypted file; no component begins like this.
const MAGIC: &[u8] = b"MRENC01\n";

/// The key that a stored file is encrypted with; `None` for a plain one.
pub(crate) fn key_id(stored: &[u8]) -> Option<u32> {
    cipher::key_id(stored.strip_prefix(MAGIC)?)
}

/// A module's bytes, decrypted from its file's content.
pub(crate) fn plain(
    digest: Digest,
    stored: Bytes,
    cipher: Option<&Cipher>,
) -> Result<Bytes, DecryptError> {
    let Some(id) = key_id(&stored) else {
        return Ok(stored);
    };
    let cipher = cipher.ok_or(DecryptError::MissingKey { id })?;
    let bytes = cipher.decrypt(&stored[MAGIC.len()..], &belongs_to(digest))?;
    Ok(bytes.into())
}

fn belongs_to(digest: Digest) -> Vec<u8> {
    [&b"module"[..], &digest.0].concat()
}

pub(crate) struct ModuleFiles {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    cipher: Option<Arc<Cipher>>,
    /// One writer at a time.
    writing: Mutex<()>,
    /// Nothing is removed while this is held for reading.
    removing: RwLock<()>,
}

impl ModuleFiles {
    /// Opens the files in `dir`. Files that a crash left unfinished are removed; the others are
    /// durable on return, because a killed process may have left names that only the page cache
    /// has.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        cipher: Option<Arc<Cipher>>,
    ) -> io::Result<Self> {
        for name in disk.list(&dir)? {
            if name.ends_with(UNFINISHED_SUFFIX) {
                disk.remove(&dir.join(name))?;
            }
        }
        disk.sync_dir(&dir).map_err(final_error)?;
        let files = Self {
            disk,
            dir,
            cipher,
            writing: Mutex::new(()),
            removing: RwLock::new(()),
        };
        files.adopt_key()?;
        Ok(files)
    }

    /// Rewrites files that are not encrypted with the active key. Modules are few, and old keys can
    /// then be removed.
    fn adopt_key(&self) -> io::Result<()> {
        let Some(cipher) = &self.cipher else {
            return Ok(());
        };
        for name in self.disk.list(&self.dir)? {
            let digest = name.strip_suffix(SUFFIX).and_then(|name| name.parse().ok());
            let Some(digest) = digest else { continue };
            let Some(stored) = self.stored(digest)? else {
                continue;
            };
            if key_id(&stored) == Some(cipher.active()) {
                continue;
            }
            match self.plain(digest, stored) {
                Ok(bytes) => self.replace(digest, &bytes)?,
                Err(error) => tracing::error!(module = %digest, %error, "a module cannot be read"),
            }
        }
        Ok(())
    }

    /// Stores a module, durable on return: complete under its name, or not at all.
    pub(crate) fn put(&self, digest: Digest, bytes: &[u8]) -> io::Result<()> {
        let _writing = self.writing.lock();
        // A file that cannot be read is rewritten.
        let kept = self.read(digest).ok().flatten();
        if kept.is_some_and(|kept| kept == bytes) {
            return Ok(());
        }
        self.replace(digest, bytes)
    }

    fn replace(&self, digest: Digest, bytes: &[u8]) -> io::Result<()> {
        let unfinished = self.dir.join(format!("{digest}{UNFINISHED_SUFFIX}"));
        let written = match &self.cipher {
            Some(cipher) => {
                let piece = cipher.encrypt(bytes, &belongs_to(digest));
                self.write(&unfinished, &[MAGIC, &piece].concat())
            }
            None => self.write(&unfinished, bytes),
        };
        if written.is_err() {
            // The unfinished file takes space; the next start would also remove it.
            let _ = self.disk.remove(&unfinished);
        }
        written?;
        self.disk.rename(&unfinished, &self.path(digest))?;
        self.disk.sync_dir(&self.dir).map_err(final_error)
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let file = self.disk.create(path)?;
        file.write_all_at(bytes, 0)?;
        file.sync_data().map_err(final_error)
    }

    /// A module's stored bytes.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] if they have changed.
    pub(crate) fn read(&self, digest: Digest) -> io::Result<Option<Bytes>> {
        let Some(stored) = self.stored(digest)? else {
            return Ok(None);
        };
        let bytes = self.plain(digest, stored)?;
        match is_sound(digest, &bytes) {
            true => Ok(Some(bytes)),
            false => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    fn plain(&self, digest: Digest, stored: Bytes) -> io::Result<Bytes> {
        plain(digest, stored, self.cipher.as_deref()).map_err(io::Error::other)
    }

    /// Reads all modules from the disk at a bounded rate, and says which are undamaged.
    pub(crate) fn verify(&self, pace: &Pace) -> io::Result<Vec<(Digest, bool)>> {
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
            // Only one is in memory at a time, and its size was bounded at admission.
            if let Some(stored) = self.stored(digest)? {
                let bytes = self.plain(digest, stored);
                found.push((digest, bytes.is_ok_and(|bytes| is_sound(digest, &bytes))));
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

    fn stored(&self, digest: Digest) -> io::Result<Option<Bytes>> {
        let Some(file) = self.open_file(digest)? else {
            return Ok(None);
        };
        let length = usize::try_from(file.length()?).map_err(io::Error::other)?;
        let mut bytes = vec![0; length];
        let count = file.read_at(&mut bytes, 0)?;
        bytes.truncate(count);
        Ok(Some(bytes.into()))
    }

    /// Removes a module's file unless `may` forbids it. The value that `may` returns is held until
    /// the file is removed.
    pub(crate) fn remove_if<K, E>(
        &self,
        digest: Digest,
        may: impl FnOnce() -> Result<K, E>,
    ) -> io::Result<Result<(), E>> {
        let _removing = self.removing.write();
        let _writing = self.writing.lock();
        let kept = match may() {
            Ok(kept) => kept,
            Err(error) => return Ok(Err(error)),
        };
        self.disk.remove(&self.path(digest))?;
        drop(kept);
        self.disk.sync_dir(&self.dir).map_err(final_error)?;
        Ok(Ok(()))
    }

    /// Prevents removals until the result is dropped.
    pub(crate) fn hold(&self) -> HeldModules<'_> {
        HeldModules {
            files: self,
            _held: self.removing.read(),
        }
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.dir.join(format!("{digest}{SUFFIX}"))
    }
}

/// All modules; none is removed while this exists.
pub(crate) struct HeldModules<'a> {
    files: &'a ModuleFiles,
    _held: RwLockReadGuard<'a, ()>,
}

impl HeldModules<'_> {
    /// Gives each file a hard link in `dir`; returns its path relative to the data directory, and
    /// the link.
    pub(crate) fn let_stand(&self, dir: &Path) -> io::Result<Vec<(String, PathBuf)>> {
        let ModuleFiles {
            disk, dir: own_dir, ..
        } = self.files;
        let mut standing = Vec::new();
        for name in disk.list(own_dir)? {
            if name.ends_with(SUFFIX) {
                let second = dir.join(&name);
                disk.link(&own_dir.join(&name), &second)?;
                standing.push((format!("modules/{name}"), second));
            }
        }
        Ok(standing)
    }
}

fn is_sound(digest: Digest, bytes: &[u8]) -> bool {
    digest.0[..] == Sha256::digest(bytes)[..]
}
