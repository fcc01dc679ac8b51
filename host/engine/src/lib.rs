//! Where data is kept: one seam of four verbs (commit, read, watch, claim), and what every engine needs to keep its promises.
//!
//! [`contract`] says what is promised, [`memory`] shows it in its shortest form, and `conformance` asks it of everyone. An engine does
//! not know who reads.
//!
//! Whoever writes another engine finds here the rules that are the same for all: [`idempotence`] (what is a repeat), [`entries`] (the
//! catalogue, its versions and what is expected of them), [`room`] (what a host may keep in memory), [`state`] (tables; an engine's own
//! verbs for them are in [`state::keeper`]), [`backup`] and [`damage`] (the nouns of both).

#![forbid(unsafe_code)]

pub mod backup;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod contract;
pub mod damage;
pub mod entries;
#[cfg(any(test, feature = "conformance"))]
pub mod hooked;
pub mod idempotence;
pub mod memory;
pub mod room;
pub mod state;
pub mod time;

pub use backup::{BackupError, BackupRequest, BackupStream, KnownFile};
pub use contract::{
    Append, CommitError, Ends, Engine, Entry, EntryKind, EntryWrite, Expectation, Hold, HostId,
    HostInfo, Lease, Limits, NextEpoch, ProgressWrite, ReadError, Receipt, RequestMark,
    TopicChange, TopicError, Transaction, TrimError, Version, Watch,
};
pub use damage::{DamageKind, DamageReport, DamagedRange, DamagedState, FoundBy, ScrubStatus};
pub use memory::MemoryEngine;
pub use room::{HostBound, HostBounds, Kept, Room, RoomFull};
