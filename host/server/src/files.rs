//! How many files the process may open, and who gets them: the engine first, then what every process needs, then connections. Whoever may
//! connect must not be able to take the file that the journal opens next.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files that are asked for at the most, where the system gives more; some programs look at each one there might be.
const FILES_WANTED_MAX: u64 = 1 << 20;
/// Files that the engine keeps open between two writes, at the most: half of what the process may open, up to so many.
const ENGINE_FILES_MAX: u64 = 16 << 10;
/// Files for everything else: journal and checkpoint, segments that are read, a compiler's pipes, the log, connections that are being
/// refused or ended.
const OTHER_FILES: u64 = 192;
/// Connections that there are on the smallest system.
const CONNECTIONS_MIN: u64 = 16;

/// Raises the limit of open files as far as that goes without privileges, and gives it; `None` is no limit.
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

/// Connections at once where the process may open so many files.
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
