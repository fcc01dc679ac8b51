//! The bench: `cargo run -p millrace-tests --bin bench [-- PART ...]`, the parts being `calls path
//! state shadow commits log reading restart latency producers storage memory swap neighbours`, and
//! `keys`, `postgres`, `jetstream` and `soak`, which take minutes or need a server and run only
//! when they are named. It prints one table, in which each row is a ratio of two things measured in turns within
//! the same run, because machines differ and are shared. No test depends on it.
#![forbid(unsafe_code)]

mod calls;
mod commits;
mod engines;
mod jetstream;
mod keys;
mod latency;
mod load;
mod log;
mod machine;
mod memory;
mod meter;
mod native;
mod neighbours;
mod path;
mod postgres;
mod producers;
mod reading;
mod restart;
mod setup;
mod shadow;
mod soak;
mod state;
mod storage;
mod swap;
mod table;

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::table::Table;

/// The hidden subcommand with which the host compiles components, so that this program can be its
/// own compiler process.
const COMPILE: &str = "compile-module";

/// The hidden subcommand with which the soak starts this program as a separate host.
const SERVE: &str = "serve";
/// The parts that take long or need something installed, so that they run only on request.
const KEYS: &str = "keys";
const POSTGRES: &str = "postgres";
const JETSTREAM: &str = "jetstream";
const SOAK: &str = "soak";

const PARTS: [&str; 18] = [
    "calls",
    "path",
    "state",
    "shadow",
    "commits",
    "log",
    "reading",
    "restart",
    "latency",
    "producers",
    "storage",
    "memory",
    "swap",
    "neighbours",
    KEYS,
    POSTGRES,
    JETSTREAM,
    SOAK,
];

/// The same allocator as in the product, since memory and time of every part depend on it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    millrace_local::keep_to_small_pages();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == COMPILE) {
        return millrace_wasm::compile_child_main(&arguments[1..]);
    }
    if arguments.first().is_some_and(|first| first == SERVE) {
        return millrace::cli::main();
    }
    match bench(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench(parts: &[String]) -> Result<()> {
    if let Some(unknown) = parts.iter().find(|part| !PARTS.contains(&part.as_str())) {
        bail!(
            "{unknown} is no part of the bench; there are {}",
            PARTS.join(", ")
        );
    }
    let runtime = tokio::runtime::Runtime::new()?;
    let mut table = Table::default();
    for part in PARTS {
        let is_asked = parts.iter().any(|asked| asked == part);
        let on_request = [KEYS, POSTGRES, JETSTREAM, SOAK].contains(&part);
        if !is_asked && (on_request || !parts.is_empty()) {
            continue;
        }
        eprintln!("measuring {part} …");
        match part {
            "calls" => runtime.block_on(calls::measure(&mut table))?,
            "path" => runtime.block_on(path::measure(&mut table))?,
            "state" => runtime.block_on(state::measure(&mut table))?,
            "shadow" => runtime.block_on(shadow::measure(&mut table))?,
            "commits" => runtime.block_on(commits::measure(&mut table))?,
            "log" => runtime.block_on(log::measure(&mut table))?,
            "reading" => runtime.block_on(reading::measure(&mut table))?,
            "restart" => runtime.block_on(restart::measure(&mut table))?,
            "latency" => runtime.block_on(latency::measure(&mut table))?,
            "producers" => runtime.block_on(producers::measure(&mut table))?,
            "storage" => runtime.block_on(storage::measure(&mut table))?,
            "swap" => runtime.block_on(swap::measure(&mut table))?,
            "neighbours" => runtime.block_on(neighbours::measure(&mut table))?,
            KEYS => runtime.block_on(keys::measure(&mut table))?,
            POSTGRES => runtime.block_on(postgres::measure(&mut table))?,
            JETSTREAM => runtime.block_on(jetstream::measure(&mut table))?,
            SOAK => soak::measure(&mut table)?,
            _ => runtime.block_on(memory::measure(&mut table))?,
        }
    }
    print!("{table}");
    Ok(())
}
