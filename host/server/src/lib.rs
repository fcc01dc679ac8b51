//! The process: command line, configuration, HTTP, telemetry, and the only wiring of engine, modules and broker.
//!
//! [`cli`] parses the command line, [`config`] the configuration, [`Host`] assembles the parts and takes them apart again, `http` is
//! the API. Nothing below this crate knows of it.

#![forbid(unsafe_code)]

pub mod cli;
pub mod config;
mod files;
mod host;
mod http;
mod log_lines;
pub mod memory;
mod nearest;
mod process;
mod registry;
mod telemetry;
mod text;
mod units;

pub use config::Config;
pub use host::{Host, StartError};
