//! What a failed request to the servers means for whoever asked for it.

use std::sync::Arc;

use millrace_engine::{AdoptError, CommitError, ReadError, TopicError, TrimError};

/// Why a request failed.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Trouble {
    /// A subject is not at the sequence that was expected. Nothing was written.
    #[error("a subject has moved on")]
    Moved,
    /// The disk of the servers, or what the account may use of it, is full. Nothing was written.
    #[error("{0}")]
    DiskFull(Arc<str>),
    /// The servers refused the request, and did nothing.
    #[error("{0}")]
    Refused(Arc<str>),
    /// The servers cannot be reached, or have no leader. Nothing was written.
    #[error("{0}")]
    Unavailable(Arc<str>),
    /// No answer came: it may have been written, or still be.
    #[error("{0}")]
    InDoubt(Arc<str>),
}

impl Trouble {
    pub(crate) fn unavailable(why: impl std::fmt::Display) -> Self {
        Self::Unavailable(why.to_string().into())
    }

    /// Something stored is not as this version stores it.
    pub(crate) fn malformed(what: &str) -> Self {
        Self::Unavailable(format!("the stream has {what} that this version cannot read").into())
    }
}

impl From<Trouble> for CommitError {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::DiskFull(_) => Self::DiskFull,
            Trouble::InDoubt(reason) => Self::InDoubt(reason),
            Trouble::Moved => {
                Self::Unavailable("others keep changing what this was based on".into())
            }
            Trouble::Refused(reason) | Trouble::Unavailable(reason) => Self::Unavailable(reason),
        }
    }
}

impl From<Trouble> for ReadError {
    fn from(trouble: Trouble) -> Self {
        Self::Unavailable(trouble.to_string().into())
    }
}

impl From<Trouble> for TopicError {
    fn from(trouble: Trouble) -> Self {
        Self::Commit(trouble.into())
    }
}

impl From<Trouble> for AdoptError {
    fn from(trouble: Trouble) -> Self {
        Self::Commit(trouble.into())
    }
}

impl From<Trouble> for TrimError {
    fn from(trouble: Trouble) -> Self {
        Self::Commit(trouble.into())
    }
}
