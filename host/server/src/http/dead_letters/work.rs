//! Actions on dead letters: redrive, edit, dry run; and their audit trail.

use std::num::NonZeroU32;

use axum::Json;
use axum::body::Body;
use axum::http::HeaderMap;
use bytes::Bytes;
use millrace_broker::{
    AuditPage, DryRun, DryRunOutcome, DryRunOutput, DryRunRequest, LetterEdit, MessagePlace,
    RedriveRequest, Redriven,
};
use millrace_model::{Offset, PartitionId, ProcessorName, TopicName};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::ToSchema;

use super::super::app::to_the_end;
use super::super::body::json;
use super::super::bounds::PRODUCE_BODY_BYTES_MAX;
use super::super::by::ByHeader;
use super::super::called::Called;
use super::super::error::{ApiError, ErrorBody};
use super::super::messages::{HeaderPart, HeaderValue, ListedIn, Pairs, entry, headers_of, one_of};
use super::super::query::{InPath, InQuery};
use super::find::{DeadLetterPlaceBody, Find, place, which};

/// Default number of dead letters in a dry run.
const TRIED_DEFAULT: usize = 1_000;
/// Default number of entries of an audit trail.
const AUDIT_DEFAULT: usize = 100;

/// The dead letters to redrive (`{"all": true}`, a list of their places, or a filter), and how.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct RedriveBody {
    #[serde(default)]
    all: bool,
    dead_letters: Option<Vec<DeadLetterPlaceBody>>,
    filter: Option<Find>,
    /// Maximum number per second. Such a redrive answers after ten seconds at the latest: if there is more to do, send `next` as the
    /// filter's `from`, and `started_at` as its `until`.
    #[schema(value_type = Option<u32>)]
    per_second: Option<NonZeroU32>,
    /// Include those that were redriven three times before and failed each time. Dead letters given by place are sent in any case.
    #[serde(default)]
    again: bool,
}

/// Redrives dead letters, to this processor only; each at most once. Stops if the caller disconnects.
#[utoipa::path(post, path = "/v1/processors/{name}/dead-letters/redrive", tag = "dead letters",
    params(("name" = String, Path,), ByHeader),
    request_body = RedriveBody,
    responses(
        (status = 200, body = Redriven),
        (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "The processor is not deployed, or reads none of the topics that they came from; or the audit trail cannot be written"),
        (status = 503, body = ErrorBody, description = "The engine accepts no commits now; dead letters already sent stay sent"),
    )
)]
pub(in super::super) async fn redrive(
    app: Called,
    InPath(name): InPath<ProcessorName>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Redriven>, ApiError> {
    let body: RedriveBody = app.take_json(&headers, body).await?;
    let (which, letters_max) = which(body.all, body.dead_letters, body.filter, app.clock.wall())?;
    let request = RedriveRequest {
        which,
        letters_max,
        per_second: body.per_second,
        again: body.again,
    };
    // It stops between two transactions: what was sent stays sent, and a repeated request does not send it again.
    let redriven = app.unless_stopping(app.session.dead_letters().redrive(&name, request));
    Ok(Json(redriven.await?))
}

/// The changes to a message; omitted fields stay as they are.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct EditBody {
    /// A new key; null removes it.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    key: Option<Option<String>>,
    /// As `key`, for bytes that are not text.
    key_base64: Option<String>,
    /// A new value; null removes it.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    value: Option<Option<String>>,
    /// As `value`, for bytes that are not text.
    value_base64: Option<String>,
    /// Headers to set, from name to value or to a list of values: they replace those of the same name.
    #[schema(value_type = Option<std::collections::HashMap<String, HeaderValue>>)]
    headers: Option<Pairs>,
    /// Like `headers`, for values that are not text, in base64.
    #[schema(value_type = Option<std::collections::HashMap<String, HeaderValue>>)]
    headers_base64: Option<Pairs>,
    /// Headers to set exactly, in order: pairs of name and value; bytes that are not text are `{"base64": "…"}`.
    #[schema(value_type = Option<Vec<Vec<Option<HeaderPart>>>>)]
    header_list: Option<Vec<ListedIn>>,
    /// Names of headers to remove.
    #[serde(default)]
    remove_headers: Vec<String>,
}

/// Distinguishes null from an omitted field.
fn given<'de, D: Deserializer<'de>>(field: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(field).map(Some)
}

impl EditBody {
    fn understood(self) -> Result<LetterEdit, ApiError> {
        let bytes = |text: String| Bytes::from(text);
        let part = |name, text: Option<Option<String>>, encoded| match text {
            Some(None) => Ok(Some(None)),
            text => {
                let text = text.flatten().map(bytes);
                one_of(name, text, encoded).map(|part| part.map(Some))
            }
        };
        Ok(LetterEdit {
            key: part("key", self.key, self.key_base64)?,
            value: part("value", self.value, self.value_base64)?,
            remove_headers: self.remove_headers.into_iter().map(bytes).collect(),
            set_headers: headers_of(self.headers, self.headers_base64, self.header_list)?,
        })
    }
}

/// Sends one dead letter again, edited. The dead letter itself stays unchanged; the audit trail has digests of both versions.
#[utoipa::path(post, path = "/v1/processors/{name}/dead-letters/{topic}/{partition}/{offset}/edit", tag = "dead letters",
    params(("name" = String, Path,), ("topic" = String, Path,), ("partition" = u32, Path,), ("offset" = u64, Path,),
        ByHeader),
    request_body = EditBody,
    responses(
        (status = 200, body = Redriven),
        (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "It was already redriven"),
        (status = 413, body = ErrorBody),
        (status = 422, body = ErrorBody, description = "The edit is not possible"),
        (status = 503, body = ErrorBody, description = "The engine accepts no commits now; nothing was sent"),
    )
)]
pub(in super::super) async fn edit(
    app: Called,
    InPath((name, topic, partition, offset)): InPath<(ProcessorName, TopicName, u32, u64)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Redriven>, ApiError> {
    let place = MessagePlace {
        topic,
        partition: PartitionId(partition),
        offset: Offset(offset),
    };
    // It may contain a message of any size.
    let taken = app
        .take_body(&headers, body, PRODUCE_BODY_BYTES_MAX)
        .await?;
    let edit = json::<EditBody>(&taken.bytes)?.understood()?;
    let edited = async move {
        let edited = app
            .session
            .dead_letters()
            .edit_and_redrive(&name, &place, edit);
        Ok(Json(edited.await?))
    };
    to_the_end(edited).await
}

/// The dead letters to try (as for a redrive), and the revision.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct DryRunBody {
    #[serde(default)]
    all: bool,
    dead_letters: Option<Vec<DeadLetterPlaceBody>>,
    filter: Option<Find>,
    /// The revision to try; the current one if omitted.
    revision: Option<u32>,
}

/// The result of a dry run.
#[derive(Serialize, ToSchema)]
pub(in super::super) struct DryRunAnswer {
    /// The revision that was tried.
    revision: u32,
    /// How many dead letters it was called with.
    letters: usize,
    /// Its outcomes, the most frequent first.
    outcomes: Vec<DryRunOutcome>,
    /// Number of outputs that would be written.
    outputs: usize,
    /// Some of them: `letter`, `topic`, `key`, `value` (or `key_base64`, `value_base64`), cut to a kilobyte.
    #[schema(value_type = Vec<DryRunOutputSchema>)]
    samples: Vec<Sample>,
    /// Where to continue, as the filter's `from`, if a bound ended the run.
    next: Option<MessagePlace>,
    /// Why the run stopped early, if it did.
    stopped: Option<String>,
}

/// An output that would be written.
#[derive(ToSchema)]
#[schema(as = DryRunOutput)]
#[allow(dead_code, reason = "describes what Sample writes by hand")]
struct DryRunOutputSchema {
    /// The place of the dead letter it comes from.
    letter: String,
    topic: String,
    /// Cut to a kilobyte, like the others.
    key: Option<String>,
    /// Like `key`, if it is not text.
    key_base64: Option<String>,
    value: Option<String>,
    /// Like `value`, if it is not text.
    value_base64: Option<String>,
    /// Whether any of it was cut.
    is_cut: bool,
}

struct Sample(DryRunOutput);

impl Serialize for Sample {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(output) = self;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("letter", &output.letter)?;
        map.serialize_entry("topic", &output.topic)?;
        entry(&mut map, "key", "key_base64", output.key.as_deref())?;
        entry(&mut map, "value", "value_base64", output.value.as_deref())?;
        map.serialize_entry("is_cut", &output.is_cut)?;
        map.end()
    }
}

impl From<DryRun> for DryRunAnswer {
    fn from(run: DryRun) -> Self {
        Self {
            revision: run.revision,
            letters: run.letters,
            outcomes: run.outcomes,
            outputs: run.outputs,
            samples: run.samples.into_iter().map(Sample).collect(),
            next: run.next,
            stopped: run.stopped,
        }
    }
}

/// Tries dead letters with a revision, and reports what would happen: nothing is committed, and writes to state are discarded.
#[utoipa::path(post, path = "/v1/processors/{name}/dead-letters/dry-run", tag = "dead letters",
    params(("name" = String, Path,)), request_body = DryRunBody,
    responses(
        (status = 200, body = DryRunAnswer),
        (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody, description = "The processor, the revision, a module or a dead letter is unknown"),
        (status = 409, body = ErrorBody, description = "The topic that they came from was deleted, and the revision uses its state"),
        (status = 422, body = ErrorBody, description = "The revision cannot be loaded"),
        (status = 429, body = ErrorBody, description = "The maximum number of dry runs is running"),
        (status = 503, body = ErrorBody),
    )
)]
pub(in super::super) async fn dry_run(
    app: Called,
    InPath(name): InPath<ProcessorName>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<DryRunAnswer>, ApiError> {
    let body: DryRunBody = app.take_json(&headers, body).await?;
    let (which, letters_max) = which(body.all, body.dead_letters, body.filter, app.clock.wall())?;
    let request = DryRunRequest {
        which,
        revision: body.revision,
        letters_max: letters_max.unwrap_or(TRIED_DEFAULT),
    };
    let run = app.unless_stopping(app.session.dead_letters().dry_run(&name, request));
    Ok(Json(run.await?.into()))
}

#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(in super::super) struct AuditQuery {
    /// Where to continue: the `next` of an earlier answer.
    #[serde(deserialize_with = "place")]
    #[param(value_type = Option<String>)]
    from: Option<MessagePlace>,
    /// Maximum number of entries.
    #[param(default = 100)]
    max: usize,
}

impl Default for AuditQuery {
    fn default() -> Self {
        Self {
            from: None,
            max: AUDIT_DEFAULT,
        }
    }
}

/// The audit trail of a processor's dead letters: what was done, when, and by whom as claimed. Oldest first, partition by partition.
#[utoipa::path(get, path = "/v1/processors/{name}/dead-letters/audit", tag = "dead letters",
    params(("name" = String, Path,), AuditQuery),
    responses(
        (status = 200, body = AuditPage),
        (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody),
    )
)]
pub(in super::super) async fn audit(
    app: Called,
    InPath(name): InPath<ProcessorName>,
    InQuery(query): InQuery<AuditQuery>,
) -> Result<Json<AuditPage>, ApiError> {
    let from = query.from.as_ref();
    Ok(Json(
        app.session
            .dead_letters()
            .audit(&name, from, query.max)
            .await?,
    ))
}
