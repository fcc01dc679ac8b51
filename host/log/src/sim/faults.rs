//! Faults of single operations while the machine runs, and a gate that holds an operation until it
//! is opened.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::trace::{Operation, OperationKind};

/// How an operation goes wrong.
#[derive(Clone, Debug)]
pub enum Effect {
    /// An I/O error; nothing happened.
    Fail,
    /// The disk is full; nothing happened.
    Full,
    /// Half of a write happened, then an I/O error.
    Short,
    /// A sync fails and drops its data, although reads still show it and the next sync succeeds, as
    /// on Linux.
    DropPages,
    /// A sync reports success but makes nothing durable.
    Lie,
    /// A write that reports success and can be read, but never reaches the disk, even with a sync.
    LoseWrite,
    /// A write that reaches another place on the disk: the given file (or its own, if none is
    /// given), from the given byte on.
    Misdirect {
        /// The file that is overwritten.
        path: Option<PathBuf>,
        /// The position in it.
        at: u64,
    },
    /// A read that returns the content of the last sync.
    Stale,
    /// The operation succeeds, but waits until the gate is opened.
    Wait(Gate),
}

/// An [`Effect`], and the operations that it applies to.
#[derive(Clone, Debug)]
pub struct Fault {
    effect: Effect,
    kinds: Vec<OperationKind>,
    path_part: String,
    skipped: u64,
    times: u64,
}

impl Fault {
    /// Applies once, to the next possible operation.
    #[must_use]
    pub fn new(effect: Effect) -> Self {
        use OperationKind::{Read, Sync, SyncAll, SyncDir, Write};
        let kinds = match effect {
            Effect::Fail | Effect::Full | Effect::Wait(_) => Vec::new(),
            Effect::Short | Effect::LoseWrite | Effect::Misdirect { .. } => vec![Write],
            Effect::DropPages => vec![Sync, SyncAll],
            Effect::Lie => vec![Sync, SyncAll, SyncDir],
            Effect::Stale => vec![Read],
        };
        Self {
            effect,
            kinds,
            path_part: String::new(),
            skipped: 0,
            times: 1,
        }
    }

    /// Only operations of this kind.
    #[must_use]
    pub fn on(mut self, kind: OperationKind) -> Self {
        self.kinds = vec![kind];
        self
    }

    /// Only files and directories whose path contains this.
    #[must_use]
    pub fn at_path(mut self, part: &str) -> Self {
        part.clone_into(&mut self.path_part);
        self
    }

    /// Lets this many operations pass first.
    #[must_use]
    pub fn after(mut self, operations: u64) -> Self {
        self.skipped = operations;
        self
    }

    /// Applies this many times.
    #[must_use]
    pub fn times(mut self, times: u64) -> Self {
        self.times = times;
        self
    }

    /// Applies to all operations from now on.
    #[must_use]
    pub fn for_ever(self) -> Self {
        self.times(u64::MAX)
    }

    fn concerns(&self, operation: &Operation) -> bool {
        let kind = if self.kinds.is_empty() {
            !matches!(self.effect, Effect::Full) || operation.kind.takes_room()
        } else {
            self.kinds.contains(&operation.kind)
        };
        kind && operation.path.to_string_lossy().contains(&self.path_part)
    }
}

/// The effect that applies to the operation, if any; each fault counts its own operations.
pub(super) fn meet(faults: &mut [Fault], operation: &Operation) -> Option<Effect> {
    let mut met = None;
    for fault in faults.iter_mut().filter(|f| f.concerns(operation)) {
        if fault.skipped > 0 {
            fault.skipped -= 1;
        } else if fault.times > 0 && met.is_none() {
            fault.times -= 1;
            met = Some(fault.effect.clone());
        }
    }
    met
}

impl Effect {
    /// The error that the operation returns at once, if the effect is an error.
    pub(super) fn error(&self) -> Option<io::Error> {
        match self {
            Self::Fail => Some(failed()),
            Self::Full => Some(io::ErrorKind::StorageFull.into()),
            _ => None,
        }
    }
}

pub(super) fn failed() -> io::Error {
    rustix::io::Errno::IO.into()
}

/// Holds operations until it is opened. Clones are the same gate.
#[derive(Clone, Debug, Default)]
pub struct Gate {
    inner: Arc<(Mutex<GateState>, Condvar)>,
}

#[derive(Debug, Default)]
struct GateState {
    is_open: bool,
    waiting: usize,
}

impl Gate {
    /// Lets everything pass, now and later.
    pub fn open(&self) {
        let (state, changed) = &*self.inner;
        state.lock().is_open = true;
        changed.notify_all();
    }

    /// The number of waiting operations.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.inner.0.lock().waiting
    }

    /// Waits until an operation waits here; true if one came in time.
    #[must_use]
    pub fn wait_for_arrival(&self, patience: Duration) -> bool {
        let (state, changed) = &*self.inner;
        let mut state = state.lock();
        let waited = changed.wait_while_for(&mut state, |state| state.waiting == 0, patience);
        !waited.timed_out()
    }

    pub(super) fn pass(&self) {
        let (state, changed) = &*self.inner;
        let mut state = state.lock();
        state.waiting += 1;
        changed.notify_all();
        changed.wait_while(&mut state, |state| !state.is_open);
        state.waiting -= 1;
    }
}
