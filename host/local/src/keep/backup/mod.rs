//! Backups of a directory that a host works on, and what is done with them.
//!
//! ```text
//!   flusher: checkpoint at S ──► checkpoint's thread: copies the database, links the files ──► backup's thread: reads, sends
//! ```
//! The instant is a checkpoint's: everything up to its transaction stands in the database and in the files that it counts. Those get
//! second names in [`STAGING`] before the next checkpoint is decided; so retention, compaction and deletions go on as ever, and take
//! nothing from the copy. Only what they would give back to the disk they give back when the backup is over.

pub(crate) mod desk;
pub(crate) mod manifest;
pub(crate) mod sending;
pub(crate) mod tar;

use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

/// The database's file, in a data directory and in a backup.
pub(crate) const CHECKPOINT: &str = "checkpoint.sqlite";
/// The directory in the data directory in which files stand under second names while a backup is made.
pub(crate) const STAGING: &str = "backup";
/// The file that tells this data directory from all others. A backup does not hold it: what is restored is another directory.
pub(crate) const IDENTITY: &str = "identity";
/// Bytes that a backup reads in a second at the most, so that the disk is left to others.
const BACKUP_BYTES_PER_SECOND_MAX: u64 = 64 << 20;
/// Bytes of one piece of the archive, about.
pub(crate) const PIECE_BYTES: usize = 256 << 10;
/// Pieces that wait to be taken; at the bound the reading waits.
const PIECES_WAITING_MAX: usize = 16;

/// Makes a directory that only its owner reads: what is in it is what nobody else may read where it came from. One that is there stays as
/// it is.
pub(crate) fn make_private(dir: &Path) -> std::io::Result<()> {
    let mut private = std::fs::DirBuilder::new();
    private.recursive(true).mode(0o700).create(dir)
}
