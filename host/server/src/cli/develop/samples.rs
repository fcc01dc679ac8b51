//! Samples: messages or requests in `samples/NAME.ndjson`, expected results in `NAME.expected.ndjson`, and where the sample starts in
//! `NAME.config.toml`. docs/development.md has the format.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use millrace_broker::state::{NEVER, StateChange, StateValue};
use millrace_component::Kind;
use millrace_model::processor::{Config, Limits};
use millrace_model::{Message, ProcessorName, SecretName, Timestamp, TopicName};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::project::Project;
use super::requests::Request;
use crate::cli::failure::Failure;
use crate::http::message_of;
use crate::text;

/// The folder of samples in a project.
pub(super) const FOLDER: &str = "samples";
/// The timestamp of messages that have none: 2026-01-01T00:00:00Z, the same in every run.
pub(super) const TIMESTAMP: Timestamp = Timestamp(1_767_225_600_000);
/// Messages or requests of one sample; a longer file is refused.
const MESSAGES_MAX: usize = 100_000;
/// Bytes of one file of a sample; a larger one is refused.
const FILE_BYTES_MAX: u64 = 64 << 20;

const MESSAGES_END: &str = ".ndjson";
const EXPECTED_END: &str = ".expected.ndjson";
const SETTINGS_END: &str = ".config.toml";

/// Messages or requests, and what should become of them.
pub(super) struct Sample {
    pub(super) name: String,
    pub(super) lines: Vec<Line>,
    /// For components that answer HTTP, which get no messages.
    pub(super) requests: Vec<Request>,
    pub(super) settings: Settings,
    /// Where expectations are, or would be.
    pub(super) expected_file: PathBuf,
    pub(super) expected: Option<Expected>,
}

/// A message of a sample.
pub(super) struct Line {
    pub(super) message: Message,
    pub(super) partition: u32,
    /// How it failed, for error handlers.
    pub(super) failure: FailureIn,
}

/// How a message failed.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct FailureIn {
    pub(super) cause: Option<String>,
    pub(super) class: Option<String>,
    pub(super) reason: String,
    pub(super) attempt: Option<u32>,
    pub(super) revision: Option<u32>,
    pub(super) first_failed_at: Option<u64>,
}

/// Expected results.
#[derive(Debug, Default)]
pub(super) struct Expected {
    /// One per message or request.
    pub(super) messages: Vec<Map<String, Value>>,
    /// Entries of the state at the end, by partition.
    pub(super) states: Vec<(u32, Map<String, Value>)>,
}

/// Where a sample starts.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Settings {
    pub(super) topic: String,
    pub(super) partitions: u32,
    pub(super) config: Config,
    secrets: BTreeMap<SecretName, BytesIn>,
    state: BTreeMap<String, StateIn>,
    /// The topics that a route may send to; without it, every topic.
    pub(super) topics: Option<Vec<TopicName>>,
    /// The state of processors that a route may read.
    pub(super) views: BTreeMap<ProcessorName, BTreeMap<String, StateIn>>,
    pub(super) limits: Limits,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            topic: "samples".to_owned(),
            partitions: 4,
            config: Config::default(),
            secrets: BTreeMap::new(),
            state: BTreeMap::new(),
            topics: None,
            views: BTreeMap::new(),
            limits: Limits::default(),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a text, or { base64 = \"…\" }")]
pub(super) enum BytesIn {
    Text(String),
    Bytes { base64: String },
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a whole number, a text, or { base64 = \"…\" }")]
pub(super) enum StateIn {
    Number(i64),
    Bytes(BytesIn),
}

impl BytesIn {
    fn bytes(&self) -> Result<Vec<u8>, String> {
        match self {
            Self::Text(text) => Ok(text.clone().into_bytes()),
            Self::Bytes { base64 } => STANDARD.decode(base64).map_err(|error| error.to_string()),
        }
    }
}

impl Settings {
    /// Names and values of the secrets.
    pub(super) fn secrets(&self) -> Result<BTreeMap<SecretName, Vec<u8>>, String> {
        let secrets = self.secrets.iter();
        secrets
            .map(|(name, value)| Ok((name.clone(), value.bytes()?)))
            .collect()
    }

    /// The state of partition 0.
    pub(super) fn state(&self) -> Result<Vec<StateChange>, String> {
        entries(&self.state)
    }

    /// The state of processors that a route may read.
    pub(super) fn views(&self) -> Result<Vec<(ProcessorName, Vec<StateChange>)>, String> {
        let views = self.views.iter();
        views
            .map(|(processor, state)| Ok((processor.clone(), entries(state)?)))
            .collect()
    }
}

fn entries(state: &BTreeMap<String, StateIn>) -> Result<Vec<StateChange>, String> {
    let entry = |(key, value): (&String, &StateIn)| {
        let value = match value {
            StateIn::Number(number) => StateValue::of_number(*number),
            StateIn::Bytes(bytes) => StateValue::new(&bytes.bytes()?),
        };
        Ok(StateChange {
            key: Arc::from(key.as_bytes()),
            value: Some(value),
            ends_at: NEVER,
        })
    };
    state.iter().map(entry).collect()
}

/// The project's samples by name; with names, only those.
pub(super) fn read_all(project: &Project, wanted: &[String]) -> Result<Vec<Sample>, Failure> {
    let folder = project.dir.join(FOLDER);
    let kind = project.kind;
    let mut names = names(kind, &folder)?;
    known(&names, wanted)?;
    names.retain(|name| wanted.is_empty() || wanted.contains(name));
    if names.is_empty() {
        let why = "it has no file that ends with .ndjson";
        return Err(none(kind, &folder, why));
    }
    let samples = names.iter().map(|name| read(kind, &folder, name));
    samples.collect()
}

/// Checks that the project has a sample.
pub(super) fn check(project: &Project, wanted: &str) -> Result<(), Failure> {
    let names = names(project.kind, &project.dir.join(FOLDER))?;
    known(&names, &[wanted.to_owned()])
}

fn names(kind: Kind, folder: &Path) -> Result<Vec<String>, Failure> {
    let entries =
        std::fs::read_dir(folder).map_err(|error| none(kind, folder, &error.to_string()))?;
    let names = entries.flatten().filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let is_sample = name.ends_with(MESSAGES_END) && !name.ends_with(EXPECTED_END);
        is_sample.then(|| name.trim_end_matches(MESSAGES_END).to_owned())
    });
    let mut names: Vec<String> = names.collect();
    names.sort();
    Ok(names)
}

fn known(names: &[String], wanted: &[String]) -> Result<(), Failure> {
    match wanted.iter().find(|name| !names.contains(name)) {
        None => Ok(()),
        Some(unknown) => Err(Failure::usage(format!("there is no sample {unknown:?}"))
            .with_hint(format!("the samples are {}", names.join(", ")))),
    }
}

fn none(kind: Kind, folder: &Path, why: &str) -> Failure {
    let (what, example) = match kind {
        Kind::Http => ("requests", r#"{"path": "/greeting"}"#),
        _ => ("messages", r#"{"key": "1", "value": "ada"}"#),
    };
    Failure::usage(format!(
        "there are no samples in {}: {why}",
        folder.display()
    ))
    .with_hint(format!(
        "write {what} to samples/NAME.ndjson, one per line, such as {example}"
    ))
}

fn read(kind: Kind, folder: &Path, name: &str) -> Result<Sample, Failure> {
    let file = |end: &str| folder.join(format!("{name}{end}"));
    let (settings_file, expected_file) = (file(SETTINGS_END), file(EXPECTED_END));
    let settings = match settings_file.is_file() {
        false => Settings::default(),
        true => {
            let bytes = bytes_of(&settings_file)?;
            let parsed = text::whole(&bytes)
                .and_then(|text| toml::from_str(text).map_err(|error| error.to_string()));
            parsed.map_err(|error| wrong(&settings_file, &error))?
        }
    };
    let messages_file = file(MESSAGES_END);
    let given = bytes_of(&messages_file)?;
    let (mut lines, mut requests) = (Vec::new(), Vec::new());
    match kind {
        Kind::Http => requests = lines_of(&messages_file, &given, Request::of)?,
        _ => lines = lines_of(&messages_file, &given, line_of)?,
    }
    let expected = match expected_file.is_file() {
        false => None,
        true => Some(expected_of(&expected_file, lines.len() + requests.len())?),
    };
    Ok(Sample {
        name: name.to_owned(),
        lines,
        requests,
        settings,
        expected_file,
        expected,
    })
}

fn wrong(file: &Path, what: &str) -> Failure {
    Failure::usage(format!("{}: {what}", file.display()))
}

fn bytes_of(file: &Path) -> Result<Vec<u8>, Failure> {
    let about = std::fs::metadata(file).map_err(|error| wrong(file, &error.to_string()))?;
    if about.len() > FILE_BYTES_MAX {
        let message = format!(
            "it has {} bytes; a sample has at most {FILE_BYTES_MAX}",
            about.len()
        );
        return Err(wrong(file, &message));
    }
    std::fs::read(file).map_err(|error| wrong(file, &error.to_string()))
}

/// The lines that are not blank, with their numbers.
fn filled(bytes: &[u8]) -> Result<impl Iterator<Item = (usize, &[u8])>, String> {
    let bytes = text::unmarked(bytes).map_err(|name| format!("it is {name}, not UTF-8"))?;
    let lines = text::lines(bytes).enumerate();
    Ok(lines
        .map(|(index, line)| (index + 1, line))
        .filter(|(_, line)| !line.trim_ascii().is_empty()))
}

fn lines_of<T>(
    file: &Path,
    bytes: &[u8],
    read: impl Fn(&[u8]) -> Result<T, (String, String)>,
) -> Result<Vec<T>, Failure> {
    let mut lines = Vec::new();
    for (number, line) in filled(bytes).map_err(|error| wrong(file, &error))? {
        let read = read(line);
        let (message, hint) = match read {
            Ok(_) if lines.len() == MESSAGES_MAX => (
                format!("a sample has at most {MESSAGES_MAX} lines"),
                "divide it into several".to_owned(),
            ),
            Ok(line) => {
                lines.push(line);
                continue;
            }
            Err(error) => error,
        };
        return Err(wrong(file, &format!("line {number}: {message}")).with_hint(hint));
    }
    Ok(lines)
}

fn line_of(line: &[u8]) -> Result<Line, (String, String)> {
    let plain = |error: serde_json::Error| {
        (
            error.to_string(),
            "write one JSON object per line".to_owned(),
        )
    };
    // Only error handlers have the field, and only then is the line read twice.
    let mut failure = FailureIn::default();
    let without;
    let line = match line.windows(9).any(|word| word == b"\"failure\"") {
        false => line,
        true => {
            let mut object: Map<String, Value> = serde_json::from_slice(line).map_err(plain)?;
            if let Some(given) = object.remove("failure") {
                failure = serde_json::from_value(given).map_err(plain)?;
            }
            without = Value::Object(object).to_string();
            without.as_bytes()
        }
    };
    let (message, partition) = message_of(line, TIMESTAMP)?;
    Ok(Line {
        message,
        partition: partition.map_or(0, |partition| partition.0),
        failure,
    })
}

/// Results for this many messages or requests.
fn expected_of(file: &Path, messages: usize) -> Result<Expected, Failure> {
    let bytes = bytes_of(file)?;
    let mut expected = Expected::default();
    for (number, line) in filled(&bytes).map_err(|error| wrong(file, &error))? {
        let wrong = |what: String| wrong(file, &format!("line {number}: {what}"));
        let mut line: Map<String, Value> =
            serde_json::from_slice(line).map_err(|error| wrong(error.to_string()))?;
        match line.remove("state") {
            None => expected.messages.push(line),
            Some(Value::Object(entries)) => {
                let partition = line.get("partition").and_then(Value::as_u64).unwrap_or(0);
                let partition = u32::try_from(partition).unwrap_or(u32::MAX);
                expected.states.push((partition, entries));
            }
            Some(_) => return Err(wrong("state is an object of keys and values".to_owned())),
        }
    }
    let given = expected.messages.len();
    match given == messages {
        true => Ok(expected),
        false => Err(wrong(
            file,
            &format!("it has {given} results for {messages} lines; write one line for each"),
        )
        .with_hint("`millrace test --update` writes what happens now")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_message_as_produce_takes_it() {
        let line = line_of(br#"{"key":"1","value":{"a": 1},"headers":{"h":"x"},"partition":2}"#);
        let line = line.expect("a message");
        assert_eq!(line.message.value.as_deref(), Some(&b"{\"a\":1}"[..]));
        assert_eq!((line.partition, line.message.timestamp), (2, TIMESTAMP));
        let line = line_of(br#"{"value":"x","failure":{"cause":"trap","attempt":3}}"#);
        let line = line.expect("a message");
        assert_eq!(line.failure.attempt, Some(3));
        assert!(line_of(br#"{"value":"x","failure":{"case":"trap"}}"#).is_err());
        assert!(line_of(br#"{"valu":"x"}"#).is_err());
        assert!(line_of(br#"{"value":"x","delay_ms":3}"#).is_err());
    }

    #[test]
    fn settings_have_config_secrets_and_state() {
        let text = "topic = \"t\"\n[config]\na = \"b\"\n[secrets]\nkey = { base64 = \"AP8=\" }\n[state]\nn = 3\nt = \"x\"\n[limits]\ncall_ms_max = 5\n";
        let settings: Settings = toml::from_str(text).expect("settings");
        assert_eq!(settings.limits.call_ms_max, 5);
        assert_eq!(
            settings.secrets().expect("bytes").values().next(),
            Some(&vec![0, 255])
        );
        let state = settings.state().expect("entries");
        let number = state[0].value.as_ref().and_then(StateValue::as_number);
        assert_eq!((number, state.len()), (Some(3), 2));
        assert!(toml::from_str::<Settings>("confg = 1\n").is_err());
    }
}
