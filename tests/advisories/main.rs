//! Looks every dependency up in the copy of the RustSec advisory database beside this file, so that a known vulnerability is found
//! without a network. Exceptions are those of `.deny.toml`, which `cargo deny` reads too.
//!
//! A rule is a function from what was read to its complaints; each is tested on a bad sample, since a rule that cannot fail is
//! useless.
#![forbid(unsafe_code)]

mod advisory;
mod lock;

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;

use crate::advisory::{Advisory, Copy, Description, Kind};
use crate::lock::{Lock, Package};

#[test]
fn no_dependency_has_a_known_vulnerability() {
    let copy = copy();
    tell_age(&copy.description);
    let exceptions = exceptions();
    hold(|lock| vulnerabilities(lock, &copy.advisories, &exceptions));
}

#[test]
fn every_exception_has_a_reason_and_is_needed() {
    let complaints = unneeded(&locks(), &copy().advisories, &exceptions());
    assert_eq!(complaints, [""; 0]);
}

#[test]
fn the_copy_has_the_advisories_of_every_dependency() {
    let copy = copy();
    hold(|lock| not_copied(lock, &copy.description));
}

/// The part of `.deny.toml` that is read here.
#[derive(Deserialize)]
struct Deny {
    advisories: Advisories,
}

#[derive(Deserialize)]
struct Advisories {
    ignore: Vec<Exception>,
}

/// An advisory that is known not to matter here. `cargo deny` takes one without a reason; we do not.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Exception {
    id: String,
    reason: String,
}

/// Applies a rule to every `Cargo.lock`.
fn hold(rule: impl Fn(&Lock) -> Vec<String>) {
    let complaints: Vec<String> = locks().iter().flat_map(rule).collect();
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

/// Complains about each vulnerable or unsound dependency, and about unmaintained ones that we chose ourselves.
fn vulnerabilities(lock: &Lock, advisories: &[Advisory], exceptions: &[Exception]) -> Vec<String> {
    let found = found(lock, advisories);
    let matter = found.filter(|(_, it)| exceptions.iter().all(|known| known.id != it.id));
    let path = &lock.path;
    let complaints = matter.map(|(package, advisory)| {
        let Package { name, version, .. } = package;
        format!("{path}: {name} {version}: {advisory}")
    });
    complaints.collect()
}

/// Also what is for other systems than those of `.deny.toml`: it is built by whoever develops there.
fn found<'a>(
    lock: &'a Lock,
    advisories: &'a [Advisory],
) -> impl Iterator<Item = (&'a Package, &'a Advisory)> {
    let pairs = lock.packages.iter().flat_map(move |package| {
        let about = advisories.iter().filter(|it| it.affects(package));
        about.map(move |advisory| (package, advisory))
    });
    pairs.filter(|(package, advisory)| match advisory.kind {
        Kind::Vulnerable | Kind::Unsound => true,
        Kind::Unmaintained => package.chosen,
        Kind::Notice => false,
    })
}

/// Complains about each exception without a reason, and about those that nothing needs any more.
fn unneeded(locks: &[Lock], advisories: &[Advisory], exceptions: &[Exception]) -> Vec<String> {
    let complaints = exceptions.iter().filter_map(|Exception { id, reason }| {
        if reason.trim().is_empty() {
            return Some(format!(".deny.toml: the exception of {id} needs a reason"));
        }
        let mut found = locks.iter().flat_map(|lock| found(lock, advisories));
        let needed = found.any(|(_, advisory)| advisory.id == *id);
        (!needed).then(|| format!(".deny.toml: nothing needs the exception of {id}; remove it"))
    });
    complaints.collect()
}

/// Complains about dependencies that came after the copy was made, and have advisories.
fn not_copied(lock: &Lock, copy: &Description) -> Vec<String> {
    let missing = lock
        .packages
        .iter()
        .filter(|it| copy.not_copied.contains(&it.name));
    let path = &lock.path;
    let complaints = missing.map(|Package { name, .. }| {
        format!("{path}: {name} has advisories that were not copied; run tests/advisories/update")
    });
    complaints.collect()
}

fn copy() -> Copy {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("database");
    let copy = Copy::read(&directory).unwrap_or_else(|error| panic!("{error}"));
    assert!(copy.advisories.len() > 50, "the advisories were read");
    assert!(
        copy.description.not_copied.len() > 100,
        "most crates are no dependency of ours"
    );
    copy
}

/// Whether the copy is too old is for people to judge: a test that depended on the date would fail without a change.
fn tell_age(copy: &Description) {
    let committed = UNIX_EPOCH + Duration::from_secs(copy.committed_at_s);
    let age = SystemTime::now()
        .duration_since(committed)
        .unwrap_or_default();
    let days = age.as_secs() / (24 * 60 * 60);
    let commit = &copy.commit;
    // Past the harness, which keeps what `println!` says in a test that passes.
    writeln!(
        io::stderr(),
        "advisories: the copy is {days} days old (commit {commit})"
    )
    .expect("standard error takes a line");
}

/// Every `Cargo.lock` of the repository.
fn locks() -> Vec<Lock> {
    let root = repository();
    let mut locks = Vec::new();
    let mut directories = vec![root.clone()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).expect("a readable directory") {
            let path = entry.expect("a readable entry").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if path.is_dir() && !name.starts_with('.') && name != "target" {
                directories.push(path);
            } else if name == "Cargo.lock" {
                let text = fs::read_to_string(&path).expect("text");
                let inside = path.strip_prefix(&root).expect("found inside");
                let inside = inside.to_string_lossy().replace('\\', "/");
                locks.push(Lock::parse(inside, &text).unwrap_or_else(|error| panic!("{error}")));
            }
        }
    }
    let workspace = locks.iter().find(|lock| lock.path == "Cargo.lock");
    let workspace = workspace.expect("the workspace has one");
    assert!(
        workspace.packages.len() > 100,
        "the workspace has dependencies"
    );
    assert!(locks.len() > 1, "the guests have a workspace of their own");
    locks
}

fn exceptions() -> Vec<Exception> {
    let text = fs::read_to_string(repository().join(".deny.toml")).expect("readable");
    parse_exceptions(&text).expect("each exception is `{ id = \"…\", reason = \"…\" }`")
}

fn parse_exceptions(text: &str) -> Result<Vec<Exception>, toml::de::Error> {
    let deny: Deny = toml::from_str(text)?;
    Ok(deny.advisories.ignore)
}

fn repository() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2);
    root.expect("this is two levels below it").to_path_buf()
}

/// Each rule must complain about what it forbids, and about nothing similar.
mod each_rule_can_fail {
    use super::*;

    /// Names and versions.
    type Packages<'a> = &'a [(&'a str, &'a str)];

    /// The fix is in 1.2.3, and the fault came with 1.0.
    const FIXED: &str = "patched = [\">= 1.2.3\"]\nunaffected = [\"< 1.0.0\"]";

    fn advisory(package: &str, id: &str, more: &str, versions: &str) -> Option<Advisory> {
        let text = format!(
            "```toml\n[advisory]\nid = \"{id}\"\npackage = \"{package}\"\ndate = \"2020-01-01\"\n{more}\n\n\
             [versions]\n{versions}\n```\n\n# It is {package}\n\n## Details\n\nText.\n"
        );
        Advisory::parse(&text).expect("an advisory")
    }

    /// One of each kind.
    fn advisories() -> Vec<Advisory> {
        let advisories = [
            advisory("leaky", "RUSTSEC-2020-0001", "", FIXED),
            advisory(
                "shaky",
                "RUSTSEC-2020-0002",
                "informational = \"unsound\"",
                FIXED,
            ),
            advisory(
                "orphan",
                "RUSTSEC-2020-0003",
                "informational = \"unmaintained\"",
                "patched = []",
            ),
            advisory(
                "chatty",
                "RUSTSEC-2020-0004",
                "informational = \"notice\"",
                "patched = []",
            ),
            advisory(
                "innocent",
                "RUSTSEC-2020-0005",
                "withdrawn = \"2020-02-01\"",
                FIXED,
            ),
        ];
        let advisories: Vec<Advisory> = advisories.into_iter().flatten().collect();
        assert_eq!(advisories.len(), 4, "one was withdrawn");
        advisories
    }

    /// A package of ours, which has the name of one with an advisory, depends on one other; the rest came with that.
    fn lock(chosen: &str, packages: Packages<'_>) -> Lock {
        let mut text = format!(
            "version = 4\n\n[[package]]\nname = \"leaky\"\nversion = \"1.1.0\"\ndependencies = [\"{chosen}\"]\n"
        );
        for (name, version) in packages {
            text += &format!(
                "\n[[package]]\nname = \"{name}\"\nversion = \"{version}\"\nsource = \"registry+https://example.org/index\"\n\
                 checksum = \"00\"\ndependencies = [\"orphan\", \"elsewhere\"]\n"
            );
        }
        Lock::parse("some/Cargo.lock".to_owned(), &text).expect("a lock file")
    }

    fn exception(id: &str, reason: &str) -> Vec<Exception> {
        let text = format!("[advisories]\nignore = [{{ id = \"{id}\", reason = \"{reason}\" }}]\n");
        parse_exceptions(&text).expect("an exception")
    }

    #[test]
    fn a_dependency_with_a_known_vulnerability() {
        let advisories = advisories();
        let of = |chosen: &str, packages: Packages| {
            vulnerabilities(&lock(chosen, packages), &advisories, &[])
        };
        assert_eq!(
            of("other", &[("other", "1.1.0"), ("leaky", "1.2.2")]),
            [
                "some/Cargo.lock: leaky 1.2.2: RUSTSEC-2020-0001, vulnerable: It is leaky; go to `>=1.2.3` or `<1.0.0`"
            ]
        );
        let bad: [(&str, Packages<'_>, &str); 6] = [
            ("other", &[("shaky", "1.0.0")], "0002, unsound"),
            ("orphan", &[("orphan", "1.1.0")], "no version is free of it"),
            (
                "orphan 1.1.0",
                &[("orphan", "1.1.0"), ("orphan", "2.0.0")],
                "orphan 1.1.0",
            ),
            ("other", &[("leaky", "1.2.3-rc.1")], "1.2.3-rc.1"),
            ("other", &[("leaky", "1.2.3"), ("leaky", "1.1.0")], "1.1.0"),
            ("other", &[("leaky", "1.2.2+spec-9.9.9")], "1.2.2+spec"),
        ];
        for (chosen, packages, part) in bad {
            let complaints = of(chosen, packages);
            let expected = complaints.len() == 1 && complaints[0].contains(part);
            assert!(expected, "{packages:?}: {complaints:?}");
        }
        let fine: [(&str, Packages<'_>); 7] = [
            ("leaky", &[("leaky", "1.2.3")]),
            ("leaky", &[("leaky", "2.0.0")]),
            ("leaky", &[("leaky", "0.9.0")]),
            ("leaky", &[("leaky", "1.2.3+spec-0.1.0")]),
            ("other", &[("other", "1.1.0"), ("orphan", "1.1.0")]),
            ("chatty", &[("chatty", "1.1.0")]),
            ("innocent", &[("innocent", "1.1.0")]),
        ];
        for (chosen, packages) in fine {
            assert_eq!(of(chosen, packages), [""; 0], "{packages:?}");
        }
    }

    #[test]
    fn a_vulnerability_of_the_copy() {
        let made_up = lock("tokio", &[("tokio", "1.8.0")]);
        let complaints = vulnerabilities(&made_up, &copy().advisories, &[]);
        let expected = "tokio 1.8.0: RUSTSEC-2021-0124, vulnerable";
        let complained = complaints.iter().any(|it| it.contains(expected));
        assert!(complained, "{complaints:?}");
    }

    #[test]
    fn what_is_no_advisory() {
        let good = "```toml\n[advisory]\nid = \"RUSTSEC-2020-0001\"\npackage = \"leaky\"\n[versions]\npatched = [\">= 1\"]\n```\n# Title\n";
        assert!(Advisory::parse(good).is_ok());
        for (part, instead) in [
            ("```toml\n", ""),
            ("\n```\n", "\n"),
            ("patched", "mended"),
            (">= 1", "newer"),
            ("# Title", "Title"),
            (
                "package = \"leaky\"",
                "informational = \"gossip\"\npackage = \"leaky\"",
            ),
        ] {
            let bad = good.replace(part, instead);
            assert!(Advisory::parse(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_exception_that_is_of_no_use() {
        let advisories = advisories();
        let locks = [
            lock("leaky", &[("leaky", "1.1.0")]),
            lock("shaky", &[("shaky", "1.2.3")]),
        ];
        let needed = exception("RUSTSEC-2020-0001", "that part is not called");
        assert_eq!(vulnerabilities(&locks[0], &advisories, &needed), [""; 0]);
        assert_eq!(unneeded(&locks, &advisories, &needed), [""; 0]);

        let of_another = exception("RUSTSEC-2020-0002", "that part is not called");
        assert_eq!(
            vulnerabilities(&locks[0], &advisories, &of_another).len(),
            1
        );
        assert_eq!(unneeded(&locks, &advisories, &of_another).len(), 1);
        let unreasoned = exception("RUSTSEC-2020-0001", " ");
        assert_eq!(unneeded(&locks, &advisories, &unreasoned).len(), 1);
        let bare = "[advisories]\nignore = [\"RUSTSEC-2020-0001\"]\n";
        assert!(
            parse_exceptions(bare).is_err(),
            "an exception without a reason"
        );
    }

    #[test]
    fn a_dependency_that_came_after_the_copy() {
        let copy = Description {
            commit: "0123456789abcdef".to_owned(),
            committed_at_s: 0,
            not_copied: vec!["leaky".to_owned()],
        };
        let of = |name: &str| not_copied(&lock("other", &[(name, "1.2.3")]), &copy);
        assert_eq!(of("leaky").len(), 1);
        assert_eq!(of("leaky-not"), [""; 0]);
    }
}
