//! Backups of a directory while a host uses it.
//!
//! ```text
//!   flusher: checkpoint at S ──► checkpoint's thread: copies the database, links the files ──► backup's thread: reads, sends
//! ```
//! A backup is as of a checkpoint: everything up to its transaction is in the database and in the
//! files that it counts. These get hard links in [`STAGING`] before the next checkpoint is decided,
//! so retention, compaction and deletions continue and remove nothing from the copy. The space that
//! they free becomes available when the backup ends.

pub(crate) mod desk;
pub(crate) mod manifest;
pub(crate) mod sending;
pub(crate) mod tar;

use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

/// The database's file, in a data directory and in a backup.
pub(crate) const CHECKPOINT: &str = "checkpoint.sqlite";
/// The directory in the data directory for hard links while a backup runs.
pub(crate) const STAGING: &str = "backup";
/// The file that identifies this data directory. A backup does not contain it, because a restored
/// directory is a different one.
pub(crate) const IDENTITY: &str = "identity";
/// Maximum bytes per second that a backup reads, so that the disk stays available to other work.
const BACKUP_BYTES_PER_SECOND_MAX: u64 = 64 << 20;
/// Approximate bytes of one piece of the archive.
pub(crate) const PIECE_BYTES: usize = 256 << 10;
/// Pieces queued for the client; when the queue is full, reading waits.
const PIECES_WAITING_MAX: usize = 16;

/// Creates a directory that only its owner can read, because its content comes from files with the
/// same protection. An existing directory keeps its permissions.
pub(crate) fn make_private(dir: &Path) -> std::io::Result<()> {
    let mut private = std::fs::DirBuilder::new();
    private.recursive(true).mode(0o700).create(dir)
}
