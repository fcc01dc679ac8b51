//! Calls a component with samples: in the real runtime, under the real limits, without a network, topics or storage.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use millrace_broker::handler::{
    CallUse, Cause, Decision, Failure as MessageFailure, GuestLine, LiveConfig, LoadRequest,
    ModuleFacts, ModuleHost,
};
use millrace_broker::state::{StateChange, StateQuery, StateValue};
use millrace_broker::{
    AdmitError, CallError, Rehearsal, RehearsedCall, RehearsedMessage, RehearsedOutput, Uploader,
    batch_of,
};
use millrace_component::Kind;
use millrace_model::processor::Grants;
use millrace_model::{Advised, Clock, Header, ProcessorName, RoutePath, SecretName, SystemClock};
use millrace_wasm::{CompileChild, SecretStore, WasmHost, WasmOptions};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use super::answer;
use super::build::Component;
use super::compare::state_value;
use super::project::Project;
use super::samples::{FailureIn, Line, Sample, TIMESTAMP};
use crate::cli::failure::Failure;
use crate::modules::{COMPILE_COMMAND, own_program};

/// Instances at a time: a sample is called one batch after the other.
const INSTANCES_MAX: u32 = 8;
/// Entries of the state that are compared.
const STATE_ENTRIES_MAX: usize = 100_000;
/// Bytes of the state that are compared.
const STATE_BYTES_MAX: usize = 256 << 20;

/// A runtime with one component in it.
pub(super) struct Stage {
    modules: Arc<WasmHost>,
    secrets: Arc<Secrets>,
    clock: Arc<dyn Clock>,
    pub(super) facts: ModuleFacts,
    bytes: Bytes,
    owner: ProcessorName,
    kind: Kind,
}

/// The secrets of the current sample.
#[derive(Default)]
struct Secrets(Mutex<BTreeMap<SecretName, Vec<u8>>>);

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secrets")
    }
}

impl SecretStore for Secrets {
    fn secret(&self, name: &SecretName) -> Result<Vec<u8>, String> {
        let found = self.0.lock().get(name).cloned();
        found.ok_or_else(|| format!("the sample has no secret {name}"))
    }
}

/// What a sample did.
#[derive(Default)]
pub(super) struct Played {
    /// One result per message or request.
    pub(super) messages: Vec<Map<String, Value>>,
    /// The calls, in order.
    pub(super) calls: Vec<Value>,
    /// Log lines, in order.
    pub(super) log: Vec<Value>,
    /// The state at the end, by partition.
    pub(super) states: BTreeMap<u32, BTreeMap<Vec<u8>, StateValue>>,
}

impl Stage {
    /// Checks, compiles and tries the component, as an upload is.
    pub(super) async fn open(project: &Project, component: &Component) -> Result<Self, Failure> {
        let code = project
            .out()
            .join("code")
            .join(&component.digest.to_string()[..16]);
        forget_others(&code);
        let compiler = CompileChild {
            program: own_program()?,
            args: vec![COMPILE_COMMAND.to_owned()],
        };
        let secrets = Arc::new(Secrets::default());
        let mut options = WasmOptions::new(code, compiler);
        options.instances_max = INSTANCES_MAX;
        options.secrets = Arc::clone(&secrets) as Arc<dyn SecretStore>;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let modules = WasmHost::new(options, Arc::clone(&clock));
        let modules = modules.map_err(|error| Failure::failed(error.to_string()))?;
        let bytes = Bytes::from(component.bytes.clone());
        let facts = modules.admit(bytes.clone(), Uploader::default()).await;
        Ok(Self {
            facts: facts.map_err(not_admitted)?,
            owner: ProcessorName::parse(&project.name)
                .map_err(|error| Failure::usage(error.to_string()))?,
            kind: project.kind,
            modules,
            secrets,
            clock,
            bytes,
        })
    }

    /// Calls the component with all messages of a sample, each call with at most `batch_max`.
    pub(super) async fn play(&self, sample: &Sample, batch_max: usize) -> Result<Played, Failure> {
        let wrong = |what: String| Failure::usage(format!("sample {}: {what}", sample.name));
        let secrets = sample.settings.secrets().map_err(wrong)?;
        let request = LoadRequest {
            digest: self.facts.digest,
            bytes: self.bytes.clone(),
            owner: self.owner.to_string(),
            revision: 1,
            limits: sample.settings.limits.clone(),
            grants: Grants {
                metrics: true,
                secrets: secrets.keys().cloned().collect(),
                ..Grants::default()
            },
            config: LiveConfig::default(),
            access: None,
        };
        request.config.set(&sample.settings.config);
        *self.secrets.0.lock() = secrets;
        match self.kind {
            Kind::Processor => self.process(sample, request, batch_max).await,
            Kind::Partitioner => self.assign(sample, request, batch_max).await,
            Kind::ErrorHandler => self.decide(sample, request, batch_max).await,
            Kind::Http => self.answer(sample, request).await,
        }
    }

    async fn answer(&self, sample: &Sample, mut request: LoadRequest) -> Result<Played, Failure> {
        let path = RoutePath::parse(&format!("/samples/{}", self.owner));
        let path = path.map_err(|error| Failure::usage(error.to_string()))?;
        request.owner = path.to_string();
        let staged = answer::stage(sample, &self.clock, &mut request);
        let rehearsal =
            staged.map_err(|what| Failure::usage(format!("sample {}: {what}", sample.name)))?;
        let handler = self
            .modules
            .http_handler(request)
            .await
            .map_err(not_admitted)?;
        let mut played = Played::default();
        for asked in &sample.requests {
            let number = played.messages.len() + 1;
            let (shown, used) = answer::ask(&handler, &rehearsal, asked).await?;
            played.messages.push(shown);
            let mut call = object(json!({ "messages": [number] }));
            use_into(&mut call, used.as_ref());
            played.calls.push(Value::Object(call));
            let lines = self.modules.route_logs(&path);
            self.modules.forget_route_logs(&path);
            played.log.extend(lines.iter().map(log_shown));
        }
        Ok(played)
    }

    async fn process(
        &self,
        sample: &Sample,
        request: LoadRequest,
        batch_max: usize,
    ) -> Result<Played, Failure> {
        let limits = request.limits.clone();
        let handler = self
            .modules
            .processor(request)
            .await
            .map_err(not_admitted)?;
        let mut rehearsal = Rehearsal::new(handler, &limits, Arc::clone(&self.clock));
        let state = sample
            .settings
            .state()
            .and_then(|state| rehearsal.set_state(0, state));
        state.map_err(|what| Failure::usage(format!("sample {}: {what}", sample.name)))?;
        let mut played = Played::default();
        let mut offsets = BTreeMap::<u32, u64>::new();
        for lines in batches(&sample.lines, batch_max) {
            let partition = lines[0].partition;
            let offset = offsets.entry(partition).or_default();
            let messages: Vec<_> = lines.iter().map(|line| line.message.clone()).collect();
            let batch = batch_of(&sample.settings.topic, partition, *offset, &messages);
            *offset += lines.len() as u64;
            let first = played.messages.len();
            let done = rehearsal.call(batch).await.map_err(host_failed)?;
            let results = done.messages.iter().zip(lines);
            played
                .messages
                .extend(results.map(|(result, line)| message_shown(result, line)));
            played
                .calls
                .extend(done.calls.iter().map(|call| call_shown(call, first)));
            self.take_log(&mut played);
        }
        let now = self.clock.wall();
        for &partition in offsets.keys() {
            let query = StateQuery {
                entries_max: STATE_ENTRIES_MAX,
                bytes_max: STATE_BYTES_MAX,
                now,
                ..StateQuery::default()
            };
            let page = rehearsal.state(partition).map(|table| table.page(&query));
            let page = page
                .transpose()
                .map_err(|error| Failure::failed(error.to_string()))?;
            let entries = page.unwrap_or_default().entries.into_iter();
            let entries = entries
                .map(|entry| (entry.key.to_vec(), entry.value))
                .collect();
            played.states.insert(partition, entries);
        }
        Ok(played)
    }

    async fn assign(
        &self,
        sample: &Sample,
        request: LoadRequest,
        batch_max: usize,
    ) -> Result<Played, Failure> {
        let partitioner = self
            .modules
            .partitioner(request)
            .await
            .map_err(not_admitted)?;
        let partitions = sample.settings.partitions;
        let mut played = Played::default();
        for lines in sample.lines.chunks(batch_max) {
            let first = played.messages.len();
            let batch = Arc::new(plain_batch(sample, lines));
            let begun = self.clock.monotonic();
            let assigned = partitioner.assign(partitions, &batch).await;
            let took = self.clock.monotonic().saturating_sub(begun);
            played.calls.push(timed_call(first, lines.len(), took));
            let assigned = assigned.and_then(|assigned| within(assigned, lines.len(), partitions));
            match assigned {
                Ok(assigned) => played.messages.extend(
                    assigned
                        .into_iter()
                        .map(|partition| object(json!({ "partition": partition }))),
                ),
                Err(error) => failed_call(&mut played, error, lines.len())?,
            }
        }
        Ok(played)
    }

    async fn decide(
        &self,
        sample: &Sample,
        request: LoadRequest,
        batch_max: usize,
    ) -> Result<Played, Failure> {
        let handler = self
            .modules
            .error_handler(request)
            .await
            .map_err(not_admitted)?;
        let mut played = Played::default();
        for lines in sample.lines.chunks(batch_max) {
            let first = played.messages.len();
            let failures = lines.iter().enumerate();
            let failures = failures.map(|(index, line)| failure_of(index, &line.failure));
            let failures = failures.collect::<Result<Vec<_>, String>>();
            let failures = failures
                .map_err(|what| Failure::usage(format!("sample {}: {what}", sample.name)))?;
            let batch = Arc::new(plain_batch(sample, lines));
            let begun = self.clock.monotonic();
            let decided = handler.handle(&failures, &batch).await;
            let took = self.clock.monotonic().saturating_sub(begun);
            played.calls.push(timed_call(first, lines.len(), took));
            match decided {
                Ok(decisions) if decisions.len() == lines.len() => {
                    played
                        .messages
                        .extend(decisions.into_iter().map(decision_shown));
                }
                Ok(decisions) => {
                    let what =
                        format!("{} decisions for {} failures", decisions.len(), lines.len());
                    failed_call(&mut played, CallError::BadAnswer(what), lines.len())?;
                }
                Err(error) => failed_call(&mut played, error, lines.len())?,
            }
            self.take_log(&mut played);
        }
        Ok(played)
    }

    fn take_log(&self, played: &mut Played) {
        let lines = self.modules.logs(&self.owner);
        self.modules.forget_logs(&self.owner);
        played.log.extend(lines.iter().map(log_shown));
    }
}

fn log_shown(line: &GuestLine) -> Value {
    json!({"level": line.level, "text": line.text})
}

/// Removes compiled code of earlier builds: only the last one is of use.
fn forget_others(code: &Path) {
    let siblings = code
        .parent()
        .and_then(|parent| std::fs::read_dir(parent).ok());
    for sibling in siblings.into_iter().flatten().flatten() {
        if sibling.path() != code {
            let _ = std::fs::remove_dir_all(sibling.path());
        }
    }
}

fn not_admitted(error: AdmitError) -> Failure {
    let hint = error.advice().hint;
    Failure::refused(error.to_string()).with_hint(hint)
}

fn host_failed(error: CallError) -> Failure {
    Failure::failed(error.to_string())
}

/// Consecutive messages of one partition, at most `batch_max` of them.
fn batches(lines: &[Line], batch_max: usize) -> impl Iterator<Item = &[Line]> {
    let of_one_partition = lines.chunk_by(|one, other| one.partition == other.partition);
    of_one_partition.flat_map(move |lines| lines.chunks(batch_max))
}

fn plain_batch(sample: &Sample, lines: &[Line]) -> millrace_model::ColumnBatch {
    let messages: Vec<_> = lines.iter().map(|line| line.message.clone()).collect();
    batch_of(&sample.settings.topic, 0, 0, &messages)
}

fn within(assigned: Vec<u32>, messages: usize, partitions: u32) -> Result<Vec<u32>, CallError> {
    if assigned.len() != messages {
        let what = format!("{} partitions for {messages} messages", assigned.len());
        return Err(CallError::BadAnswer(what));
    }
    match assigned.iter().find(|&&partition| partition >= partitions) {
        None => Ok(assigned),
        Some(partition) => Err(CallError::BadAnswer(format!(
            "it chose partition {partition} of {partitions}"
        ))),
    }
}

/// Every message of a call that failed has its error.
fn failed_call(played: &mut Played, error: CallError, messages: usize) -> Result<(), Failure> {
    let mut shown = failure_shown(error)?;
    shown.shift_remove("backtrace");
    played.messages.extend(std::iter::repeat_n(shown, messages));
    Ok(())
}

/// A call that failed; an error if that says nothing about the component.
pub(super) fn failure_shown(error: CallError) -> Result<Map<String, Value>, Failure> {
    let mut frames = String::new();
    let (outcome, reason) = match error {
        CallError::Host(_) | CallError::Interrupted => return Err(host_failed(error)),
        CallError::Unavailable(reason) => ("unavailable", reason),
        CallError::Trap { message, backtrace } => {
            frames = backtrace;
            (Cause::Trap.as_str(), message)
        }
        CallError::Timeout(_) => (Cause::Timeout.as_str(), error.to_string()),
        CallError::Memory(reason) => (Cause::Memory.as_str(), reason),
        CallError::BadAnswer(reason) => (Cause::BadAnswer.as_str(), reason),
    };
    let mut shown = object(json!({ "outcome": outcome, "reason": reason }));
    if !frames.is_empty() {
        shown.insert("backtrace".to_owned(), json!(frames));
    }
    Ok(shown)
}

fn failure_of(index: usize, given: &FailureIn) -> Result<MessageFailure, String> {
    let word = given.cause.as_deref().unwrap_or(Cause::Retry.as_str());
    let asked = &Cause::ALL[..6];
    let cause = asked
        .iter()
        .find(|cause| cause.as_str() == word)
        .ok_or_else(|| {
            let known: Vec<&str> = asked.iter().map(|cause| cause.as_str()).collect();
            format!("there is no cause {word:?}; use {}", known.join(", "))
        })?;
    Ok(MessageFailure {
        message: index as u32,
        revision: given.revision.unwrap_or(1),
        attempt: given.attempt.unwrap_or(1),
        first_failed_at: given
            .first_failed_at
            .map_or(TIMESTAMP, millrace_model::Timestamp),
        cause: *cause,
        class: given.class.clone().unwrap_or_else(|| word.to_owned()),
        reason: given.reason.clone(),
    })
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

fn decision_shown(decision: Decision) -> Map<String, Value> {
    object(match decision {
        Decision::RetryAfter(after) => {
            json!({"decision": "retry-after", "after_ms": after.as_millis() as u64})
        }
        Decision::DeadLetter => json!({"decision": "dead-letter"}),
        Decision::Drop(reason) => json!({"decision": "drop", "reason": reason}),
        Decision::Policy => json!({"decision": "policy"}),
    })
}

/// A message's result: fields that say nothing are left out.
fn message_shown(result: &RehearsedMessage, line: &Line) -> Map<String, Value> {
    let mut shown = object(json!({ "outcome": result.outcome }));
    let mut put = |name: &str, value: Value| {
        shown.insert(name.to_owned(), value);
    };
    if !result.class.is_empty() {
        put("class", json!(result.class));
    }
    if !result.reason.is_empty() {
        put("reason", json!(result.reason));
    }
    if let Some(after_ms) = result.after_ms {
        put("after_ms", json!(after_ms));
    }
    if let Some(backtrace) = &result.backtrace {
        put("backtrace", json!(backtrace));
    }
    if !result.outputs.is_empty() {
        let outputs = result
            .outputs
            .iter()
            .map(|output| output_shown(output, line));
        put("outputs", outputs.collect());
    }
    shown
}

fn output_shown(output: &RehearsedOutput, line: &Line) -> Value {
    let mut shown = Map::new();
    let mut put = |name: &str, value: Value| {
        shown.insert(name.to_owned(), value);
    };
    if let Some(topic) = &output.topic {
        put("topic", json!(topic));
    }
    if let Some(partition) = output.partition {
        put("partition", json!(partition));
    }
    let message = &output.message;
    bytes_into(&mut shown, "key", message.key.as_deref());
    bytes_into(&mut shown, "value", message.value.as_deref());
    let mut put = |name: &str, value: Value| {
        shown.insert(name.to_owned(), value);
    };
    if !message.headers.is_empty() {
        put("headers", headers_shown(&message.headers));
    }
    if let Some(deliver_at) = output.deliver_at {
        put("deliver_at", json!(deliver_at.0));
    }
    let usual = output.deliver_at.unwrap_or(line.message.timestamp);
    if message.timestamp != usual {
        put("timestamp", json!(message.timestamp.0));
    }
    Value::Object(shown)
}

/// A text as it is, other bytes in base64, and null for none.
pub(super) fn bytes_into(shown: &mut Map<String, Value>, name: &str, bytes: Option<&[u8]>) {
    match bytes.map(|bytes| (bytes, str::from_utf8(bytes))) {
        None => shown.insert(name.to_owned(), Value::Null),
        Some((_, Ok(text))) => shown.insert(name.to_owned(), json!(text)),
        Some((bytes, Err(_))) => {
            shown.insert(format!("{name}_base64"), json!(STANDARD.encode(bytes)))
        }
    };
}

/// Name to value; a name that repeats has a list of values. Bytes that are no text are shown as text with replacements.
pub(super) fn headers_shown(headers: &[Header]) -> Value {
    let mut shown = Map::new();
    for header in headers {
        let name = String::from_utf8_lossy(&header.name).into_owned();
        let value = header
            .value
            .as_ref()
            .map(|value| String::from_utf8_lossy(value));
        let value = json!(value);
        match shown.get_mut(&name) {
            None => {
                shown.insert(name, value);
            }
            Some(Value::Array(values)) => values.push(value),
            Some(first) => *first = Value::Array(vec![first.take(), value]),
        }
    }
    Value::Object(shown)
}

fn call_shown(call: &RehearsedCall, first: usize) -> Value {
    let mut shown = object(json!({
        "messages": call.messages.iter().map(|index| first + index + 1).collect::<Vec<_>>(),
    }));
    use_into(&mut shown, call.used.as_ref());
    if !call.changes.is_empty() {
        let changes = call.changes.iter().map(change_shown);
        shown.insert("state".to_owned(), changes.collect());
    }
    if let Some(why) = &call.discarded {
        shown.insert("repeated_because".to_owned(), json!(why));
    }
    Value::Object(shown)
}

fn use_into(shown: &mut Map<String, Value>, used: Option<&CallUse>) {
    if let Some(used) = used {
        shown.insert("guest_us".to_owned(), json!(used.guest_us));
        shown.insert("memory_bytes".to_owned(), json!(used.memory_bytes));
    }
}

fn timed_call(first: usize, messages: usize, took: Duration) -> Value {
    json!({
        "messages": (first + 1..=first + messages).collect::<Vec<_>>(),
        "guest_us": took.as_micros() as u64,
    })
}

fn change_shown(change: &StateChange) -> Value {
    let value = change.value.as_ref().map_or(Value::Null, state_value);
    json!({ "key": String::from_utf8_lossy(&change.key), "value": value })
}
