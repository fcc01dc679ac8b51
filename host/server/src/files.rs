//! What the process asks of the system about its files: that they are nobody else's, and that a limit on their size is an error.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use rustix::fs::Mode;
use rustix::process::umask;
use tokio::signal::unix::{SignalKind, signal};

/// Read, write and search by others than the owner.
const OTHERS: u32 = 0o077;

/// The system ends a process whose file would grow beyond `ulimit -f`, unless it handles the signal: then the write fails, and the engine
/// takes that for a full disk. The handler stays for as long as the process runs.
pub(crate) fn outlive_size_limits() {
    let kind = SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw());
    if let Err(error) = signal(kind) {
        tracing::warn!(%error, "SIGXFSZ cannot be handled: a limit on the size of files would end this host");
    }
}

/// Files that the process makes from now on are readable by its user alone, if the data directory is new or closed to others. One that
/// is open to them was opened by somebody: it stays so, and that is said.
pub(crate) fn close_to_others(data_dir: &Path) {
    let mode = std::fs::metadata(data_dir).map_or(0, |found| found.permissions().mode());
    if mode & OTHERS == 0 {
        umask(Mode::RWXG | Mode::RWXO);
        return;
    }
    tracing::warn!(
        data_dir = %data_dir.display(),
        mode = format!("{:o}", mode & 0o777),
        "other users of this machine may read the data directory: `chmod -R go= DIR` closes it, and the next start keeps it closed"
    );
}
