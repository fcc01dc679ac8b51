//! The outcomes of a batch, in numbers.

/// How many messages had each outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) ok: u64,
    /// Failed attempts, including those of messages that are retried.
    pub(crate) failed: u64,
    pub(crate) retries: u64,
    pub(crate) dead_letters: u64,
    /// Messages that a canary failed and that were passed to the current revision.
    pub(crate) asked_again: u64,
}
