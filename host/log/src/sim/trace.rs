//! The operations of the simulated disk, and a hash of them: running a script twice gives the same
//! hash.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
#[expect(
    missing_docs,
    reason = "named as the methods of `Disk` and `DiskFile` are"
)]
pub enum OperationKind {
    Open,
    Create,
    CreateDir,
    List,
    Rename,
    Remove,
    RemoveDir,
    SyncDir,
    Read,
    Write,
    Preallocate,
    SetLength,
    Sync,
    /// A sync of everything: [`crate::disk::FileSystem::sync`].
    SyncAll,
    FileSystem,
    Length,
    Map,
    /// Data beside this disk changes: [`crate::Disk::moment`].
    Moment,
    Link,
}

impl OperationKind {
    /// Whether a power cut after the operation may leave a different result than one before it.
    #[must_use]
    pub fn changes_disk(self) -> bool {
        !matches!(
            self,
            Self::Open | Self::List | Self::Read | Self::FileSystem | Self::Length | Self::Map
        )
    }

    /// Whether a full disk may refuse it.
    pub(super) fn takes_room(self) -> bool {
        use OperationKind::{Create, CreateDir, Link, Preallocate, Rename, SetLength, Write};
        matches!(
            self,
            Create | CreateDir | Link | Rename | Write | Preallocate | SetLength
        )
    }

    /// Its approximate duration on an idle solid-state disk.
    fn cost(self) -> Duration {
        match self {
            Self::Sync | Self::SyncAll | Self::SyncDir => Duration::from_micros(500),
            Self::Read | Self::Write | Self::Map => Duration::from_micros(20),
            _ => Duration::from_micros(5),
        }
    }
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Its number, from 1.
    pub number: u64,
    /// What it does.
    pub kind: OperationKind,
    /// The file or directory; relative to the first created directory if it is below it.
    pub path: PathBuf,
    /// The first byte.
    pub at: u64,
    /// The number of bytes.
    pub length: u64,
}

/// The hash of all operations so far, their total duration, and, if requested, the operations.
#[derive(Clone, Debug)]
pub(super) struct Trace {
    hash: u64,
    pub(super) kept: Option<Vec<Operation>>,
    pub(super) cost: Duration,
    pub(super) cost_factor: u32,
}

impl Default for Trace {
    fn default() -> Self {
        Self {
            hash: 0xcbf2_9ce4_8422_2325,
            kept: None,
            cost: Duration::ZERO,
            cost_factor: 1,
        }
    }
}

impl Trace {
    pub(super) fn note(&mut self, operation: &Operation) {
        self.mix(&[operation.kind as u8]);
        self.mix(operation.path.as_os_str().as_encoded_bytes());
        self.mix(&operation.at.to_le_bytes());
        self.mix(&operation.length.to_le_bytes());
        self.cost += operation.kind.cost() * self.cost_factor;
        if let Some(kept) = &mut self.kept {
            kept.push(operation.clone());
        }
    }

    // FNV-1a: the same on every machine and in every version.
    fn mix(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.hash = (self.hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    pub(super) fn hash(&self) -> u64 {
        self.hash
    }
}

/// The path relative to the first created directory, which may have a random name.
pub(super) fn below(root: Option<&Path>, path: &Path) -> PathBuf {
    let below = root.and_then(|root| path.strip_prefix(root).ok());
    below.unwrap_or(path).to_owned()
}
