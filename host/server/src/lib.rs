//! The process: command line, configuration, HTTP, telemetry, and the only wiring of engine, modules and broker.
//!
//! [`cli`] reads what was asked, [`config`] what was configured, [`Host`] puts the parts together and takes them apart again,
//! `net` is what every front door stands on, `http` the first of them. Nothing below this crate knows that it exists.

#![forbid(unsafe_code)]

pub mod cli;
pub mod config;
mod encryption;
mod engine;
mod files;
mod host;
mod http;
mod log_lines;
pub mod memory;
mod modules;
mod nearest;
mod net;
mod process;
mod registry;
mod telemetry;
mod text;
mod units;

pub use config::Config;
pub use host::{Host, StartError};
pub use http::{ErrorCode, error_codes};
