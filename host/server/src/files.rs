//! The process's file settings: private permissions, an error instead of a signal at the file size limit, and the number of open files.
//! The engine's files come first, then what every process needs, then connections: clients must not be able to take the file that the
//! journal opens next.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit, umask};
use tokio::signal::unix::{SignalKind, signal};

/// Read, write and search permission for others than the owner.
const OTHERS: u32 = 0o077;
/// Maximum number of files requested, where the system would give more; some programs iterate over every possible file.
const FILES_WANTED_MAX: u64 = 1 << 20;
/// Maximum number of files that the engine keeps open between writes: half of what the process may open, up to this number.
const ENGINE_FILES_MAX: u64 = 16 << 10;
/// Files for everything else: journal and checkpoint, segments being read, a compiler's pipes, the log, connections that are being
/// refused or closed.
const OTHER_FILES: u64 = 192;
/// Minimum number of connections, on the smallest system.
const CONNECTIONS_MIN: u64 = 16;

/// The system ends a process whose file would exceed `ulimit -f`, unless it handles the signal: then the write fails, and the engine
/// treats that as a full disk. The handler stays for the life of the process.
pub(crate) fn outlive_size_limits() {
    let kind = SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw());
    if let Err(error) = signal(kind) {
        tracing::warn!(%error, "SIGXFSZ cannot be handled: a limit on the size of files would end this host");
    }
}

/// From now on, files that the process creates are readable only by its user, if the data directory is new or private. A directory that
/// others can read was opened on purpose: it stays so, with a warning.
pub(crate) fn close_to_others(data_dir: &Path) {
    let mode = std::fs::metadata(data_dir).map_or(0, |found| found.permissions().mode());
    if mode & OTHERS == 0 {
        umask(Mode::RWXG | Mode::RWXO);
        return;
    }
    tracing::warn!(
        data_dir = %data_dir.display(),
        mode = format!("{:o}", mode & 0o777),
        "other users of this machine can read the data directory: `chmod -R go= DIR` makes it private, and the next start keeps it so"
    );
}

/// Raises the limit of open files as far as possible without privileges, and returns it; `None` is no limit.
pub(crate) fn raise_limit() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.unwrap_or(u64::MAX).min(FILES_WANTED_MAX);
    match limit.current {
        Some(current) if current < wanted => {
            let raised = Rlimit {
                current: Some(wanted),
                ..limit
            };
            match setrlimit(Resource::Nofile, raised) {
                Ok(()) => Some(wanted),
                Err(_) => Some(current),
            }
        }
        current => current,
    }
}

/// Maximum number of connections if the process may open this many files.
pub(crate) fn connections(wanted: usize, files: Option<u64>) -> usize {
    let Some(files) = files else { return wanted };
    let engine = (files / 2).min(ENGINE_FILES_MAX);
    let left = files.saturating_sub(engine + OTHER_FILES);
    let left = usize::try_from(left.max(CONNECTIONS_MIN)).unwrap_or(usize::MAX);
    wanted.min(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_get_what_the_engine_leaves() {
        assert_eq!(connections(1_024, None), 1_024);
        assert_eq!(connections(1_024, Some(1 << 20)), 1_024);
        assert_eq!(connections(100_000, Some(1 << 20)), 100_000);
        assert_eq!(connections(1_024, Some(1_024)), 320);
        assert_eq!(connections(200, Some(1_024)), 200);
        assert_eq!(connections(1_024, Some(256)), 16);
        assert_eq!(connections(4, Some(256)), 4);
    }
}
