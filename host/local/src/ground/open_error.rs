//! Why a data directory cannot be opened. Each reason says what was not changed, and what to do
//! now.

use std::path::PathBuf;
use std::sync::Arc;

use millrace_log::JournalError;

/// Why the data directory could not be opened. The attempt lost nothing.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process uses it.
    #[error(
        "data directory {} is used by another millrace process; stop that one or choose another directory",
        dir.display()
    )]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// SQLite cannot open such a path.
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
    /// A file of state that the checkpoint names is missing or incomplete.
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
    /// The checkpoint is missing, but there are files that it should describe.
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
    /// The checkpoint is older than the last one made in this directory.
    #[error(
        "checkpoint {} is of transaction {found}, but a checkpoint of transaction {expected} was made here: it was replaced by an older \
         one. Nothing was changed. Put the newer one back, or restore the whole directory, journal and topics included, from the \
         same backup",
        path.display()
    )]
    CheckpointOld {
        /// The file.
        path: PathBuf,
        /// The transaction that it is as of.
        found: u64,
        /// The transaction that it should be as of, at least.
        expected: u64,
    },
    /// The journal ends before a transaction that was durable.
    #[error(
        "acknowledged data is missing: transactions {from} to {to} were durable, and the journal in {} ends before them. A file was \
         removed, truncated or replaced while no host ran, or the disk lost it. Nothing was changed. Put the files back, or restore the \
         directory from a backup; `millrace doctor --repair` continues without their content, and says what is lost",
        dir.display()
    )]
    Missing {
        /// The journal's directory.
        dir: PathBuf,
        /// The first missing transaction.
        from: u64,
        /// The last transaction known to be durable.
        to: u64,
    },
    /// The journal's bytes are intact, but an operation contradicts the state.
    #[error(
        "transaction {sequence} of the journal cannot be replayed: {reason}. Nothing was changed; use the version of millrace \
         that wrote it, or restore the data directory from a backup"
    )]
    Replay {
        /// The transaction's sequence.
        sequence: u64,
        /// What is wrong.
        reason: String,
    },
    /// The directory is encrypted, and the given keys are not the right ones.
    #[error("data directory {} cannot be opened: {reason}. Nothing was changed", dir.display())]
    Encryption {
        /// The directory.
        dir: PathBuf,
        /// What is missing or wrong.
        reason: String,
    },
    /// There is no space to make the recovered data durable.
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
        /// The disk's error.
        reason: String,
    },
}
