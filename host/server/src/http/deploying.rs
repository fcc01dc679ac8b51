//! Changes of an existing processor: PATCH applies fields to the specification of the current revision. Also: the part of an answer
//! that says what a deployment changed.

use std::collections::BTreeMap;

use axum::Json;
use axum::body::Body;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use millrace_broker::{
    BeginAt, ConfigChange, LeftBehind, NextSpec, ProcessorError, Session, merge,
};
use millrace_model::processor::{
    BatchPolicy, BreakerPolicy, DeadLetterPolicy, Grants, Limits, Order, RetryPolicy,
};
use millrace_model::unit::check_ms;
use millrace_model::{
    Change, ChangeKind, Digest, Offset, Processor, ProcessorName, Revision, Timestamp,
};
use serde::Serialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::app::to_the_end;
use super::body::of_value;
use super::by::ByHeader;
use super::called::Called;
use super::error::{ApiError, ErrorBody};
use super::history::{Difference, differences};
use super::processors::{DeployParams, SpecBody};
use super::query::{InPath, InQuery};
use super::shapes::ProcessorSchema;
use crate::units::time_ms;

/// A processor, and what a deployment changed.
#[derive(Serialize, ToSchema)]
pub(super) struct DeployedBody {
    #[serde(flatten)]
    #[schema(value_type = ProcessorSchema)]
    processor: Processor,
    /// Each changed field of the current revision or the one on trial; empty if nothing changed, and for a first revision.
    differs: Vec<Difference>,
    /// Whether the processor was created.
    created: bool,
    /// The revision that a rollback would return to: the last one that worked, or from a revision on trial the current one. Absent if
    /// there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    way_back: Option<u32>,
    /// What was done beyond the request: where a rollback started and what it skipped, what was withdrawn, the failures of a revision
    /// on trial.
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
    /// Messages that wait in topics which the current revision does not read; absent if there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    left_behind: Vec<LeftBehind>,
}

/// The changes; omitted fields stay as they are. Null resets to the default, and the fields of a group are changed one by one.
#[derive(ToSchema)]
#[schema(as = SpecChanges)]
#[allow(
    dead_code,
    reason = "a merge patch is read as JSON and has no type of its own"
)]
pub(super) struct SpecChangesSchema {
    /// Topics that it reads; at least one.
    topics: Option<Vec<String>>,
    /// The module that processes messages, by digest, prefix or tag.
    module: Option<String>,
    /// The topic for outputs that name none.
    output: Option<String>,
    grants: Option<Grants>,
    /// What stays in order when a message is retried: `key`, `partition` or `none`.
    order: Option<String>,
    batch: Option<BatchPolicy>,
    retry: Option<RetryPolicy>,
    /// The module that decides what to do about failures.
    error_handler: Option<String>,
    limits: Option<Limits>,
    breaker: Option<BreakerPolicy>,
    dead_letters: Option<DeadLetterPolicy>,
    /// Whether the host rolls a bad deploy back to the last revision that worked.
    auto_rollback: Option<bool>,
    /// Whether, after an automatic rollback, the host redrives what the failed revision gave up.
    auto_redrive: Option<bool>,
    /// Counts hops in the header `millrace-hops`, and gives up messages that have reached this many; every cycle of processors needs a
    /// processor that does.
    hops_max: Option<u32>,
    /// Settings that its component reads: null removes a key, other keys stay. They are not part of the revision.
    config: Option<BTreeMap<String, Option<String>>>,
}

/// Changes a processor: its next revision is the current one with the given fields changed. Two people who change different fields at
/// the same time both get their changes. A missing processor is created if topics and module are given.
#[utoipa::path(patch, path = "/v1/processors/{name}", tag = "processors", params(("name" = String, Path,), ByHeader, DeployParams),
    request_body = SpecChangesSchema,
    responses(
        (status = 201, body = DeployedBody, description = "The first revision"),
        (status = 200, body = DeployedBody, description = "The next revision, or no change"),
        (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody, description = "A topic or module is unknown"),
        (status = 409, body = ErrorBody, description = "The current revision is not expected_revision, or the revision is on trial and failing; nothing has changed"),
        (status = 422, body = ErrorBody, description = "Refused; nothing has changed"),
        (status = 503, body = ErrorBody, description = "The engine accepts no commits now; nothing has changed"),
    )
)]
pub(super) async fn amend(
    app: Called,
    InPath(name): InPath<ProcessorName>,
    InQuery(params): InQuery<DeployParams>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    params.check()?;
    let session = app.session.clone();
    let changes: Map<String, Value> = app.take_json(&headers, body).await?;
    let named = ["module", "error_handler"].map(|field| changes.get(field).and_then(Value::as_str));
    let named = named.into_iter().flatten().map(str::to_owned).collect();
    app.admitted(named).await;
    let (changes, config) = app.changes(changes)?;
    let next = NextSpec::changes(changes).configuring(config);
    let now = app.clock.wall();
    to_the_end(deployed(session, name, params, next, now)).await
}

/// Deploys with the given parameters.
pub(super) async fn deployed(
    session: Session,
    name: ProcessorName,
    params: DeployParams,
    next: NextSpec,
    now: Timestamp,
) -> Result<Response, ApiError> {
    let from = params.from.as_deref();
    let begin_at = from.map(|from| begin_at("from", from, now)).transpose()?;
    let before = session.processors().deployed_as(&name);
    let status = match before {
        Some(_) => StatusCode::OK,
        None => StatusCode::CREATED,
    };
    let next = next.expecting(params.expected_revision);
    let next = next.beginning_at(begin_at);
    let processor = match (params.canary, params.reset_state) {
        (Some(percent), _) => {
            session
                .processors()
                .deploy_canary(&name, next, percent)
                .await?
        }
        _ if params.shadow => session.processors().deploy_shadow(&name, next).await?,
        (None, true) => {
            session
                .processors()
                .deploy_and_reset_state(&name, next)
                .await?
        }
        (None, false) => session.processors().deploy(&name, next).await?,
    };
    let answer = DeployedBody::after(&session, before.as_ref(), processor).await;
    Ok((status, Json(answer)).into_response())
}

/// Parses `from`, or another field with the same format.
pub(super) fn begin_at(what: &str, text: &str, now: Timestamp) -> Result<BeginAt, ApiError> {
    let wrong = |why: &str| {
        let message = format!("{what}={text:?} is not a start position{why}");
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
    /// The processor now, with what has changed since `before`.
    pub(super) async fn after(
        session: &Session,
        before: Option<&Processor>,
        processor: Processor,
    ) -> Self {
        let differs = before.and_then(|before| changed(before, &processor));
        let differs = differs.map(|(old, new)| differences(&old.spec, &new.spec));
        let last = processor.changes.last();
        let is_new = before.is_some_and(|before| before.changes.last() != last);
        let way_back = match processor.trial {
            Some(_) => Some(processor.current),
            None => session.catalogue().way_back_of(&processor),
        };
        let last = last.filter(|_| is_new);
        // The change was made, even if what it leaves behind cannot be determined.
        let left_behind = session.catalogue().left_behind(&processor.name).await;
        Self {
            differs: differs.unwrap_or_default(),
            created: before.is_none(),
            note: last.and_then(|last| note(before, &processor, last, way_back)),
            way_back,
            left_behind: left_behind.unwrap_or_default(),
            processor,
        }
    }

    /// Makes a change of a processor, to the end even if the caller leaves, and says what changed.
    pub(super) async fn by(
        app: &Called,
        name: ProcessorName,
        change: impl Future<Output = Result<Processor, ProcessorError>> + Send + 'static,
    ) -> Result<Self, ApiError> {
        let session = app.session.clone();
        to_the_end(async move {
            let before = session.processors().deployed_as(&name);
            let after = change.await?;
            Ok(Self::after(&session, before.as_ref(), after).await)
        })
        .await
    }

    /// The number of the current revision.
    pub(super) fn current(&self) -> u32 {
        self.processor.current
    }

    /// With this note, unless it has one.
    pub(super) fn noting(mut self, note: String) -> Self {
        self.note.get_or_insert(note);
        self
    }
}

/// What to say about a change beyond that it was made.
fn note(
    before: Option<&Processor>,
    processor: &Processor,
    change: &Change,
    way_back: Option<u32>,
) -> Option<String> {
    let (name, current) = (&processor.name, processor.current);
    // The specification of such a revision is the same as before; only its trial differs.
    let was_tried = before.and_then(Processor::on_trial) == Some(change.revision);
    match change.what {
        ChangeKind::Canary if was_tried => {
            let share = change.text.as_deref().unwrap_or("a share of the keys");
            Some(format!("revision {} now gets {share}", change.revision))
        }
        ChangeKind::Shadow if was_tried => {
            Some(format!("revision {} is now a shadow", change.revision))
        }
        // Deploying the same again changes nothing, unless the state is emptied.
        ChangeKind::Deploy if has_same_spec(before, processor) => Some(format!(
            "revision {current} has the same specification, and begins with empty state"
        )),
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

fn has_same_spec(before: Option<&Processor>, now: &Processor) -> bool {
    let compared = before.and_then(|before| changed(before, now));
    compared.is_some_and(|(old, new)| old.spec == new.spec)
}

/// The revisions to compare: one on trial now with the current one, a current one with the previously current one.
fn changed<'a>(before: &'a Processor, now: &'a Processor) -> Option<(&'a Revision, &'a Revision)> {
    let is_new = |&number: &u32| before.on_trial() != Some(number);
    if let Some(number) = now.on_trial().filter(is_new) {
        return Some((now.current()?, now.revision(number)?));
    }
    let current = now.current().filter(|now| now.number != before.current)?;
    // Someone else may have deployed since `before` was read.
    let is_new = before.revisions.iter().all(|r| r.number < current.number);
    let predecessor = current.predecessor.filter(|_| is_new);
    let predecessor = predecessor.and_then(|number| now.revision(number));
    Some((predecessor.or_else(|| before.current())?, current))
}

impl Called {
    /// Changes in the broker's form: only known fields, with modules by digest.
    fn changes(
        &self,
        mut changes: Map<String, Value>,
    ) -> Result<(Map<String, Value>, ConfigChange), ApiError> {
        for field in ["topics", "module"] {
            if changes.get(field) == Some(&Value::Null) {
                let message = format!("{field} has no default, and cannot be null");
                return Err(ApiError::malformed(message, "omit it to keep it as it is"));
            }
        }
        // Parsed like a whole specification, so that mistakes get the same answers.
        let mut whole = any_spec();
        merge_known(&mut whole, &changes);
        let config = of_value::<SpecBody>(Value::Object(whole))?.config(false);
        // Null, which resets any field, removes all settings.
        let config = match changes.remove("config") {
            Some(Value::Null) => ConfigChange {
                replaces: true,
                ..config
            },
            _ => config,
        };
        for field in ["module", "error_handler"] {
            if let Some(Value::String(reference)) = changes.get_mut(field) {
                *reference = self.digest_of(reference)?.to_string();
            }
        }
        Ok((changes, config))
    }
}

/// Checks whether fields make a whole specification; otherwise what is wrong with them, and what to do.
pub(crate) fn check_spec(spec: &Value) -> Result<(), (String, String)> {
    let understood = of_value::<SpecBody>(spec.clone());
    understood.map(drop).map_err(|error| {
        let (message, hint) = error.into_parts();
        let message = message.trim_start_matches("the JSON is invalid: ");
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
        "grants": Grants::default(),
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

/// Like a merge patch, but a null for an unknown field is kept, because it is a mistake, too.
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
