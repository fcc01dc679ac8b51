//! Writes log lines. The host adds the processor's name and revision, cuts long lines, and drops
//! and counts lines beyond the rate. Outside WASM, lines go to standard error.

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

/// Logs details for the module's developer.
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
