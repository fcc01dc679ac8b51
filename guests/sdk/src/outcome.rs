//! The outcome of a message, and the error of a batch when something outside is down.

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
    /// Done, with these outputs, in order. An empty list is the same as `Ack`.
    EmitAll(Vec<Output>),
    /// Try again later.
    Retry {
        /// The delay; `None` leaves it to the processor's policy.
        after: Option<Duration>,
        /// A short word by which failures are grouped.
        class: Cow<'static, str>,
        /// An explanation for people.
        reason: Cow<'static, str>,
    },
    /// Give it up: it becomes a dead letter.
    Reject {
        /// A short word by which failures are grouped.
        class: Cow<'static, str>,
        /// An explanation for people.
        reason: Cow<'static, str>,
    },
}

impl Outcome {
    /// Try again, with the delay of the processor's policy.
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

    /// Try again after this time.
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

    /// Give it up: it becomes a dead letter.
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

/// Something that the whole processor needs is down: the host pauses, probes, and spends no
/// attempts.
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
