//! `processor canary|shadow|promote|history`: revisions on trial, and the history of a processor.

use millrace_model::ProcessorName;
use millrace_model::plain::steers;
use serde_json::{Value, json};
use ureq::http::Method;

use super::client::Client;
use super::deploy::current;
use super::failure::Failure;
use super::output::Output;
use super::paths::path;
use super::table::{cell, facts, items, short, table, value_of, when};

pub(super) fn canary(
    name: &ProcessorName,
    percent: u32,
    client: &Client,
    out: &mut Output,
) -> Result<(), Failure> {
    let body = json!({ "percent": percent });
    let answer = client.send(Method::POST, &path(name, "/canary"), &body)?;
    out.answer(&answer, |answer| current(name, answer))
}

pub(super) fn promote(
    name: &ProcessorName,
    force: bool,
    client: &Client,
    out: &mut Output,
) -> Result<(), Failure> {
    let answer = client.send(
        Method::POST,
        &path(name, "/promote"),
        &json!({ "force": force }),
    )?;
    out.answer(&answer, |answer| current(name, answer))
}

pub(super) fn shadow(
    name: &ProcessorName,
    end: bool,
    client: &Client,
    out: &mut Output,
) -> Result<(), Failure> {
    if end {
        client.delete(&path(name, "/shadow"))?;
        return out.answer(&json!({"ended": name}), |_| {
            format!("processor {name} no longer has a shadow")
        });
    }
    out.answer(&client.get(&path(name, "/shadow"))?, report)
}

fn report(report: &Value) -> String {
    let mut pairs = ["revision", "compared", "alike"]
        .map(|field| (field, cell(&report[field])))
        .to_vec();
    pairs.insert(1, ("since", when(&report["since"])));
    pairs.push(("different outputs", cell(&report["outputs"])));
    pairs.push(("failed calls", counts(&report["failed_calls"])));
    pairs.push(("not answered", cell(&report["not_answered"])));
    pairs.push(("skipped", cell(&report["skipped"])));
    let outcomes = report["outcomes"].as_object().into_iter().flatten();
    let outcomes = outcomes.map(|(kind, count)| vec![kind.clone(), cell(count)]);
    let sample = |sample: &Value| {
        let place = ["topic", "partition", "offset"].map(|field| cell(&sample[field]));
        vec![
            place.join("/"),
            cell(&sample["key"]),
            said(&sample["current"]),
            said(&sample["shadow"]),
        ]
    };
    let samples = items(&report["samples"]).iter().map(sample).collect();
    format!(
        "{}\n\n{}\n\n{}",
        facts(&pairs),
        table(
            &["OUTCOME", "MESSAGES"],
            outcomes.collect(),
            "no outcomes differ"
        ),
        table(
            &["MESSAGE", "KEY", "CURRENT", "SHADOW"],
            samples,
            "there are no samples"
        ),
    )
}

fn counts(map: &Value) -> String {
    let counts = map.as_object().into_iter().flatten();
    let counts: Vec<String> = counts
        .map(|(what, count)| format!("{what} {count}"))
        .collect();
    match counts.is_empty() {
        true => "none".to_owned(),
        false => counts.join(", "),
    }
}

/// One side's result on a line; `--json` has all of it.
fn said(said: &Value) -> String {
    let output = items(&said["outputs"]).first();
    let value = output.and_then(|output| output["value"].as_str());
    let more = value
        .or_else(|| said["reason"].as_str())
        .unwrap_or_default();
    let more: String = more.chars().filter(|c| !steers(*c)).take(40).collect();
    format!("{} {more}", cell(&said["outcome"]))
        .trim_end()
        .to_owned()
}

/// The canary's status, for `processor show`.
pub(super) fn canary_facts(status: &Value) -> Vec<(&'static str, String)> {
    if status.is_null() {
        return Vec::new();
    }
    let side = |side: &Value| {
        let [revision, messages, failed] =
            ["revision", "messages", "failed"].map(|field| cell(&side[field]));
        format!("revision {revision}: {messages} messages, {failed} failed attempts")
    };
    // A canary gives up nothing.
    let share = format!(
        "{} % of the keys, {}, {} passed to the current revision instead of being given up",
        cell(&status["percent"]),
        side(&status["canary"]),
        cell(&status["canary"]["asked_again"])
    );
    let current = format!(
        "{}, {} dead letters",
        side(&status["current"]),
        cell(&status["current"]["dead_letters"])
    );
    let mut facts = vec![("canary", share), ("current revision", current)];
    if let Some(trouble) = status["trouble"].as_str() {
        facts.push(("canary trouble", trouble.to_owned()));
    }
    facts
}

pub(super) fn history(
    name: &ProcessorName,
    client: &Client,
    out: &mut Output,
) -> Result<(), Failure> {
    out.answer(&client.get(&path(name, "/history"))?, shown)
}

fn shown(history: &Value) -> String {
    let revision = |revision: &Value| {
        let number = &revision["number"];
        let mark = if *number == history["current"] {
            "*"
        } else {
            ""
        };
        let tag = revision["tag"].as_str().map(str::to_owned);
        vec![
            format!("{number}{mark}"),
            tag.unwrap_or_else(|| short(&revision["module"])),
            when(&revision["deployed_at"]),
            cell(&revision["deployed_by"]),
            differences(&revision["differs"]),
            cell(&revision["note"]),
        ]
    };
    let change = |change: &Value| {
        vec![
            when(&change["at"]),
            cell(&change["by"]),
            cell(&change["what"]),
            cell(&change["revision"]),
            cell(&change["text"]),
        ]
    };
    let rows =
        |list: &Value, row: &dyn Fn(&Value) -> Vec<String>| items(list).iter().map(row).collect();
    let back = history["way_back"].as_u64().map_or(String::new(), |back| {
        format!("way back: revision {back}, the last that worked\n\n")
    });
    format!(
        "{back}{}\n\n{}",
        table(
            &["REVISION", "MODULE", "DEPLOYED AT", "BY", "DIFFERS", "NOTE"],
            rows(&history["revisions"], &revision),
            "",
        ),
        table(
            &["AT", "BY", "WHAT", "REVISION", "TEXT"],
            rows(&history["changes"], &change),
            "there is no record: it was deployed by an older version of the host",
        ),
    )
}

fn differences(list: &Value) -> String {
    let one = |difference: &Value| {
        let field = cell(&difference["field"]);
        format!(
            "{field} {} -> {}",
            value_of(&field, &difference["before"]),
            value_of(&field, &difference["after"])
        )
    };
    let all: Vec<String> = items(list).iter().map(one).collect();
    all.join(", ")
}
