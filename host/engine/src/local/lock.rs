//! One process per data directory: the kernel gives the lock back when the process ends, however it ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;

use super::options::OpenError;

/// Held as long as the engine is open.
#[derive(Debug)]
pub(super) struct DirLock(#[expect(dead_code, reason = "held, never read")] File);

/// Takes the directory, making it if it does not exist.
pub(super) fn lock(dir: &Path) -> Result<DirLock, OpenError> {
    let failed = |error: std::io::Error| OpenError::Io {
        dir: dir.to_owned(),
        reason: error.to_string(),
    };
    std::fs::create_dir_all(dir).map_err(failed)?;
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
