//! The outcome of a message, and the failure of a batch when something outside is down.

use std::borrow::Cow;
use std::time::Duration;

use crate::output::Output;

/// The outcome of a message.
#[derive(Debug)]
#[must_use = "an outcome is what the handler returns"]
pub enum Outcome {
    /// Done, without outputs.
    Ack,
    /// Done, with this output.
    Emit(Output),
    /// Done, with these outputs, in order. None is the same as an ack.
    EmitAll(Vec<Output>),
    /// Not now: try again later.
    Retry {
        /// The delay; `None` leaves it to the processor's policy.
        after: Option<Duration>,
        /// A short word by which failures are grouped.
        class: Cow<'static, str>,
        /// An explanation for people.
        reason: Cow<'static, str>,
    },
    /// Never: the message becomes a dead letter.
    Reject {
        /// A short word by which failures are grouped.
        class: Cow<'static, str>,
        /// An explanation for people.
        reason: Cow<'static, str>,
    },
}

impl Outcome {
    /// Tries the message again after the delay in the processor's policy.
    pub fn retry(
        class: impl Into<Cow<'static, str>>,
        reason: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self::Retry {
            after: None,
            class: class.into(),
            reason: reason.into(),
        }
    }

    /// Tries the message again after this delay.
    pub fn retry_after(
        after: Duration,
        class: impl Into<Cow<'static, str>>,
        reason: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self::Retry {
            after: Some(after),
            class: class.into(),
            reason: reason.into(),
        }
    }

    /// Gives the message up: it becomes a dead letter.
    pub fn reject(
        class: impl Into<Cow<'static, str>>,
        reason: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self::Reject {
            class: class.into(),
            reason: reason.into(),
        }
    }
}

impl From<Output> for Outcome {
    fn from(output: Output) -> Self {
        Self::Emit(output)
    }
}

/// Something that the whole processor needs is down: the host pauses the processor and probes,
/// without spending attempts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unavailable {
    /// An explanation for people.
    pub reason: String,
}

impl Unavailable {
    /// Unavailable for this reason.
    #[must_use]
    pub fn new(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
        }
    }
}
