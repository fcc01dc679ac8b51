//! Builds the guests' workspace for `wasm32-wasip2` with the cargo that runs this build, and copies
//! the components to where the crate includes them from. They are kept beside the host's own build
//! products, so a second build reuses them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

const TARGET: &str = "wasm32-wasip2";

fn main() {
    let guests = variable("CARGO_MANIFEST_DIR")
        .parent()
        .expect("beside the guests")
        .to_owned();
    watch(&guests);
    ensure_target();
    let target_directory = target_directory();
    build(&guests, &target_directory);
    collect(&target_directory.join(TARGET).join("release"));
}

/// Watches the sources of the components, but not the guests' own build products, which may be
/// beside them.
fn watch(guests: &Path) {
    println!("cargo::rerun-if-changed=build.rs");
    println!(
        "cargo::rerun-if-changed={}",
        guests.with_file_name("wit").display()
    );
    for entry in fs::read_dir(guests)
        .expect("the guests can be listed")
        .flatten()
    {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        // SDKs of other languages have names such as sdk-go.
        let is_other = ["target", "artifacts", "templates", "adapter"].contains(&&*name);
        if !is_other && !name.starts_with("sdk-") {
            println!("cargo::rerun-if-changed={}", entry.path().display());
        }
    }
}

/// Adds the WASM target to the toolchain if it is missing.
fn ensure_target() {
    if has_target() {
        return;
    }
    let added = Command::new("rustup")
        .args(["target", "add", TARGET])
        .status();
    assert!(
        added.is_ok_and(|status| status.success()) && has_target(),
        "this Rust cannot build for {TARGET}, and `rustup target add {TARGET}` did not help. Add the target by hand (with the \
         system's package manager if Rust comes from there) and build again",
    );
}

/// Whether the compiler has a standard library for the target.
fn has_target() -> bool {
    let mut rustc = Command::new(variable("RUSTC"));
    let output = rustc
        .args(["--print", "target-libdir", "--target", TARGET])
        .output();
    let libdir = output
        .ok()
        .and_then(|output| String::from_utf8(output.stdout).ok());
    libdir.is_some_and(|libdir| fs::read_dir(libdir.trim()).is_ok_and(|files| files.count() > 0))
}

/// `<target>/guests`, beside the host's profiles: shared by all of them, and never the directory
/// that the running cargo has locked.
fn target_directory() -> PathBuf {
    let out = variable("OUT_DIR");
    // OUT_DIR is <target>/<profile>/build/<package>-<hash>/out.
    let is_build = |path: &&Path| path.file_name().is_some_and(|name| name == "build");
    match out
        .ancestors()
        .find(is_build)
        .and_then(|build| build.ancestors().nth(2))
    {
        Some(target) => target.join("guests"),
        None => out.join("target"),
    }
}

fn build(guests: &Path, target_directory: &Path) {
    let mut cargo = Command::new(variable("CARGO"));
    cargo
        // The guests' own .cargo/config.toml applies only in that directory.
        .current_dir(guests)
        .args([
            "build",
            "--release",
            "--workspace",
            "--locked",
            "--target",
            TARGET,
            "--target-dir",
        ])
        .arg(target_directory);
    // Settings for the host must not reach the guests: flags, wrappers (such as clippy), profiles,
    // targets.
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(is_for_host) {
            cargo.env_remove(name);
        }
    }
    let status = cargo.status().expect("the running cargo can be started");
    assert!(
        status.success(),
        "the guests do not build; cargo says why above"
    );
}

fn is_for_host(name: &str) -> bool {
    let wrappers = [
        "RUSTFLAGS",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTDOCFLAGS",
    ];
    let prefixes = [
        "CARGO_BUILD_",
        "CARGO_ENCODED_",
        "CARGO_PROFILE_",
        "CARGO_TARGET_",
    ];
    wrappers.contains(&name)
        || name == "CARGO_INCREMENTAL"
        || prefixes.iter().any(|prefix| name.starts_with(prefix))
}

/// Copies the components to OUT_DIR, each under the name of its package.
fn collect(built: &Path) {
    for file in fs::read_dir(built)
        .expect("cargo has built there")
        .flatten()
    {
        let path = file.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "wasm")
        {
            let name = file.file_name().to_string_lossy().replace('_', "-");
            fs::copy(&path, variable("OUT_DIR").join(name)).expect("OUT_DIR takes files");
        }
    }
}

fn variable(name: &str) -> PathBuf {
    env::var_os(name)
        .unwrap_or_else(|| panic!("cargo sets {name}"))
        .into()
}
