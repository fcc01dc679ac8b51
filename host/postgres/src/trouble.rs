//! What a failed statement means for whoever asked for it.

use std::sync::Arc;

use millrace_engine::{CommitError, ReadError, TopicError, TrimError};

/// Why a statement failed.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Trouble {
    /// The transaction met another one; the same again may succeed.
    #[error("{0}")]
    Again(Arc<str>),
    /// The disk of the database is full.
    #[error("{0}")]
    DiskFull(Arc<str>),
    /// The database refused the statement, and did nothing.
    #[error("{0}")]
    Refused(Arc<str>),
    /// The database cannot be reached, or was lost.
    #[error("{0}")]
    Unavailable(Arc<str>),
}

impl Trouble {
    /// Something stored is not as this version stores it.
    pub(crate) fn malformed(what: &str) -> Self {
        Self::Unavailable(format!("the database has {what} that this version cannot read").into())
    }
}

/// Conditions of SQLSTATE under which the same transaction may succeed at once: serialization failure, deadlock, lock timeout.
const AGAIN: [&str; 3] = ["40001", "40P01", "55P03"];
/// Classes of SQLSTATE with which a session ends: connection exception, operator intervention, system error. What the session was doing may
/// have been committed before.
const LOST: [&str; 3] = ["08", "57", "58"];
/// Disk full.
const DISK_FULL: &str = "53100";

impl From<sqlx::Error> for Trouble {
    fn from(error: sqlx::Error) -> Self {
        let text = Arc::from(error.to_string());
        let code = error.as_database_error().and_then(|error| error.code());
        match code.as_deref() {
            Some(code) if AGAIN.contains(&code) => Self::Again(text),
            Some(DISK_FULL) => Self::DiskFull(text),
            Some(code) if !LOST.iter().any(|class| code.starts_with(class)) => Self::Refused(text),
            _ => Self::Unavailable(text),
        }
    }
}

/// Nothing was committed.
impl From<Trouble> for CommitError {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::DiskFull(_) => Self::DiskFull,
            Trouble::Again(reason) | Trouble::Refused(reason) | Trouble::Unavailable(reason) => {
                Self::Unavailable(reason)
            }
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

impl From<Trouble> for TrimError {
    fn from(trouble: Trouble) -> Self {
        Self::Commit(trouble.into())
    }
}

/// An error of a read.
pub(crate) fn unread(error: sqlx::Error) -> ReadError {
    Trouble::from(error).into()
}

/// An error before anything was committed.
pub(crate) fn undone(error: sqlx::Error) -> CommitError {
    Trouble::from(error).into()
}
