//! `processor deploy`: flags change what they name and keep the rest of the processor; a specification file replaces all of it. The
//! answer lists the changes.

use std::io;
use std::path::{Path, PathBuf};

use millrace_model::processor::Origin;
use millrace_model::{ProcessorName, SecretName, TopicName};
use serde_json::{Map, Value, json};
use ureq::http::Method;

use super::client::{Client, escaped};
use super::consume::{Begin, begin};
use super::failure::Failure;
use super::module;
use super::output::Output;
use super::paths::path;
use super::table::{cell, items, value_of};
use crate::http::check_spec;
use crate::units::{duration_ms, size_bytes};

const HELP: &str = "\
Examples:
  millrace processor deploy shout --module uppercase@1.0.0 --topic orders --output loud
  millrace processor deploy shout --module uppercase@2.0.0     the next revision; the rest stays
  millrace processor deploy shout --module uppercase@1.0.0 --topic orders --from latest
  millrace processor deploy shout --attempts-max 20 --retry-max 10m
  millrace processor deploy shout --unset retry --unset output    back to the defaults
  millrace processor deploy shout --set breaker.enabled=false
  millrace processor deploy shout --module uppercase@2.0.0 --canary 10
  millrace processor deploy shout --module uppercase@2.0.0 --shadow
  millrace processor deploy count --module counter@2.0.0 --reset-state
  millrace processor deploy greet --module greet@1.0.0 --config greeting=hello
  millrace processor deploy greet --grant-metrics --grant-secret api-key
  millrace processor deploy greet --grant-http https://api.example.com
  millrace processor deploy shout --spec shout.toml --module uppercase@2.0.0

Settings without a flag stay as in the current revision; the answer lists the changes.
A spec file (TOML or JSON) is the whole specification: omitted fields get their defaults. It has the fields of
PUT /v1/processors/{name}: topics, module, output, grants, order, batch, retry, error_handler, limits, breaker,
dead_letters, auto_rollback, auto_redrive, hops_max, and config. Flags override the file.";

#[derive(clap::Args)]
#[command(after_help = HELP)]
pub(super) struct DeployArgs {
    /// The processor
    name: ProcessorName,
    /// The module, by digest or tag
    #[arg(long)]
    module: Option<String>,
    /// A topic to read; repeat it for several. The list replaces the previous one
    #[arg(long = "topic", value_name = "TOPIC")]
    topics: Vec<TopicName>,
    /// The topic for outputs that name none
    #[arg(long, value_name = "TOPIC")]
    output: Option<TopicName>,
    /// Another topic that it may write to; repeat it for several. The list replaces the previous one
    #[arg(long = "grant-topic", visible_alias = "grant", value_name = "TOPIC")]
    grant_topics: Vec<TopicName>,
    /// Let it keep state; true by default
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    grant_state: Option<bool>,
    /// Let it have metrics of its own
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    grant_metrics: Option<bool>,
    /// A secret of the host that it may read; repeat it for several. The list replaces the previous one
    #[arg(long = "grant-secret", value_name = "SECRET")]
    grant_secrets: Vec<SecretName>,
    /// A server that it may send HTTP requests to, such as https://api.example.com; repeat it for several. The list replaces the previous one
    #[arg(long = "grant-http", value_name = "ORIGIN")]
    grant_http: Vec<Origin>,
    /// Let names of these servers resolve to private addresses
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    grant_http_private: Option<bool>,
    /// What stays in order when a message is retried
    #[arg(long, value_parser = ["key", "partition", "none"])]
    order: Option<String>,
    /// The module that decides what to do about failures, by digest or tag
    #[arg(long, value_name = "MODULE")]
    error_handler: Option<String>,
    /// Attempts of one revision before a message becomes a dead letter
    #[arg(long, value_name = "COUNT")]
    attempts_max: Option<u32>,
    /// Longest delay before the second attempt, such as 2s; doubles with each further attempt
    #[arg(long, value_name = "DURATION", value_parser = duration_ms)]
    retry_first: Option<u64>,
    /// Longest delay between two attempts, such as 5m
    #[arg(long, value_name = "DURATION", value_parser = duration_ms)]
    retry_max: Option<u64>,
    /// Maximum number of messages in a batch
    #[arg(long, value_name = "COUNT")]
    batch_messages_max: Option<u32>,
    /// Maximum size of a batch, such as 1MiB
    #[arg(long, value_name = "SIZE", value_parser = size_bytes)]
    batch_bytes_max: Option<u64>,
    /// How long to wait for a fuller batch, such as 50ms
    #[arg(long, value_name = "DURATION", value_parser = duration_ms)]
    linger: Option<u64>,
    /// Maximum memory of an instance, such as 128MiB
    #[arg(long, value_name = "SIZE", value_parser = size_bytes)]
    memory_max: Option<u64>,
    /// Maximum duration of a call, such as 5s
    #[arg(long, value_name = "DURATION", value_parser = duration_ms)]
    call_max: Option<u64>,
    /// Maximum size of an answer, such as 16MiB
    #[arg(long, value_name = "SIZE", value_parser = size_bytes)]
    answer_bytes_max: Option<u64>,
    /// Maximum number of outputs in an answer
    #[arg(long, value_name = "COUNT")]
    answer_outputs_max: Option<u32>,
    /// Maximum number of log lines per second
    #[arg(long, value_name = "COUNT")]
    log_lines: Option<u32>,
    /// Roll a bad deploy back to the last revision that worked
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    auto_rollback: Option<bool>,
    /// After an automatic rollback, send again what the failed revision gave up
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    auto_redrive: Option<bool>,
    /// Count hops, and give up messages that have reached this many; every cycle of processors must contain one with this setting
    #[arg(long, value_name = "COUNT")]
    hops_max: Option<u32>,
    /// A setting that its component reads, such as greeting=hello; repeat it for several. Others stay as they are
    #[arg(long = "config", value_name = "KEY=VALUE", value_parser = config_value)]
    config: Vec<(String, String)>,
    /// Set any field of the specification, such as breaker.enabled=false; repeat it for several
    #[arg(long = "set", value_name = "FIELD=VALUE", value_parser = setting)]
    settings: Vec<(String, Value)>,
    /// Reset to the default: a field such as output or retry.attempts_max, or a group such as retry; repeat it for several
    #[arg(long = "unset", value_name = "FIELD", conflicts_with = "spec")]
    unset: Vec<String>,
    /// Start with empty state in every partition
    #[arg(long)]
    reset_state: bool,
    /// Run it as a canary on this percentage of the keys; the current revision keeps the others
    #[arg(long, value_name = "PERCENT", conflicts_with = "reset_state")]
    canary: Option<u32>,
    /// Run it as a shadow beside the current revision, and only report differences
    #[arg(long, conflicts_with_all = ["reset_state", "canary"])]
    shadow: bool,
    /// Where a new processor starts: earliest (the default), latest, an offset, a date and time, or a time ago such as -15m
    #[arg(long, value_name = "WHERE", value_parser = begin, allow_hyphen_values = true)]
    from: Option<Begin>,
    /// Deploy only if this revision is current; 0: only if the processor does not exist yet
    #[arg(long, value_name = "REVISION")]
    expected_revision: Option<u32>,
    /// A file with the whole specification
    #[arg(long, value_name = "FILE")]
    spec: Option<PathBuf>,
}

/// `FIELD=VALUE`; the value is JSON, or else text.
fn setting(text: &str) -> Result<(String, Value), String> {
    let (field, value) = text
        .split_once('=')
        .filter(|(field, _)| !field.is_empty())
        .ok_or("write FIELD=VALUE, such as breaker.enabled=false")?;
    let value = serde_json::from_str(value).unwrap_or_else(|_| json!(value));
    Ok((field.to_owned(), value))
}

/// `KEY=VALUE`; the value is text.
pub(super) fn config_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE, such as greeting=hello".to_owned()),
    }
}

pub(super) fn deploy(args: DeployArgs, client: &Client, out: &mut Output) -> Result<(), Failure> {
    let path = path(&args.name, &args.query());
    let method = match args.spec {
        Some(_) => Method::PUT,
        None => Method::PATCH,
    };
    let (name, from, file) = (args.name.clone(), args.from, args.spec.clone());
    let spec = args.spec()?;
    if let Some(file) = file {
        // The problem is in the file, not in the request.
        check_spec(&spec).map_err(|(message, hint)| {
            Failure::refused(format!("specification file {}: {message}", file.display()))
                .with_hint(hint)
        })?;
    }
    for module in ["module", "error_handler"] {
        if let Some(reference) = spec[module].as_str() {
            module::await_admission(client, reference);
        }
    }
    let spinner = module::working("{spinner} deploying, {elapsed} so far");
    let answer = client.send(method, &path, &spec);
    spinner.finish_and_clear();
    let answer = answer?;
    if from.is_some() && answer["created"] == false {
        // Standard error may be closed; the processor is deployed anyway.
        let note = format_args!(
            "note: processor {name} already exists and continues where it is; --from applies only to new processors\n"
        );
        let _ = io::Write::write_fmt(&mut io::stderr(), note);
    }
    out.answer(&answer, |answer| current(&name, answer))
}

impl DeployArgs {
    fn query(&self) -> String {
        let mut query = Vec::new();
        query.extend(self.canary.map(|percent| format!("canary={percent}")));
        query.extend(self.shadow.then(|| "shadow=true".to_owned()));
        query.extend(self.reset_state.then(|| "reset_state=true".to_owned()));
        let expected = self.expected_revision;
        query.extend(expected.map(|expected| format!("expected_revision={expected}")));
        let from = self.from.map(|from| escaped(&from.to_string()));
        query.extend(from.map(|from| format!("from={from}")));
        match query.is_empty() {
            true => String::new(),
            false => format!("?{}", query.join("&")),
        }
    }

    /// The flags, applied to the specification file if there is one.
    fn spec(self) -> Result<Value, Failure> {
        let mut spec = self.spec.as_deref().map_or_else(|| Ok(Map::new()), read)?;
        let given = [
            ("module", json!(self.module)),
            ("topics", json!(self.topics)),
            ("output", json!(self.output)),
            ("grants.topics", json!(self.grant_topics)),
            ("grants.state", json!(self.grant_state)),
            ("grants.metrics", json!(self.grant_metrics)),
            ("grants.secrets", json!(self.grant_secrets)),
            ("grants.http", json!(self.grant_http)),
            ("grants.http_private", json!(self.grant_http_private)),
            ("order", json!(self.order)),
            ("error_handler", json!(self.error_handler)),
            ("hops_max", json!(self.hops_max)),
            ("auto_rollback", json!(self.auto_rollback)),
            ("auto_redrive", json!(self.auto_redrive)),
            ("retry.attempts_max", json!(self.attempts_max)),
            ("retry.delay_first_ms", json!(self.retry_first)),
            ("retry.delay_max_ms", json!(self.retry_max)),
            ("batch.messages_max", json!(self.batch_messages_max)),
            ("batch.bytes_max", json!(self.batch_bytes_max)),
            ("batch.linger_ms", json!(self.linger)),
            ("limits.memory_bytes_max", json!(self.memory_max)),
            ("limits.call_ms_max", json!(self.call_max)),
            ("limits.answer_bytes_max", json!(self.answer_bytes_max)),
            ("limits.answer_outputs_max", json!(self.answer_outputs_max)),
            ("limits.log_lines_per_second", json!(self.log_lines)),
        ];
        let is_said = |(_, value): &(&str, Value)| !value.is_null() && *value != json!([]);
        for (field, value) in given.into_iter().filter(is_said) {
            set(&mut spec, field, value)?;
        }
        for (key, value) in self.config {
            set(&mut spec, &format!("config.{key}"), json!(value))?;
        }
        for field in &self.unset {
            set(&mut spec, field, Value::Null)?;
        }
        for (field, value) in self.settings {
            set(&mut spec, &field, value)?;
        }
        Ok(Value::Object(spec))
    }
}

/// Sets a field, or one inside a group: `retry.attempts_max`.
fn set(spec: &mut Map<String, Value>, field: &str, value: Value) -> Result<(), Failure> {
    let Some((group, field)) = field.split_once('.') else {
        spec.insert(field.to_owned(), value);
        return Ok(());
    };
    let group_value = spec.entry(group).or_insert_with(|| json!({}));
    let wrong = || {
        Failure::usage(format!(
            "both {group} and {group}.{field} are set; give one of them"
        ))
    };
    let fields = group_value.as_object_mut().ok_or_else(wrong)?;
    fields.insert(field.to_owned(), value);
    Ok(())
}

fn read(file: &Path) -> Result<Map<String, Value>, Failure> {
    let wrong = |error: &dyn std::fmt::Display| {
        Failure::usage(format!("specification file {}: {error}", file.display()))
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

/// Which revision takes the next batch, whether the processor is running, and what changed.
pub(super) fn current(name: &ProcessorName, answer: &Value) -> String {
    let mut lines = vec![who(name, answer)];
    let width = items(&answer["differs"]).iter();
    let width = width.map(|d| cell(&d["field"]).len()).max().unwrap_or(0);
    lines.extend(items(&answer["differs"]).iter().map(|difference| {
        let field = cell(&difference["field"]);
        let [before, after] = ["before", "after"].map(|side| value_of(&field, &difference[side]));
        format!("  {field:width$}  {before} -> {after}")
    }));
    let is_first =
        answer["current"] == 1 && answer["canary"].is_null() && answer["shadow"].is_null();
    if let Some(note) = answer["note"].as_str() {
        lines.push(format!("  {note}"));
    } else if answer["differs"] == json!([]) && !is_first {
        lines.push("  nothing has changed".to_owned());
    }
    let is_trial = !answer["canary"].is_null() || !answer["shadow"].is_null();
    if is_trial {
        let current = &answer["current"];
        lines.push(format!("  way back: revision {current}, the current one"));
    } else if let Some(back) = answer["way_back"].as_u64().filter(|_| !is_first) {
        lines.push(format!("  way back: revision {back}"));
    }
    let left = left_behind(&answer["left_behind"]).into_iter();
    lines.extend(left.map(|left| format!("  left waiting: {left}")));
    lines.join("\n")
}

/// Messages that wait in topics that the processor does not read, by topic.
pub(super) fn left_behind(list: &Value) -> Vec<String> {
    let waiting = waiting(list).into_iter();
    waiting
        .map(|waiting| format!("{waiting}, which the processor does not read"))
        .collect()
}

/// Waiting messages, by topic.
pub(super) fn waiting(list: &Value) -> Vec<String> {
    let count = |left: &Value, field: &str| left[field].as_u64().filter(|&count| count > 0);
    let one = |left: &Value| {
        let topic = cell(&left["topic"]);
        let parked = count(left, "parked").map(|parked| match parked {
            1 => format!("1 message of {topic}"),
            _ => format!("{parked} messages of {topic}"),
        });
        let unread = count(left, "unread");
        let unread = unread.map(|unread| match unread {
            1 => format!("1 redriven dead letter in {topic}"),
            _ => format!("{unread} redriven dead letters in {topic}"),
        });
        let waiting: Vec<String> = parked.into_iter().chain(unread).collect();
        waiting.join(" and ")
    };
    items(list).iter().map(one).collect()
}

fn who(name: &ProcessorName, answer: &Value) -> String {
    let current = &answer["current"];
    let (canary, shadow) = (&answer["canary"], &answer["shadow"]);
    let takes = if !canary.is_null() {
        format!(
            "revision {} takes {} % of the keys, revision {current} all others",
            canary["revision"], canary["percent"]
        )
    } else if !shadow.is_null() {
        format!(
            "revision {current} takes the next batch, revision {} is its shadow",
            shadow["revision"]
        )
    } else {
        format!("revision {current} takes the next batch")
    };
    match answer["paused"] == true {
        false => format!("processor {name}: {takes}"),
        true => format!(
            "processor {name} is paused: {takes} once it is resumed (`millrace processor resume {name}`)"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(paused: bool, differs: Value) -> String {
        let name = ProcessorName::parse("p").expect("a name");
        current(
            &name,
            &json!({"current": 2, "paused": paused, "differs": differs}),
        )
    }

    #[test]
    fn an_answer_says_what_differs_and_whether_anything_runs() {
        let differs = json!([
            {"field": "output", "before": null, "after": "out"},
            {"field": "retry.attempts_max", "before": 10, "after": 5},
        ]);
        assert_eq!(
            answer(false, differs),
            "processor p: revision 2 takes the next batch\n  output              - -> out\n  retry.attempts_max  10 -> 5"
        );
        assert!(answer(false, json!([])).ends_with("nothing has changed"));
        let noted = json!({"current": 2, "differs": [], "note": "revision 3 is now a shadow"});
        let name = ProcessorName::parse("p").expect("a name");
        assert!(current(&name, &noted).ends_with("next batch\n  revision 3 is now a shadow"));
        assert!(answer(true, json!([])).starts_with("processor p is paused: revision 2"));
    }

    #[test]
    fn a_field_is_set_by_its_path_and_its_value_is_json_or_text() {
        let mut spec = Map::new();
        for text in [
            "breaker.enabled=false",
            "order=none",
            "grants=[\"a\"]",
            "retry.attempts_max=3",
        ] {
            let (field, value) = setting(text).expect("a setting");
            set(&mut spec, &field, value).expect("set");
        }
        let expected = json!({"breaker": {"enabled": false}, "order": "none", "grants": ["a"], "retry": {"attempts_max": 3}});
        assert_eq!(Value::Object(spec.clone()), expected);
        set(&mut spec, "retry", Value::Null).expect("set");
        assert!(set(&mut spec, "retry.attempts_max", json!(1)).is_err());
        assert!(setting("retry").is_err());
    }
}
