//! The binary: everything is in the library, so that tests and the demo start the same host.

use std::process::ExitCode;

/// Returns freed memory to the system: the system's own allocator keeps what many threads once used.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Before anything large is allocated.
    millrace_local::keep_to_small_pages();
    millrace::cli::main()
}
