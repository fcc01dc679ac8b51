//! Why a data directory does not open. Each reason says what was not done, and what whoever reads it can do now.

use std::path::PathBuf;
use std::sync::Arc;

use millrace_log::JournalError;

/// Why the data directory could not be opened. Nothing in it was lost by trying.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process works on it.
    #[error(
        "data directory {} is used by another millrace process; stop that one or choose another directory",
        dir.display()
    )]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// SQLite takes no such name.
    #[error(
        "data directory {} cannot be used: its path is not UTF-8, which the checkpoint's database requires. Nothing was created. Choose \
         another name, or give the path of a symbolic link to it that is UTF-8",
        dir.display()
    )]
    Name {
        /// The directory.
        dir: PathBuf,
    },
    /// It is not a data directory.
    #[error(
        "{} contains a backup, and a host would change it. Nothing was changed; `millrace restore` restores it to a data directory",
        dir.display()
    )]
    Backup {
        /// The directory.
        dir: PathBuf,
    },
    /// The journal is damaged or cannot be read.
    #[error(transparent)]
    Journal(Arc<JournalError>),
    /// The checkpoint is damaged, cannot be read, or was written by a newer version.
    #[error(
        "checkpoint {} cannot be used: {reason}. Nothing was changed; restore the data directory from a backup. If there is none, \
         `millrace doctor --repair` rebuilds what it can, and says what is lost",
        path.display()
    )]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A file of state that the checkpoint names is not there, or not whole.
    #[error(
        "{} cannot be used: {reason}. It holds state of a processor. Nothing was changed; put the file back, or restore the data directory \
         from a backup",
        path.display()
    )]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The checkpoint is gone, and there is something that it would tell about.
    #[error(
        "checkpoint {} is missing or empty, and the directory holds messages or a journal: without it there is no record of their topics, \
         nor of the progress of processors. Nothing was changed. Put the file back, or restore the directory from a backup; failing \
         that, `millrace doctor --repair` shows what can be rebuilt",
        path.display()
    )]
    CheckpointMissing {
        /// The file.
        path: PathBuf,
    },
    /// The checkpoint is not the last one that was made here.
    #[error(
        "checkpoint {} is of transaction {found}, but a checkpoint of transaction {expected} was made here: it was replaced by an older \
         one. Nothing was changed. Put the newer one back, or restore the whole directory, journal and topics included, from the \
         same backup",
        path.display()
    )]
    CheckpointOld {
        /// The file.
        path: PathBuf,
        /// What it holds.
        found: u64,
        /// What it should hold, at the least.
        expected: u64,
    },
    /// The journal ends before what was durable.
    #[error(
        "acknowledged data is missing: transactions {from} to {to} were durable, and the journal in {} ends before them. A file was \
         removed, truncated or replaced while no host ran, or the disk lost it. Nothing was changed. Put the files back, or restore the \
         directory from a backup; `millrace doctor --repair` continues without their content, and says what is lost",
        dir.display()
    )]
    Missing {
        /// The journal's directory.
        dir: PathBuf,
        /// The first that is missing.
        from: u64,
        /// The last one that was known to be durable.
        to: u64,
    },
    /// The journal's bytes are sound but say what cannot be.
    #[error(
        "transaction {sequence} of the journal cannot be replayed: {reason}. Nothing was changed; use the version of millrace \
         that wrote it, or restore the data directory from a backup"
    )]
    Replay {
        /// Which one.
        sequence: u64,
        /// What is wrong.
        reason: String,
    },
    /// What is in it is encrypted, and the keys given are not the right ones.
    #[error("data directory {} cannot be opened: {reason}. Nothing was changed", dir.display())]
    Encryption {
        /// The directory.
        dir: PathBuf,
        /// What is missing or wrong.
        reason: String,
    },
    /// No room to make what was recovered durable.
    #[error(
        "the disk under {} is full, and the space reserved for a start is not enough; free some space and start again",
        dir.display()
    )]
    DiskFull {
        /// The directory.
        dir: PathBuf,
    },
    /// The disk failed.
    #[error("data directory {} cannot be opened: {reason}", dir.display())]
    Io {
        /// The directory.
        dir: PathBuf,
        /// What the disk said.
        reason: String,
    },
}
