//! Threads with names.

use std::thread::{self, JoinHandle};

/// Starts a thread of this name.
pub(crate) fn named(
    name: &str,
    work: impl FnOnce() + Send + 'static,
) -> std::io::Result<JoinHandle<()>> {
    thread::Builder::new().name(name.to_owned()).spawn(work)
}
