//! What an error handler is asked, and what it may decide.

use std::time::Duration;

use crate::message::Message;

/// How an attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The processor said: not now.
    Retry,
    /// The processor said: never.
    Reject,
    /// It trapped.
    Trap,
    /// It did not answer in time.
    Timeout,
    /// It ran out of memory.
    Memory,
    /// Its answer was malformed.
    BadAnswer,
}

/// The facts of a failure, as the host hands them over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailureFacts {
    /// The message's place in the batch that comes along.
    pub message: u32,
    /// The revision that failed.
    pub revision: u32,
    /// Attempts so far, of all revisions, this one included.
    pub attempt: u32,
    /// Milliseconds since the Unix epoch.
    pub first_failed_at: u64,
    /// How.
    pub cause: Cause,
    /// A short word to group by.
    pub class: String,
    /// For people.
    pub reason: String,
}

/// A failed message.
#[derive(Clone, Copy, Debug)]
pub struct Failure<'a> {
    pub(crate) facts: &'a FailureFacts,
    pub(crate) message: Message<'a>,
}

impl<'a> Failure<'a> {
    /// The message itself.
    #[must_use]
    pub fn message(&self) -> Message<'a> {
        self.message
    }

    /// The processor's revision that failed.
    #[must_use]
    pub fn revision(&self) -> u32 {
        self.facts.revision
    }

    /// Attempts so far, of all revisions, this one included.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.facts.attempt
    }

    /// When its first attempt failed, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn first_failed_at(&self) -> u64 {
        self.facts.first_failed_at
    }

    /// How it failed.
    #[must_use]
    pub fn cause(&self) -> Cause {
        self.facts.cause
    }

    /// The short word that failures are grouped by.
    #[must_use]
    pub fn class(&self) -> &'a str {
        &self.facts.class
    }

    /// The text for people.
    #[must_use]
    pub fn reason(&self) -> &'a str {
        &self.facts.reason
    }
}

/// What becomes of a failed message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Try again after so long.
    RetryAfter(Duration),
    /// Give it up into the dead-letter topic.
    DeadLetter,
    /// Forget it; the host counts it and logs this reason.
    Drop(String),
    /// What the processor's retry policy says.
    Policy,
}
