//! Produce over HTTP: JSON, JSON lines, or raw bytes. In any form, one request is one commit; with an `Idempotency-Key` it takes effect
//! once however often it is sent.

use std::borrow::Cow;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use millrace_broker::{NewMessage, Placed, ProduceError};
use millrace_model::{Header, Message, PartitionId, ProcessorName, Timestamp, TopicName};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use tokio::sync::SemaphorePermit;
use utoipa::ToSchema;

use super::body::{json, other_encoding};
use super::bounds::{
    FETCH_WAIT_MS_MAX, PRODUCE_BODY_BYTES_MAX, PRODUCE_MESSAGES_MAX, PRODUCE_WAIT_MS,
};
use super::called::Called;
use super::delays::{Moment, due};
use super::error::{ApiError, ErrorBody};
use super::fetch::too_many_waiting;
use super::idempotency::{self, REPLAYED};
use super::kinds::Kind;
use super::messages::MessageIn;
use super::query::{InPath, InQuery};
use crate::text;

const HEADER_PREFIX: &str = "millrace-header-";

/// For raw bodies; in JSON these are fields of each message.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ProduceQuery {
    /// The key of a raw body.
    key: Option<String>,
    /// The partition of a raw body.
    partition: Option<u32>,
    /// The time of delivery of a raw body: milliseconds since the Unix epoch, or a text such as `2026-11-21T10:00:00Z` or `+15m`.
    deliver_at: Option<String>,
    /// Instead of `deliver_at`: the delay after its arrival.
    delay_ms: Option<u64>,
    /// Answer when this processor has settled the messages: it has processed them or given them up, and none is parked.
    #[param(value_type = Option<String>)]
    wait: Option<ProcessorName>,
    /// With `wait`: how long at most, in milliseconds; 10,000 if omitted, and at most 30,000. The messages are stored in any case.
    wait_ms: Option<u64>,
}

/// Many messages.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Many<'a> {
    #[serde(borrow)]
    messages: Vec<MessageIn<'a>>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct PlacedBody {
    count: usize,
    /// For a repeat: an earlier request with this key took effect, and nothing was added now.
    #[serde(skip_serializing_if = "is_false")]
    #[schema(default = false)]
    repeated: bool,
    /// With `wait`: whether the processor has settled the messages; false if the time ran out before.
    #[serde(skip_serializing_if = "Option::is_none")]
    passed: Option<bool>,
    /// The position of each message, in the order sent.
    placed: Vec<PlaceBody>,
}

#[derive(Serialize, ToSchema)]
struct PlaceBody {
    partition: u32,
    /// Absent for a delayed message, which has none yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    /// For a repeat: the message can no longer be read there, because retention, compaction or a trim removed it.
    #[serde(skip_serializing_if = "is_false")]
    #[schema(default = false)]
    gone: bool,
    /// For a delayed message: the id, to cancel it.
    #[serde(skip_serializing_if = "Option::is_none")]
    delayed: Option<String>,
}

/// Appends messages; all of them, or none.
///
/// By content type: `application/json` is one message or `{"messages": […]}`; `application/x-ndjson`, or another of its names such as
/// `application/jsonl`, is one message per line; `application/octet-stream` and `text/plain` are one message whose value is the body,
/// with `?key=`, `?partition=` and `millrace-header-<name>` headers. Any other type, or none, is refused. Text is UTF-8, with or
/// without a byte order mark; lines end with LF or CR LF. A body may be compressed (`Content-Encoding`: gzip, deflate or zstd).
///
/// A message with `deliver_at` or `delay_ms` is stored until then, and the answer has the id to cancel it.
///
/// With `?wait=PROCESSOR` the answer comes when the processor has settled the messages, and says so as `passed`; what it wrote can then
/// be read.
///
/// With the header `Idempotency-Key` the request may be repeated until it is answered, and takes effect once: a repeat gets the first
/// answer, marked `idempotent-replayed: true` and `"repeated": true`, with `"gone": true` on messages that were removed since. A topic
/// remembers its last 100,000 keys, for at most 24 hours.
#[utoipa::path(post, path = "/v1/topics/{topic}/messages", tag = "messages",
    params(
        ("topic" = String, Path,),
        ProduceQuery,
        ("idempotency-key" = Option<String>, Header,
            description = "1 to 255 visible ASCII characters, such as a UUID; a new one for each request"),
    ),
    request_body(content((Many = "application/json"), (MessageIn = "application/x-ndjson"), (Vec<u8> = "application/octet-stream"), (String = "text/plain"))),
    responses(
        (status = 200, body = PlacedBody, description = "Committed", headers(
            ("idempotent-replayed" = Option<bool>, description = "The answer of an earlier request with this key; nothing was added now"),
        )),
        (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody),
        (status = 413, body = ErrorBody),
        (status = 415, body = ErrorBody, description = "`unsupported-type` or `unsupported-encoding`: the error says what is supported"),
        (status = 422, body = ErrorBody, description = "`idempotency-key-reused`: the key was used for another request"),
        (status = 429, body = ErrorBody),
        (status = 503, body = ErrorBody),
    )
)]
pub(super) async fn produce(
    app: Called,
    InPath(topic): InPath<TopicName>,
    InQuery(query): InQuery<ProduceQuery>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    // Checked before the body is read: megabytes should not be sent to a misspelt topic.
    let known = app.session.catalogue().known_topic(&topic);
    known.map_err(ProduceError::from)?;
    let wait = app.wait_of(&topic, &query)?;
    let kind = Kind::of(&headers)?;
    let key = idempotency::key_of(&headers)?;
    let mut taken = app
        .take_body(&headers, body, PRODUCE_BODY_BYTES_MAX)
        .await?;
    if !matches!(kind, Kind::Raw) {
        let beside = understood_bytes(&taken.bytes);
        app.make_room_beside(&mut taken, beside)?;
    }
    let key = key.map(|key| idempotency::call(key, &kind.asked(&query, &headers, &taken.bytes)));
    let now = app.clock.wall();
    let messages = match kind {
        Kind::Raw => vec![raw(query, &headers, taken.bytes.clone(), now)?],
        kind => {
            query.refuse_for_json()?;
            kind.messages(&taken.bytes, now)?
        }
    };
    if wait.is_some() && messages.iter().any(|message| message.deliver_at.is_some()) {
        let hint = "send delayed messages without wait";
        return Err(ApiError::malformed(
            "a delayed message cannot be waited for",
            hint,
        ));
    }
    let Some(key) = key else {
        let placed = app.session.messages().produce(&topic, messages).await?;
        let passed = app.passed(&topic, wait, &placed).await;
        let mut body = PlacedBody::from(placed);
        body.passed = passed;
        return Ok(Json(body).into_response());
    };
    let produced = app
        .session
        .messages()
        .produce_once(&topic, messages, key)
        .await?;
    let repeated = produced.repeated;
    let passed = app.passed(&topic, wait, &produced.placed).await;
    let mut body = PlacedBody::from(produced.placed);
    body.repeated = repeated;
    body.passed = passed;
    for index in produced.gone {
        body.placed[index].gone = true;
    }
    let body = Json(body);
    let replayed = [(REPLAYED, "true")];
    Ok(match repeated {
        true => (replayed, body).into_response(),
        false => body.into_response(),
    })
}

/// A processor to wait for, and for how long; the turn is held until the answer.
struct Wait<'a> {
    processor: ProcessorName,
    patience: Duration,
    _turn: SemaphorePermit<'a>,
}

impl Called {
    /// Checked before anything is stored.
    fn wait_of(
        &self,
        topic: &TopicName,
        query: &ProduceQuery,
    ) -> Result<Option<Wait<'_>>, ApiError> {
        let Some(processor) = query.wait.clone() else {
            let hint = "name the processor to wait for in wait";
            return match query.wait_ms {
                Some(_) => Err(ApiError::malformed("wait_ms is given without wait", hint)),
                None => Ok(None),
            };
        };
        if let Some(ms) = query.wait_ms.filter(|&ms| ms > FETCH_WAIT_MS_MAX) {
            let what = format!("wait_ms is {ms}; the maximum is {FETCH_WAIT_MS_MAX}");
            let hint =
                "wait for less, and look at the processor if the answer has \"passed\": false";
            return Err(ApiError::malformed(what, hint));
        }
        self.session.processors().check_reads(&processor, topic)?;
        let turn = self.waiting.try_acquire().map_err(|_| too_many_waiting())?;
        let patience = query.wait_ms.unwrap_or(PRODUCE_WAIT_MS);
        Ok(Some(Wait {
            processor,
            patience: Duration::from_millis(patience),
            _turn: turn,
        }))
    }

    /// Whether the messages have passed the processor. They are stored: whatever goes wrong with waiting is no error of the request.
    async fn passed(
        &self,
        topic: &TopicName,
        wait: Option<Wait<'_>>,
        placed: &[Placed],
    ) -> Option<bool> {
        let wait = wait?;
        let processors = self.session.processors();
        let settled = processors.settled(&wait.processor, topic, placed, wait.patience);
        let passed = self.unless_stopping(settled).await;
        Some(passed.unwrap_or(false))
    }
}

impl Kind {
    /// Everything that defines what a request asks for.
    fn asked<'a>(
        self,
        query: &'a ProduceQuery,
        headers: &'a HeaderMap,
        body: &'a [u8],
    ) -> Vec<Cow<'a, [u8]>> {
        let form: &[u8] = match self {
            Self::Json => b"json",
            Self::Lines => b"lines",
            Self::Raw => b"raw",
        };
        let mut parts: Vec<Cow<'a, [u8]>> = vec![form.into(), body.into()];
        if let Self::Raw = self {
            let partition = query.partition.map(|partition| partition.to_string());
            parts.push(format!("{:?} {partition:?}", query.key).into_bytes().into());
            if query.deliver_at.is_some() || query.delay_ms.is_some() {
                let due = format!("{:?} {:?}", query.deliver_at, query.delay_ms);
                parts.push(due.into_bytes().into());
            }
            for (name, value) in headers {
                if name.as_str().starts_with(HEADER_PREFIX) {
                    parts.push(name.as_str().as_bytes().into());
                    parts.push(value.as_bytes().into());
                }
            }
        }
        parts
    }

    fn messages(self, body: &[u8], now: Timestamp) -> Result<Vec<NewMessage>, ApiError> {
        match self {
            Self::Lines => lines(body, now),
            _ if is_many(body) => many(body, now),
            _ => match json::<MessageIn<'_>>(body) {
                Ok(message) => Ok(vec![message.understood(now)?]),
                Err(error) if is_lines(body) => Err(error.advising(MEANT_LINES)),
                Err(error) => Err(error),
            },
        }
    }
}

/// Memory of a body's messages besides their bytes once parsed: for many small ones that is most of it.
fn understood_bytes(body: &[u8]) -> usize {
    let objects = body.iter().filter(|&&byte| byte == b'{').count();
    objects.min(PRODUCE_MESSAGES_MAX) * (size_of::<MessageIn<'_>>() + size_of::<NewMessage>())
}

fn is_false(said: &bool) -> bool {
    !said
}

const MEANT_LINES: &str = "this is more than one JSON object: send one message per line as application/x-ndjson, or all in {\"messages\": […]}";

/// Whether a body that is not one message contains several in sequence, or a list of them.
fn is_lines(body: &[u8]) -> bool {
    let body = text::unmarked(body).unwrap_or(body).trim_ascii_start();
    let mut objects = serde_json::Deserializer::from_slice(body).into_iter::<IgnoredAny>();
    let is_list = body.starts_with(b"[");
    let mut is_object = || matches!(objects.next(), Some(Ok(_)));
    is_list || (is_object() && is_object())
}

/// `{"messages": …}` has no other field, so its first field decides.
fn is_many(body: &[u8]) -> bool {
    let body = text::unmarked(body).unwrap_or(body);
    let rest = body.trim_ascii_start().strip_prefix(b"{");
    rest.is_some_and(|rest| rest.trim_ascii_start().starts_with(b"\"messages\""))
}

fn many(body: &[u8], now: Timestamp) -> Result<Vec<NewMessage>, ApiError> {
    let messages = json::<Many<'_>>(body)?.messages;
    check_count(messages.len())?;
    let messages = messages.into_iter().enumerate();
    messages
        .map(|(index, message)| {
            let place = || format!("messages[{index}]");
            message.understood(now).map_err(|error| error.at(&place()))
        })
        .collect()
}

fn lines(body: &[u8], now: Timestamp) -> Result<Vec<NewMessage>, ApiError> {
    let body = text::unmarked(body).map_err(other_encoding)?;
    let mut messages = Vec::new();
    for (index, line) in text::lines(body).enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        check_count(messages.len() + 1)?;
        let message = json::<MessageIn<'_>>(line).and_then(|message| message.understood(now));
        messages.push(message.map_err(|error| error.at_line(index + 1))?);
    }
    Ok(messages)
}

fn check_count(count: usize) -> Result<(), ApiError> {
    if count <= PRODUCE_MESSAGES_MAX {
        return Ok(());
    }
    let message = format!("more than {PRODUCE_MESSAGES_MAX} messages in one request");
    Err(ApiError::too_large(
        message,
        "split them into several requests",
    ))
}

fn raw(
    query: ProduceQuery,
    headers: &HeaderMap,
    value: Bytes,
    now: Timestamp,
) -> Result<NewMessage, ApiError> {
    let moment = query.deliver_at.map(Moment::Text);
    let deliver_at = due(moment.as_ref(), query.delay_ms, now)?;
    let header = |(name, value): (&axum::http::HeaderName, &axum::http::HeaderValue)| {
        let name = name.as_str().strip_prefix(HEADER_PREFIX)?;
        Some(Header {
            name: Bytes::copy_from_slice(name.as_bytes()),
            value: Some(Bytes::copy_from_slice(value.as_bytes())),
        })
    };
    Ok(NewMessage {
        deliver_at,
        partition: query.partition.map(PartitionId),
        message: Message {
            key: query.key.map(Bytes::from),
            value: Some(value),
            headers: headers.iter().filter_map(header).collect(),
            timestamp: deliver_at.map_or(now, |_| Timestamp(0)),
        },
    })
}

impl ProduceQuery {
    fn refuse_for_json(&self) -> Result<(), ApiError> {
        let is_timed = self.deliver_at.is_some() || self.delay_ms.is_some();
        if self.key.is_none() && self.partition.is_none() && !is_timed {
            return Ok(());
        }
        let message = "?key=, ?partition=, ?deliver_at= and ?delay_ms= are for raw bodies";
        Err(ApiError::malformed(message, "set these in each message"))
    }
}

impl From<Vec<Placed>> for PlacedBody {
    fn from(placed: Vec<Placed>) -> Self {
        let place = |placed: Placed| PlaceBody {
            partition: placed.partition().0,
            offset: placed.offset().map(|offset| offset.0),
            gone: false,
            delayed: match placed {
                Placed::At { .. } => None,
                Placed::Delayed(id) => Some(id.to_string()),
            },
        };
        Self {
            count: placed.len(),
            repeated: false,
            passed: None,
            placed: placed.into_iter().map(place).collect(),
        }
    }
}
