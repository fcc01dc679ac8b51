//! Files on disk: one journal per data directory, the segment files of each partition, runs of
//! state, and the [`disk::Disk`] below them.
//!
//! Everything here is synchronous and knows neither topics nor tasks. The journal makes groups of
//! transactions durable, and the partition files store record batches for long; the `local` engine
//! decides what is written where and when. The crate's only `unsafe` is in `mapping`.

pub mod cache;
pub mod cipher;
pub mod disk;
pub mod frame;
pub mod index;
pub mod inspect;
pub mod journal;
mod mapping;
pub mod pace;
pub mod partition;
pub mod run;
pub mod segment;
pub mod sim;

pub use cache::SealedCache;
pub use cipher::Cipher;
pub use disk::{Disk, DiskFile, RealDisk};
pub use frame::FrameBuffer;
pub use journal::{Journal, JournalError, JournalScan};
pub use mapping::keep_to_small_pages;
pub use partition::{Mark, PartitionFiles, SealedSegment, SegmentFacts, SegmentReader};
pub use segment::{DamageKind, SegmentError};
