//! What can go wrong with a single operation while the machine runs, and a gate that holds one until it is let go.

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
    /// A sync fails and drops what it was to make durable, though reads still show it and the next sync succeeds: as Linux
    /// does it.
    DropPages,
    /// A sync says that it succeeded and made nothing durable.
    Lie,
    /// A write that is reported done, can be read, and never reaches the disk, syncs or not.
    LoseWrite,
    /// A write that reaches the disk elsewhere: in the named file (or its own, if none is named), from that byte on.
    Misdirect {
        /// The file that is hit.
        path: Option<PathBuf>,
        /// Where.
        at: u64,
    },
    /// A read that gives what was there at the last sync.
    Stale,
    /// Nothing goes wrong, but only once the gate is opened.
    Wait(Gate),
}

/// An [`Effect`], and which operations it meets.
#[derive(Clone, Debug)]
pub struct Fault {
    effect: Effect,
    kinds: Vec<OperationKind>,
    path_part: String,
    skipped: u64,
    times: u64,
}

impl Fault {
    /// Meets the next operation that the effect can meet, once.
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

    /// Only files and directories whose path holds this.
    #[must_use]
    pub fn at_path(mut self, part: &str) -> Self {
        part.clone_into(&mut self.path_part);
        self
    }

    /// Lets so many pass first.
    #[must_use]
    pub fn after(mut self, operations: u64) -> Self {
        self.skipped = operations;
        self
    }

    /// Meets so many.
    #[must_use]
    pub fn times(mut self, times: u64) -> Self {
        self.times = times;
        self
    }

    /// Meets all from now on.
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

/// The effect that meets the operation, if any does; each fault counts what concerns it.
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
    /// The error that the operation gives at once, if the effect is one.
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

    /// Operations that wait here.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.inner.0.lock().waiting
    }

    /// Waits until an operation waits here; whether one came in time.
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
