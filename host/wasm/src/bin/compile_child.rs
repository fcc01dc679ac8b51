//! The compile child alone, for this crate's tests; the server's binary carries the same behind a hidden subcommand.

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    millrace_wasm::compile_child_main(&args)
}
