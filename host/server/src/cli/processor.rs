//! `processor`: deploy and manage processors.

use std::io::Write as _;
use std::time::Duration;

use millrace_model::ProcessorName;
use serde_json::{Map, Value, json};
use ureq::http::Method;

use super::client::Client;
use super::deploy::{DeployArgs, config_value, current, deploy, left_behind, waiting};
use super::failure::Failure;
use super::gathered::{SeenLines, missing};
use super::output::Output;
use super::parked::{self, ParkedArgs, WhichArgs};
use super::paths::path;
use super::replay::{self, ReplayArgs};
use super::state::{self, StateVerb};
use super::table::{cell, facts, harmless, items, short, table, when};
use super::trials;

/// How often `logs --follow` asks for new lines.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Manage processors
#[derive(clap::Subcommand)]
pub(super) enum Verb {
    /// Deploy a processor, or its next revision, which takes over between two batches
    Deploy(Box<DeployArgs>),
    /// List all processors
    List,
    /// Show a processor, its revisions, and its progress in each partition
    Show { name: ProcessorName },
    /// Stop taking batches until resumed; waits a few seconds for batches in flight and reports those still running
    Pause { name: ProcessorName },
    /// Resume after a pause; if the breaker is open, try a message at once
    #[command(
        after_help = "Examples:\n  millrace processor resume shout\n  millrace processor resume shout --accept-dead-letters 5000"
    )]
    Resume {
        name: ProcessorName,
        /// Close the breaker, and allow this many dead letters before the breaker judges again
        #[arg(long, value_name = "COUNT")]
        accept_dead_letters: Option<u64>,
    },
    /// Change the canary's share of the keys; 0 withdraws it
    #[command(
        after_help = "Examples:\n  millrace processor canary shout --percent 50\n  millrace processor canary shout --percent 0"
    )]
    Canary {
        name: ProcessorName,
        /// 0 to 99; 0 withdraws the canary; a larger share includes the smaller one
        #[arg(long)]
        percent: u32,
    },
    /// Show how the shadow compares with the current revision, or end it
    #[command(
        after_help = "The report is held in memory and starts over when the host restarts. The reports of several hosts are added up.\n\nExamples:\n  millrace processor shadow shout\n  millrace processor shadow shout --end"
    )]
    Shadow {
        name: ProcessorName,
        /// End the shadow
        #[arg(long)]
        end: bool,
    },
    /// Replay a time range of its input through one of its revisions, into another topic
    Replay(ReplayArgs),
    /// Make the revision on trial current; the answer includes its failures on trial
    #[command(
        after_help = "A canary that is about to be withdrawn is refused without --force.\n\nExamples:\n  millrace processor promote shout\n  millrace processor promote shout --force"
    )]
    Promote {
        name: ProcessorName,
        /// Promote even a canary that is about to be withdrawn
        #[arg(long)]
        force: bool,
    },
    /// List parked messages, which wait for their next attempt or behind another message with their key
    Parked(ParkedArgs),
    /// Make parked messages due now, instead of when their delay ends
    #[command(
        after_help = "If the processor is paused, they are tried when it is resumed. A message that waits behind another one keeps waiting.\n\nExamples:\n  millrace processor try-now shout orders/0/17\n  millrace processor try-now shout --class busy"
    )]
    TryNow(WhichArgs),
    /// Give parked messages up: they become dead letters, and messages behind them continue
    #[command(
        after_help = "Examples:\n  millrace processor give-up shout orders/0/17\n  millrace processor give-up shout --class busy\n  millrace processor give-up shout --all"
    )]
    GiveUp(WhichArgs),
    /// Show its revisions with their changes, and what was done to the processor, by whom and when
    #[command(after_help = "Examples:\n  millrace processor history shout")]
    History { name: ProcessorName },
    /// Make an earlier revision current; without --to, withdraw the revision on trial if there is one
    #[command(
        after_help = "The answer names the old and the new revision, the revisions it skips, and how to send again what the old one gave up. If the host has \
rolled back or withdrawn a canary by itself within the last hour, --to is required. --to with the current revision only ends a trial.\n\nExamples:\n  millrace processor rollback shout\n  millrace processor rollback shout --to 3"
    )]
    Rollback {
        name: ProcessorName,
        /// The revision to return to [default: the last one that worked]
        #[arg(long = "to", alias = "revision", value_name = "REVISION")]
        revision: Option<u32>,
    },
    /// Show or change the settings that its component reads; the next call sees a change, without a new revision
    #[command(
        after_help = "Examples:\n  millrace processor config greet\n  millrace processor config greet greeting=hello limit=5\n  millrace processor config greet --unset limit"
    )]
    Config {
        name: ProcessorName,
        /// Settings to change
        #[arg(value_name = "KEY=VALUE", value_parser = config_value)]
        values: Vec<(String, String)>,
        /// A key to remove; repeat it for several
        #[arg(long, value_name = "KEY")]
        unset: Vec<String>,
    },
    /// Delete a processor; its dead-letter topics stay, and so do its progress and state, for a processor of the same name
    #[command(
        after_help = "The remaining state can be shown, exported and emptied with `millrace processor state`.\n\nExamples:\n  millrace processor delete shout\n  millrace processor delete count --reset-state\n  millrace processor delete old --with-topics"
    )]
    Delete {
        name: ProcessorName,
        /// Empty its state in every partition
        #[arg(long)]
        reset_state: bool,
        /// Also delete the topics that it created for itself: dead letters, redrives and their audit trail
        #[arg(long)]
        with_topics: bool,
    },
    /// Show, export, import or empty its state
    #[command(subcommand)]
    State(StateVerb),
    /// Show the latest log lines of its components
    Logs {
        name: ProcessorName,
        /// Follow until interrupted
        #[arg(long)]
        follow: bool,
    },
}

/// The changes of settings; none of a key that is both set and removed, or given two values.
fn config_changes(
    values: Vec<(String, String)>,
    unset: Vec<String>,
) -> Result<Map<String, Value>, Failure> {
    let set = values.into_iter().map(|(key, value)| (key, json!(value)));
    let unset = unset.into_iter().map(|key| (key, Value::Null));
    let mut changes = Map::new();
    for (key, value) in set.chain(unset) {
        let before = changes.insert(key.clone(), value.clone());
        if before.is_some_and(|before| before != value) {
            let message = format!("{key:?} is given twice; say once what becomes of it");
            return Err(Failure::usage(message));
        }
    }
    Ok(changes)
}

pub(super) fn run(verb: Verb, client: &Client) -> Result<(), Failure> {
    let mut out = client.output();
    match verb {
        Verb::Deploy(args) => deploy(*args, client, &mut out),
        Verb::List => out.answer(&client.get("/v1/processors")?, list),
        Verb::Show { name } => out.answer(&client.get(&path(&name, ""))?, show),
        Verb::Pause { name } => {
            let answer = client.send(Method::POST, &path(&name, "/pause"), &json!({}))?;
            let status = client.get(&path(&name, ""))?;
            out.answer(&answer, |_| paused(&name, &status))
        }
        Verb::Config {
            name,
            values,
            unset,
        } => {
            let changes = config_changes(values, unset)?;
            let path = path(&name, "/config");
            let answer = match changes.is_empty() {
                true => client.get(&path)?,
                false => client.send(Method::PATCH, &path, &Value::Object(changes))?,
            };
            out.answer(&answer, |answer| config(&name, answer))
        }
        Verb::Resume {
            name,
            accept_dead_letters,
        } => {
            let body = accept_dead_letters
                .map_or_else(|| json!({}), |count| json!({"accept_dead_letters": count}));
            let answer = client.send(Method::POST, &path(&name, "/resume"), &body)?;
            out.answer(&answer, |_| format!("processor {name} is resumed"))
        }
        Verb::Canary { name, percent } => trials::canary(&name, percent, client, &mut out),
        Verb::Shadow { name, end } => trials::shadow(&name, end, client, &mut out),
        Verb::Replay(args) => replay::run(&args, client, &mut out),
        Verb::Promote { name, force } => trials::promote(&name, force, client, &mut out),
        Verb::Parked(args) => parked::list(&args, client, &mut out),
        Verb::TryNow(args) => parked::act(&args, "try-now", client, &mut out),
        Verb::GiveUp(args) => parked::act(&args, "give-up", client, &mut out),
        Verb::History { name } => trials::history(&name, client, &mut out),
        Verb::Rollback { name, revision } => {
            let body =
                json!({"revision": revision, "expected_revision": taken_back(&name, client)?});
            let answer = client.send(Method::POST, &path(&name, "/rollback"), &body)?;
            out.answer(&answer, |answer| current(&name, answer))
        }
        Verb::Delete {
            name,
            reset_state,
            with_topics,
        } => {
            let query = match (reset_state, with_topics) {
                (_, false) => resetting(reset_state).to_owned(),
                (reset_state, true) => format!("?topics=true&reset_state={reset_state}"),
            };
            let mut gone = client.delete(&path(&name, &query))?;
            match gone.as_object_mut() {
                Some(left) => {
                    left.insert("deleted".to_owned(), json!(name));
                }
                None => gone = json!({"deleted": name}),
            }
            out.answer(&gone, |gone| deleted(&name, gone))
        }
        Verb::State(verb) => state::run(verb, client, &mut out),
        Verb::Logs { name, follow } => logs(&name, follow, client, &mut out),
    }
}

/// The revision that a rollback would take back now: the one on trial, or else the current one. Naming it means that a repeated request
/// rolls back only once.
fn taken_back(name: &ProcessorName, client: &Client) -> Result<Value, Failure> {
    let status = client.get(&path(name, ""))?;
    let trials = ["canary", "shadow"].map(|trial| &status[trial]["revision"]);
    let trial = trials.into_iter().find(|revision| !revision.is_null());
    Ok(trial.unwrap_or_else(|| &status["current"]).clone())
}

/// Confirms the deletion and says what it leaves.
fn deleted(name: &ProcessorName, gone: &Value) -> String {
    let mut lines = vec![format!("processor {name} is deleted")];
    for left in waiting(&gone["left_behind"]) {
        lines.push(format!("  left waiting: {left}"));
    }
    if lines.len() > 1 {
        lines.push(
            "  they will be processed once a processor of this name reads those topics again"
                .to_owned(),
        );
    }
    for kept in items(&gone["topics_kept"]) {
        lines.push(format!("  kept: {}", cell(kept)));
    }
    lines.join("\n")
}

/// Whether it has stopped; a long batch runs to its end.
fn paused(name: &ProcessorName, status: &Value) -> String {
    let rests = ["paused", "stopped", "done"];
    let is_busy = |one: &&Value| {
        let state = one["state"].as_str().unwrap_or_default();
        !rests.iter().any(|word| state.starts_with(word))
    };
    let partitions = status["partitions"].as_array();
    let busy = partitions.into_iter().flatten().filter(is_busy);
    let busy: Vec<String> = busy
        .map(|one| {
            let place = format!("{}/{}", cell(&one["topic"]), one["partition"]);
            match one["calling_ms"].as_u64() {
                Some(ms) => format!("{place} for {} s", ms / 1_000),
                None => place,
            }
        })
        .collect();
    match busy.is_empty() {
        true => format!("processor {name} is paused"),
        false => format!(
            "processor {name} takes no further batches; still running: {} (`millrace processor show {name}` shows when they have ended)",
            busy.join(", ")
        ),
    }
}

fn resetting(state: bool) -> &'static str {
    match state {
        true => "?reset_state=true",
        false => "",
    }
}

fn current_revision(processor: &Value) -> &Value {
    let is_current = |revision: &&Value| revision["number"] == processor["current"];
    let found = items(&processor["revisions"]).iter().find(is_current);
    found.unwrap_or(&Value::Null)
}

fn sum(processor: &Value, field: &str) -> u64 {
    let partitions = items(&processor["partitions"]).iter();
    partitions
        .filter_map(|partition| partition[field].as_u64())
        .sum()
}

fn states(processor: &Value) -> String {
    let states = items(&processor["partitions"]).iter();
    let mut states: Vec<String> = states.map(|partition| cell(&partition["state"])).collect();
    states.sort();
    states.dedup();
    states.join("; ")
}

fn list(answer: &Value) -> String {
    let row = |processor: &Value| {
        let spec = &current_revision(processor)["spec"];
        vec![
            cell(&processor["name"]),
            cell(&processor["current"]),
            cell(&processor["way_back"]),
            short(&spec["module"]),
            cell(&spec["topics"]),
            cell(&spec["output"]),
            sum(processor, "lag").to_string(),
            sum(processor, "parked").to_string(),
            states(processor),
        ]
    };
    let rows = items(&answer["processors"]).iter().map(row).collect();
    let headings = [
        "PROCESSOR",
        "REVISION",
        "WAY BACK",
        "MODULE",
        "TOPICS",
        "OUTPUT",
        "LAG",
        "PARKED",
        "STATE",
    ];
    let note = "there are no processors yet; deploy one with `millrace processor deploy NAME …`";
    table(&headings, rows, note)
}

/// What the component may use, one kind a line.
pub(super) fn grants(grants: &Value) -> String {
    let names = |field: &str| {
        let names: Vec<String> = items(&grants[field]).iter().map(cell).collect();
        (!names.is_empty()).then(|| format!("{field} {}", names.join(", ")))
    };
    let word = |field: &str| (grants[field] == true).then(|| field.to_owned());
    let private = (grants["http_private"] == true).then(|| "http to private addresses".to_owned());
    let granted = [
        word("state"),
        word("metrics"),
        names("topics"),
        names("secrets"),
        names("http"),
        private,
        names("views"),
    ];
    match granted.into_iter().flatten().collect::<Vec<_>>() {
        none if none.is_empty() => "nothing".to_owned(),
        granted => granted.join("\n"),
    }
}

fn config(name: &ProcessorName, answer: &Value) -> String {
    let values = answer["config"].as_object().into_iter().flatten();
    let pairs: Vec<(&str, String)> = values
        .map(|(key, value)| (key.as_str(), cell(value)))
        .collect();
    match pairs.is_empty() {
        true => format!(
            "processor {name} has no settings; set one with `millrace processor config {name} KEY=VALUE`"
        ),
        false => facts(&pairs),
    }
}

fn show(processor: &Value) -> String {
    let spec = &current_revision(processor)["spec"];
    let mut pairs = vec![
        ("name", cell(&processor["name"])),
        ("revision", cell(&processor["current"])),
        ("paused", cell(&processor["paused"])),
    ];
    pairs.extend(
        [
            "module",
            "topics",
            "output",
            "order",
            "error_handler",
            "batch",
            "retry",
            "limits",
            "dead_letters",
            "auto_rollback",
            "auto_redrive",
            "hops_max",
        ]
        .map(|field| (field, cell(&spec[field]))),
    );
    pairs.push(("grants", grants(&spec["grants"])));
    if let Some(config) = processor["config"].as_object() {
        let config = config
            .iter()
            .map(|(key, value)| format!("{key}={}", cell(value)));
        pairs.push(("config", config.collect::<Vec<_>>().join("\n")));
    }
    pairs.push(("breaker", breaker(&processor["breaker"])));
    if let Some(revision) = processor["way_back"].as_u64() {
        pairs.push(("way back", format!("revision {revision}")));
    }
    if let Some(problem) = processor["way_back_problem"].as_str() {
        pairs.push(("way back problem", problem.to_owned()));
    }
    if let Some(from) = processor["gone_back_from"].as_u64() {
        let name = cell(&processor["name"]);
        let mut revisions = items(&processor["revisions"]).iter();
        let left = revisions.find(|revision| revision["number"].as_u64() == Some(from));
        let by_host = left
            .filter(|left| left["spec"]["auto_redrive"] == json!(true) && !left["note"].is_null());
        let sent_again = match by_host.map(|left| left["redrive_due"].is_null()) {
            Some(true) => "the host has redriven what it gave up".to_owned(),
            Some(false) => "the host is redriving what it gave up".to_owned(),
            None => format!(
                "`millrace dlq redrive {name} --failed-revision {from}` sends again what it gave up"
            ),
        };
        pairs.push(("rolled back from", format!("revision {from}; {sent_again}")));
    }
    let left = left_behind(&processor["left_behind"]).into_iter();
    pairs.extend(left.map(|left| ("left waiting", left)));
    pairs.extend(trials::canary_facts(&processor["canary_status"]));
    if let Some(revision) = processor["shadow"]["revision"].as_u64() {
        pairs.push(("shadow", format!("revision {revision}")));
    }
    if let Some(problem) = processor["trial_problem"].as_str() {
        pairs.push(("trial problem", problem.to_owned()));
    }
    pairs.extend(replay::facts(processor));
    let revision = |revision: &Value| {
        let spec = &revision["spec"];
        let at = when(&revision["deployed_at"]);
        let note = cell(&revision["note"]);
        let mark = if revision["number"] == processor["current"] {
            "*"
        } else {
            ""
        };
        let number = format!("{}{mark}", revision["number"]);
        vec![number, at, short(&spec["module"]), note]
    };
    let revisions = items(&processor["revisions"])
        .iter()
        .map(revision)
        .collect();
    let columns = columns(items(&processor["partitions"]));
    let partition = |partition: &Value| {
        columns
            .iter()
            .map(|field| cell(&partition[field]))
            .collect()
    };
    let partitions = items(&processor["partitions"])
        .iter()
        .map(partition)
        .collect();
    let headings: Vec<String> = columns.iter().map(|field| field.to_uppercase()).collect();
    let headings: Vec<&str> = headings.iter().map(String::as_str).collect();
    format!(
        "{}\n\n{}\n\n{}",
        facts(&pairs),
        table(
            &["REVISION", "DEPLOYED AT", "MODULE", "NOTE"],
            revisions,
            "",
        ),
        table(&headings, partitions, "it has no partitions"),
    )
}

/// What is shown of partitions; the host only if there are several.
fn columns(partitions: &[Value]) -> Vec<&'static str> {
    let mut columns = vec![
        "topic",
        "partition",
        "next",
        "end",
        "lag",
        "parked",
        "revision",
    ];
    if partitions.iter().any(|one| one["host"].is_string()) {
        columns.push("host");
    }
    columns.push("state");
    columns
}

fn breaker(status: &Value) -> String {
    let Some(text) = status["text"].as_str() else {
        return cell(&status["state"]);
    };
    format!(
        "open since {}: {text} (next probe {}, {} failed)",
        when(&status["since"]),
        when(&status["next_probe_at"]),
        cell(&status["probes"]),
    )
}

fn logs(
    name: &ProcessorName,
    follow: bool,
    client: &Client,
    out: &mut Output,
) -> Result<(), Failure> {
    let mut seen = SeenLines::default();
    let mut lacks = None;
    loop {
        let answer = client.get(&path(name, "/logs"))?;
        for line in seen.unseen(items(&answer["lines"])) {
            match out.is_json() {
                true => out.json_line(&line)?,
                false => out.line(&log_line(&line))?,
            }
        }
        out.flush()?;
        let lacked = std::mem::replace(&mut lacks, missing(&answer));
        if let Some(note) = lacks.as_ref().filter(|_| lacks != lacked) {
            // Standard error may be closed; that is no reason to stop.
            let _ = writeln!(std::io::stderr(), "{}", harmless(note));
        }
        if !follow {
            return Ok(());
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
}

pub(super) fn log_line(line: &Value) -> String {
    let [level, revision, text] = ["level", "revision", "text"].map(|field| cell(&line[field]));
    let at = when(&line["at"]);
    let host = line["host"].as_str();
    let host = host.map_or_else(String::new, |_| format!("{} ", cell(&line["host"])));
    format!("{at} {level:5} r{revision} {host}{text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_set_or_removed_and_not_both() {
        let set = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let both = config_changes(vec![set("a", "1")], vec!["a".to_owned()]);
        let failure = both.expect_err("a contradiction").to_string();
        assert!(failure.contains("\"a\" is given twice"), "{failure}");
        config_changes(vec![set("a", "1"), set("a", "2")], Vec::new()).expect_err("two values");
        let changes = config_changes(vec![set("a", "1")], vec!["b".to_owned(), "b".to_owned()]);
        let changes = Value::Object(changes.expect("both keys"));
        assert_eq!(changes, json!({"a": "1", "b": null}));
    }
}
