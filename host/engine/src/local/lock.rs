//! One process per data directory: the kernel gives the lock back when the process ends, however it ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use super::options::OpenError;

/// Held as long as the engine is open.
#[derive(Debug)]
pub(super) struct DirLock(#[expect(dead_code, reason = "held, never read")] File);

/// Takes the directory, making it if it does not exist.
pub(super) fn lock(dir: &Path) -> Result<DirLock, OpenError> {
    let failed = |error: io::Error| OpenError::Io {
        dir: dir.to_owned(),
        reason: error.to_string(),
    };
    make_durably(dir).map_err(failed)?;
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(dir.join("lock"))
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(DirLock(file)),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse {
            dir: dir.to_owned(),
        }),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

/// Makes the directory and those above it, and their names durable: nothing in it is if its own name may be lost.
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
    std::fs::create_dir_all(dir)?;
    let mut parents = parents.iter();
    parents.try_for_each(|parent| File::open(parent)?.sync_all())
}
