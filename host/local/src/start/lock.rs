//! One process per data directory: the kernel releases the lock when the process ends, however it
//! ends.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::ground::open_error::OpenError;

/// Number of tries to take a held lock before the directory counts as used. The last holder may
/// have been starting a child process, which shares the lock until it runs its own program.
const LOOKS_MAX: u32 = 30;
const LOOK_DELAY: Duration = Duration::from_millis(10);

/// The lock; held while the engine is open.
#[derive(Debug)]
pub(crate) struct DirLock(#[expect(dead_code, reason = "held, never read")] File);

/// Locks the directory, creating it if it does not exist.
pub(crate) fn lock(dir: &Path) -> Result<DirLock, OpenError> {
    lock_file(dir, "lock")
}

/// Like [`lock`], with a lock file of this name.
pub(crate) fn lock_file(dir: &Path, name: &str) -> Result<DirLock, OpenError> {
    let failed = |error: io::Error| OpenError::Io {
        dir: dir.to_owned(),
        reason: error.to_string(),
    };
    make_durably(dir).map_err(failed)?;
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(dir.join(name))
        .map_err(failed)?;
    for _ in 0..LOOKS_MAX {
        match file.try_lock() {
            Ok(()) => return Ok(DirLock(file)),
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOOK_DELAY),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
    }
    Err(OpenError::InUse {
        dir: dir.to_owned(),
    })
}

/// Creates the directory and those above it, and makes their names durable: nothing in a directory
/// is durable if its own name may be lost.
fn make_durably(dir: &Path) -> io::Result<()> {
    let missing = dir
        .ancestors()
        .take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists());
    let parents = missing.filter_map(Path::parent).map(|parent| {
        let here = parent.as_os_str().is_empty();
        if here {
            PathBuf::from(".")
        } else {
            parent.to_owned()
        }
    });
    let parents: Vec<PathBuf> = parents.collect();
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent)?;
    }
    // A new directory is private. The permissions of an existing one are its owner's decision.
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(_) if dir.is_dir() => {}
        made => made?,
    }
    let mut parents = parents.iter();
    parents.try_for_each(|parent| File::open(parent)?.sync_all())
}
