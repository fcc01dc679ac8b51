//! Lists the files that the binary carries for developers: templates, the SDKs' sources, the contract and the adapter. They are
//! static data; nothing is read or unpacked before a command needs it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

/// Folders of build products and tools, wherever they are.
const SKIPPED_FOLDERS: [&str; 7] = [
    "target",
    "node_modules",
    "build",
    "dist",
    "__pycache__",
    "venv",
    "zig-cache",
];
/// Ends of names of files that are built.
const SKIPPED_ENDS: [&str; 3] = [".pyc", ".wasm", ".class"];

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let root = root.ancestors().nth(2).expect("within the repository");
    let mut files = Vec::new();
    let guests = root.join("guests");
    println!("cargo::rerun-if-changed=build.rs");
    for folder in carried(&guests) {
        collect(&guests, &folder, &mut files);
    }
    collect(root, &root.join("wit"), &mut files);
    files.push(("Cargo.lock".to_owned(), guests.join("Cargo.lock")));
    files.sort();
    let mut list = String::from("&[\n");
    for (name, file) in &files {
        let _ = writeln!(
            list,
            "    ({name:?}, include_bytes!({:?})),",
            file.display().to_string()
        );
    }
    list.push(']');
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    fs::write(out.join("carried.rs"), list).expect("OUT_DIR takes files");
}

/// The folders of `guests` that the binary carries.
fn carried(guests: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(guests).expect("the guests can be listed");
    let paths = entries.flatten().map(|entry| entry.path());
    let is_carried = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        path.is_dir()
            && (name == "templates"
                || name == "adapter"
                || name == "sdk"
                || name.starts_with("sdk-"))
    };
    paths.filter(is_carried).collect()
}

/// Adds every file of a folder, named by its path from `from`.
fn collect(from: &Path, folder: &Path, files: &mut Vec<(String, PathBuf)>) {
    println!("cargo::rerun-if-changed={}", folder.display());
    for entry in fs::read_dir(folder).expect("it can be listed").flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        if path.is_dir() {
            if !SKIPPED_FOLDERS.contains(&name.as_str()) {
                collect(from, &path, files);
            }
        } else if !SKIPPED_ENDS.iter().any(|end| name.ends_with(end)) {
            let inside = path.strip_prefix(from).expect("found inside");
            files.push((inside.to_string_lossy().replace('\\', "/"), path));
        }
    }
}
