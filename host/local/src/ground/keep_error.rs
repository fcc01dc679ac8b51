//! Why something that is committed is not in its file.

use std::io;

use millrace_log::disk;

/// Why something is not in the files or not in the checkpoint.
#[derive(Debug)]
pub(crate) enum KeepError {
    /// No room; it can be tried again.
    Full,
    /// The disk failed; nobody knows what is durable.
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
