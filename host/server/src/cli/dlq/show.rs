//! Dead letters in a form for people.

use millrace_model::plain::plain;
use serde_json::Value;

use super::super::table::{cell, facts, items, lines, table, when};

/// The position of a dead letter.
pub(super) fn place_of(letter: &Value) -> String {
    ["topic", "partition", "offset"]
        .map(|field| cell(&letter[field]))
        .join("/")
}

/// A page of dead letters.
pub(super) fn letters(answer: &Value) -> String {
    let row = |letter: &Value| {
        let again = match (letter["redriven"].as_bool(), letter["redrives"].as_u64()) {
            (Some(true), _) => "yes".to_owned(),
            (_, Some(times @ 1..)) => format!("{times} before"),
            _ => "-".to_owned(),
        };
        let cells = ["cause", "class", "attempts", "revision", "reason"].map(|f| cell(&letter[f]));
        let key = cell(&letter["message"]["key"]);
        [&[place_of(letter), key], cells.as_slice(), &[again]].concat()
    };
    let rows = items(&answer["dead_letters"]).iter().map(row).collect();
    let headings = [
        "DEAD LETTER",
        "KEY",
        "CAUSE",
        "CLASS",
        "ATTEMPTS",
        "REVISION",
        "REASON",
        "REDRIVEN",
    ];
    table(&headings, rows, "there are no such dead letters") + &more(answer)
}

fn more(answer: &Value) -> String {
    match answer["next"].as_str() {
        Some(next) => format!("\n\nthere may be more: --from {next}"),
        None => String::new(),
    }
}

/// Groups of dead letters.
pub(super) fn groups(answer: &Value) -> String {
    let row = |group: &Value| {
        let cells = ["count", "class", "cause", "revision"].map(|field| cell(&group[field]));
        let times = ["first_died_at", "last_died_at"].map(|field| when(&group[field]));
        let sample = ["sample", "sample_reason"].map(|field| cell(&group[field]));
        [cells.as_slice(), &times, &sample].concat()
    };
    let rows = items(&answer["groups"]).iter().map(row).collect();
    let headings = [
        "COUNT", "CLASS", "CAUSE", "REVISION", "FIRST", "LAST", "EXAMPLE", "REASON",
    ];
    let shown = table(&headings, rows, "there are no such dead letters");
    let others = match answer["others"].as_u64() {
        Some(others @ 1..) => format!("\n\n{others} more are in other groups"),
        _ => String::new(),
    };
    shown + &others + &more(answer)
}

/// The result of a dry run.
pub(super) fn dry_run(answer: &Value) -> String {
    let row = |outcome: &Value| {
        ["count", "outcome", "class", "sample", "reason"]
            .map(|field| cell(&outcome[field]))
            .to_vec()
    };
    let rows = items(&answer["outcomes"]).iter().map(row).collect();
    let headings = ["COUNT", "OUTCOME", "CLASS", "EXAMPLE", "REASON"];
    let outcomes = table(&headings, rows, "there are no such dead letters");
    let sample = |output: &Value| {
        let text = |names: [&str; 2]| {
            let given = names.into_iter().find(|name| !output[*name].is_null());
            given.map_or_else(|| "-".to_owned(), |name| cell(&output[name]))
        };
        vec![
            cell(&output["letter"]),
            cell(&output["topic"]),
            text(["key", "key_base64"]),
            text(["value", "value_base64"]),
        ]
    };
    let samples = items(&answer["samples"]).iter().map(sample).collect();
    let headings = ["OF", "TOPIC", "KEY", "VALUE"];
    let samples = table(&headings, samples, "there would be no outputs");
    let (revision, letters) = (cell(&answer["revision"]), cell(&answer["letters"]));
    let outputs = cell(&answer["outputs"]);
    let stopped = match answer["stopped"].as_str() {
        Some(reason) => format!("\n\nit stopped early: {reason}"),
        None => String::new(),
    };
    format!(
        "what revision {revision} would do with {letters} dead letters; nothing was changed:\n\n{outcomes}\n\n{outputs} outputs, such as:\n\n{samples}{stopped}{}",
        more(answer)
    )
}

/// The audit trail.
pub(super) fn audit(answer: &Value) -> String {
    let range = |range: &Value| match (range[0].as_u64(), range[1].as_u64()) {
        (Some(start), Some(end)) if end > start + 1 => format!("{start}-{}", end - 1),
        _ => cell(&range[0]),
    };
    let row = |entry: &Value| {
        let ranges: Vec<String> = items(&entry["offsets"]).iter().map(range).collect();
        let (topic, partition) = (cell(&entry["topic"]), cell(&entry["partition"]));
        let change = |part: &str| {
            let side = |side: &str| &entry["edit"][side][part];
            (side("before") != side("after")).then(|| part.to_owned())
        };
        let changed: Vec<String> = ["key", "value", "headers"]
            .into_iter()
            .filter_map(change)
            .collect();
        vec![
            when(&entry["at"]),
            cell(&entry["by"]),
            cell(&entry["action"]),
            cell(&entry["count"]),
            format!("{topic}/{partition}/{}", ranges.join(",")),
            match changed.as_slice() {
                [] => "-".to_owned(),
                changed => changed.join(", "),
            },
        ]
    };
    let rows = items(&answer["entries"]).iter().map(row).collect();
    let headings = [
        "AT",
        "BY (CLAIMED)",
        "ACTION",
        "COUNT",
        "DEAD LETTERS",
        "CHANGED",
    ];
    table(&headings, rows, "the audit trail is empty") + &more(answer)
}

/// A dead letter with all its evidence.
pub(super) fn letter(letter: &Value) -> String {
    let fact = |name: &'static str| (name, cell(&letter[name]));
    let origin = ["origin_topic", "origin_partition", "origin_offset"]
        .map(|field| cell(&letter[field]))
        .join("/");
    let mut pairs = vec![("dead letter", place_of(letter)), ("origin", origin)];
    pairs.extend(["cause", "class", "reason", "attempts", "revision", "module"].map(fact));
    pairs.push(("first failed", when(&letter["first_failed_at"])));
    pairs.push(("died", when(&letter["died_at"])));
    pairs.push(("redrives before", cell(&letter["redrives"])));
    pairs.extend([fact("redriven"), ("backtrace", lines(&letter["backtrace"]))]);
    pairs.extend(call_facts(&letter["call"]));
    let message = &letter["message"];
    pairs.extend(
        ["key", "value", "key_base64", "value_base64"].map(|name| (name, cell(&message[name]))),
    );
    pairs.push(("headers", own_headers(message)));
    pairs.retain(|(name, value)| !(name.ends_with("_base64") && value == "-"));
    let row = |attempt: &Value| {
        let cells = ["revision", "class", "reason"].map(|field| cell(&attempt[field]));
        [&[when(&attempt["at"])], cells.as_slice()].concat()
    };
    let rows: Vec<_> = items(&letter["attempt_log"]).iter().map(row).collect();
    let attempts = table(
        &["AT", "REVISION", "CLASS", "REASON"],
        rows,
        "no attempts are recorded",
    );
    format!("{}\n\n{attempts}", facts(&pairs))
}

/// What the call used, and what the guest logged in it.
fn call_facts(call: &Value) -> Vec<(&'static str, String)> {
    let Some(guest_us) = call["guest_us"].as_u64() else {
        return Vec::new();
    };
    let messages = match call["messages"].as_u64() {
        Some(1) => "one message".to_owned(),
        _ => format!("{} messages", cell(&call["messages"])),
    };
    let (ms, us) = (guest_us / 1_000, guest_us % 1_000);
    let memory_kib = call["memory_bytes"].as_u64().unwrap_or_default() >> 10;
    let line = |line: &Value| format!("{}: {}", cell(&line["level"]), cell(&line["text"]));
    let said: Vec<String> = items(&call["log"]).iter().map(line).collect();
    let used = format!("{ms}.{us:03} ms for {messages}, {memory_kib} KiB of memory");
    let said = match said.as_slice() {
        [] => "-".to_owned(),
        lines => lines.join("\n"),
    };
    vec![("call", used), ("guest log", said)]
}

/// The message's own headers, in order: headers that the host added are shown as evidence.
fn own_headers(message: &Value) -> String {
    let part = |part: &Value| match &part["base64"] {
        Value::String(encoded) => format!("base64:{encoded}"),
        _ => cell(part),
    };
    let of_object = |field: &str, prefix: &str| {
        let object = message[field].as_object().into_iter().flatten();
        let line =
            |(name, value): (&String, &Value)| (name.clone(), prefix.to_owned() + &cell(value));
        object.map(line).collect::<Vec<_>>()
    };
    let all: Vec<(String, String)> = match &message["header_list"] {
        Value::Array(list) => {
            let list = list.iter();
            list.map(|pair| (part(&pair[0]), part(&pair[1]))).collect()
        }
        _ => [
            of_object("headers", ""),
            of_object("headers_base64", "base64:"),
        ]
        .concat(),
    };
    let own = all
        .iter()
        .filter(|(name, _)| !name.starts_with("millrace-"));
    let lines: Vec<String> = own
        .map(|(name, value)| format!("{}: {value}", plain(name)))
        .collect();
    match lines.as_slice() {
        [] => "-".to_owned(),
        lines => lines.join("\n"),
    }
}
