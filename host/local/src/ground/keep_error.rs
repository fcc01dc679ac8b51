//! Why committed data could not be written to its file.

use std::io;

use millrace_log::disk;

/// Why data could not be written to files or to the checkpoint.
#[derive(Debug)]
pub(crate) enum KeepError {
    /// The disk is full; it can be tried again.
    Full,
    /// The disk failed; what is durable is unknown.
    Failed(String),
}

impl From<io::Error> for KeepError {
    fn from(error: io::Error) -> Self {
        if disk::is_full(&error) {
            return Self::Full;
        }
        Self::Failed(error.to_string())
    }
}
