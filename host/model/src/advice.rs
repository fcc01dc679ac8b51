//! What an error has besides its text, the same for every door: its [`Code`] for programs, and what
//! people can do now. It is declared once, with the error; a door only maps [`Kind`]s, or codes if
//! its protocol distinguishes more than the kinds.

use std::borrow::Cow;
use std::error::Error;

use crate::codes::Code;
use crate::offset::Offset;

/// What the caller of a refused request can do, in general. Each [`Code`] has exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// The request cannot be understood.
    Malformed,
    /// What it names does not exist.
    Unknown,
    /// It is valid, but not in the present state.
    Conflict,
    /// It is larger than what is accepted.
    TooLarge,
    /// It is understood, but will not be done.
    Refused,
    /// The host is already doing as much of this as it does at once.
    Busy,
    /// The host cannot do it now.
    Unavailable,
    /// Stored data can no longer be read.
    Damaged,
    /// The host failed.
    Internal,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 9] = [
        Self::Malformed,
        Self::Unknown,
        Self::Conflict,
        Self::TooLarge,
        Self::Refused,
        Self::Busy,
        Self::Unavailable,
        Self::Damaged,
        Self::Internal,
    ];

    /// What to do in general for this kind.
    #[must_use]
    pub fn remedy(self) -> &'static str {
        match self {
            Self::Malformed => "Correct the request.",
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

    /// Whether the same request may succeed a little later, without a change by the caller.
    #[must_use]
    pub fn is_passing(self) -> bool {
        matches!(self, Self::Busy | Self::Unavailable)
    }
}

/// An error's code, and what to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advice {
    /// The code, which also tells the kind.
    pub code: Code,
    /// What to do now.
    pub hint: Cow<'static, str>,
    /// When to try again. Always given if the kind [is passing](Kind::is_passing).
    pub retry_after_s: Option<u32>,
    /// Where to continue, after messages that cannot be read.
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

    /// With this hint instead.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.hint = hint.into();
        self
    }

    /// With this time instead.
    #[must_use]
    pub fn after_s(mut self, seconds: u32) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    /// With the offset to continue at.
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
