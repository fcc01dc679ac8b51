//! A failed message and the class of its failure.

use crate::handler::Cause;

/// One failed message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failed {
    /// The message's index in the batch.
    pub(crate) message: usize,
    pub(crate) cause: Cause,
    pub(crate) class: String,
    pub(crate) reason: String,
    /// The delay that the handler asks for.
    pub(crate) after_ms: Option<u64>,
    pub(crate) backtrace: Option<String>,
}
