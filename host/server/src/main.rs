//! The binary: everything is in the library, so that tests and the demo start the same host.

use std::process::ExitCode;

fn main() -> ExitCode {
    millrace::cli::main()
}
