//! Rooms: the folders of a crate, each with its own job. Dependencies between them go one way, as
//! between crates.

use super::{hold, without_comment, without_test_modules};

/// The rooms of a crate.
struct Rooms {
    source: &'static str,
    /// Lowest first: each room, and the rooms that it may use. A file beside the folders counts as
    /// a room; `lib.rs` may use all.
    rooms: &'static [(&'static str, &'static [&'static str])],
}

const ROOMS: [Rooms; 2] = [LOCAL, BROKER];

const LOCAL: Rooms = Rooms {
    source: "host/local/src/",
    rooms: &[
        ("ground", &[]),
        ("decide", &["ground"]),
        ("write", &["ground", "decide"]),
        ("keep", &["ground", "decide", "write"]),
        ("start", &["ground", "decide", "write", "keep"]),
        ("engine", &["ground", "decide", "write", "keep", "start"]),
    ],
};

const BROKER: Rooms = Rooms {
    source: "host/broker/src/",
    rooms: &[
        ("handler", &[]),
        ("ground", &["handler"]),
        ("hosts", &["handler", "ground"]),
        ("catalogue", &["handler", "ground", "hosts"]),
        ("access", &["ground", "hosts", "catalogue"]),
        ("messages", &["handler", "ground", "hosts", "catalogue"]),
        ("audit", &["ground", "hosts", "catalogue", "messages"]),
        ("groups", &["ground", "hosts", "catalogue", "messages"]),
        ("dispatch", &["handler", "ground", "hosts", "messages"]),
        (
            "processors",
            &[
                "handler",
                "ground",
                "hosts",
                "catalogue",
                "messages",
                "dispatch",
            ],
        ),
        (
            "dead_letters",
            &[
                "handler",
                "ground",
                "hosts",
                "catalogue",
                "messages",
                "dispatch",
                "processors",
            ],
        ),
        (
            "schedules",
            &[
                "handler",
                "ground",
                "hosts",
                "catalogue",
                "messages",
                "processors",
            ],
        ),
        (
            "routes",
            &[
                "handler",
                "ground",
                "hosts",
                "catalogue",
                "messages",
                "processors",
            ],
        ),
        (
            "session",
            &[
                "ground",
                "access",
                "audit",
                "catalogue",
                "messages",
                "groups",
                "processors",
                "dead_letters",
                "schedules",
                "routes",
            ],
        ),
        (
            "broker",
            &[
                "handler",
                "ground",
                "hosts",
                "access",
                "audit",
                "catalogue",
                "messages",
                "groups",
                "dispatch",
                "processors",
                "dead_letters",
                "schedules",
                "routes",
                "session",
            ],
        ),
    ],
};

#[test]
fn rooms_use_only_those_below_them() {
    for rooms in &ROOMS {
        for (at, (room, uses)) in rooms.rooms.iter().enumerate() {
            let below: Vec<&str> = rooms.rooms[..at].iter().map(|(name, _)| *name).collect();
            let up = uses.iter().find(|used| !below.contains(*used));
            assert_eq!(up, None, "{room} uses a room that is not below it");
        }
    }
    hold(uses);
}

fn uses(path: &str, text: &str) -> Vec<String> {
    let Some((rooms, inside)) = ROOMS
        .iter()
        .find_map(|rooms| Some((rooms, path.strip_prefix(rooms.source)?)))
    else {
        return Vec::new();
    };
    if !inside.ends_with(".rs") || inside == "lib.rs" || is_for_tests(inside) {
        return Vec::new();
    }
    let parts: Vec<&str> = inside.trim_end_matches(".rs").split('/').collect();
    let room = parts[0];
    let Some((_, allowed)) = rooms.rooms.iter().find(|(name, _)| *name == room) else {
        return vec![format!("{path}: the room {room} needs its place in ROOMS")];
    };
    // A folder's own file is one step higher than the others in it.
    let depth = parts.len() - usize::from(parts.last() == Some(&"mod"));
    let mut complaints = Vec::new();
    for (at, line) in without_test_modules(text).lines().enumerate() {
        let code = without_comment(line);
        for used in used_rooms(code, room, depth) {
            if used != room && !allowed.contains(&used.as_str()) {
                complaints.push(format!("{path}:{}: {room} must not use {used}", at + 1));
            }
        }
    }
    complaints
}

/// Whether a path is a folder or a file of tests.
fn is_for_tests(inside: &str) -> bool {
    inside.ends_with("tests.rs") || inside.contains("/tests/") || inside.contains("/bad_deploys/")
}

/// The rooms that a line names: after `crate::`, or by `super::` out of its own.
fn used_rooms(code: &str, room: &str, depth: usize) -> Vec<String> {
    let word = |rest: &str| -> String {
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_');
        rest[..end.unwrap_or(rest.len())].to_owned()
    };
    let mut used: Vec<String> = code
        .match_indices("crate::")
        .map(|(at, found)| word(&code[at + found.len()..]))
        .filter(|name| name.chars().all(|c| c.is_lowercase() || c == '_'))
        .filter(|name| !name.is_empty())
        .collect();
    let mut rest = code;
    while let Some(at) = rest.find("super::") {
        let path = &rest[at..];
        let steps = path.split("super::").take_while(|step| step.is_empty());
        // The first piece, before the first `super::`, is empty as well.
        let steps = steps.count();
        let after = &path[steps * "super::".len()..];
        let next = word(after);
        if steps >= depth && next != room {
            used.push(next);
        }
        rest = after;
    }
    used
}

mod can_fail {
    use super::*;

    #[test]
    fn an_arrow_between_rooms_that_points_up() {
        let bad = |path: &str, text: &str| uses(path, text).len();
        let messages = "host/broker/src/messages/produce.rs";
        assert_eq!(bad(messages, "use crate::processors::error::Why;\n"), 1);
        assert_eq!(bad(messages, "fn f() { crate::schedules::run() }\n"), 1);
        assert_eq!(
            bad(messages, "use super::super::groups::handle::Groups;\n"),
            1
        );
        assert_eq!(
            bad(
                "host/broker/src/handler/mod.rs",
                "use super::ground::text::cut;\n"
            ),
            1
        );
        assert_eq!(bad("host/broker/src/attic/mod.rs", "//! New.\n"), 1);
        let fine =
            "use crate::catalogue::topics::NewTopic;\n// crate::processors\nuse super::fetch;\n";
        assert_eq!(bad(messages, fine), 0);
        let in_test = "#[cfg(test)]\nmod tests {\n    use crate::processors::error;\n}\n";
        assert_eq!(bad(messages, in_test), 0);
        assert_eq!(bad("host/broker/src/lib.rs", "mod broker;\n"), 0);
        assert_eq!(bad("host/model/src/lib.rs", "use crate::processors;\n"), 0);
    }
}
