//! What became of a batch, in numbers.

/// How many messages had each outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) ok: u64,
    /// Failed attempts, whatever happened to the message.
    pub(crate) failed: u64,
    pub(crate) retries: u64,
    pub(crate) dead_letters: u64,
    /// Messages that a canary failed, passed to the current revision.
    pub(crate) asked_again: u64,
}
