//! An error's [`Code`] for programs and the advice for its reader, the same for every door. It is
//! declared once, beside the error. A door only maps [`Kind`]s, or codes if its protocol
//! distinguishes more than the kinds.

use std::borrow::Cow;
use std::error::Error;

use crate::codes::Code;
use crate::offset::Offset;

/// What the caller of a refused request can do, in general. Each [`Code`] has exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// The request cannot be understood.
    Malformed,
    /// It is not known who asks.
    Unauthenticated,
    /// The host's rules do not allow it.
    Forbidden,
    /// Something that the request names does not exist.
    Unknown,
    /// The request is valid, but not in the present state.
    Conflict,
    /// The request is larger than what is accepted.
    TooLarge,
    /// The request is understood, but will not be carried out.
    Refused,
    /// The host is already doing as much of this as it can at once.
    Busy,
    /// The host cannot carry out the request now.
    Unavailable,
    /// Stored data can no longer be read.
    Damaged,
    /// The host failed.
    Internal,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 11] = [
        Self::Malformed,
        Self::Unauthenticated,
        Self::Forbidden,
        Self::Unknown,
        Self::Conflict,
        Self::TooLarge,
        Self::Refused,
        Self::Busy,
        Self::Unavailable,
        Self::Damaged,
        Self::Internal,
    ];

    /// General advice for this kind.
    #[must_use]
    pub fn remedy(self) -> &'static str {
        match self {
            Self::Malformed => "Correct the request.",
            Self::Unauthenticated => "Send credentials that this host knows.",
            Self::Forbidden => {
                "Meet the host's rule that the message names, or have it changed there."
            }
            Self::Unknown => "Correct the name or the place, or create what is missing.",
            Self::Conflict => "Look at what is there now; then decide whether to ask again.",
            Self::TooLarge => "Send less at once.",
            Self::Refused => "Change the request; repeating it changes nothing.",
            Self::Busy => "Send more slowly: repeat the request after the time that is given.",
            Self::Unavailable => "Repeat the request after the time that is given.",
            Self::Damaged => "Continue after the damage, or restore from a backup.",
            Self::Internal => "See the host's log.",
        }
    }

    /// Whether the same request may succeed a little later, unchanged.
    #[must_use]
    pub fn is_passing(self) -> bool {
        matches!(self, Self::Busy | Self::Unavailable)
    }
}

/// An error's code, and the advice for its reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advice {
    /// The error's code.
    pub code: Code,
    /// What the reader can do now.
    pub hint: Cow<'static, str>,
    /// Seconds after which to try again. Always present if the kind [is passing](Kind::is_passing).
    pub retry_after_s: Option<u32>,
    /// The offset to continue at, after messages that cannot be read.
    pub next: Option<Offset>,
}

impl Advice {
    /// The advice for a code, without details of the error.
    #[must_use]
    pub fn of(code: Code) -> Self {
        Self {
            code,
            hint: Cow::Borrowed(code.remedy()),
            retry_after_s: code.retry_after_s(),
            next: None,
        }
    }

    /// The code's kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.code.kind()
    }

    /// Replaces the hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.hint = hint.into();
        self
    }

    /// Replaces the seconds after which to try again.
    #[must_use]
    pub fn after_s(mut self, seconds: u32) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    /// Adds the offset to continue at.
    #[must_use]
    pub fn next(mut self, next: Offset) -> Self {
        self.next = Some(next);
        self
    }
}

/// An error that may be reported to a caller.
pub trait Advised: Error {
    /// The error's code, and what to do now.
    fn advice(&self) -> Advice;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_may_come_back_is_told_when() {
        for code in Code::ALL {
            let is_told = Advice::of(*code).retry_after_s.is_some();
            assert_eq!(is_told, code.kind().is_passing(), "{code}");
        }
    }
}
