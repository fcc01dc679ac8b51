//! The embedded engine: everything in one directory, owned by one process.
//!
//! ```text
//!             commit                      read at the tail          read further back
//!  txns ──►  journal  ──►  in-memory tails  ──► flusher ──►  segments (+ sparse index)
//!           (durable)        (bounded)                       sealed: mapped read-only
//!               └──── checkpoint: segments flushed, everything else in SQLite, then journal files used again
//! ```
//! A thread writes groups of transactions, a few syncers make them durable meanwhile, and the flusher empties memory into files; checkpoints
//! become durable beside it. The cleaner sees to it that messages are kept no longer than their topics say. Readers take from memory without
//! waiting, and from files on blocking threads. Recovery runs before all of them.
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
//! Each room uses those below it and none above. A [partition](ground::tail) is in the lowest: everybody works on it, and what is
//! decided begins with where it ends. Evidence and names are of `keep`, which writes them; a start only reads them. So is one half of
//! [backups](keep::backup), which the next checkpoint makes; the other half needs no engine and is of `start`.

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

/// Backups on the other side: received, looked at, and made data directories again.
pub mod backup {
    pub use crate::keep::backup::manifest::{BackupFile, Flaw, MANIFEST, Manifest, ManifestError};
    pub use crate::start::restore::checking::{Verified, VerifyError, verify};
    pub use crate::start::restore::receiving::{Passing, ReceiveError, Received, Receiver};
    pub use crate::start::restore::restoring::{RestoreError, Restored, Restorer, restore};
}
