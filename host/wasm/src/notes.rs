//! The host's notes on a running call. They outlive the guest, so that a discarded one can be reported.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use millrace_broker::handler::{CallLog, CallUse, GuestLine};
use millrace_model::ColumnBatch;
use parking_lot::Mutex;

/// The notes of one instance; one call at a time writes to them.
#[derive(Default)]
pub(crate) struct Notes {
    /// How often the guest was interrupted in this call.
    yields: AtomicU32,
    /// Whether the host reads from the disk for it, which does not use its time.
    is_reading: AtomicBool,
    /// Linear memory of the instance.
    memory_bytes: AtomicU64,
    /// What it logged in this call.
    log: Mutex<CallLog>,
    /// The call's messages, while it runs.
    batch: Mutex<Option<Arc<ColumnBatch>>>,
}

/// A read from the disk that a call waits for.
pub(crate) struct Reading(Arc<Notes>);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.is_reading.store(false, Ordering::Relaxed);
    }
}

/// Notes on a finished call.
pub(crate) struct Noted {
    memory_bytes: u64,
    log: Vec<GuestLine>,
}

impl Notes {
    /// Forgets the previous call.
    pub(crate) fn begin_call(&self) {
        self.yields.store(0, Ordering::Relaxed);
        drop(self.log.lock().take());
    }

    pub(crate) fn count_yield(&self) {
        self.yields.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn yields(&self) -> u32 {
        self.yields.load(Ordering::Relaxed)
    }

    /// The host reads from the disk for the call until this is dropped.
    pub(crate) fn reading(self: &Arc<Self>) -> Reading {
        self.is_reading.store(true, Ordering::Relaxed);
        Reading(Arc::clone(self))
    }

    pub(crate) fn is_reading(&self) -> bool {
        self.is_reading.load(Ordering::Relaxed)
    }

    pub(crate) fn memory(&self, bytes: usize) {
        self.memory_bytes.store(bytes as u64, Ordering::Relaxed);
    }

    /// Sets the current call's messages; `None`: it is over.
    pub(crate) fn set_batch(&self, batch: Option<Arc<ColumnBatch>>) {
        *self.batch.lock() = batch;
    }

    pub(crate) fn batch(&self) -> Option<Arc<ColumnBatch>> {
        self.batch.lock().clone()
    }

    pub(crate) fn line(&self, line: &GuestLine) {
        self.log.lock().push(line);
    }

    /// The call's evidence; nothing is allocated for a guest that logged nothing.
    pub(crate) fn take(&self) -> Noted {
        Noted {
            memory_bytes: self.memory_bytes.load(Ordering::Relaxed),
            log: self.log.lock().take(),
        }
    }
}

impl Noted {
    /// What a call of this many messages used in this time.
    pub(crate) fn used(self, time: Duration, messages: usize) -> CallUse {
        CallUse {
            guest_us: u64::try_from(time.as_micros()).unwrap_or(u64::MAX),
            memory_bytes: self.memory_bytes,
            messages: u32::try_from(messages).unwrap_or(u32::MAX),
            log: self.log,
        }
    }
}
