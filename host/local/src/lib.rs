//! The embedded engine: everything in one directory, owned by one process.
//!
//! ```text
//!             commit                      read at the tail          read further back
//!  txns ──►  journal  ──►  in-memory tails  ──► flusher ──►  segments (+ sparse index)
//!           (durable)        (bounded)                       sealed: mapped read-only
//!               └──── checkpoint: segments flushed, everything else in SQLite, then journal files used again
//! ```
//! One thread writes groups of transactions, a few syncers make them durable meanwhile, and the
//! flusher moves batches from memory to files; checkpoints become durable beside it. The cleaner
//! removes messages that their topics no longer keep. Readers read from memory without waiting, and
//! from files on blocking threads. Recovery runs before all of them.
//!
//! Lock order: journal, then state, then the pipeline's line, then one partition.
//!
//! # Rooms
//!
//! ```text
//!   engine    the verbs that callers see, and the threads
//!     │
//!   start     a directory that no engine works on: recovery, examining, repair, restoring
//!     │
//!   keep      behind the commit: files, checkpoints, backups, cleaning, the search for damage
//!     │
//!   write     the way of a commit: journal, line, syncs, and who waits for what
//!     │
//!   decide    what a transaction comes to; plain code
//!     │
//!   ground    the options, a partition, what may go wrong
//! ```
//! Each room uses only those below it. [Partitions](ground::tail) are in the lowest room, because
//! all others work on them, and each decision begins with a partition's end. Evidence and names
//! belong to `keep`, which writes them; a start only reads them. One half of
//! [backups](keep::backup) also belongs to `keep`, because a checkpoint makes them; the other half
//! needs no engine and belongs to `start`.

#![forbid(unsafe_code)]

mod decide;
mod engine;
mod ground;
mod keep;
mod start;
mod write;

pub use millrace_log::cipher::{Cipher, KeyError};
pub use millrace_log::keep_to_small_pages;
pub use millrace_log::partition::encryption;
pub use millrace_log::segment::examine as segment;

pub use self::engine::LocalEngine;
pub use self::ground::open_error::OpenError;
pub use self::ground::options::LocalOptions;
pub use self::start::{examine, repair};

/// The client's half of backups: receiving, verifying and restoring them.
pub mod backup {
    pub use crate::keep::backup::manifest::{BackupFile, Flaw, MANIFEST, Manifest, ManifestError};
    pub use crate::start::restore::checking::{Verified, VerifyError, verify};
    pub use crate::start::restore::receiving::{Passing, ReceiveError, Received, Receiver};
    pub use crate::start::restore::restoring::{RestoreError, Restored, Restorer, restore};
}
