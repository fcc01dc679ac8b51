//! Changes of a processor that is there: PATCH lays fields over what the current revision is made of, as the host knows it at that moment.
//! Also here: what an answer says of the difference that a deployment made.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use millrace_broker::{BeginAt, Broker, LeftBehind, NextSpec, merge};
use millrace_model::processor::{
    BatchPolicy, BreakerPolicy, DeadLetterPolicy, Limits, Order, RetryPolicy,
};
use millrace_model::unit::check_ms;
use millrace_model::{
    Change, ChangeKind, Digest, Offset, Processor, ProcessorName, Revision, Timestamp,
};
use serde::Serialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::app::{App, Shared, to_the_end};
use super::body::of_value;
use super::by::{By, ByHeader};
use super::error::{ApiError, ErrorBody};
use super::history::{Difference, differences};
use super::processors::{DeployParams, LeftBehindSchema, SpecBody};
use super::query::{InPath, InQuery};
use super::shapes::{
    BatchPolicySchema, BreakerPolicySchema, DeadLetterPolicySchema, LimitsSchema, ProcessorSchema,
    RetryPolicySchema,
};
use crate::units::time_ms;

/// A processor, and what a deployment made different about it.
#[derive(Serialize, ToSchema)]
pub(super) struct DeployedBody {
    #[serde(flatten)]
    #[schema(value_type = ProcessorSchema)]
    processor: Processor,
    /// Each field that is another one now than before, of the current revision or of the one on trial; empty where nothing differs, and
    /// for a first revision.
    differs: Vec<Difference>,
    /// Whether the processor was not there before.
    created: bool,
    /// The revision that a rollback leads to: the last one that worked, or from one on trial the current one. Absent if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    way_back: Option<u32>,
    /// What was done, where that is more or less than what was asked for: from where a rollback went and what it passed over, what was
    /// withdrawn, what a revision did wrong on trial.
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
    /// Messages that wait in topics which the current revision does not read; absent if there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<LeftBehindSchema>)]
    left_behind: Vec<LeftBehind>,
}

/// What to change; the rest stays as it is. Null is the default, and the fields of a group are changed one by one.
#[derive(ToSchema)]
#[schema(as = SpecChanges)]
#[allow(dead_code, reason = "the shape is read by the derive only")]
pub(super) struct SpecChangesSchema {
    /// Topics that it reads; at least one.
    topics: Option<Vec<String>>,
    /// The module that processes, by digest, prefix or tag.
    module: Option<String>,
    /// Where outputs go that name no topic.
    output: Option<String>,
    /// Further topics that it may write to.
    grants: Option<Vec<String>>,
    /// What keeps its order: `key`, `partition` or `none`.
    order: Option<String>,
    batch: Option<BatchPolicySchema>,
    retry: Option<RetryPolicySchema>,
    /// The module that decides about failures.
    error_handler: Option<String>,
    limits: Option<LimitsSchema>,
    breaker: Option<BreakerPolicySchema>,
    dead_letters: Option<DeadLetterPolicySchema>,
    /// Whether a bad deploy takes itself back to the last revision that worked.
    auto_rollback: Option<bool>,
    /// Whether what a revision gave up is sent again by itself once the host has taken that revision back.
    auto_redrive: Option<bool>,
    /// Counts hops in the header `millrace-hops`, and gives up messages that have so many; a cycle of processors needs one such.
    hops_max: Option<u32>,
}

/// Changes a processor: its next revision is made of what the current one is, but for the fields that are given. Of two deployers who change
/// different fields at the same time, both get what they said. A processor that is not there yet is made, if topics and module are given.
#[utoipa::path(patch, path = "/v1/processors/{name}", tag = "processors", params(("name" = String, Path,), ByHeader, DeployParams),
    request_body = SpecChangesSchema,
    responses(
        (status = 201, body = DeployedBody, description = "The first revision"),
        (status = 200, body = DeployedBody, description = "The next revision, or no change"),
        (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody, description = "A topic or module is unknown"),
        (status = 409, body = ErrorBody, description = "Another revision is current than expected_revision, or it is the one on trial and fails there; nothing has changed"),
        (status = 422, body = ErrorBody, description = "Refused; nothing has changed"),
        (status = 503, body = ErrorBody, description = "The engine takes no commits now; nothing has changed"),
    )
)]
pub(super) async fn amend(
    State(app): Shared,
    InPath(name): InPath<ProcessorName>,
    InQuery(params): InQuery<DeployParams>,
    By(by): By,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    params.check()?;
    let broker = app.broker.on_behalf_of(&by);
    let changes = app.changes(app.take_json(&headers, body).await?)?;
    let next = NextSpec::changes(changes);
    let now = app.clock.wall();
    to_the_end(deployed(broker, name, params, next, now)).await
}

/// Deploys as the parameters say.
pub(super) async fn deployed(
    broker: Broker,
    name: ProcessorName,
    params: DeployParams,
    next: NextSpec,
    now: Timestamp,
) -> Result<Response, ApiError> {
    let from = params.from.as_deref();
    let begin_at = from.map(|from| begin_at("from", from, now)).transpose()?;
    let before = broker.deployed_as(&name);
    let status = match before {
        Some(_) => StatusCode::OK,
        None => StatusCode::CREATED,
    };
    let next = next.expecting(params.expected_revision);
    let next = next.beginning_at(begin_at);
    let processor = match (params.canary, params.reset_state) {
        (Some(percent), _) => broker.deploy_canary(&name, next, percent).await?,
        _ if params.shadow => broker.deploy_shadow(&name, next).await?,
        (None, true) => broker.deploy_and_reset_state(&name, next).await?,
        (None, false) => broker.deploy(&name, next).await?,
    };
    let answer = DeployedBody::after(&broker, before.as_ref(), processor).await;
    Ok((status, Json(answer)).into_response())
}

/// What `from`, or another field of the same words, says.
pub(super) fn begin_at(what: &str, text: &str, now: Timestamp) -> Result<BeginAt, ApiError> {
    let wrong = |why: &str| {
        let message = format!("{what}={text:?} does not say where to begin{why}");
        let hint = "use earliest, latest, an offset, timestamp:MS, -15m, or 2026-11-21T10:00:00Z";
        ApiError::malformed(message, hint)
    };
    let time = |ms| BeginAt::Time(Timestamp(ms));
    match (text, text.strip_prefix("timestamp:")) {
        ("earliest", _) => Ok(BeginAt::Earliest),
        ("latest", _) => Ok(BeginAt::Latest),
        (_, Some(ms)) => {
            let ms = ms.parse().map_err(|_| wrong(""))?;
            let ms = check_ms(ms, now).map_err(|unit| wrong(&format!(": {unit}")))?;
            Ok(time(ms))
        }
        (text, None) => match text.parse() {
            Ok(offset) => Ok(BeginAt::Offset(Offset(offset))),
            Err(_) => {
                let ms = time_ms(text, now).map_err(|why| wrong(&format!(": {why}")))?;
                Ok(time(ms))
            }
        },
    }
}

impl DeployedBody {
    /// What it is now, with what has changed since `before`.
    pub(super) async fn after(
        broker: &Broker,
        before: Option<&Processor>,
        processor: Processor,
    ) -> Self {
        let differs = before.and_then(|before| changed(before, &processor));
        let differs = differs.map(|(old, new)| differences(&old.spec, &new.spec));
        let last = processor.changes.last();
        let is_new = before.is_some_and(|before| before.changes.last() != last);
        let on_trial = processor.canary.is_some() || processor.shadow.is_some();
        let way_back = match on_trial {
            true => Some(processor.current),
            false => broker.way_back_of(&processor),
        };
        let last = last.filter(|_| is_new);
        // What was done is done, whatever can be said of what it leaves.
        let left_behind = broker.left_behind(&processor.name).await;
        Self {
            differs: differs.unwrap_or_default(),
            created: before.is_none(),
            note: last.and_then(|last| note(&processor, last, way_back)),
            way_back,
            left_behind: left_behind.unwrap_or_default(),
            processor,
        }
    }

    /// With this note, if there is no other.
    pub(super) fn noting(mut self, note: String) -> Self {
        self.note.get_or_insert(note);
        self
    }
}

/// What is to be said of a change, beyond that it was made.
fn note(processor: &Processor, change: &Change, way_back: Option<u32>) -> Option<String> {
    let (name, current) = (&processor.name, processor.current);
    match change.what {
        ChangeKind::Rollback | ChangeKind::Promote => change.text.clone(),
        ChangeKind::Withdraw => {
            let further = way_back.map_or(String::new(), |back| {
                format!(
                    "; `millrace processor rollback {name} --to {back}` goes to revision {back}"
                )
            });
            let withdrawn = change.revision;
            Some(format!(
                "revision {withdrawn} is withdrawn; revision {current} stays{further}"
            ))
        }
        _ => None,
    }
}

/// The revisions to compare: one that is on trial now with the current one, a current one with the one that was current before.
fn changed<'a>(before: &'a Processor, now: &'a Processor) -> Option<(&'a Revision, &'a Revision)> {
    let trial = |processor: &Processor| {
        let canary = processor.canary.as_ref().map(|canary| canary.revision);
        canary.or_else(|| processor.shadow.as_ref().map(|shadow| shadow.revision))
    };
    if let Some(number) = trial(now).filter(|&number| trial(before) != Some(number)) {
        return Some((now.current()?, now.revision(number)?));
    }
    let current = now.current().filter(|now| now.number != before.current)?;
    // Somebody else may have deployed since `before` was looked at.
    let is_new = before.revisions.iter().all(|r| r.number < current.number);
    let predecessor = current.predecessor.filter(|_| is_new);
    let predecessor = predecessor.and_then(|number| now.revision(number));
    Some((predecessor.or_else(|| before.current())?, current))
}

impl App {
    /// Changes as the broker takes them: of fields that there are, with modules by digest.
    fn changes(&self, mut changes: Map<String, Value>) -> Result<Map<String, Value>, ApiError> {
        for field in ["topics", "module"] {
            if changes.get(field) == Some(&Value::Null) {
                let message = format!("{field} has no default, and cannot be null");
                return Err(ApiError::malformed(
                    message,
                    "leave it out to keep it as it is",
                ));
            }
        }
        // Understood as a whole specification would be, so that slips are answered alike.
        let mut whole = any_spec();
        merge_known(&mut whole, &changes);
        of_value::<SpecBody>(Value::Object(whole))?;
        for field in ["module", "error_handler"] {
            if let Some(Value::String(reference)) = changes.get_mut(field) {
                *reference = self.digest_of(reference)?.to_string();
            }
        }
        Ok(changes)
    }
}

/// Whether fields that came from elsewhere make a whole specification; what is wrong with them, and what to do.
pub(crate) fn check_spec(spec: &Value) -> Result<(), (String, String)> {
    let understood = of_value::<SpecBody>(spec.clone());
    understood.map(drop).map_err(|error| {
        let (message, hint) = error.into_parts();
        let message = message.trim_start_matches("the JSON is not understood: ");
        (message.to_owned(), hint)
    })
}

/// A specification with every field.
fn any_spec() -> Map<String, Value> {
    let module = Digest([0; 32]).to_string();
    let spec = json!({
        "topics": ["any"],
        "module": module,
        "output": "any",
        "grants": [],
        "order": Order::default(),
        "batch": BatchPolicy::default(),
        "retry": RetryPolicy::default(),
        "error_handler": module,
        "limits": Limits::default(),
        "breaker": BreakerPolicy::default(),
        "dead_letters": DeadLetterPolicy::default(),
        "auto_rollback": false,
        "auto_redrive": false,
        "hops_max": 1,
    });
    match spec {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

/// As a merge patch, but a null for a field that there is not stays there: it is a slip, too.
fn merge_known(fields: &mut Map<String, Value>, changes: &Map<String, Value>) {
    for (name, change) in changes {
        match (fields.get_mut(name), change) {
            (Some(_), Value::Null) => {}
            (Some(Value::Object(group)), Value::Object(changes)) => merge_known(group, changes),
            _ => merge(fields, Map::from_iter([(name.clone(), change.clone())])),
        }
        if change.is_null() {
            fields.entry(name).or_insert(Value::Null);
        }
    }
}

#[cfg(test)]
mod tests {
    use millrace_model::ProcessorSpec;

    use super::*;

    #[test]
    fn every_field_of_a_specification_may_be_changed() {
        let whole = any_spec();
        let spec: ProcessorSpec = serde_json::from_value(Value::Object(whole.clone())).unwrap();
        let fields = serde_json::to_value(&spec).unwrap();
        assert_eq!(Value::Object(whole.clone()), fields);
        for name in fields.as_object().unwrap().keys() {
            let mut changed = whole.clone();
            let null = Map::from_iter([(name.clone(), Value::Null)]);
            merge_known(&mut changed, &null);
            assert!(
                of_value::<SpecBody>(Value::Object(changed)).is_ok(),
                "{name}"
            );
        }
    }

    #[test]
    fn a_field_that_there_is_not_is_a_slip_also_where_it_is_null() {
        for (changes, right) in [
            (json!({"modul": "x"}), "module"),
            (json!({"modul": null}), "module"),
            (json!({"retry": {"attempt_max": 3}}), "attempts_max"),
            (json!({"retry": {"attempt_max": null}}), "attempts_max"),
        ] {
            let mut whole = any_spec();
            merge_known(&mut whole, changes.as_object().unwrap());
            let error = of_value::<SpecBody>(Value::Object(whole)).err();
            let told = format!("{error:?}");
            assert!(told.contains(&format!("did you mean `{right}`")), "{told}");
            assert!(!told.contains("line"), "{told}");
        }
    }
}
