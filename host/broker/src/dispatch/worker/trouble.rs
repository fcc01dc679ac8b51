//! Why a worker cannot go on, and how its work ends.

use millrace_engine::{CommitError, ReadError};

/// Why a worker cannot go on.
pub(super) enum Trouble {
    /// It may be able to, later.
    Wait(String),
    /// It must not.
    Stop(String),
    /// Not under this hold: somebody took it, or it is to go to another host.
    Leave(String),
}

/// How a worker's work at its partition ended.
pub(super) enum End {
    /// Nobody wants it any more.
    Over,
    /// It must not go on.
    Stopped(String),
    /// It may begin anew, if it is still wanted on this host.
    Left(String),
    /// It stands still, and holds nothing meanwhile: so other hosts see that it does.
    Paused,
}

impl From<ReadError> for Trouble {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::UnknownPartition(_) => Self::Stop(error.to_string()),
            // Looked at again and again, for it may be mended; nothing is passed over meanwhile.
            ReadError::Damaged { .. } => Self::Wait(format!(
                "{error} once the loss is accepted (`millrace damage accept`), or put the file back from a backup"
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
            // Under a new lease it is known, and stays so; or the processor was changed when this worker began.
            CommitError::InDoubt(_) | CommitError::Fenced { .. } | CommitError::Conflict(_) => {
                Self::Leave(error.to_string())
            }
            CommitError::Poisoned(_) | CommitError::Closed => Self::Stop(error.to_string()),
            // What a worker commits is neither numbered nor marked: its lease and its progress make it take effect once.
            CommitError::OutOfOrderSequence { .. }
            | CommitError::ProducerFenced { .. }
            | CommitError::UnknownProducer(_)
            | CommitError::PartlyRepeated { .. }
            | CommitError::ProducerName { .. }
            | CommitError::RequestReused => Self::Stop(error.to_string()),
        }
    }
}
