//! What can be set about the engine: sizes, times and keys.

use std::sync::Arc;
use std::time::Duration;

use millrace_engine::room::HostBounds;
use millrace_log::Cipher;
use millrace_log::journal::JOURNAL_FILE_BYTES;
use millrace_log::partition::SEGMENT_BYTES;
use millrace_model::bounds::STATE_CHANGES_BYTES_MAX;

/// Checkpoints' worth of journal that may be written before a checkpoint is durable; at the bound commits wait. It bounds what a
/// start has to replay.
pub(crate) const JOURNAL_BYTES_FACTOR_MAX: u64 = 4;

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
pub(crate) const SCRUB_BYTES_PER_SECOND: u64 = 20_000_000;
/// How long after a round of it the next one begins, unless configured.
pub(crate) const SCRUB_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);

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
    pub(crate) fn reserved_bytes(&self) -> [u64; 2] {
        let journal_bytes_max = self.checkpoint_journal_bytes;
        let journal_bytes_max = journal_bytes_max.saturating_mul(JOURNAL_BYTES_FACTOR_MAX);
        let held = journal_bytes_max.min(self.tail_bytes_max as u64);
        [held + self.reserve_bytes / 2, self.reserve_bytes / 2]
    }

    /// What has changed in state and is not in a file yet, at the most.
    pub(crate) fn state_changes_bytes(&self) -> usize {
        self.state_changes_bytes_max
            .min(self.bounds.state_bytes / 4)
    }

    /// The same in KiB.
    pub(crate) fn queue_kib_max(&self) -> u32 {
        let kib = u32::try_from(self.queue_bytes_max >> 10).unwrap_or(u32::MAX);
        kib.clamp(1, COMMIT_QUEUE_KIB_MAX)
    }

    pub(crate) fn within_bounds(mut self) -> Self {
        // A frame's length has 32 bits.
        let most = u64::from(u32::MAX);
        self.journal_file_bytes = self.journal_file_bytes.clamp(JOURNAL_FILE_BYTES_MIN, most);
        self
    }
}
