//! Finds out whether PostgreSQL is installed, so that the tests that need a server say that they were skipped where it is not.

use std::path::Path;

fn main() {
    println!("cargo:rustc-check-cfg=cfg(has_postgres)");
    println!("cargo:rerun-if-env-changed=MILLRACE_TEST_POSTGRES");
    let servers = Path::new("/usr/lib/postgresql");
    println!("cargo:rerun-if-changed={}", servers.display());
    let found = servers.read_dir().into_iter().flatten().flatten();
    let mut found = found.map(|version| version.path().join("bin/initdb"));
    let is_given = std::env::var_os("MILLRACE_TEST_POSTGRES").is_some();
    if is_given || found.any(|initdb| initdb.exists()) {
        println!("cargo:rustc-cfg=has_postgres");
    }
}
