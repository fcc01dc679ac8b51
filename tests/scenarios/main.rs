//! Scenarios: what is true of a whole host, asked of the real binary over HTTP and its command line.
#![forbid(unsafe_code)]

mod breaker;
mod command_line;
mod delivery;
mod demo;
mod fairness;
mod guests;
mod hostile;
mod kill;
mod letters;
mod lifetime;
mod once;
mod orders;
mod requests;
mod restart;
mod revisions;
mod state;
mod swap;
mod times;
mod uploads;

use anyhow::Result;
use millrace_tests::Host;

/// The binary under test, built by the same cargo run.
const MILLRACE: &str = env!("CARGO_BIN_EXE_millrace");

fn host() -> Result<Host> {
    Host::start(MILLRACE)
}
