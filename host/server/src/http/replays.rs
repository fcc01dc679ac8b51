//! Replays over HTTP: a time range through a revision again, into another topic.

use axum::Json;
use axum::body::Body;
use axum::http::{HeaderMap, StatusCode};
use millrace_broker::ReplayRequest;
use millrace_model::{Processor, ProcessorName, Timestamp, TopicName};
use serde::Deserialize;
use utoipa::ToSchema;

use super::app::to_the_end;
use super::by::ByHeader;
use super::called::Called;
use super::delays::Moment;
use super::error::{ApiError, ErrorBody};
use super::query::InPath;
use super::shapes::ProcessorSchema;

/// What to replay.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ReplayBody {
    /// The revision to run; the current one if omitted.
    revision: Option<u32>,
    /// Messages at or after this time: milliseconds since the Unix epoch, or a text such as `2026-11-21T10:00:00Z`, `2026-11-21` or
    /// `-15m`,
    #[schema(value_type = u64)]
    from: Moment,
    /// and before this one; all if omitted. Timestamps need not ascend: all messages in the range are replayed, and no others.
    #[schema(value_type = Option<u64>)]
    until: Option<Moment>,
    /// Where all outputs go, whatever topic they name. The processor must not read it.
    into: TopicName,
    /// The replay's name; if omitted, `NAME-replay-1`, or the next free number.
    #[serde(rename = "as")]
    name: Option<ProcessorName>,
}

/// Replays a time range of the processor's input, through one of its revisions and into another topic. The replay is a processor of its
/// own, with empty state; at the end its partitions are `done`, and then it may be deleted.
#[utoipa::path(post, path = "/v1/processors/{name}/replay", tag = "processors", params(("name" = String, Path,), ByHeader),
    request_body = ReplayBody,
    responses(
        (status = 201, body = ProcessorSchema, description = "The replay"),
        (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody, description = "The processor, the revision or a topic is unknown"),
        (status = 422, body = ErrorBody, description = "Refused; nothing was created"),
    )
)]
pub(super) async fn make(
    app: Called,
    InPath(name): InPath<ProcessorName>,
    headers: HeaderMap,
    body: Body,
) -> Result<(StatusCode, Json<Processor>), ApiError> {
    let body: ReplayBody = app.take_json(&headers, body).await?;
    let now = app.clock.wall();
    let request = ReplayRequest {
        revision: body.revision,
        from: body.from.understood("from", now)?,
        until: match &body.until {
            None => Timestamp(u64::MAX),
            Some(until) => until.understood("until", now)?,
        },
        into: body.into,
        name: body.name,
    };
    let session = app.session.clone();
    to_the_end(async move {
        let replay = session.processors().replay(&name, request).await?;
        Ok((StatusCode::CREATED, Json(replay)))
    })
    .await
}
