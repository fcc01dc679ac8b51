//! A transaction on its way to the committer.

use std::sync::Arc;

use bytes::Bytes;
use millrace_engine::contract::{
    Append, CommitError, EntryWrite, Expectation, Lease, NextEpoch, ProgressWrite, Receipt,
    RequestMark, Transaction,
};
use millrace_engine::state::{HeldTurn, StateWrite};
use millrace_model::Durability;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::codec::OPERATION_OVERHEAD_BYTES;
use super::committer::Request;

/// Commits a transaction of the engine's own, the way that everybody's take, from a thread that may wait for the answer. `None` if others have
/// more to do, or the engine ends.
pub(super) fn commit_own(
    queue: &mpsc::Sender<Request>,
    room: &Arc<Semaphore>,
    transaction: Transaction,
) -> Option<Result<Receipt, CommitError>> {
    let submission = Submission::from(transaction);
    let bytes = submission.byte_count();
    let room = Arc::clone(room).try_acquire_many_owned(queue_kib(bytes));
    let (answer, answered) = oneshot::channel();
    let request = Request::Commit {
        submission,
        bytes,
        answer,
        room: room.ok()?,
    };
    queue.blocking_send(request).ok()?;
    answered.blocking_recv().ok()
}

/// What a transaction of so many bytes takes of the room in the queue.
pub(super) fn queue_kib(bytes: usize) -> u32 {
    u32::try_from(bytes / 1024 + 1).unwrap_or(u32::MAX)
}

/// A transaction. Every part of it says what it takes in the journal.
pub(super) struct Submission {
    pub(super) appends: Vec<Append>,
    pub(super) progress: Vec<ProgressWrite>,
    pub(super) fences: Vec<Lease>,
    pub(super) entries: Vec<EntryWrite>,
    pub(super) state: Vec<StateWrite>,
    pub(super) turns: Vec<HeldTurn>,
    pub(super) durability: Option<Durability>,
    pub(super) request: Option<RequestMark>,
    pub(super) producer: Option<NextEpoch>,
    pub(super) expects: Vec<Expectation>,
}

impl From<Transaction> for Submission {
    fn from(transaction: Transaction) -> Self {
        Self {
            appends: transaction.appends,
            progress: transaction.progress,
            fences: transaction.fences,
            entries: transaction.entries,
            state: transaction.state,
            turns: transaction.turns,
            durability: transaction.durability,
            request: transaction.request,
            producer: transaction.producer,
            expects: transaction.expects,
        }
    }
}

impl Submission {
    /// What it takes in the journal, at most.
    pub(super) fn byte_count(&self) -> usize {
        let appends = self.appends.iter();
        let appends = appends.map(|append| append.batch.byte_count());
        let progress = self.progress.iter();
        let progress =
            progress.map(|write| write.lease.group.as_str().len() + write.progress.encoded_bytes());
        let entries = self.entries.iter();
        let entries = entries.map(|e| e.key.len() + e.value.as_ref().map_or(0, Bytes::len));
        let request = self.request.iter();
        let request = request.map(|mark| mark.note.len() + 32 + 8 * self.appends.len());
        let is_numbered = |append: &Append| append.batch.numbering().is_some();
        let producer = self.producer.iter().map(|next| next.name.len());
        let has_moment = self.request.is_some()
            || self.producer.is_some()
            || self.appends.iter().any(is_numbered);
        let moment = has_moment.then_some(0);
        let state = self.state.iter();
        let state = state.map(|write| write.group.as_str().len() + write.writes.byte_count());
        let parts = appends.chain(progress).chain(entries).chain(producer);
        let parts = parts.chain(request).chain(moment).chain(state);
        1 + parts
            .map(|bytes| bytes + OPERATION_OVERHEAD_BYTES)
            .sum::<usize>()
    }
}
