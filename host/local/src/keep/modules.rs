//! Modules' bytes: a file each, named by its digest. Beside the journal, for they are large, never change, and mean nothing
//! before an entry names them.

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

/// Begins an encrypted file; no component begins so.
const MAGIC: &[u8] = b"MRENC01\n";

/// The key that a stored file is encrypted with; `None` for a plain one.
pub(crate) fn key_id(stored: &[u8]) -> Option<u32> {
    cipher::key_id(stored.strip_prefix(MAGIC)?)
}

/// A module's bytes from those of its file.
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
    /// Nothing is removed while somebody reads here.
    removing: RwLock<()>,
}

impl ModuleFiles {
    /// The files in `dir`; those that a crash left unfinished are removed, and the others are durable on return: a process that
    /// was killed may have left names that only the page cache knows.
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

    /// Writes those anew that are not encrypted with the active key: modules are few, and a key can then be given up.
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

    /// Keeps a module, durable on return: whole under its name, or not there.
    pub(crate) fn put(&self, digest: Digest, bytes: &[u8]) -> io::Result<()> {
        let _writing = self.writing.lock();
        // One that cannot be read is written anew.
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
            // What is left of it takes room; opening the directory again removes it, too.
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

    /// A module's bytes, as stored.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] if they are others by now.
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

    /// Reads all modules from the disk, at a pace; which of them are sound.
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
            // One at a time is in memory; modules are bounded where they are admitted.
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

    /// Forgets a module, unless something is in the way; what is given to say that nothing is is kept until its file is gone.
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

    /// Keeps all that there are until it is dropped.
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

/// Modules of which none is removed meanwhile.
pub(crate) struct HeldModules<'a> {
    files: &'a ModuleFiles,
    _held: RwLockReadGuard<'a, ()>,
}

impl HeldModules<'_> {
    /// Gives each file a second name in `dir`; its own as seen from the data directory, and that.
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
