//! The input of an error handler, and its decisions.

use std::time::Duration;

use crate::message::Message;

/// How an attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The processor asked for a retry.
    Retry,
    /// The processor rejected the message.
    Reject,
    /// The processor trapped.
    Trap,
    /// The processor did not answer in time.
    Timeout,
    /// The processor ran out of memory.
    Memory,
    /// The processor's answer was malformed.
    BadAnswer,
}

/// The facts of a failure, as the host passes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailureFacts {
    /// The message's index in the batch that is passed with the failures.
    pub message: u32,
    /// The revision that failed.
    pub revision: u32,
    /// The number of attempts so far, under all revisions, including this one.
    pub attempt: u32,
    /// When the first attempt failed, in milliseconds since the Unix epoch.
    pub first_failed_at: u64,
    /// How it failed.
    pub cause: Cause,
    /// A short word by which failures are grouped.
    pub class: String,
    /// An explanation for people.
    pub reason: String,
}

/// A failed message.
#[derive(Clone, Copy, Debug)]
pub struct Failure<'a> {
    pub(crate) facts: &'a FailureFacts,
    pub(crate) message: Message<'a>,
}

impl<'a> Failure<'a> {
    /// The message that failed.
    #[must_use]
    pub fn message(&self) -> Message<'a> {
        self.message
    }

    /// The processor's revision that failed.
    #[must_use]
    pub fn revision(&self) -> u32 {
        self.facts.revision
    }

    /// The number of attempts so far, under all revisions, including this one.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.facts.attempt
    }

    /// When the first attempt failed, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn first_failed_at(&self) -> u64 {
        self.facts.first_failed_at
    }

    /// How the attempt failed.
    #[must_use]
    pub fn cause(&self) -> Cause {
        self.facts.cause
    }

    /// The short word by which failures are grouped.
    #[must_use]
    pub fn class(&self) -> &'a str {
        &self.facts.class
    }

    /// The explanation for people.
    #[must_use]
    pub fn reason(&self) -> &'a str {
        &self.facts.reason
    }
}

/// What the host does with a failed message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Try again after this time.
    RetryAfter(Duration),
    /// Give it up: it becomes a dead letter.
    DeadLetter,
    /// Drop it; the host counts it and logs this reason.
    Drop(String),
    /// Do what the processor's retry policy says.
    Policy,
}
