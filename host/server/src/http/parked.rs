//! Parked messages over HTTP: those of a processor, until when and why they wait; trying them now, or giving them up.

use axum::Json;
use axum::body::Body;
use axum::http::HeaderMap;
use bytes::Bytes;
use millrace_broker::{
    MessagePlace, ParkedAction, ParkedDone, ParkedMessage, ParkedQuery, WhichParked,
};
use millrace_model::{PartitionId, ProcessorName, TopicName};
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};
use utoipa::ToSchema;

use super::app::to_the_end;
use super::by::ByHeader;
use super::called::Called;
use super::error::{ApiError, ErrorBody};
use super::messages::entry;
use super::query::{InPath, InQuery};

#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ParkedParams {
    /// Only those in this topic.
    #[param(value_type = Option<String>)]
    topic: Option<TopicName>,
    /// Only those in partitions with this number.
    partition: Option<u32>,
    /// Only those whose last attempt failed with this class.
    class: Option<String>,
    /// Where to continue: the `next` of an earlier answer.
    from: Option<String>,
    /// Maximum number of messages, never more than 1,000.
    #[serde(default = "max_default")]
    #[param(default = 100)]
    max: usize,
}

fn max_default() -> usize {
    100
}

/// Parked messages.
#[derive(Serialize, ToSchema)]
pub(super) struct ParkedBody {
    /// All that match, on any page.
    total: usize,
    /// Where to continue, as `from`; null at the end.
    next: Option<MessagePlace>,
    /// By topic, partition and offset.
    #[schema(value_type = Vec<ParkedMessageSchema>)]
    parked: Vec<Shown>,
}

/// A message that waits for its next attempt, or behind another one with its key.
#[derive(ToSchema)]
#[schema(as = ParkedMessage)]
#[allow(dead_code, reason = "describes what Shown writes")]
pub(super) struct ParkedMessageSchema {
    topic: String,
    partition: u32,
    offset: u64,
    /// Its first kilobyte; null without a key.
    key: Option<String>,
    /// Instead of `key`, for bytes that are not UTF-8.
    key_base64: Option<String>,
    /// Attempts so far.
    attempts: u32,
    /// When it is tried again, in milliseconds since the Unix epoch; null if it only waits behind another one.
    due: Option<u64>,
    /// The offset of the message that it waits behind; null if there is none.
    behind: Option<u64>,
    /// Since when it is held, because the revision that failed is not proven; null if it is not held.
    held_since: Option<u64>,
    first_failed_at: Option<u64>,
    /// The class of its last attempt.
    class: Option<String>,
    /// The reason of its last attempt.
    reason: Option<String>,
}

struct Shown(ParkedMessage);

impl Serialize for Shown {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(message) = self;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("topic", &message.topic)?;
        map.serialize_entry("partition", &message.partition)?;
        map.serialize_entry("offset", &message.offset)?;
        let key = message.key.as_ref().map(whole_characters);
        entry(&mut map, "key", "key_base64", key.as_deref())?;
        map.serialize_entry("attempts", &message.attempts)?;
        map.serialize_entry("due", &message.due)?;
        map.serialize_entry("behind", &message.behind)?;
        map.serialize_entry("held_since", &message.held_since)?;
        map.serialize_entry("first_failed_at", &message.first_failed_at)?;
        map.serialize_entry("class", &message.class)?;
        map.serialize_entry("reason", &message.reason)?;
        map.end()
    }
}

/// A key that was cut within a character still counts as text.
fn whole_characters(key: &Bytes) -> Bytes {
    match str::from_utf8(key) {
        Err(error) if error.error_len().is_none() => key.slice(..error.valid_up_to()),
        _ => key.clone(),
    }
}

/// A processor's parked messages, which wait for their next attempt or behind another one with their key.
#[utoipa::path(get, path = "/v1/processors/{name}/parked", tag = "processors", params(("name" = String, Path,), ParkedParams), responses(
    (status = 200, body = ParkedBody, description = "A page of them"),
    (status = 400, body = ErrorBody, description = "The query is invalid"),
    (status = 404, body = ErrorBody, description = "The processor does not exist"),
    (status = 503, body = ErrorBody, description = "They cannot be read now"),
))]
pub(super) async fn list(
    app: Called,
    InPath(name): InPath<ProcessorName>,
    InQuery(params): InQuery<ParkedParams>,
) -> Result<Json<ParkedBody>, ApiError> {
    let from = params.from.map(|text| text.parse::<MessagePlace>());
    let from = from.transpose().map_err(|why| {
        ApiError::malformed(format!("from: {why}"), "use the next of an earlier answer")
    })?;
    let query = ParkedQuery {
        topic: params.topic,
        partition: params.partition.map(PartitionId),
        class: params.class,
        from,
        max: params.max,
    };
    let page = app.session.processors().parked(&name, &query).await?;
    Ok(Json(ParkedBody {
        total: page.total,
        next: page.next,
        parked: page.messages.into_iter().map(Shown).collect(),
    }))
}

/// Which parked messages: a list of their places (`TOPIC/PARTITION/OFFSET`), all of a class, or all.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct WhichBody {
    /// As in the list.
    #[serde(default)]
    messages: Option<Vec<PlaceOfParked>>,
    /// Those whose last attempt failed with this class.
    #[serde(default)]
    class: Option<String>,
    #[serde(default)]
    all: bool,
}

/// The place of a parked message.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct PlaceOfParked {
    topic: TopicName,
    partition: u32,
    offset: u64,
}

impl WhichBody {
    fn understood(self) -> Result<WhichParked, ApiError> {
        match (self.messages, self.class, self.all) {
            (Some(places), None, false) => {
                let place = |place: PlaceOfParked| MessagePlace {
                    topic: place.topic,
                    partition: PartitionId(place.partition),
                    offset: millrace_model::Offset(place.offset),
                };
                Ok(WhichParked::Places(places.into_iter().map(place).collect()))
            }
            (None, Some(class), false) => Ok(WhichParked::Class(class)),
            (None, None, true) => Ok(WhichParked::All),
            _ => Err(ApiError::malformed(
                "the request does not select any parked messages",
                r#"send {"messages":[{"topic","partition","offset"}]}, {"class":"…"} or {"all":true}"#,
            )),
        }
    }
}

/// The result.
#[derive(Serialize, ToSchema)]
pub(super) struct ParkedDoneBody {
    /// How many messages it was applied to.
    done: usize,
    /// Messages that were left, with the reason.
    left: Vec<LeftBody>,
}

#[derive(Serialize, ToSchema)]
struct LeftBody {
    /// `TOPIC/PARTITION/OFFSET`; if messages were not named, any offset of their partition.
    message: MessagePlace,
    why: String,
}

impl From<ParkedDone> for ParkedDoneBody {
    fn from(done: ParkedDone) -> Self {
        let left = |(message, why)| LeftBody { message, why };
        Self {
            done: done.done,
            left: done.left.into_iter().map(left).collect(),
        }
    }
}

/// Tries parked messages now, whatever they wait for; if the processor is paused, once it is resumed. A message that waits behind
/// another one keeps waiting.
#[utoipa::path(post, path = "/v1/processors/{name}/parked/try-now", tag = "processors", params(("name" = String, Path,), ByHeader),
    request_body = WhichBody,
    responses(
        (status = 200, body = ParkedDoneBody, description = "What was done, and what was not"),
        (status = 400, body = ErrorBody, description = "The request does not select any messages"),
        (status = 404, body = ErrorBody, description = "The processor does not exist"),
        (status = 503, body = ErrorBody, description = "They cannot be read now"),
    )
)]
pub(super) async fn try_now(
    app: Called,
    name: InPath<ProcessorName>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<ParkedDoneBody>, ApiError> {
    act(app, name, headers, body, ParkedAction::TryNow).await
}

/// Gives parked messages up: they become dead letters with all their evidence, and messages behind them continue. Also works on a
/// paused processor.
#[utoipa::path(post, path = "/v1/processors/{name}/parked/give-up", tag = "processors", params(("name" = String, Path,), ByHeader),
    request_body = WhichBody,
    responses(
        (status = 200, body = ParkedDoneBody, description = "What was done, and what was not"),
        (status = 400, body = ErrorBody, description = "The request does not select any messages"),
        (status = 404, body = ErrorBody, description = "The processor does not exist"),
        (status = 503, body = ErrorBody, description = "They cannot be read now"),
    )
)]
pub(super) async fn give_up(
    app: Called,
    name: InPath<ProcessorName>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<ParkedDoneBody>, ApiError> {
    act(app, name, headers, body, ParkedAction::GiveUp).await
}

async fn act(
    app: Called,
    InPath(name): InPath<ProcessorName>,
    headers: HeaderMap,
    body: Body,
    action: ParkedAction,
) -> Result<Json<ParkedDoneBody>, ApiError> {
    let which = app.take_json::<WhichBody>(&headers, body).await?;
    let which = which.understood()?;
    let session = app.session.clone();
    to_the_end(async move {
        let done = session
            .processors()
            .do_with_parked(&name, which, action)
            .await?;
        Ok(Json(done.into()))
    })
    .await
}
