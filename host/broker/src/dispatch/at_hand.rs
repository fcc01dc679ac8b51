//! Bounds the memory of batches in work, over all workers of a host: messages as read and as a
//! component sees them, answers, and records to commit.
//!
//! Before it reads, a worker reserves the most that its next batch may need, and returns the excess
//! as soon as the need is known. A waiting worker holds no room, and workers wait in the order of
//! asking, so no worker holds room that another one waits for.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use millrace_model::ProcessorSpec;
use millrace_model::bounds::MESSAGE_BYTES_MAX;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::dispatch::batcher::Batch;

/// Copies of the messages' bytes until the call: as read, and as the component sees them.
const TIMES_READ: usize = 2;
/// Copies until the commit: one more in dead letters.
const TIMES_CALLED: usize = 3;
/// Copies of an answer's bytes: as received, and as records.
const TIMES_ANSWERED: usize = 2;
/// Memory of a message besides its bytes, over all these forms.
const PER_MESSAGE_BYTES: usize = 256;

/// The room of a host.
#[derive(Debug)]
pub(crate) struct AtHand {
    kib: Arc<Semaphore>,
    kib_max: u32,
    waiting: AtomicUsize,
    /// Signalled when a worker begins to wait.
    wanted: Notify,
}

/// One worker's share, returned when dropped.
#[derive(Debug)]
pub(crate) struct InHand(OwnedSemaphorePermit);

impl AtHand {
    pub(crate) fn new(bytes_max: usize) -> Arc<Self> {
        // A semaphore cannot hold more permits.
        let kib_max = (bytes_max >> 10).clamp(1, 1 << 28) as u32;
        Arc::new(Self {
            kib: Arc::new(Semaphore::new(kib_max as usize)),
            kib_max,
            waiting: AtomicUsize::new(0),
            wanted: Notify::new(),
        })
    }

    /// Reserves this much if it is free and no worker waits for room.
    pub(crate) fn try_take(&self, bytes: usize) -> Option<InHand> {
        let permit = Arc::clone(&self.kib).try_acquire_many_owned(self.permits(bytes));
        permit.ok().map(InHand)
    }

    /// Reserves this much, in the order of asking. A request for more than the total gets the
    /// total.
    pub(crate) async fn take(&self, bytes: usize) -> Option<InHand> {
        let permit = Arc::clone(&self.kib).acquire_many_owned(self.permits(bytes));
        let _waiting = Waiting::announce(&self.waiting);
        self.wanted.notify_waiters();
        // The semaphore is never closed.
        permit.await.ok().map(InHand)
    }

    /// Whether a worker waits for room. If so, a batch that only waits for something else must not
    /// hold room.
    pub(crate) fn is_wanted(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// Returns when a worker waits for room.
    pub(crate) async fn wanted(&self) {
        loop {
            let mut begins = std::pin::pin!(self.wanted.notified());
            // From here on no notification is missed.
            begins.as_mut().enable();
            if self.is_wanted() {
                return;
            }
            begins.await;
        }
    }

    fn permits(&self, bytes: usize) -> u32 {
        let kib = u32::try_from(bytes.div_ceil(1 << 10)).unwrap_or(u32::MAX);
        kib.clamp(1, self.kib_max)
    }
}

struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn announce(waiting: &'a AtomicUsize) -> Self {
        waiting.fetch_add(1, Ordering::Relaxed);
        Self(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl InHand {
    /// Returns everything beyond this much.
    pub(crate) fn keep(&mut self, bytes: usize) {
        let kib = bytes.div_ceil(1 << 10).max(1);
        drop(self.0.split(self.0.num_permits().saturating_sub(kib)));
    }
}

/// The most that a batch of a processor may need, before any message is read.
pub(crate) fn at_the_most(spec: &ProcessorSpec) -> usize {
    let batch = &spec.batch;
    // A batch may be one message larger than the policy's bytes.
    let read = (batch.bytes_max as usize).max(MESSAGE_BYTES_MAX);
    let messages = batch.messages_max as usize;
    TIMES_READ * read + PER_MESSAGE_BYTES * messages + answer_at_the_most(spec)
}

/// The most that a batch may need once it is cut.
pub(crate) fn called(spec: &ProcessorSpec, batch: &Batch) -> usize {
    in_batch(batch) + answer_at_the_most(spec)
}

/// What a batch needs once it is answered, with outputs of this many bytes.
pub(crate) fn answered(batch: &Batch, output_bytes: usize, outputs: usize) -> usize {
    in_batch(batch) + TIMES_ANSWERED * output_bytes + PER_MESSAGE_BYTES * outputs
}

fn in_batch(batch: &Batch) -> usize {
    let messages = batch.len() + batch.skipped.len();
    TIMES_CALLED * batch.columns.data.len() + PER_MESSAGE_BYTES * messages
}

fn answer_at_the_most(spec: &ProcessorSpec) -> usize {
    let limits = &spec.limits;
    let bytes = usize::try_from(limits.answer_bytes_max).unwrap_or(usize::MAX);
    TIMES_ANSWERED.saturating_mul(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn room_comes_back_as_soon_as_it_is_not_needed_and_all_of_it_is_enough_for_anybody() {
        let host = AtHand::new(64 << 10);
        let mut first = host.try_take(48 << 10).expect("room");
        assert!(host.try_take(17 << 10).is_none());
        first.keep(40 << 10);
        let second = host.try_take(24 << 10).expect("room");
        first.keep(41 << 10);
        assert!(host.try_take(1).is_none());
        first.keep(1 << 10);
        let asked = Arc::clone(&host);
        let whole = tokio::spawn(async move { asked.take(usize::MAX).await });
        host.wanted().await;
        assert!(host.try_take(1).is_none(), "who waits is next");
        drop((first, second));
        let whole = whole.await.unwrap().unwrap();
        assert_eq!(whole.0.num_permits(), 64);
        assert!(!host.is_wanted());
    }
}
