//! `test`: builds a project and runs its component against samples, for people and for CI.

use std::path::PathBuf;
use std::thread;

use serde_json::{Map, Value, json};

use super::build::{Component, build, built};
use super::compare::{answer_differences, differences, state_differences};
use super::project::Project;
use super::rehearse::{Played, Stage};
use super::samples::{Sample, read_all};
use super::watch::{INTERVAL, Seen};
use crate::cli::failure::Failure;
use crate::cli::output::Output;
use crate::cli::table::{cell, items};
use crate::cli::wait_for;

/// Characters of an answer's body that are printed; all are compared.
const BODY_CHARS_SHOWN_MAX: usize = 200;

const AFTER_HELP: &str = "\
Examples:
  millrace test                        build, and run all samples
  millrace test --sample first         only samples/first.ndjson
  millrace test --update               write what happens to samples/*.expected.ndjson
  millrace test --watch                again after each save
  millrace test --no-build --json      for CI

A sample is samples/NAME.ndjson: one message per line, as `millrace produce --ndjson` takes it, or one request per line for the kind
http. Expected results are in samples/NAME.expected.ndjson, one line each; only the fields that are given are compared.
samples/NAME.config.toml has configuration, secrets and state to start with. Without expected results, a sample fails if a call fails.
The component runs in the same runtime and under the same limits as on a host, without topics or a network.
Exit codes: 0 everything is as expected, 1 something differs or does not build, 2 the project is not valid or a tool is missing.";

/// Run a project's component against sample messages or requests
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(in crate::cli) struct Args {
    /// The project's folder
    #[arg(value_name = "FOLDER", default_value = ".")]
    dir: PathBuf,
    /// Only this sample; repeat it for several
    #[arg(long = "sample", value_name = "NAME")]
    samples: Vec<String>,
    /// Use the component of the last build
    #[arg(long)]
    no_build: bool,
    /// Maximum number of messages in a call
    #[arg(long, value_name = "COUNT", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    batch: u32,
    /// Write what happens as the expected results
    #[arg(long)]
    update: bool,
    /// Build and run again whenever a file of the project is saved
    #[arg(long, conflicts_with = "no_build")]
    watch: bool,
}

pub(in crate::cli) fn run(args: Args, json: bool) -> Result<(), Failure> {
    if !args.watch {
        return once(&args, json);
    }
    loop {
        let seen = Seen::now(&args.dir);
        if let Err(failure) = once(&args, json) {
            if let Failure::ClosedPipe = failure {
                return Ok(());
            }
            failure.report(json);
        }
        while Seen::now(&args.dir).changed_since(&seen).is_none() {
            thread::sleep(INTERVAL);
        }
    }
}

/// One run of all samples.
fn once(args: &Args, json: bool) -> Result<(), Failure> {
    let project = Project::read(&args.dir)?;
    let samples = read_all(&project, &args.samples)?;
    let component = match args.no_build {
        false => build(&project)?,
        true => built(&project)?,
    };
    let mut answer = Value::Null;
    wait_for(async {
        answer = play(args, &project, &component, &samples).await?;
        Ok(())
    })?;
    Output::new(json).answer(&answer, for_people)?;
    let failed = items(&answer["samples"])
        .iter()
        .filter(|sample| sample["passed"] == false);
    match failed.count() {
        0 => Ok(()),
        failed => Err(Failure::failed(format!(
            "{failed} of {} samples did not do what was expected",
            samples.len()
        ))),
    }
}

async fn play(
    args: &Args,
    project: &Project,
    component: &Component,
    samples: &[Sample],
) -> Result<Value, Failure> {
    let stage = Stage::open(project, component).await?;
    let mut shown = Vec::new();
    for sample in samples {
        let played = stage.play(sample, args.batch as usize).await?;
        if args.update {
            std::fs::write(&sample.expected_file, as_expected(sample, &played))?;
        }
        shown.push(judged(sample, &played, args.update));
    }
    Ok(json!({
        "component": project.name, "digest": stage.facts.digest.to_string(), "bytes": stage.facts.byte_count,
        "compile_ms": stage.facts.compile_ms, "samples": shown,
    }))
}

/// A sample's results and their differences from what was expected.
fn judged(sample: &Sample, played: &Played, is_update: bool) -> Value {
    let expected = sample.expected.as_ref().filter(|_| !is_update);
    let result = |(index, got): (usize, &Map<String, Value>)| {
        let mut got = got.clone();
        let request = sample.requests.get(index);
        let found = match (expected, request) {
            (Some(expected), None) => differences(&expected.messages[index], &got),
            (Some(expected), Some(_)) => answer_differences(&expected.messages[index], &got),
            (None, _) if is_update => Vec::new(),
            (None, _) => unasked(&got),
        };
        if let Some(request) = request {
            let line = format!("{} {}", request.method, request.target);
            got.insert("request".to_owned(), json!(line));
        }
        let line = sample.lines.get(index);
        if let Some(key) = line.and_then(|line| line.message.key.as_ref()) {
            got.insert("source_key".to_owned(), json!(String::from_utf8_lossy(key)));
        }
        got.insert("differences".to_owned(), json!(found));
        Value::Object(got)
    };
    let messages: Vec<Value> = played.messages.iter().enumerate().map(result).collect();
    let nothing = Default::default();
    let states = expected.map_or(&[][..], |expected| &expected.states);
    let of_states = states.iter().flat_map(|(partition, entries)| {
        state_differences(entries, played.states.get(partition).unwrap_or(&nothing))
    });
    let of_states: Vec<String> = of_states.collect();
    let differs = |message: &Value| !items(&message["differences"]).is_empty();
    let passed = of_states.is_empty() && !messages.iter().any(differs);
    json!({
        "name": sample.name, "passed": passed, "compared": expected.is_some(), "updated": is_update,
        "messages": messages, "differences": of_states, "calls": played.calls, "log": played.log,
    })
}

/// What is wrong with a result that nobody described.
fn unasked(got: &Map<String, Value>) -> Vec<String> {
    let is_failed = |outcome: &str| ["trap", "timeout", "memory", "bad-answer"].contains(&outcome);
    let outcome = got
        .get("outcome")
        .and_then(Value::as_str)
        .unwrap_or_default();
    match is_failed(outcome) {
        true => vec![format!(
            "the call ended with {outcome}, and no expectation names it"
        )],
        false => Vec::new(),
    }
}

/// The results as a file of expectations: without what differs from build to build.
fn as_expected(sample: &Sample, played: &Played) -> String {
    let mut text = String::new();
    for got in &played.messages {
        let mut line = got.clone();
        line.shift_remove("backtrace");
        let outcome = line
            .get("outcome")
            .and_then(Value::as_str)
            .unwrap_or_default();
        if !["ack", "emit", "retry", "reject", "unavailable", ""].contains(&outcome) {
            line.retain(|field, _| field == "outcome");
        }
        if let Some(body) = line.get_mut("body") {
            structured(body);
        }
        for field in ["outputs", "sent"] {
            let messages = line.get_mut(field).and_then(Value::as_array_mut);
            for message in messages.into_iter().flatten() {
                if let Some(value) = message.get_mut("value") {
                    structured(value);
                }
            }
        }
        // Nothing sent is something to expect as well.
        if line.contains_key("status") {
            line.entry("sent").or_insert_with(|| json!([]));
        }
        text.push_str(&Value::Object(line).to_string());
        text.push('\n');
    }
    let kept = sample.expected.iter().flat_map(|expected| &expected.states);
    for (partition, entries) in kept {
        let nothing = Default::default();
        let state = played.states.get(partition).unwrap_or(&nothing);
        let now = |key: &String| {
            state
                .get(key.as_bytes())
                .map_or(Value::Null, super::compare::state_value)
        };
        let entries: Map<String, Value> =
            entries.keys().map(|key| (key.clone(), now(key))).collect();
        let line = match partition {
            0 => json!({ "state": entries }),
            partition => json!({ "state": entries, "partition": partition }),
        };
        text.push_str(&line.to_string());
        text.push('\n');
    }
    text
}

/// A text that is a JSON object or list becomes that.
fn structured(value: &mut Value) {
    let parsed = value.as_str().map(serde_json::from_str::<Value>);
    if let Some(Ok(parsed @ (Value::Object(_) | Value::Array(_)))) = parsed {
        *value = parsed;
    }
}

fn for_people(answer: &Value) -> String {
    let mut lines = vec![format!(
        "{}: {} bytes, compiled in {} ms",
        cell(&answer["component"]),
        answer["bytes"],
        answer["compile_ms"]
    )];
    for sample in items(&answer["samples"]) {
        lines.push(String::new());
        sample_for_people(sample, &mut lines);
    }
    lines.join("\n")
}

fn sample_for_people(sample: &Value, lines: &mut Vec<String>) {
    let verdict = match (&sample["passed"], &sample["compared"], &sample["updated"]) {
        (_, _, Value::Bool(true)) => "written as the expected results",
        (Value::Bool(true), Value::Bool(true), _) => "as expected",
        (Value::Bool(true), _, _) => {
            "no failed call; there are no expected results to compare with"
        }
        _ => "NOT as expected",
    };
    lines.push(format!("sample {}: {verdict}", cell(&sample["name"])));
    for (index, message) in items(&sample["messages"]).iter().enumerate() {
        message_for_people(index, message, lines);
    }
    let texts = |value: &Value| items(value).iter().map(cell).collect::<Vec<_>>();
    lines.extend(
        texts(&sample["differences"])
            .iter()
            .map(|text| format!("  ≠ {text}")),
    );
    for line in items(&sample["log"]) {
        lines.push(format!(
            "  log {}: {}",
            cell(&line["level"]),
            cell(&line["text"])
        ));
    }
    for call in items(&sample["calls"]) {
        call_for_people(call, lines);
    }
}

fn message_for_people(index: usize, message: &Value, lines: &mut Vec<String>) {
    let text = |field: &str| match &message[field] {
        Value::Null => None,
        value => Some(cell(value)),
    };
    let what = text("outcome").or_else(|| text("decision"));
    let what = what.or_else(|| text("status"));
    let what = what.unwrap_or_else(|| format!("partition {}", message["partition"]));
    let mut line = format!("  {:>3}  {what}", index + 1);
    if let Some(request) = text("request") {
        line.push_str(&format!("  {request}"));
    }
    if let Some(key) = text("source_key") {
        line.push_str(&format!("  key {key}"));
    }
    let words = [text("class"), text("reason")].into_iter().flatten();
    let words: Vec<String> = words.collect();
    if !words.is_empty() {
        line.push_str(&format!("  {}", words.join(": ")));
    }
    if let Some(after) = text("after_ms") {
        line.push_str(&format!("  after {after} ms"));
    }
    lines.push(line);
    for body in [&message["body"], &message["body_base64"]] {
        if let Some(text) = body.as_str().filter(|text| !text.is_empty()) {
            let cut: String = text.chars().take(BODY_CHARS_SHOWN_MAX).collect();
            let rest = if cut.len() < text.len() { " …" } else { "" };
            let cut = cut.replace(char::is_control, " ");
            lines.push(format!("       <- {cut}{rest}"));
        }
    }
    for output in ["outputs", "sent"]
        .iter()
        .flat_map(|field| items(&message[*field]))
    {
        let topic = output["topic"].as_str().unwrap_or("output");
        let mut shown = output.clone();
        if let Some(fields) = shown.as_object_mut() {
            fields.shift_remove("topic");
        }
        lines.push(format!("       -> {topic} {shown}"));
    }
    for line in message["backtrace"]
        .as_str()
        .into_iter()
        .flat_map(str::lines)
    {
        lines.push(format!("       at {line}"));
    }
    for difference in items(&message["differences"]) {
        lines.push(format!("       ≠ {}", cell(difference)));
    }
}

fn call_for_people(call: &Value, lines: &mut Vec<String>) {
    let messages = items(&call["messages"]);
    let which = match messages {
        [] => "none".to_owned(),
        [one] => one.to_string(),
        [first, .., last] => format!("{first} to {last}"),
    };
    let mut line = format!("  call with {which}: {} us", cell(&call["guest_us"]));
    if let (Some(us), count @ 2..) = (call["guest_us"].as_u64(), messages.len() as u64) {
        line.push_str(&format!(
            " ({:.1} us per message)",
            us as f64 / count as f64
        ));
    }
    if let Some(bytes) = call["memory_bytes"].as_u64() {
        line.push_str(&format!(", {} KiB of memory", bytes / 1024));
    }
    if let Some(why) = call["repeated_because"].as_str() {
        line.push_str(&format!("; called again in parts: {why}"));
    }
    lines.push(line);
    for change in items(&call["state"]) {
        let value = match &change["value"] {
            Value::Null => "removed".to_owned(),
            value => format!("= {value}"),
        };
        lines.push(format!("    state {} {value}", cell(&change["key"])));
    }
}
