//! `processor`: deploy and steer processors.

use std::path::{Path, PathBuf};
use std::time::Duration;

use millrace_model::{ProcessorName, TopicName};
use serde_json::{Map, Value, json};
use ureq::http::Method;

use super::client::Client;
use super::failure::Failure;
use super::output::Output;
use super::replay::{self, ReplayArgs};
use super::state::{self, StateVerb};
use super::table::{cell, facts, items, short, table, when};
use super::trials;

/// How often `logs --follow` looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// What to do with processors
#[derive(clap::Subcommand)]
pub(super) enum Verb {
    /// Deploy a processor or its next revision, which takes over between two batches
    Deploy(Box<DeployArgs>),
    /// List all processors
    List,
    /// Show a processor, its revisions, and how it does in each partition
    Show { name: ProcessorName },
    /// Take no further batches until resumed; waits some seconds for those in flight, and says where one goes on
    Pause { name: ProcessorName },
    /// Go on where it paused; if its breaker is open, try a message at once
    #[command(
        after_help = "Examples:\n  millrace processor resume shout\n  millrace processor resume shout --accept-dead-letters 5000"
    )]
    Resume {
        name: ProcessorName,
        /// Close its breaker, and let so many dead letters through before it judges again
        #[arg(long, value_name = "COUNT")]
        accept_dead_letters: Option<u64>,
    },
    /// Give the canary another share of the keys; 0 withdraws it
    #[command(
        after_help = "Examples:\n  millrace processor canary shout --percent 50\n  millrace processor canary shout --percent 0"
    )]
    Canary {
        name: ProcessorName,
        /// 1 to 99; a larger share holds the smaller one
        #[arg(long)]
        percent: u32,
    },
    /// Show how the shadow compares with the current revision, or end it
    #[command(
        after_help = "The report is in memory: it begins anew with the host.\n\nExamples:\n  millrace processor shadow shout\n  millrace processor shadow shout --end"
    )]
    Shadow {
        name: ProcessorName,
        /// End the shadow
        #[arg(long)]
        end: bool,
    },
    /// Replay what it read in a range of time, through one of its revisions and into another topic
    Replay(ReplayArgs),
    /// Make the revision on trial the current one
    #[command(after_help = "Examples:\n  millrace processor promote shout")]
    Promote { name: ProcessorName },
    /// Show its revisions, what each changed, and what was done with it, by whom and when
    #[command(after_help = "Examples:\n  millrace processor history shout")]
    History { name: ProcessorName },
    /// Make an earlier revision the current one; without a number, withdraw the revision on trial if there is one
    #[command(
        after_help = "Examples:\n  millrace processor rollback shout\n  millrace processor rollback shout --revision 3"
    )]
    Rollback {
        name: ProcessorName,
        /// The one before the current without
        #[arg(long)]
        revision: Option<u32>,
    },
    /// Delete a processor; its dead letters stay as topics, its progress and state for one of the same name
    #[command(
        after_help = "What stays of its state can be shown, exported and emptied with `millrace processor state`.\n\nExamples:\n  millrace processor delete shout\n  millrace processor delete count --reset-state"
    )]
    Delete {
        name: ProcessorName,
        /// Empty its state in every partition
        #[arg(long)]
        reset_state: bool,
    },
    /// Show, export, import or empty what it keeps in its state
    #[command(subcommand)]
    State(StateVerb),
    /// Show what its components wrote lately
    Logs {
        name: ProcessorName,
        /// Go on until interrupted
        #[arg(long)]
        follow: bool,
    },
}

const DEPLOY_HELP: &str = "\
Examples:
  millrace processor deploy shout --module uppercase@1.0.0 --topic orders --output loud
  millrace processor deploy shout --module uppercase@2.0.0 --topic orders --output loud --order none
  millrace processor deploy shout --spec shout.toml --module uppercase@2.0.0
  millrace processor deploy count --module counter@2.0.0 --topic orders --output counts --reset-state
  millrace processor deploy shout --module uppercase@2.0.0 --topic orders --output loud --canary 10
  millrace processor deploy shout --module uppercase@2.0.0 --topic orders --output loud --shadow

A spec file (TOML or JSON) has the fields of PUT /v1/processors/{name}: topics, module, output, grants, order,
batch, retry, error_handler, limits, breaker, dead_letters, auto_rollback, hops_max. Flags go before the file.";

#[derive(clap::Args)]
#[command(after_help = DEPLOY_HELP)]
pub(super) struct DeployArgs {
    name: ProcessorName,
    /// The module, by digest or tag
    #[arg(long, required_unless_present = "spec")]
    module: Option<String>,
    /// A topic to read; may be given several times
    #[arg(long = "topic", value_name = "TOPIC", required_unless_present = "spec")]
    topics: Vec<TopicName>,
    /// Where outputs go that name no topic
    #[arg(long, value_name = "TOPIC")]
    output: Option<TopicName>,
    /// A further topic that it may write to; may be given several times
    #[arg(long = "grant", value_name = "TOPIC")]
    grants: Vec<TopicName>,
    /// What keeps its order when a message is retried
    #[arg(long, value_parser = ["key", "partition", "none"])]
    order: Option<String>,
    /// The module that decides about failures, by digest or tag
    #[arg(long, value_name = "MODULE")]
    error_handler: Option<String>,
    /// Attempts in all, before a message becomes a dead letter
    #[arg(long, value_name = "COUNT")]
    attempts_max: Option<u32>,
    /// Messages of a batch
    #[arg(long, value_name = "COUNT")]
    batch_messages_max: Option<u32>,
    /// Take a bad deploy back to the revision before it
    #[arg(long)]
    auto_rollback: bool,
    /// Count hops, and give up messages that have so many; a cycle of processors needs one that does
    #[arg(long, value_name = "COUNT")]
    hops_max: Option<u32>,
    /// Begin with empty state in every partition
    #[arg(long)]
    reset_state: bool,
    /// Try it on the messages of so many percent of the keys, while the current revision keeps the others
    #[arg(long, value_name = "PERCENT", conflicts_with = "reset_state")]
    canary: Option<u32>,
    /// Call it beside the current revision, and only report where it differs
    #[arg(long, conflicts_with_all = ["reset_state", "canary"])]
    shadow: bool,
    /// A file with the whole spec
    #[arg(long, value_name = "FILE")]
    spec: Option<PathBuf>,
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
        Verb::Resume {
            name,
            accept_dead_letters,
        } => {
            let body = accept_dead_letters
                .map_or_else(|| json!({}), |count| json!({"accept_dead_letters": count}));
            let answer = client.send(Method::POST, &path(&name, "/resume"), &body)?;
            out.answer(&answer, |_| format!("processor {name} goes on"))
        }
        Verb::Canary { name, percent } => trials::canary(&name, percent, client, &mut out),
        Verb::Shadow { name, end } => trials::shadow(&name, end, client, &mut out),
        Verb::Replay(args) => replay::run(&args, client, &mut out),
        Verb::Promote { name } => trials::promote(&name, client, &mut out),
        Verb::History { name } => trials::history(&name, client, &mut out),
        Verb::Rollback { name, revision } => {
            let body = revision.map_or_else(|| json!({}), |number| json!({"revision": number}));
            let answer = client.send(Method::POST, &path(&name, "/rollback"), &body)?;
            out.answer(&answer, |answer| current(&name, answer))
        }
        Verb::Delete { name, reset_state } => {
            client.delete(&path(&name, resetting(reset_state)))?;
            out.answer(&json!({"deleted": name}), |_| {
                format!("processor {name} is deleted")
            })
        }
        Verb::State(verb) => state::run(verb, client, &mut out),
        Verb::Logs { name, follow } => logs(&name, follow, client, &mut out),
    }
}

/// Whether it rests already: a batch that takes long goes on to its end.
fn paused(name: &ProcessorName, status: &Value) -> String {
    let rests = ["paused", "stopped", "done"];
    let is_busy = |one: &&Value| {
        let state = one["state"].as_str().unwrap_or_default();
        !rests.iter().any(|word| state.starts_with(word))
    };
    let partitions = status["partitions"].as_array();
    let busy = partitions.into_iter().flatten().filter(is_busy);
    let busy: Vec<String> = busy
        .map(|one| format!("{}/{}", cell(&one["topic"]), one["partition"]))
        .collect();
    match busy.is_empty() {
        true => format!("processor {name} is paused"),
        false => format!(
            "processor {name} takes no further batches; still at work on one: {} (`millrace processor show {name}` tells when it rests)",
            busy.join(", ")
        ),
    }
}

pub(super) fn path(name: &ProcessorName, rest: &str) -> String {
    format!("/v1/processors/{name}{rest}")
}

fn resetting(state: bool) -> &'static str {
    match state {
        true => "?reset_state=true",
        false => "",
    }
}

pub(super) fn current(name: &ProcessorName, answer: &Value) -> String {
    let current = &answer["current"];
    let (canary, shadow) = (&answer["canary"], &answer["shadow"]);
    if !canary.is_null() {
        return format!(
            "processor {name}: revision {} takes {} % of the keys, revision {current} all others",
            canary["revision"], canary["percent"]
        );
    }
    if !shadow.is_null() {
        return format!(
            "processor {name}: revision {current} takes the next batch, revision {} is its shadow",
            shadow["revision"]
        );
    }
    format!("processor {name}: revision {current} takes the next batch")
}

fn deploy(args: DeployArgs, client: &Client, out: &mut Output) -> Result<(), Failure> {
    let name = args.name.clone();
    let how = match args.canary {
        Some(percent) => format!("?canary={percent}"),
        None if args.shadow => "?shadow=true".to_owned(),
        None => resetting(args.reset_state).to_owned(),
    };
    let spec = args.spec()?;
    let answer = client.send(Method::PUT, &path(&name, &how), &spec)?;
    out.answer(&answer, |answer| current(&name, answer))
}

impl DeployArgs {
    /// The spec of the file, with what the flags say over it.
    fn spec(self) -> Result<Value, Failure> {
        let mut spec = self.spec.as_deref().map_or_else(|| Ok(Map::new()), read)?;
        let mut set = |field: &str, value: Value| {
            if !value.is_null() && value != json!([]) {
                spec.insert(field.to_owned(), value);
            }
        };
        set("module", json!(self.module));
        set("topics", json!(self.topics));
        set("output", json!(self.output));
        set("grants", json!(self.grants));
        set("order", json!(self.order));
        set("error_handler", json!(self.error_handler));
        set("hops_max", json!(self.hops_max));
        set("auto_rollback", json!(self.auto_rollback.then_some(true)));
        set_in(&mut spec, "retry", "attempts_max", self.attempts_max)?;
        set_in(&mut spec, "batch", "messages_max", self.batch_messages_max)?;
        Ok(Value::Object(spec))
    }
}

fn set_in(
    spec: &mut Map<String, Value>,
    group: &str,
    field: &str,
    value: Option<u32>,
) -> Result<(), Failure> {
    let Some(value) = value else { return Ok(()) };
    let group_value = spec.entry(group).or_insert_with(|| json!({}));
    let wrong = || Failure::usage(format!("the spec file's {group} is no group of fields"));
    let fields = group_value.as_object_mut().ok_or_else(wrong)?;
    fields.insert(field.to_owned(), json!(value));
    Ok(())
}

fn read(file: &Path) -> Result<Map<String, Value>, Failure> {
    let wrong = |error: &dyn std::fmt::Display| {
        Failure::usage(format!("the spec file {}: {error}", file.display()))
    };
    let bytes = std::fs::read(file).map_err(|error| wrong(&error))?;
    let text = crate::text::whole(&bytes).map_err(|error| wrong(&error))?;
    if file
        .extension()
        .is_some_and(|extension| extension == "json")
    {
        return serde_json::from_str(text).map_err(|error| wrong(&error));
    }
    toml::from_str(text).map_err(|error| wrong(&error))
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
            "grants",
            "order",
            "error_handler",
            "batch",
            "retry",
            "limits",
            "dead_letters",
            "auto_rollback",
            "hops_max",
        ]
        .map(|field| (field, cell(&spec[field]))),
    );
    pairs.push(("breaker", breaker(&processor["breaker"])));
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
        vec![cell(&revision["number"]), at, short(&spec["module"]), note]
    };
    let revisions = items(&processor["revisions"])
        .iter()
        .map(revision)
        .collect();
    let partition = |partition: &Value| {
        [
            "topic",
            "partition",
            "next",
            "end",
            "lag",
            "parked",
            "revision",
            "state",
        ]
        .map(|field| cell(&partition[field]))
        .to_vec()
    };
    let partitions = items(&processor["partitions"])
        .iter()
        .map(partition)
        .collect();
    let headings = [
        "TOPIC",
        "PARTITION",
        "NEXT",
        "END",
        "LAG",
        "PARKED",
        "REVISION",
        "STATE",
    ];
    format!(
        "{}\n\n{}\n\n{}",
        facts(&pairs),
        table(
            &["REVISION", "DEPLOYED AT", "MODULE", "NOTE"],
            revisions,
            "",
        ),
        table(&headings, partitions, "it works in no partition"),
    )
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
    let mut seen: Vec<Value> = Vec::new();
    loop {
        let answer = client.get(&path(name, "/logs"))?;
        let lines = items(&answer["lines"]);
        for line in unseen(&seen, lines) {
            out.line(&log_line(line, out.is_json()))?;
        }
        out.flush()?;
        if !follow {
            return Ok(());
        }
        seen = lines.to_vec();
        std::thread::sleep(LOOK_INTERVAL);
    }
}

/// The host keeps the newest lines: what was seen last time is a beginning of what is there now, but for lines that went.
fn unseen<'a>(seen: &[Value], lines: &'a [Value]) -> &'a [Value] {
    let overlap = (0..=seen.len().min(lines.len()))
        .rev()
        .find(|&count| seen.ends_with(&lines[..count]));
    &lines[overlap.unwrap_or(0)..]
}

fn log_line(line: &Value, as_json: bool) -> String {
    if as_json {
        return line.to_string();
    }
    let [level, revision, text] = ["level", "revision", "text"].map(|field| cell(&line[field]));
    let at = when(&line["at"]);
    format!("{at} {level:5} r{revision} {text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_shown_once_although_old_ones_go() {
        let lines = |range: std::ops::Range<u32>| range.map(|n| json!(n)).collect::<Vec<_>>();
        assert_eq!(unseen(&lines(0..5), &lines(2..8)), lines(5..8));
        assert_eq!(unseen(&lines(0..5), &lines(0..5)), lines(0..0));
        assert_eq!(unseen(&[], &lines(0..2)), lines(0..2));
        assert_eq!(unseen(&lines(0..2), &lines(7..9)), lines(7..9));
    }
}
