//! A transaction on its way to the committer.

use bytes::Bytes;
use millrace_engine::contract::{
    Append, EntryWrite, Expectation, Lease, NextEpoch, ProgressWrite, RequestMark, Transaction,
};
use millrace_engine::state::{HeldTurn, StateWrite};
use millrace_model::Durability;

use crate::decide::codec::OPERATION_OVERHEAD_BYTES;

/// The room in the queue, in KiB, for a transaction of this many bytes.
pub(crate) fn queue_kib(bytes: usize) -> u32 {
    u32::try_from(bytes / 1024 + 1).unwrap_or(u32::MAX)
}

/// A transaction. Each part knows its size in the journal.
pub(crate) struct Submission {
    pub(crate) appends: Vec<Append>,
    pub(crate) progress: Vec<ProgressWrite>,
    pub(crate) fences: Vec<Lease>,
    pub(crate) entries: Vec<EntryWrite>,
    pub(crate) state: Vec<StateWrite>,
    pub(crate) turns: Vec<HeldTurn>,
    pub(crate) durability: Option<Durability>,
    pub(crate) request: Option<RequestMark>,
    pub(crate) producer: Option<NextEpoch>,
    pub(crate) expects: Vec<Expectation>,
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
    /// Maximum bytes that it takes in the journal.
    pub(crate) fn byte_count(&self) -> usize {
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
