//! What can be set about the local engine, and why it may not open.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use millrace_engine::room::HostBounds;
use millrace_log::journal::JOURNAL_FILE_BYTES;
use millrace_log::partition::SEGMENT_BYTES;
use millrace_log::{Cipher, JournalError};
use millrace_model::bounds::STATE_CHANGES_BYTES_MAX;

use super::shared::JOURNAL_BYTES_FACTOR_MAX;

/// The smallest journal file that is of use.
const JOURNAL_FILE_BYTES_MIN: u64 = 16 << 10;

/// Sizes and times of the local engine. The defaults suit a host that shares its machine.
#[derive(Clone, Debug)]
pub struct LocalOptions {
    /// Bytes of one journal file; a transaction must fit one. At least 16 KiB.
    pub journal_file_bytes: u64,
    /// Bytes of a segment before the next one begins.
    pub segment_bytes: u64,
    /// Bytes of batches kept in memory, of all partitions together. At the bound commits wait for the flusher.
    pub tail_bytes_max: usize,
    /// Bytes of transactions that wait for the committer or are with it; further callers wait for their turn. No more than 64 MiB.
    pub queue_bytes_max: usize,
    /// Bytes of journal after which a checkpoint is made, which bounds the time that recovery takes.
    pub checkpoint_journal_bytes: u64,
    /// The longest time between two checkpoints while there is something to keep.
    pub checkpoint_interval: Duration,
    /// Bytes of the disk that are kept back for the checkpoints of a full one, beside those for what memory holds.
    pub reserve_bytes: u64,
    /// Whether to note in quiet moments what is durable, and not only at checkpoints.
    pub notes_durable: bool,
    /// Bytes that the background search for damage reads in a second, at the most; 0 is off.
    pub scrub_bytes_per_second: u64,
    /// A round of it begins at the earliest so long after the last one ended.
    pub scrub_interval: Duration,
    /// The keys to encrypt and decrypt what is kept with; `None` keeps it plain.
    pub encryption: Option<Arc<Cipher>>,
    /// How often it is looked what retention and compaction have to do.
    pub cleaning_interval: Duration,
    /// What may be kept in memory for others.
    pub bounds: HostBounds,
    /// Bytes of memory that one processor's state in one partition may cost before it is kept in files; `None` is an eighth of the memory
    /// that there is for state.
    pub state_resident_bytes: Option<usize>,
    /// Bytes of memory for what changed in state that stands in files, until it is in one; a quarter of the memory that there is for state
    /// if that is less. At half of it a checkpoint is made, at all of it commits that bring values wait.
    pub state_changes_bytes_max: usize,
}

/// KiB of transactions that wait for the committer or are with it, unless memory is scarce; further callers wait for their turn.
const COMMIT_QUEUE_KIB_MAX: u32 = 64 << 10;

/// What the background search reads in a second, unless configured.
pub(super) const SCRUB_BYTES_PER_SECOND: u64 = 20_000_000;
/// How long after a round of it the next one begins, unless configured.
pub(super) const SCRUB_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);

impl Default for LocalOptions {
    fn default() -> Self {
        Self {
            journal_file_bytes: JOURNAL_FILE_BYTES,
            segment_bytes: SEGMENT_BYTES,
            tail_bytes_max: 64 << 20,
            queue_bytes_max: (COMMIT_QUEUE_KIB_MAX as usize) << 10,
            checkpoint_journal_bytes: 2 * JOURNAL_FILE_BYTES,
            checkpoint_interval: Duration::from_secs(30),
            reserve_bytes: 16 << 20,
            notes_durable: true,
            scrub_bytes_per_second: SCRUB_BYTES_PER_SECOND,
            scrub_interval: SCRUB_INTERVAL,
            encryption: None,
            cleaning_interval: Duration::from_secs(60),
            bounds: HostBounds::default(),
            state_resident_bytes: None,
            state_changes_bytes_max: STATE_CHANGES_BYTES_MAX,
        }
    }
}

impl LocalOptions {
    /// What is kept back for messages in memory, which has its bound and holds nothing that is not in the journal since the last
    /// checkpoint, and for the blocks that their files are rounded up to; and for a checkpoint that is no larger than that.
    pub(super) fn reserved_bytes(&self) -> [u64; 2] {
        let journal_bytes_max = self.checkpoint_journal_bytes;
        let journal_bytes_max = journal_bytes_max.saturating_mul(JOURNAL_BYTES_FACTOR_MAX);
        let held = journal_bytes_max.min(self.tail_bytes_max as u64);
        [held + self.reserve_bytes / 2, self.reserve_bytes / 2]
    }

    /// What has changed in state and is not in a file yet, at the most.
    pub(super) fn state_changes_bytes(&self) -> usize {
        self.state_changes_bytes_max
            .min(self.bounds.state_bytes / 4)
    }

    /// The same in KiB.
    pub(super) fn queue_kib_max(&self) -> u32 {
        let kib = u32::try_from(self.queue_bytes_max >> 10).unwrap_or(u32::MAX);
        kib.clamp(1, COMMIT_QUEUE_KIB_MAX)
    }

    pub(super) fn within_bounds(mut self) -> Self {
        // A frame's length has 32 bits.
        let most = u64::from(u32::MAX);
        self.journal_file_bytes = self.journal_file_bytes.clamp(JOURNAL_FILE_BYTES_MIN, most);
        self
    }
}

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
        "data directory {} cannot be used: its path is not UTF-8, and the checkpoint's database takes no other. Nothing was made. Choose \
         another name, or give the path of a symbolic link to it that is UTF-8",
        dir.display()
    )]
    Name {
        /// The directory.
        dir: PathBuf,
    },
    /// It is not a data directory.
    #[error(
        "{} holds a backup, and a host would change it. Nothing was changed; `millrace restore` makes a data directory of it",
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
        "checkpoint {} cannot be used: {reason}. Nothing was changed; restore the data directory from a backup. Where there is none, \
         `millrace doctor --repair` builds again what can be, and says what is lost",
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
        "checkpoint {} is missing or empty, and the directory holds messages or a journal: without it nobody knows whose they are, \
         nor how far processors came. Nothing was changed. Put the file back, or restore the directory from a backup; failing \
         that, `millrace doctor --repair` says what can be built again",
        path.display()
    )]
    CheckpointMissing {
        /// The file.
        path: PathBuf,
    },
    /// The checkpoint is not the last one that was made here.
    #[error(
        "checkpoint {} is of transaction {found}, but one of transaction {expected} was made here since: it was replaced by an older \
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
         removed, cut or replaced while no host ran, or the disk lost it. Nothing was changed. Put the files back, or restore the \
         directory from a backup; `millrace doctor --repair` goes on without what they held, and says what that is",
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
        "the disk under {} is full, and what was reserved on it for a start is not enough; free some space and start again",
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
