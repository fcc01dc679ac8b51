//! The engine's options: sizes, times and keys.

use std::sync::Arc;
use std::time::Duration;

use millrace_engine::room::HostBounds;
use millrace_log::Cipher;
use millrace_log::journal::JOURNAL_FILE_BYTES;
use millrace_log::partition::SEGMENT_BYTES;
use millrace_model::bounds::STATE_CHANGES_BYTES_MAX;

/// Journal that may be written before a checkpoint is durable, as a multiple of
/// `checkpoint_journal_bytes`; at the bound commits wait. It bounds how much a start replays.
pub(crate) const JOURNAL_BYTES_FACTOR_MAX: u64 = 4;

/// The smallest useful journal file.
const JOURNAL_FILE_BYTES_MIN: u64 = 16 << 10;

/// Sizes and times of the local engine. The defaults suit a host that shares its machine.
#[derive(Clone, Debug)]
pub struct LocalOptions {
    /// Size of a journal file in bytes, at least 16 KiB. A transaction must fit into one.
    pub journal_file_bytes: u64,
    /// Size in bytes at which a segment ends and the next one begins.
    pub segment_bytes: u64,
    /// Bytes of batches in memory, over all partitions. At the bound commits wait for the flusher.
    pub tail_bytes_max: usize,
    /// Bytes of transactions queued for the committer or being committed, at most 64 MiB; further
    /// callers wait.
    pub queue_bytes_max: usize,
    /// Bytes of journal after which a checkpoint is made; bounds the duration of a recovery.
    pub checkpoint_journal_bytes: u64,
    /// The longest time between two checkpoints while there are changes.
    pub checkpoint_interval: Duration,
    /// Bytes of disk space reserved for checkpoints on a full disk, besides those for messages in
    /// memory.
    pub reserve_bytes: u64,
    /// Whether to record what is durable in quiet moments too, and not only at checkpoints.
    pub notes_durable: bool,
    /// Maximum bytes per second that the background search for damage reads; 0 turns it off.
    pub scrub_bytes_per_second: u64,
    /// Minimum time from the end of one round of the search to the start of the next.
    pub scrub_interval: Duration,
    /// The keys for stored data; `None` stores it unencrypted.
    pub encryption: Option<Arc<Cipher>>,
    /// How often retention and compaction run.
    pub cleaning_interval: Duration,
    /// Bounds of memory and disk for stored data.
    pub bounds: HostBounds,
    /// Bytes of memory that one processor's state in one partition may cost before it moves to
    /// files; `None` is an eighth of the memory for state.
    pub state_resident_bytes: Option<usize>,
    /// Bytes of memory for changes of paged state that are not in a file yet, or a quarter of the
    /// memory for state if that is less. At half of it a checkpoint is made; at all of it commits
    /// that add values wait.
    pub state_changes_bytes_max: usize,
}

/// Memory for transactions queued for the committer or being committed, unless memory is scarce;
/// further callers wait.
const COMMIT_QUEUE_KIB_MAX: u32 = 64 << 10;

/// Default for the bytes per second that the background search reads.
pub(crate) const SCRUB_BYTES_PER_SECOND: u64 = 20_000_000;
/// Default for the time between two rounds of the search.
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
    /// The reserves: for messages in memory, whose number is bounded and which are all in the
    /// journal since the last checkpoint, including the rounding of their files to blocks; and for
    /// a checkpoint of that size.
    pub(crate) fn reserved_bytes(&self) -> [u64; 2] {
        let journal_bytes_max = self.checkpoint_journal_bytes;
        let journal_bytes_max = journal_bytes_max.saturating_mul(JOURNAL_BYTES_FACTOR_MAX);
        let held = journal_bytes_max.min(self.tail_bytes_max as u64);
        [held + self.reserve_bytes / 2, self.reserve_bytes / 2]
    }

    /// Maximum bytes of changes of state that are not in a file yet.
    pub(crate) fn state_changes_bytes(&self) -> usize {
        self.state_changes_bytes_max
            .min(self.bounds.state_bytes / 4)
    }

    /// The committer's queue in KiB.
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
