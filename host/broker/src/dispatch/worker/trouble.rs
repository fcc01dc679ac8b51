//! Why a worker cannot go on, and how its work ends.

use millrace_engine::{CommitError, ReadError};

/// Why a worker cannot go on.
pub(super) enum Trouble {
    /// It may be able to later.
    Wait(String),
    /// It must not.
    Stop(String),
    /// Not under this hold: it was taken, or should go to another host.
    Leave(String),
}

/// How a worker's work at its partition ended.
pub(super) enum End {
    /// It is no longer wanted.
    Over,
    /// It must not go on.
    Stopped(String),
    /// It may start again, if it is still wanted on this host.
    Left(String),
    /// It is stopped and holds nothing, so that other hosts can see it.
    Paused,
}

impl From<ReadError> for Trouble {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::UnknownPartition(_) => Self::Stop(error.to_string()),
            // It keeps checking, because the damage may be repaired; nothing is skipped meanwhile.
            ReadError::Damaged { .. } => Self::Wait(format!(
                "{error} once the loss is accepted (`millrace damage accept`), or restore the file from a backup"
            )),
            _ => Self::Wait(error.to_string()),
        }
    }
}

impl From<CommitError> for Trouble {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::DiskFull
            | CommitError::RoomFull(_)
            | CommitError::Unavailable(_)
            | CommitError::State(_)
            | CommitError::TooLarge { .. }
            | CommitError::UnknownPartition(_) => Self::Wait(error.to_string()),
            // Under a new lease its state is known; or the processor was changed when this worker started.
            CommitError::InDoubt(_) | CommitError::Fenced { .. } | CommitError::Conflict(_) => {
                Self::Leave(error.to_string())
            }
            CommitError::Poisoned(_) | CommitError::Closed => Self::Stop(error.to_string()),
            // A worker's commits have no number or mark: its lease and its progress make them take effect once.
            CommitError::OutOfOrderSequence { .. }
            | CommitError::ProducerFenced { .. }
            | CommitError::UnknownProducer(_)
            | CommitError::PartlyRepeated { .. }
            | CommitError::ProducerName { .. }
            | CommitError::RequestReused => Self::Stop(error.to_string()),
        }
    }
}
