//! Log lines; the host adds the processor's name and revision. It cuts long lines, and drops and
//! counts lines beyond the rate limit. Without WASM, lines go to standard error.

/// Logs a failure.
pub fn error(line: impl AsRef<str>) {
    write(Level::Error, line.as_ref());
}

/// Logs something unusual.
pub fn warn(line: impl AsRef<str>) {
    write(Level::Warn, line.as_ref());
}

/// Logs an event.
pub fn info(line: impl AsRef<str>) {
    write(Level::Info, line.as_ref());
}

/// For developers of the module.
pub fn debug(line: impl AsRef<str>) {
    write(Level::Debug, line.as_ref());
}

#[cfg(target_arch = "wasm32")]
use crate::bindings::log::{Level, log as write};

#[cfg(not(target_arch = "wasm32"))]
#[derive(Debug)]
enum Level {
    Error,
    Warn,
    Info,
    Debug,
}

#[cfg(not(target_arch = "wasm32"))]
fn write(level: Level, line: &str) {
    eprintln!("{level:?}: {line}");
}
