//! Delayed messages over HTTP: the time of delivery, the list of waiting messages, and cancelling one.

use axum::http::StatusCode;
use axum::response::Response;
use millrace_broker::{DelayedId, DelayedMessage, DelayedPage, DelayedQuery, DueAt};
use millrace_model::unit::check_ms;
use millrace_model::{Code, PartitionId, Timestamp, TopicName};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::app::to_the_end;
use super::bounds::DELAYED_ROOM_BYTES;
use super::called::Called;
use super::error::{ApiError, ErrorBody};
use super::messages::{MessageOut, MessageSchema};
use super::query::{InPath, InQuery};
use crate::units::time_ms;

/// The accepted formats of a time.
pub(super) const TIME_HINT: &str = "write milliseconds since the Unix epoch, 2026-11-21T10:00:00Z, 2026-11-21, now, 15m (ago) or +15m (from now)";

/// A time, as people and programs write it.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(
    untagged,
    expecting = "milliseconds since the Unix epoch, or a text such as 2026-11-21T10:00:00Z or 15m"
)]
pub(super) enum Moment {
    Ms(u64),
    Text(String),
}

impl Moment {
    fn ms(&self, now: Timestamp) -> Result<u64, String> {
        match self {
            Self::Ms(ms) => check_ms(*ms, now).map_err(|unit| unit.to_string()),
            Self::Text(text) => time_ms(text, now),
        }
    }

    /// The value of a field.
    pub(super) fn understood(&self, field: &str, now: Timestamp) -> Result<Timestamp, ApiError> {
        let ms = self.ms(now);
        ms.map(Timestamp)
            .map_err(|why| ApiError::malformed(format!("{field}: {why}"), TIME_HINT))
    }
}

/// The time of delivery from the two ways to give it; `None` is at once.
pub(super) fn due(
    deliver_at: Option<&Moment>,
    delay_ms: Option<u64>,
    now: Timestamp,
) -> Result<Option<DueAt>, ApiError> {
    match (deliver_at, delay_ms) {
        (Some(_), Some(_)) => {
            let message = "both deliver_at and delay_ms are given";
            Err(ApiError::malformed(message, "give one of them"))
        }
        (None, delay_ms) => Ok(delay_ms.map(|ms| DueAt::after(now, ms))),
        (Some(moment), None) => {
            let time = moment.understood("deliver_at", now)?;
            Ok(Some(time.into()))
        }
    }
}

#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct DelayedParams {
    /// Only those for this partition.
    partition: Option<u32>,
    /// Only those after this id, to continue a list.
    after: Option<String>,
    /// Maximum number of messages.
    #[serde(default = "max_default")]
    #[param(default = 100)]
    max: usize,
}

fn max_default() -> usize {
    100
}

/// Waiting messages.
#[derive(ToSchema)]
#[schema(as = Delayed)]
#[allow(dead_code, reason = "describes what written writes by hand")]
pub(super) struct DelayedBody {
    /// All that wait for this topic.
    total: usize,
    /// Whether there are more: ask for those after the last one.
    has_more: bool,
    /// By partition, then by time of delivery.
    delayed: Vec<Shown<'static>>,
}

/// A message that waits for its time.
#[derive(Serialize, ToSchema)]
#[schema(as = DelayedMessage)]
struct Shown<'a> {
    /// The id, to cancel it.
    #[schema(value_type = String)]
    id: DelayedId,
    partition: PartitionId,
    /// Milliseconds since the Unix epoch.
    deliver_at: Timestamp,
    #[schema(value_type = MessageSchema)]
    message: MessageOut<'a>,
}

impl<'a> From<&'a DelayedMessage> for Shown<'a> {
    fn from(delayed: &'a DelayedMessage) -> Self {
        Self {
            id: delayed.id,
            partition: delayed.id.partition(),
            deliver_at: delayed.id.due(),
            message: MessageOut {
                place: None,
                message: &delayed.message,
            },
        }
    }
}

#[derive(Serialize)]
struct Listed<'a> {
    total: usize,
    has_more: bool,
    delayed: Vec<Shown<'a>>,
}

impl<'a> From<&'a DelayedPage> for Listed<'a> {
    fn from(page: &'a DelayedPage) -> Self {
        Self {
            total: page.total,
            has_more: page.has_more,
            delayed: page.messages.iter().map(Shown::from).collect(),
        }
    }
}

/// Waiting messages, by partition and time: at most 1,000 and 4 MiB of them.
#[utoipa::path(get, path = "/v1/topics/{topic}/delayed", tag = "messages",
    params(("topic" = String, Path,), DelayedParams), responses(
    (status = 200, body = DelayedBody),
    (status = 400, body = ErrorBody),
    (status = 404, body = ErrorBody),
    (status = 503, body = ErrorBody),
))]
pub(super) async fn list(
    app: Called,
    InPath(topic): InPath<TopicName>,
    InQuery(params): InQuery<DelayedParams>,
) -> Result<Response, ApiError> {
    let after = params.after.map(|id| id.parse::<DelayedId>()).transpose();
    let after = after.map_err(|error| {
        ApiError::malformed(
            format!("after: {error}"),
            "use the id of the last one shown",
        )
    })?;
    let query = DelayedQuery {
        partition: params.partition.map(PartitionId),
        after,
        max: params.max,
    };
    let room = app.answer_room(DELAYED_ROOM_BYTES).await?;
    let page = app.session.messages().delayed(&topic, &query).await?;
    let written = serde_json::to_vec(&Listed::from(&page));
    let written = written.map_err(|error| ApiError::internal(error.to_string()))?;
    Ok(room.answer("application/json", written))
}

/// Cancels a delayed message: it is never delivered. 404 if it was already delivered.
#[utoipa::path(delete, path = "/v1/topics/{topic}/delayed/{id}", tag = "messages",
    params(("topic" = String, Path,), ("id" = String, Path,)), responses(
    (status = 204, description = "Cancelled"),
    (status = 404, body = ErrorBody, description = "`unknown-delayed-message`: it was already delivered or cancelled, or never existed"),
    (status = 503, body = ErrorBody),
))]
pub(super) async fn cancel(
    app: Called,
    InPath((topic, id)): InPath<(TopicName, String)>,
) -> Result<StatusCode, ApiError> {
    let known = id.parse::<DelayedId>();
    let known = known
        .map_err(|error| ApiError::of(Code::UnknownDelayedMessage, format!("{id:?}: {error}")))?;
    to_the_end(async move { Ok(app.session.messages().cancel_delayed(&topic, known).await?) })
        .await?;
    Ok(StatusCode::NO_CONTENT)
}
