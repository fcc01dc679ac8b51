//! The process: command line, configuration, HTTP, telemetry, and the only wiring of engine, modules and broker.
//!
//! [`cli`] is the command line, [`config`] the configuration. [`Host`] assembles the parts and
//! takes them apart again. `net` is the common base of all doors, `http` the first of them. Nothing
//! below this crate knows that it exists.

#![forbid(unsafe_code)]

mod access;
pub mod cli;
pub mod config;
mod copying;
mod encryption;
mod engine;
mod files;
mod host;
mod http;
mod identity;
mod log_lines;
pub mod memory;
mod modules;
mod nearest;
mod net;
mod process;
mod registry;
mod secrets;
mod telemetry;
mod text;
mod units;

pub use config::Config;
pub use host::{Host, StartError};
pub use http::{ErrorCode, error_codes};
