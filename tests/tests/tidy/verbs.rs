//! Verbs: what a session's rooms let their callers do. Each asks first whether its caller may.

use super::{hold, without_comment, without_test_modules};

/// The handles that sessions hand out.
const HANDLES: [&str; 9] = [
    "Access",
    "AuditLog",
    "Catalogue",
    "DeadLetters",
    "Groups",
    "Messages",
    "Processors",
    "Routes",
    "Schedules",
];

/// How a verb asks.
const ASKS: [&str; 9] = [
    ".may(",
    ".sees(",
    ".may_with(",
    ".may_with_some(",
    ".may_with_key",
    ".may_produce(",
    ".may_write(",
    "check_rights(",
    "sees_",
];

/// Verbs that ask nobody themselves, and why that is right.
const ASK_NOBODY: [(&str, &str); 45] = [
    ("AuditLog::answered", "doors record their callers' requests"),
    ("AuditLog::begin", "the host does at its start"),
    ("AuditLog::called_by", "makes the handle of a caller"),
    ("AuditLog::is_kept", "says nothing of anyone"),
    (
        "AuditLog::unanswered",
        "doors record their callers' requests",
    ),
    ("Access::begin", "the host does at its start"),
    ("Access::first", "the host does at its start"),
    ("Access::begin_scram", "before it, nobody is anyone"),
    ("Access::has_password", "before it, nobody is anyone"),
    ("Access::prove", "before it, nobody is anyone"),
    ("Access::prove_identity", "before it, nobody is anyone"),
    ("Access::prove_as", "before it, nobody is anyone"),
    ("Access::prove_identity", "before it, nobody is anyone"),
    ("Access::prove_password", "before it, nobody is anyone"),
    ("Access::remembers_password", "before it, nobody is anyone"),
    (
        "Access::still_counts",
        "says of what was proved whether it still is",
    ),
    (
        "Access::who_may",
        "goes through the principals that the caller sees",
    ),
    (
        "Catalogue::admission",
        "goes through the admissions that the caller sees",
    ),
    (
        "Catalogue::admission_ends",
        "goes through the admissions that the caller sees",
    ),
    (
        "Catalogue::compiling",
        "takes a digest of what the caller sees",
    ),
    ("Catalogue::count", "takes a topic of what the caller sees"),
    ("Catalogue::ends", "takes a topic of what the caller sees"),
    (
        "Catalogue::ends_about",
        "takes a partition of what the caller sees",
    ),
    (
        "Catalogue::find_module",
        "goes through the modules that the caller sees",
    ),
    ("Catalogue::growths", "a counter of this host"),
    ("Catalogue::guest_limits", "the host's settings"),
    (
        "Catalogue::heard_topic",
        "goes through the topics that the caller sees",
    ),
    (
        "Catalogue::is_trusted",
        "takes a module of what the caller sees",
    ),
    (
        "Catalogue::known_topic",
        "goes through the topics that the caller sees",
    ),
    (
        "Catalogue::left_behind",
        "goes through the topics that the caller sees",
    ),
    ("Catalogue::measure_left_behind", "metrics of the host"),
    (
        "Catalogue::offset_at",
        "takes a topic of what the caller sees",
    ),
    ("Catalogue::processor_names", "metrics of the host"),
    ("Catalogue::upload_module", "by `begin_upload`, which asks"),
    (
        "Catalogue::upload_module_of",
        "by `begin_upload`, which asks",
    ),
    (
        "Catalogue::way_back_of",
        "takes a processor of what the caller sees",
    ),
    ("DeadLetters::measure_dead_letters", "metrics of the host"),
    (
        "Groups::all_consumers",
        "goes through the topics that the caller sees",
    ),
    (
        "Groups::groups",
        "goes through the topics that the caller sees",
    ),
    (
        "Messages::subscribe",
        "each partition that is added to it asks",
    ),
    ("Processors::lags", "metrics of the host"),
    ("Processors::log_lines_dropped", "metrics of the host"),
    (
        "Processors::rollback",
        "by `rollback_expecting`, which asks",
    ),
    (
        "Processors::trial_seen",
        "counts, asked for by hosts and by what asks itself",
    ),
    ("Routes::has_dropped", "metrics of the host"),
];

/// These find the route of a request, before `serve` asks whether its caller may.
const FIND_ROUTES: [&str; 2] = ["Routes::covering", "Routes::found"];

#[test]
fn every_verb_asks_whether_its_caller_may() {
    hold(silent);
}

#[test]
fn no_exemption_is_left_over() {
    let mut used: Vec<String> = Vec::new();
    for source in super::sources() {
        used.extend(
            verbs(&source.path, &source.text)
                .into_iter()
                .filter_map(|(name, asks)| (!asks).then_some(name)),
        );
    }
    let exempt = ASK_NOBODY.iter().map(|(name, _)| *name).chain(FIND_ROUTES);
    let left: Vec<&str> = exempt
        .filter(|name| !used.iter().any(|verb| verb == name))
        .collect();
    assert!(left.is_empty(), "these ask by now, or are gone: {left:?}");
}

fn silent(path: &str, text: &str) -> Vec<String> {
    let exempt = |name: &str| {
        ASK_NOBODY.iter().any(|(verb, _)| *verb == name) || FIND_ROUTES.contains(&name)
    };
    let silent = verbs(path, text)
        .into_iter()
        .filter(|(name, asks)| !asks && !exempt(name));
    silent
        .map(|(name, _)| format!("{path}: {name} does not ask whether its caller may"))
        .collect()
}

/// The public functions of sessions' handles, and whether each asks.
fn verbs(path: &str, text: &str) -> Vec<(String, bool)> {
    if !path.starts_with("host/broker/src/") || path.ends_with("tests.rs") {
        return Vec::new();
    }
    let mut found: Vec<(String, bool)> = Vec::new();
    let mut handle = None;
    let mut is_inside = false;
    for line in without_test_modules(text).lines() {
        if let Some(named) = line
            .strip_prefix("impl ")
            .and_then(|rest| rest.strip_suffix(" {"))
        {
            handle = HANDLES.iter().find(|handle| **handle == named);
        } else if line == "}" {
            (handle, is_inside) = (None, false);
        }
        let Some(handle) = handle else { continue };
        let public = ["    pub fn ", "    pub async fn ", "    pub const fn "];
        if let Some(name) = public.iter().find_map(|start| line.strip_prefix(start)) {
            let name = name.split(['(', '<']).next().unwrap_or_default();
            found.push((format!("{handle}::{name}"), false));
            is_inside = true;
        } else if line.starts_with("    pub(")
            || line.starts_with("    fn ")
            || line.starts_with("    async fn ")
        {
            is_inside = false;
        }
        let code = without_comment(line);
        if let Some((_, asks)) = found.last_mut().filter(|_| is_inside) {
            *asks |= ASKS.iter().any(|ask| code.contains(ask));
        }
    }
    found
}

mod can_fail {
    use super::*;

    #[test]
    fn a_verb_that_asks_nobody() {
        let path = "host/broker/src/catalogue/topics.rs";
        let silent_one =
            "impl Catalogue {\n    pub async fn burn(&self) {\n        self.burnt();\n    }\n}\n";
        assert_eq!(silent(path, silent_one).len(), 1);
        let asking = "impl Catalogue {\n    pub async fn burn(&self) {\n        self.caller.may(Verb::Burn)?;\n    }\n}\n";
        assert_eq!(silent(path, asking).len(), 0);
        let after = "impl Catalogue {\n    pub fn burn(&self) {\n        self.now();\n    }\n    fn now(&self) {\n        self.caller.may(Verb::Burn)?;\n    }\n}\n";
        assert_eq!(silent(path, after).len(), 1);
        assert_eq!(silent("host/server/src/lib.rs", silent_one).len(), 0);
    }
}
