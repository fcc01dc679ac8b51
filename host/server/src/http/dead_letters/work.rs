//! What is done with dead letters: sent again, changed, tried with a revision; and what was done with them before.

use std::num::NonZeroU32;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use bytes::Bytes;
use millrace_broker::{
    AuditPage, DeadLetterPlace, DryRun, DryRunOutcome, DryRunOutput, DryRunRequest, LetterEdit,
    RedriveRequest, Redriven,
};
use millrace_model::{Offset, PartitionId, ProcessorName, TopicName};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::ToSchema;

use super::super::app::{Shared, to_the_end};
use super::super::body::json;
use super::super::bounds::PRODUCE_BODY_BYTES_MAX;
use super::super::by::{By, ByHeader};
use super::super::error::{ApiError, ErrorBody};
use super::super::messages::{HeaderPart, HeaderValue, ListedIn, Pairs, entry, headers_of, one_of};
use super::super::query::{InPath, InQuery};
use super::super::shapes::{
    AuditPageSchema, DryRunOutcomeSchema, DryRunOutputSchema, RedrivenSchema,
};
use super::find::{DeadLetterPlaceBody, Find, place, which};

/// Letters of a dry run that does not say how many.
const TRIED_DEFAULT: usize = 1_000;
/// Entries of an audit trail that does not say how many.
const AUDIT_DEFAULT: usize = 100;

/// Which dead letters to send again (`{"all": true}`, a list of their places, or a filter), and how.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct RedriveBody {
    #[serde(default)]
    all: bool,
    dead_letters: Option<Vec<DeadLetterPlaceBody>>,
    filter: Option<Find>,
    /// At most so many a second. Such a redrive answers after ten seconds at the latest: where there is more to do, `next` is to be
    /// sent as the filter's `from`, and `started_at` as its `until`.
    #[schema(value_type = Option<u32>)]
    per_second: Option<NonZeroU32>,
    /// Also those that were sent again three times before and died each time. Letters that are named are sent in any case.
    #[serde(default)]
    again: bool,
}

/// Sends dead letters again, to this processor only; each at most once. It stops if the caller goes away.
#[utoipa::path(post, path = "/v1/processors/{name}/dead-letters/redrive", tag = "dead letters",
    params(("name" = String, Path,), ByHeader),
    request_body = RedriveBody,
    responses(
        (status = 200, body = RedrivenSchema),
        (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "Nobody would take them: the processor is not deployed, or reads none of the topics that they came from; or it cannot be put on record"),
        (status = 503, body = ErrorBody, description = "The engine takes no commits now; what was sent stays sent"),
    )
)]
pub(in super::super) async fn redrive(
    State(app): Shared,
    InPath(name): InPath<ProcessorName>,
    By(by): By,
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
        by,
    };
    // It stops between two transactions: what was sent stays sent, and is not sent again by whoever asks again.
    let redriven = app.unless_stopping(app.broker.redrive(&name, request));
    Ok(Json(redriven.await?))
}

/// What is to be different about a message; what is not named stays as it is.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct EditBody {
    /// Another key; null takes it off.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    key: Option<Option<String>>,
    /// As `key`, for bytes that are not text.
    key_base64: Option<String>,
    /// Another value; null takes it off.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    value: Option<Option<String>>,
    /// As `value`, for bytes that are not text.
    value_base64: Option<String>,
    /// Headers to set, name to value or to a list of values: they take the place of those of their name.
    #[schema(value_type = Option<std::collections::HashMap<String, HeaderValue>>)]
    headers: Option<Pairs>,
    /// As `headers`, of values that are not text, in base64.
    #[schema(value_type = Option<std::collections::HashMap<String, HeaderValue>>)]
    headers_base64: Option<Pairs>,
    /// Headers to set exactly, in order: pairs of name and value, where bytes that are no text are `{"base64": "…"}`.
    #[schema(value_type = Option<Vec<Vec<Option<HeaderPart>>>>)]
    header_list: Option<Vec<ListedIn>>,
    /// Names of headers to take off.
    #[serde(default)]
    remove_headers: Vec<String>,
}

/// Null is something else than nothing.
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

/// Sends one dead letter again, changed. The letter itself stays as it died; the audit trail has digests of both.
#[utoipa::path(post, path = "/v1/processors/{name}/dead-letters/{topic}/{partition}/{offset}/edit", tag = "dead letters",
    params(("name" = String, Path,), ("topic" = String, Path,), ("partition" = u32, Path,), ("offset" = u64, Path,),
        ByHeader),
    request_body = EditBody,
    responses(
        (status = 200, body = RedrivenSchema),
        (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "It was sent again already"),
        (status = 413, body = ErrorBody),
        (status = 422, body = ErrorBody, description = "It cannot be changed so"),
        (status = 503, body = ErrorBody, description = "The engine takes no commits now; nothing was sent"),
    )
)]
pub(in super::super) async fn edit(
    State(app): Shared,
    InPath((name, topic, partition, offset)): InPath<(ProcessorName, TopicName, u32, u64)>,
    By(by): By,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Redriven>, ApiError> {
    let place = DeadLetterPlace {
        topic,
        partition: PartitionId(partition),
        offset: Offset(offset),
    };
    // It may carry a message of any size.
    let taken = app
        .take_body(&headers, body, PRODUCE_BODY_BYTES_MAX)
        .await?;
    let edit = json::<EditBody>(&taken.bytes)?.understood()?;
    let edited = async move {
        let edited = app.broker.edit_and_redrive(&name, &place, edit, &by);
        Ok(Json(edited.await?))
    };
    to_the_end(edited).await
}

/// Which dead letters to try (as for a redrive), and with what.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct DryRunBody {
    #[serde(default)]
    all: bool,
    dead_letters: Option<Vec<DeadLetterPlaceBody>>,
    filter: Option<Find>,
    /// The revision to try; the current one without.
    revision: Option<u32>,
}

/// What would come of it.
#[derive(Serialize, ToSchema)]
pub(in super::super) struct DryRunAnswer {
    /// The revision that was tried.
    revision: u32,
    /// Letters that it was called with.
    letters: usize,
    /// What it made of them, the most frequent first.
    #[schema(value_type = Vec<DryRunOutcomeSchema>)]
    outcomes: Vec<DryRunOutcome>,
    /// Outputs that there would be.
    outputs: usize,
    /// Some of them: `letter`, `topic`, `key`, `value` (or `key_base64`, `value_base64`), cut to a kilobyte.
    #[schema(value_type = Vec<DryRunOutputSchema>)]
    samples: Vec<Sample>,
    /// Where to go on, as the filter's `from`, if a bound ended it.
    #[schema(value_type = Option<String>)]
    next: Option<DeadLetterPlace>,
    /// Why it could not go on, if it could not.
    stopped: Option<String>,
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

/// Tries dead letters with a revision, and says what would come of it: nothing is committed, state is thrown away.
#[utoipa::path(post, path = "/v1/processors/{name}/dead-letters/dry-run", tag = "dead letters",
    params(("name" = String, Path,)), request_body = DryRunBody,
    responses(
        (status = 200, body = DryRunAnswer),
        (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody, description = "The processor, the revision, a module or a dead letter is unknown"),
        (status = 409, body = ErrorBody, description = "The topic that they came from is gone, whose state the revision uses"),
        (status = 422, body = ErrorBody, description = "The revision cannot be loaded"),
        (status = 429, body = ErrorBody, description = "As many dry runs are under way as there may be"),
        (status = 503, body = ErrorBody),
    )
)]
pub(in super::super) async fn dry_run(
    State(app): Shared,
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
    let run = app.unless_stopping(app.broker.dry_run(&name, request));
    Ok(Json(run.await?.into()))
}

#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(in super::super) struct AuditQuery {
    /// From here on: the `next` of an earlier answer.
    #[serde(deserialize_with = "place")]
    #[param(value_type = Option<String>)]
    from: Option<DeadLetterPlace>,
    /// Entries at the most.
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

/// What was done with a processor's dead letters, when, and by whom as the caller claimed. Oldest first, partition by partition.
#[utoipa::path(get, path = "/v1/processors/{name}/dead-letters/audit", tag = "dead letters",
    params(("name" = String, Path,), AuditQuery),
    responses(
        (status = 200, body = AuditPageSchema),
        (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody),
    )
)]
pub(in super::super) async fn audit(
    State(app): Shared,
    InPath(name): InPath<ProcessorName>,
    InQuery(query): InQuery<AuditQuery>,
) -> Result<Json<AuditPage>, ApiError> {
    let from = query.from.as_ref();
    Ok(Json(app.broker.audit(&name, from, query.max).await?))
}
