//! Where data is stored: the interface of engines (commit, read, watch, hold, and administration),
//! and the code that all engines share.
//!
//! [`contract`] says what an engine promises, [`memory`] is the shortest implementation, and
//! `conformance` tests every engine. An engine does not know its readers.
//!
//! For authors of another engine, these modules have the rules that are the same for all:
//! [`idempotence`] (what counts as a repeat), [`entries`] (the catalogue, its versions and
//! expectations), [`room`] (the bounds of a host's memory), [`state`] (tables; an engine's own
//! verbs for them are in [`state::keeper`]), [`backup`], [`damage`] and [`findings`] (their nouns).

#![forbid(unsafe_code)]

pub mod backup;
pub mod compaction;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod contract;
pub mod damage;
pub mod entries;
pub mod findings;
#[cfg(any(test, feature = "conformance"))]
pub mod hooked;
pub mod idempotence;
pub mod memory;
pub mod room;
pub mod state;
pub mod time;

pub use backup::{BackupError, BackupRequest, BackupStream, KnownFile};
pub use contract::{
    AdoptError, Adoption, Append, CommitError, Ends, Engine, Entry, EntryKind, EntryWrite,
    Expectation, GroupProgress, Hold, HostId, HostInfo, Lease, Limits, NextEpoch, OutboxMessage,
    ProgressWrite, ReadError, Receipt, RequestMark, TopicChange, TopicError, Transaction,
    TrimError, Version, Watch,
};
pub use damage::{DamageKind, DamageReport, DamagedRange, DamagedState, FoundBy, ScrubStatus};
pub use memory::MemoryEngine;
pub use room::{HostBound, HostBounds, Kept, Room, RoomFull};
