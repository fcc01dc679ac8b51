//! What a handler says of a message, and of a batch when something outside is down.

use std::borrow::Cow;
use std::time::Duration;

use crate::output::Output;

/// What became of a message.
#[derive(Debug)]
#[must_use = "an outcome is what the handler returns"]
pub enum Outcome {
    /// Done, nothing to send on.
    Ack,
    /// Done; this is sent on.
    Emit(Output),
    /// Done; these are sent on, in order. None at all is an ack.
    EmitAll(Vec<Output>),
    /// Not now: try again.
    Retry {
        /// Wait this long; `None` leaves it to the processor's policy.
        after: Option<Duration>,
        /// A short word to group failures by.
        class: Cow<'static, str>,
        /// For people.
        reason: Cow<'static, str>,
    },
    /// Never: a dead letter.
    Reject {
        /// A short word to group failures by.
        class: Cow<'static, str>,
        /// For people.
        reason: Cow<'static, str>,
    },
}

impl Outcome {
    /// Try again when the processor's policy says.
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

    /// Try again after so long.
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

    /// Give it up into the dead-letter topic.
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

/// Something that the whole processor needs is down: the host pauses, probes, and spends nobody's attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unavailable {
    /// For people.
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
