//! Tests that the built guests are components that export an interface which the host calls, and
//! import hardly anything.

use std::path::Path;
use std::process::Command;

use wasmparser::{Encoding, Parser, Payload};

/// Imports that every processor gets, for the standard libraries of languages: Rust's needs them
/// for panic messages and hash maps.
const GRANTED: [&str; 4] = ["wasi:cli/", "wasi:io/", "wasi:clocks/", "wasi:random/"];

/// What the host calls: its own interfaces, and the standard ones for requests and for messages.
const CALLED: [&str; 3] = [
    "millrace:broker/",
    "wasi:http/incoming-handler@",
    "wasi:messaging/incoming-handler@",
];

/// The guests that import more, each to test how the host answers.
const IMPORT_MORE: [&str; 9] = [
    "courier",
    "fetch",
    "http-sink",
    "messenger",
    "outsider",
    "query",
    "socket",
    "web",
    "webhook",
];

#[test]
fn every_guest_exports_an_interface_that_the_host_calls() {
    for guest in guest_artifacts::all() {
        let exports = names(guest.bytes, Side::Exports);
        let ours = exports
            .iter()
            .any(|name| CALLED.iter().any(|called| name.starts_with(called)));
        assert!(ours, "{} exports {exports:?}", guest.name);
    }
}

#[test]
fn only_guests_that_test_it_import_more_than_every_processor_is_given() {
    for guest in guest_artifacts::all() {
        let mut imports = names(guest.bytes, Side::Imports);
        imports.retain(|name| !name.starts_with("millrace:broker/"));
        imports.retain(|name| !GRANTED.iter().any(|known| name.starts_with(known)));
        assert_eq!(
            imports.is_empty(),
            !IMPORT_MORE.contains(&guest.name),
            "{}: {imports:?}",
            guest.name
        );
    }
}

#[test]
fn guests_are_small() {
    for guest in guest_artifacts::all() {
        assert!(
            guest.bytes.len() < 256 << 10,
            "{} has {} bytes",
            guest.name,
            guest.bytes.len()
        );
    }
}

/// The guests have their own workspace; this includes their tests in the one command that runs all
/// tests.
#[test]
fn the_guests_and_the_sdk_pass_their_own_tests() {
    let guests = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guests");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["test", "--workspace", "--locked", "--quiet", "--target-dir"]);
    let output = cargo
        .arg(target)
        .current_dir(guests)
        .output()
        .expect("cargo starts");
    let says = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{says}");
    assert!(says.contains("test result: ok."), "some tests ran: {says}");
}

#[test]
fn a_guest_is_found_by_name() {
    let found = guest_artifacts::find("uppercase").map(|guest| guest.bytes);
    assert_eq!(found, Some(guest_artifacts::UPPERCASE));
    assert_eq!(guest_artifacts::find("nobody"), None);
}

#[derive(PartialEq)]
enum Side {
    Imports,
    Exports,
}

/// The names that the outermost component imports or exports.
fn names(component: &[u8], side: Side) -> Vec<String> {
    let mut names = Vec::new();
    let mut depth = 0_u32;
    for payload in Parser::new(0).parse_all(component) {
        match payload.expect("a guest is well formed") {
            Payload::Version { encoding, .. } => {
                assert!(
                    depth > 0 || encoding == Encoding::Component,
                    "a guest is a component"
                );
                depth += 1;
            }
            Payload::End(_) => depth -= 1,
            Payload::ComponentImportSection(section) if depth == 1 && side == Side::Imports => {
                names.extend(
                    section
                        .into_iter()
                        .map(|import| import.unwrap().name.name.to_owned()),
                );
            }
            Payload::ComponentExportSection(section) if depth == 1 && side == Side::Exports => {
                names.extend(
                    section
                        .into_iter()
                        .map(|export| export.unwrap().name.name.to_owned()),
                );
            }
            _ => {}
        }
    }
    names
}
