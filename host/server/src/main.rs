//! The binary: everything is in the library, so that tests and the demo start the same host.

use std::process::ExitCode;

/// Gives memory back to the system when it is free: the system's own allocator keeps what many threads once took.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Before anything is allocated that is worth a page.
    millrace_local::keep_to_small_pages();
    millrace::cli::main()
}
