//! Storage: one interface, and its implementations.
//!
//! [`contract`] defines the promises. An engine does not know who reads.

#![forbid(unsafe_code)]

pub mod backup;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod contract;
pub mod damage;
mod entries;
mod idempotence;
pub mod local;
pub mod memory;
pub mod room;
pub mod state;
mod time;

pub use backup::{BackupError, BackupRequest, BackupStream, KnownFile};
pub use contract::{
    Append, CommitError, Ends, Engine, Entry, EntryKind, EntryWrite, Expectation, Hold, HostId,
    HostInfo, Lease, Limits, NextEpoch, ProgressWrite, ReadError, Receipt, RequestMark,
    TopicChange, TopicError, Transaction, TrimError, Version, Watch,
};
pub use damage::{DamageKind, DamageReport, DamagedRange, DamagedState, FoundBy, ScrubStatus};
pub use local::{LocalEngine, LocalOptions, OpenError};
pub use memory::MemoryEngine;
pub use room::{HostBound, HostBounds, Kept, Room, RoomFull};
