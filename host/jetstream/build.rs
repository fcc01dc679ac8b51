//! Finds a `nats-server`, so that the tests that need one say that they were skipped where there is none.

use std::env;
use std::path::PathBuf;

fn main() {
    println!("cargo:rustc-check-cfg=cfg(has_nats)");
    println!("cargo:rerun-if-env-changed=MILLRACE_TEST_NATS");
    println!("cargo:rerun-if-env-changed=PATH");
    let given = env::var_os("MILLRACE_TEST_NATS").map(PathBuf::from);
    let paths = env::var_os("PATH").unwrap_or_default();
    let on_path = env::split_paths(&paths).map(|path| path.join("nats-server"));
    let mut all = given.into_iter().chain(on_path);
    if all.any(|server| server.is_file()) {
        println!("cargo:rustc-cfg=has_nats");
    }
}
