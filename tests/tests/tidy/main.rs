//! Checks what the compiler does not check in the source tree: which crates and rooms may depend on
//! which, and what must not appear where.
//!
//! A rule is a function from a file's path and text to its complaints. Each rule is applied to
//! every file, and tested on a bad sample, since a rule that cannot fail is useless.
#![forbid(unsafe_code)]

mod rooms;
mod verbs;

use std::fs;

use millrace_tests::tree::{Source, repository, sources};

// Forbidden texts are spelled in two parts here, so that this file passes its own rules.
const UNFINISHED: [&str; 3] = [
    concat!("todo", "!("),
    concat!("unimplemented", "!("),
    concat!("dbg", "!("),
];
const CLOCK_READS: [&str; 2] = [concat!("Instant", "::now"), concat!("SystemTime", "::now")];
const MACHINE_PATHS: [&str; 4] = [
    concat!("/ho", "me/"),
    concat!("/ro", "ot/"),
    concat!("/wo", "rk/"),
    concat!("/tm", "p/"),
];
const UNSAFE: &str = concat!("un", "safe");

const CLOCK_FILE: &str = "host/model/src/clock.rs";
/// The only files with unsafe code; their first lines say why they are safe.
const UNSAFE_FILES: [&str; 2] = ["host/log/src/mapping.rs", "host/wasm/src/compiled.rs"];
/// Generated ABI glue, and a guest whose bad behaviour needs a link section: they lift the lint,
/// but have no unsafe block.
const LINT_LIFTED_FILES: [&str; 4] = [
    "guests/sdk/src/bindings.rs",
    "guests/badly-behaved/start-trap/src/lib.rs",
    "guests/badly-behaved/outsider/src/lib.rs",
    "guests/badly-behaved/messenger/src/lib.rs",
];
const TOP_LEVEL: [&str; 11] = [
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "docs",
    "examples",
    "guests",
    "host",
    "tests",
    "wit",
];
/// Allowed at the top level, where the tool that reads it looks for it.
const TOOLCHAIN_FILE: &str = "rust-toolchain.toml";

/// Where guests are used: each guest is there for a test, the bench or the demo.
const USES_OF_GUESTS: [&str; 6] = [
    "host/wasm/tests/guests/",
    "host/server/tests/server/",
    "tests/scenarios/",
    "tests/bench/",
    "host/server/src/cli/bench",
    "host/server/src/cli/demo",
];

/// Which of our own crates a crate may depend on, and which families of other crates it must not
/// use.
struct Arrows {
    directory: &'static str,
    stands_on: &'static [&'static str],
    knows_no: &'static [&'static [&'static str]],
}

const NETWORK: &[&str] = &["axum", "hyper", "reqwest", "tungstenite", "ureq"];
/// Components send HTTP requests by hyper; everything else of the network is for doors and the command line.
const NETWORK_BUT_HYPER: &[&str] = &["axum", "reqwest", "tungstenite", "ureq"];
const RUNTIME: &[&str] = &["async-trait", "futures", "mio", "tokio"];
const STORAGE: &[&str] = &["memmap2", "rusqlite", "sqlx"];
const WASM: &[&str] = &["wasmparser", "wasmtime", "wit-bindgen"];
const ANYHOW: &[&str] = &["anyhow", "eyre"];

/// Lowest first. `tests` may depend on all of them. What the tests of a crate may use besides its
/// dependencies: the components, and the harness.
const TEST_CRATES: [&str; 2] = ["guest-artifacts", "millrace-tests"];
/// What the tests of single crates may use besides: a processor's state in files is tested on the
/// engine that has files.
const TESTED_WITH: [(&str, &str); 1] = [("host/broker", "millrace-local")];

/// In the order in which a message meets the crates, lowest first. `tests` may use all of them.
const ARROWS: [Arrows; 12] = [
    Arrows {
        directory: "host/model",
        stands_on: &[],
        knows_no: &[NETWORK, RUNTIME, STORAGE, WASM, ANYHOW],
    },
    Arrows {
        directory: "host/wire",
        stands_on: &["millrace-model"],
        knows_no: &[NETWORK, RUNTIME, STORAGE, WASM, ANYHOW],
    },
    Arrows {
        directory: "host/log",
        stands_on: &["millrace-model"],
        knows_no: &[NETWORK, RUNTIME, WASM, ANYHOW],
    },
    Arrows {
        directory: "host/engine",
        stands_on: &["millrace-model"],
        knows_no: &[NETWORK, STORAGE, WASM, ANYHOW],
    },
    Arrows {
        directory: "host/local",
        stands_on: &["millrace-model", "millrace-log", "millrace-engine"],
        knows_no: &[NETWORK, WASM, ANYHOW],
    },
    Arrows {
        directory: "host/postgres",
        stands_on: &["millrace-model", "millrace-engine"],
        knows_no: &[NETWORK, WASM, ANYHOW],
    },
    Arrows {
        directory: "host/jetstream",
        stands_on: &["millrace-model", "millrace-engine"],
        knows_no: &[NETWORK, STORAGE, WASM, ANYHOW],
    },
    Arrows {
        directory: "host/broker",
        stands_on: &["millrace-model", "millrace-engine"],
        knows_no: &[NETWORK, STORAGE, WASM, ANYHOW],
    },
    Arrows {
        directory: "host/wasm",
        stands_on: &["millrace-model", "millrace-broker"],
        knows_no: &[NETWORK_BUT_HYPER, STORAGE, ANYHOW],
    },
    Arrows {
        directory: "host/component",
        stands_on: &[],
        // WebAssembly is its subject; it runs none.
        knows_no: &[NETWORK, RUNTIME, STORAGE, &["wasmtime"]],
    },
    Arrows {
        directory: "host/server",
        stands_on: &[
            "millrace-model",
            "millrace-wire",
            "millrace-engine",
            "millrace-local",
            "millrace-postgres",
            "millrace-jetstream",
            "millrace-broker",
            "millrace-wasm",
            "millrace-component",
            "guest-artifacts",
        ],
        knows_no: &[STORAGE, WASM],
    },
    Arrows {
        directory: "guests/artifacts",
        stands_on: &[],
        knows_no: &[NETWORK, RUNTIME, STORAGE, ANYHOW],
    },
];

#[test]
fn crates_stand_only_on_those_below_them_and_know_nothing_they_must_not() {
    for arrows in &ARROWS {
        let manifest = repository().join(arrows.directory).join("Cargo.toml");
        assert!(manifest.is_file(), "{} is a crate", arrows.directory);
    }
    hold(dependencies);
}

#[test]
fn danger_is_in_its_rooms() {
    hold(danger);
}

#[test]
fn time_is_read_in_one_file() {
    hold(clock_reads);
}

#[test]
fn every_source_file_opens_by_saying_its_part() {
    hold(opening);
}

#[test]
fn nothing_is_left_unfinished() {
    hold(unfinished);
}

#[test]
fn no_path_of_one_machine_is_written_down() {
    hold(machine_paths);
}

#[test]
fn the_top_level_holds_what_it_must_and_nothing_else() {
    let entries = fs::read_dir(repository()).expect("the repository is readable");
    let names = entries.map(|entry| entry.expect("readable").file_name());
    let names: Vec<String> = names.filter_map(|name| name.into_string().ok()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    assert_eq!(top_level(&names), [""; 0]);
}

#[test]
fn every_guest_is_used_by_a_test_the_bench_or_the_demo() {
    let sources = sources();
    let uses = |path: &str| USES_OF_GUESTS.iter().any(|place| path.starts_with(place));
    let used = sources.iter().filter(|source| uses(&source.path));
    let used: String = used.map(|source| source.text.as_str()).collect();
    let guests = sources.iter().filter_map(guest_name);
    let guests: Vec<&str> = guests.collect();
    assert!(guests.len() > 5, "the guests were found: {guests:?}");
    assert_eq!(unused_guests(&guests, &used), [""; 0]);
}

/// Applies a rule to every file.
fn hold(rule: fn(&str, &str) -> Vec<String>) {
    let sources = sources();
    let found = sources.iter().any(|source| source.path == CLOCK_FILE);
    assert!(found && sources.len() > 50, "the tree was walked");
    let complaints = sources.iter().flat_map(|file| rule(&file.path, &file.text));
    let complaints: Vec<String> = complaints.collect();
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

fn dependencies(path: &str, text: &str) -> Vec<String> {
    let Some(directory) = path.strip_suffix("/Cargo.toml") else {
        return Vec::new();
    };
    if !directory.starts_with("host/") && directory != "guests/artifacts" {
        return Vec::new();
    }
    let arrows = ARROWS.iter().find(|arrows| arrows.directory == directory);
    let Some(arrows) = arrows else {
        return vec![format!("{path}: a new crate needs its place in ARROWS")];
    };
    let complaints = declared_dependencies(text)
        .into_iter()
        .filter_map(|(section, name)| {
            let for_tests = section.contains("dev-dependencies");
            let ours = name.starts_with("millrace") || name == "guest-artifacts";
            if ours {
                let tested_with =
                    TEST_CRATES.contains(&name) || TESTED_WITH.contains(&(directory, name));
                let allowed = arrows.stands_on.contains(&name) || for_tests && tested_with;
                return (!allowed).then(|| format!("{path}: must not stand on {name}"));
            }
            let refused = arrows.knows_no.iter().copied().flatten();
            let refused = refused.into_iter().any(|family| in_family(name, family));
            (refused && !for_tests).then(|| format!("{path}: must not know {name}"))
        });
    complaints.collect()
}

/// Whether it is the crate itself or one of its companions, as `tokio-util` of `tokio`.
fn in_family(name: &str, family: &str) -> bool {
    let rest = name.strip_prefix(family);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

/// Section and name of each dependency, in both of TOML's notations.
fn declared_dependencies(manifest: &str) -> Vec<(&str, &str)> {
    let mut section = "";
    let mut found = Vec::new();
    for line in manifest.lines().map(str::trim) {
        if let Some(header) = line.strip_prefix('[') {
            section = header.trim_end_matches(']');
            if let Some((_, name)) = section.split_once("dependencies.") {
                found.push((section, name.trim_matches('"')));
            }
        } else if section.ends_with("dependencies") && !line.is_empty() && !line.starts_with('#') {
            let name = line.split(['.', '=', ' ']).next().unwrap_or_default();
            found.push((section, name.trim_matches('"')));
        }
    }
    found
}

fn danger(path: &str, text: &str) -> Vec<String> {
    let lint = format!("{UNSAFE}_code");
    let lifted = LINT_LIFTED_FILES.contains(&path);
    if !path.ends_with(".rs") || UNSAFE_FILES.contains(&path) {
        return Vec::new();
    }
    complaints(path, text, "danger outside its rooms", |line| {
        let keeps_out = ["forbid(", "deny("].map(|word| format!("{word}{lint})"));
        let mut rest = line.to_owned();
        for harmless in &keeps_out {
            rest = rest.replace(harmless, "");
        }
        if lifted {
            rest = rest.replace(&lint, "").replace(&format!("#[{UNSAFE}("), "");
        }
        rest.contains(UNSAFE)
    })
}

fn clock_reads(path: &str, text: &str) -> Vec<String> {
    let for_tests = ["_tests.rs", "/tests.rs"]
        .iter()
        .any(|end| path.ends_with(end))
        || path.contains("/tests/");
    let of_product = path.starts_with("host/") && path.contains("/src/") && path.ends_with(".rs");
    if !of_product || for_tests || path == CLOCK_FILE {
        return Vec::new();
    }
    let text = without_test_modules(text);
    complaints(
        path,
        &text,
        "reads a clock of its own; take a Clock",
        |line| CLOCK_READS.iter().any(|read| line.contains(read)),
    )
}

/// Blanks everything from a `#[cfg(test)]` before an inline module to the closing brace at the
/// start of a line.
fn without_test_modules(text: &str) -> String {
    let mut kept = String::new();
    let (mut after_cfg, mut inside) = (false, false);
    for line in text.lines() {
        inside |= after_cfg && line.starts_with("mod ") && line.ends_with('{');
        after_cfg = line == "#[cfg(test)]" || after_cfg && line.starts_with("#[");
        if !inside {
            kept.push_str(line);
        }
        kept.push('\n');
        inside &= line != "}";
    }
    kept
}

fn opening(path: &str, text: &str) -> Vec<String> {
    if path.ends_with(".rs") && !text.starts_with("//! ") {
        return vec![format!("{path}: does not open with a line of //!")];
    }
    Vec::new()
}

fn unfinished(path: &str, text: &str) -> Vec<String> {
    if !path.ends_with(".rs") {
        return Vec::new();
    }
    complaints(path, text, "left unfinished", |line| {
        UNFINISHED.iter().any(|word| line.contains(word))
    })
}

/// Also in code: a path that exists on only one machine is of no use to others.
fn machine_paths(path: &str, text: &str) -> Vec<String> {
    let lines = text.lines().enumerate();
    let bad = lines.filter(|(_, line)| MACHINE_PATHS.iter().any(|start| begins_path(line, start)));
    bad.map(|(at, line)| format!("{path}:{}: a path of one machine: {}", at + 1, line.trim()))
        .collect()
}

/// Whether the line has an absolute path with this start, rather than the middle of a longer path
/// or of an address.
fn begins_path(line: &str, start: &str) -> bool {
    line.match_indices(start).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | '}' | '>'))
    })
}

fn top_level(names: &[&str]) -> Vec<String> {
    let expected = || TOP_LEVEL.into_iter().chain([TOOLCHAIN_FILE]);
    let visible = names
        .iter()
        .filter(|name| !name.starts_with('.') && **name != "target");
    let unexpected = visible.filter(|name| !expected().any(|known| known == **name));
    let unexpected = unexpected.map(|name| format!("{name} does not belong at the top level"));
    let missing = expected().filter(|name| !names.contains(name));
    let missing = missing.map(|name| format!("{name} is missing at the top level"));
    unexpected.chain(missing).collect()
}

/// The name of a guest: a package below `guests/` that builds a component. Templates are no packages yet; the scenarios of developing
/// build them.
fn guest_name(source: &Source) -> Option<&str> {
    let directory = source.path.strip_prefix("guests/")?;
    if directory.starts_with("templates/") {
        return None;
    }
    let directory = directory.strip_suffix("/Cargo.toml")?;
    let makes_component = source.text.contains("cdylib");
    makes_component.then(|| directory.rsplit('/').next().unwrap_or(directory))
}

/// A guest is used by its name in quotes, or by its constant in `guest-artifacts`.
fn unused_guests(guests: &[&str], used: &str) -> Vec<String> {
    let words: Vec<&str> = used
        .split(|c: char| !c.is_alphanumeric() && c != '_' && c != '-')
        .collect();
    let is_used = |name: &str| {
        let constant = name.to_uppercase().replace('-', "_");
        words.iter().any(|word| *word == constant || *word == name)
    };
    let unused = guests.iter().filter(|name| !is_used(name));
    unused
        .map(|name| format!("nobody uses the guest {name}"))
        .collect()
}

/// Complains about each line whose code, without comments, is bad.
fn complaints(path: &str, text: &str, what: &str, bad: impl Fn(&str) -> bool) -> Vec<String> {
    let lines = text.lines().enumerate();
    let bad = lines.filter(|(_, line)| bad(without_comment(line)));
    bad.map(|(at, line)| format!("{path}:{}: {what}: {}", at + 1, line.trim()))
        .collect()
}

/// The line up to a `//` at its start or after a space; an address in a string stays.
fn without_comment(line: &str) -> &str {
    if line.trim_start().starts_with("//") {
        return "";
    }
    line.split(" //").next().unwrap_or(line)
}

/// Each rule must complain about what it forbids, and about nothing similar.
mod each_rule_can_fail {
    use super::*;

    fn assert_bad(complaints: &[String]) {
        assert_eq!(complaints.len(), 1, "{complaints:?}");
    }

    fn assert_fine(complaints: &[String]) {
        assert_eq!(complaints, [""; 0]);
    }

    #[test]
    fn an_arrow_that_points_up() {
        let with =
            |dependency: &str| format!("[package]\nname = \"x\"\n[dependencies]\n{dependency}");
        for (directory, bad) in [
            ("host/model", "millrace-log.workspace = true"),
            ("host/wire", "tokio = { version = \"1\" }"),
            ("host/wire", "axum.workspace = true"),
            ("host/log", "tokio-util.workspace = true"),
            ("host/engine", "millrace-broker = { path = \"../broker\" }"),
            ("host/broker", "wasmtime.workspace = true"),
            ("host/broker", "hyper = \"1\""),
            ("host/broker", "\n[dependencies.axum]\nversion = \"1\""),
            (
                "host/broker",
                "[target.'cfg(unix)'.dependencies]\nwasmtime-wasi = \"1\"",
            ),
            ("host/broker", "anyhow.workspace = true"),
            ("host/broker", "millrace-local.workspace = true"),
            ("host/engine", "millrace-log.workspace = true"),
            ("host/engine", "sqlx.workspace = true"),
            (
                "host/engine",
                "[dev-dependencies]\nmillrace-local.workspace = true",
            ),
            ("host/local", "millrace-broker.workspace = true"),
            ("host/postgres", "millrace-local.workspace = true"),
            ("host/jetstream", "millrace-postgres.workspace = true"),
            ("host/wasm", "sqlx.workspace = true"),
            ("host/wasm", "millrace-engine.workspace = true"),
            ("host/wasm", "[dev-dependencies]\nmillrace.workspace = true"),
            ("host/novelty", "bytes.workspace = true"),
        ] {
            assert_bad(&dependencies(
                &format!("{directory}/Cargo.toml"),
                &with(bad),
            ));
        }
        for (directory, fine) in [
            (
                "host/server",
                "anyhow.workspace = true\naxum.workspace = true",
            ),
            (
                "host/engine",
                "millrace-model.workspace = true # below\ntokio.workspace = true",
            ),
            (
                "host/wasm",
                "[dev-dependencies]\nguest-artifacts.workspace = true",
            ),
            (
                "host/local",
                "millrace-engine.workspace = true\nsqlx.workspace = true",
            ),
            (
                "host/broker",
                "[dev-dependencies]\nmillrace-local.workspace = true",
            ),
            ("tests", "millrace-engine.workspace = true"),
        ] {
            assert_fine(&dependencies(
                &format!("{directory}/Cargo.toml"),
                &with(fine),
            ));
        }
    }

    #[test]
    fn danger_elsewhere() {
        for bad in [
            "    UNSAFE { read(pointer) }",
            "#![allow(UNSAFE_code)]",
            "UNSAFE fn f() {}",
        ] {
            let bad = bad.replace("UNSAFE", UNSAFE);
            assert_bad(&danger("host/log/src/disk.rs", &bad));
            assert_fine(&danger(UNSAFE_FILES[0], &bad));
        }
        let block = format!("{UNSAFE} {{ f() }}");
        assert_bad(&danger(LINT_LIFTED_FILES[0], &block));
        let lifted = format!("#![allow({UNSAFE}_code)]");
        assert_fine(&danger(LINT_LIFTED_FILES[0], &lifted));
        let kept_out = format!("#![forbid({UNSAFE}_code)] // no {UNSAFE} here\n//! {UNSAFE}");
        assert_fine(&danger("host/log/src/disk.rs", &kept_out));
    }

    #[test]
    fn a_clock_of_its_own() {
        let read = format!("let now = {}();", CLOCK_READS[0]);
        let in_test = format!("#[cfg(test)]\nmod tests {{\n    {read}\n}}\n");
        assert_bad(&clock_reads("host/broker/src/broker.rs", &read));
        assert_bad(&clock_reads(
            "host/log/src/log.rs",
            &format!("{in_test}{read}"),
        ));
        let not_inline = format!("#[cfg(test)]\nmod journal_tests;\n{read}\n");
        assert_bad(&clock_reads("host/log/src/log.rs", &not_inline));
        assert_fine(&clock_reads("host/log/src/log.rs", &in_test));
        assert_fine(&clock_reads("host/log/src/log_tests.rs", &read));
        assert_fine(&clock_reads("host/log/src/log/tests/speed.rs", &read));
        assert_fine(&clock_reads(CLOCK_FILE, &read));
        assert_fine(&clock_reads("tests/src/wait.rs", &read));
        assert_fine(&clock_reads(
            "host/log/src/log.rs",
            &format!("// never {read}"),
        ));
    }

    #[test]
    fn a_file_that_does_not_introduce_itself() {
        assert_bad(&opening(
            "host/log/src/disk.rs",
            "use std::fs;\n//! Late.\n",
        ));
        assert_bad(&opening("host/log/src/disk.rs", "//!\n"));
        assert_fine(&opening("host/log/src/disk.rs", "//! The disk.\n"));
        assert_fine(&opening("README.md", "# Millrace\n"));
    }

    #[test]
    fn a_job_left_undone() {
        for word in UNFINISHED {
            let bad = format!("fn f() {{ {word}) }}");
            assert_bad(&unfinished("host/log/src/disk.rs", &bad));
        }
        assert_fine(&unfinished("host/log/src/disk.rs", "let undone = vec![];"));
    }

    #[test]
    fn a_path_of_one_machine() {
        for start in MACHINE_PATHS {
            assert_bad(&machine_paths(
                "README.md",
                &format!("See `{start}x/notes`."),
            ));
            assert_bad(&machine_paths("a.rs", &format!("\n{start}x\n")));
            assert_fine(&machine_paths(
                "README.md",
                &format!("https://example.org{start}x"),
            ));
        }
    }

    #[test]
    fn clutter_or_a_gap_at_the_top_level() {
        let mut names: Vec<&str> = TOP_LEVEL.into_iter().chain([TOOLCHAIN_FILE]).collect();
        names.extend([".git", ".deny.toml", "target"]);
        assert_fine(&top_level(&names));
        names.push("notes.txt");
        assert_bad(&top_level(&names));
        names.retain(|name| *name != "notes.txt" && *name != "wit");
        assert_bad(&top_level(&names));
    }

    #[test]
    fn a_guest_that_nobody_uses() {
        let used = "upload(guests::START_TRAP); upload(\"flaky\"); let deepest = 1;";
        assert_fine(&unused_guests(&["start-trap", "flaky"], used));
        assert_bad(&unused_guests(&["start-trap", "deep"], used));
        let package = |path: &str, text: &str| Source {
            path: path.to_owned(),
            text: text.to_owned(),
        };
        let guest = package(
            "guests/badly-behaved/deep/Cargo.toml",
            "crate-type = [\"cdylib\"]",
        );
        assert_eq!(guest_name(&guest), Some("deep"));
        assert_eq!(
            guest_name(&package("guests/sdk/Cargo.toml", "[package]")),
            None
        );
        let template = package("guests/templates/rust/common/Cargo.toml", "cdylib");
        assert_eq!(guest_name(&template), None);
    }
}
