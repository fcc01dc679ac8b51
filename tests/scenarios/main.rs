//! Scenarios: properties of a whole host, tested on the real binary over HTTP and with its command
//! line.
#![forbid(unsafe_code)]

mod any_host;
mod artefacts;
mod backups;
mod breaker;
mod command_line;
mod consumers;
mod copying;
mod data_directory;
mod delivery;
mod demo;
mod developing;
mod door;
mod fairness;
mod file_limits;
mod growth;
mod guests;
mod hostile;
mod jetstream;
mod kill;
mod letters;
mod lifetime;
mod load;
mod old_directories;
mod once;
mod orders;
mod registries;
mod requests;
mod restart;
mod revisions;
mod routes;
mod shared;
mod small_machine;
mod spreading;
mod state;
mod stopping;
mod story;
mod swap;
mod telling;
mod times;
mod uploads;
mod way_back;

use anyhow::Result;
use millrace_tests::{Client, Deploy, Host};
use serde_json::Value;

/// The binary under test, built by the same cargo run.
const MILLRACE: &str = env!("CARGO_BIN_EXE_millrace");

fn host() -> Result<Host> {
    Host::start(MILLRACE)
}

/// Uploads a component and deploys it as a processor from one topic to another; returns the
/// revision.
fn deploy_between(
    client: &Client,
    name: &str,
    component: &[u8],
    [topic, output]: [&str; 2],
    more: Value,
) -> Result<u64> {
    let module = client.push(component)?;
    client.deploy(&Deploy {
        name,
        module: &module,
        topic,
        output,
        more,
    })
}

/// Like [`deploy_between`], for the processor `worker` from `in` to `out`.
fn deploy_worker(client: &Client, component: &[u8], more: Value) -> Result<u64> {
    deploy_between(client, "worker", component, ["in", "out"], more)
}

/// The name of the user that runs the tests, which the host records for changes made with the
/// command line.
fn user() -> Result<String> {
    let output = std::process::Command::new("id").arg("-un").output()?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
