//! Fetch over HTTP: messages of a partition from an offset on, optionally waiting for new ones.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::http::header::CONTENT_DISPOSITION;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::Response;
use millrace_broker::{FetchRequest, FetchResult, UnknownTopic, known_partition};
use millrace_engine::{Ends, ReadError};
use millrace_model::unit::check_ms;
use millrace_model::{Code, Offset, PartitionId, Timestamp, Topic, TopicName};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use utoipa::ToSchema;

use super::answers::worst;
use super::bounds::{FETCH_BYTES_MAX, FETCH_MESSAGES_MAX, FETCH_WAIT_MS_MAX};
use super::called::Called;
use super::error::{ApiError, ErrorBody};
use super::kinds::wants_lines;
use super::messages::{MessageOut, MessageSchema};
use super::query::{InPath, InQuery};
use crate::net::{Line, Room};
use crate::units::time_ms;

#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct FetchQuery {
    /// `earliest` (the default), `latest`, an offset, or `timestamp:MS`: the first message with that timestamp (milliseconds since the
    /// Unix epoch) or a later one, or `latest` if there is none. Timestamps need not ascend: no message before it has that timestamp or
    /// a later one, but older ones may follow.
    from: Option<String>,
    /// The same as `from=timestamp:…`, also as `2026-11-21T10:00:00Z`, `2026-11-21` or `-15m`.
    from_time: Option<String>,
    /// Maximum number of messages.
    #[param(default = 100)]
    max: usize,
    /// Maximum bytes of messages; one larger message is still returned.
    #[param(default = 1_048_576)]
    max_bytes: usize,
    /// How long to wait if there is nothing new: at most 30,000. A longer wait ends then, without messages.
    #[param(default = 0)]
    wait_ms: u64,
}

impl Default for FetchQuery {
    fn default() -> Self {
        Self {
            from: None,
            from_time: None,
            max: 100,
            max_bytes: 1 << 20,
            wait_ms: 0,
        }
    }
}

/// Messages, and where to continue.
#[derive(Serialize, ToSchema)]
#[schema(as = Messages)]
pub(super) struct FetchBody<'a> {
    #[schema(value_type = Vec<MessageSchema>)]
    messages: Vec<MessageOut<'a>>,
    /// Where to continue.
    next: Offset,
    /// The first offset kept.
    start: Offset,
    /// The offset that the next message will have.
    end: Offset,
}

/// Reads messages; with `wait_ms`, waits for new ones. With `Accept: application/x-ndjson`, or another name for it, they are returned
/// as lines.
#[utoipa::path(get, path = "/v1/topics/{topic}/partitions/{partition}/messages", tag = "messages",
    params(("topic" = String, Path,), ("partition" = u32, Path,), FetchQuery),
    responses(
        (status = 200, content((FetchBody = "application/json"), (MessageSchema = "application/x-ndjson"))),
        (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody),
        (status = 503, body = ErrorBody),
    )
)]
pub(super) async fn fetch(
    app: Called,
    InPath((topic, partition)): InPath<(TopicName, u32)>,
    InQuery(query): InQuery<FetchQuery>,
    Extension(line): Extension<Arc<Line>>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let partition = PartitionId(partition);
    let topic = app.known_topic(&topic)?;
    let begin = query.begin(app.clock.wall())?;
    let from = app.begin(begin, &topic, partition).await?;
    let places = std::iter::once((partition, from));
    let growths = app.session.catalogue().growths();
    app.awaited(&topic, places, query.wait(), &line, growths)
        .await?;
    let request = FetchRequest {
        topic: topic.spec.name,
        partition,
        from,
        messages_max: query.messages_max(),
        bytes_max: query.bytes_max().min(app.fetch_bytes_max()),
        wait: Duration::ZERO,
    };
    let (result, room) = app.fetched(request).await?;
    let (content_type, written) = match wants_lines(&headers) {
        true => ("application/x-ndjson", lines(partition, &result)),
        false => ("application/json", whole(partition, &result)),
    };
    let answer = written.map_err(|error| ApiError::internal(error.to_string()))?;
    Ok(room.answer(content_type, answer))
}

/// The position in `from` or `from_time`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begin {
    Earliest,
    Latest,
    At(Offset),
    Time(Timestamp),
}

impl FetchQuery {
    fn messages_max(&self) -> usize {
        self.max.clamp(1, FETCH_MESSAGES_MAX)
    }

    fn bytes_max(&self) -> usize {
        self.max_bytes.clamp(1, FETCH_BYTES_MAX)
    }

    fn wait(&self) -> Duration {
        Duration::from_millis(self.wait_ms.min(FETCH_WAIT_MS_MAX))
    }

    fn begin(&self, now: Timestamp) -> Result<Begin, ApiError> {
        Begin::of(self.from.as_deref(), self.from_time.as_deref(), now)
    }
}

impl Begin {
    pub(super) fn of(
        from: Option<&str>,
        from_time: Option<&str>,
        now: Timestamp,
    ) -> Result<Self, ApiError> {
        let from = match (from, from_time) {
            (None, None) => return Ok(Self::Earliest),
            (Some(from), None) => from,
            (None, Some(time)) => {
                let at = time_ms(time, now);
                let at = at.map_err(|why| no_offset(&format!("from_time={time:?}: {why}")))?;
                return Ok(Self::Time(Timestamp(at)));
            }
            (Some(_), Some(_)) => {
                let message = "both from and from_time are given";
                return Err(ApiError::malformed(message, "give one of them"));
            }
        };
        Ok(match from {
            "earliest" => Self::Earliest,
            "latest" => Self::Latest,
            text => match text.strip_prefix("timestamp:") {
                Some(ms) => {
                    let at = check_ms(number(from, ms)?, now);
                    let at = at.map_err(|unit| no_offset(&format!("from={from:?}: {unit}")))?;
                    Self::Time(Timestamp(at))
                }
                None => Self::At(Offset(number(from, text)?)),
            },
        })
    }
}

fn number(from: &str, text: &str) -> Result<u64, ApiError> {
    let wrong = |_| no_offset(&format!("from={from:?}: not an offset"));
    text.parse().map_err(wrong)
}

/// The start position. An offset that does not exist is refused, not moved, so that a reader knows that it misses something.
fn kept(requested: Offset, ends: Ends) -> Result<Offset, ApiError> {
    let Ends { start, end } = ends;
    if requested < start {
        return Err(ReadError::BelowStart { requested, start }.into());
    }
    if requested > end {
        return Err(ReadError::PastEnd { requested, end }.into());
    }
    Ok(requested)
}

fn no_offset(message: &str) -> ApiError {
    let hint = "use earliest, latest, an offset, timestamp:MS, or from_time=2026-11-21T10:00:00Z";
    ApiError::malformed(message, hint)
}

impl Called {
    fn ends(&self, topic: &Topic, partition: PartitionId) -> Result<Ends, ApiError> {
        known_partition(topic, partition)?;
        let ends = self.session.catalogue().ends(topic, partition);
        ends.ok_or_else(|| UnknownTopic(topic.spec.name.clone()).into())
    }

    pub(super) async fn begin(
        &self,
        begin: Begin,
        topic: &Topic,
        partition: PartitionId,
    ) -> Result<Offset, ApiError> {
        let ends = self.ends(topic, partition)?;
        match begin {
            Begin::Earliest => Ok(ends.start),
            Begin::Latest => Ok(ends.end),
            Begin::At(offset) => {
                let ends = match topic.partition(partition) {
                    Some(place) => self.session.catalogue().ends_about(place, offset).await?,
                    None => ends,
                };
                kept(offset, ends)
            }
            Begin::Time(at) => {
                let found = self
                    .session
                    .catalogue()
                    .offset_at(topic, partition, at)
                    .await?;
                Ok(found.unwrap_or(ends.end))
            }
        }
    }

    /// Fetches, and reserves room for the answer with it.
    async fn fetched(&self, request: FetchRequest) -> Result<(FetchResult, Room), ApiError> {
        let mut room = self.answer_room(request.bytes_max).await?;
        loop {
            let result = self.session.messages().fetch(request.clone()).await?;
            let needed = result.messages.iter().map(|f| worst(&f.message)).sum();
            if room.grow(needed) {
                return Ok((result, room));
            }
            // Messages already read are not held while waiting for more room.
            drop((result, room));
            room = self.answer_room(needed).await?;
        }
    }

    /// Waits for messages in any of these places without reading them, so that no room is held. The wait ends when the host stops, when
    /// the caller sends nothing more (most such callers have gone), and when topics get more partitions that it does not know of.
    pub(super) async fn awaited(
        &self,
        topic: &Topic,
        places: impl Iterator<Item = (PartitionId, Offset)> + Clone,
        wait: Duration,
        line: &Line,
        mut growths: watch::Receiver<u64>,
    ) -> Result<(), ApiError> {
        let nothing_yet = |(partition, from): (PartitionId, Offset)| {
            self.session
                .catalogue()
                .ends(topic, partition)
                .is_none_or(|ends| from >= ends.end)
        };
        if wait.is_zero() || !places.clone().all(nothing_yet) {
            return Ok(());
        }
        let Ok(_turn) = self.waiting.try_acquire() else {
            return Err(too_many_waiting());
        };
        let mut subscription = self.session.messages().subscribe();
        for (partition, from) in places {
            subscription.add(&topic.spec.name, partition, from)?;
        }
        tokio::select! {
            biased;
            _ = subscription.ready() => {}
            () = tokio::time::sleep(wait) => {}
            () = self.stopping.cancelled() => {}
            () = line.gone().cancelled() => {}
            _ = growths.changed() => {}
        }
        Ok(())
    }
}

pub(super) fn too_many_waiting() -> ApiError {
    let message = "too many fetches are already waiting for messages";
    let hint = "try again in a moment, or without wait_ms; GET /v1/topics/{topic}/messages waits for all partitions at once";
    ApiError::new(Code::TooManyWaiting, message, hint)
}

fn whole(partition: PartitionId, result: &FetchResult) -> serde_json::Result<Vec<u8>> {
    let shown = |fetched| MessageOut::of(partition, fetched);
    serde_json::to_vec(&FetchBody {
        messages: result.messages.iter().map(shown).collect(),
        next: result.next,
        start: result.ends.start,
        end: result.ends.end,
    })
}

fn lines(partition: PartitionId, result: &FetchResult) -> serde_json::Result<Vec<u8>> {
    let mut out = Vec::new();
    for fetched in &result.messages {
        serde_json::to_writer(&mut out, &MessageOut::of(partition, fetched))?;
        out.push(b'\n');
    }
    Ok(out)
}

/// The value of one message, as stored.
#[utoipa::path(get, path = "/v1/topics/{topic}/partitions/{partition}/messages/{offset}/value", tag = "messages",
    params(("topic" = String, Path,), ("partition" = u32, Path,), ("offset" = u64, Path,)),
    responses(
        (status = 200, body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 404, body = ErrorBody),
        (status = 503, body = ErrorBody),
    )
)]
pub(super) async fn value(
    app: Called,
    InPath((topic, partition, offset)): InPath<(TopicName, u32, u64)>,
) -> Result<Response, ApiError> {
    let request = FetchRequest {
        topic,
        partition: PartitionId(partition),
        from: Offset(offset),
        messages_max: 1,
        bytes_max: 1,
        wait: Duration::ZERO,
    };
    let (result, room) = app.fetched(request).await?;
    let found = result.messages.into_iter().next();
    let found = found.filter(|fetched| fetched.offset.0 == offset);
    let value = found.and_then(|fetched| fetched.message.value);
    let value = value.ok_or_else(|| {
        let message = format!("there is no value at offset {offset} of partition {partition}");
        ApiError::of(Code::UnknownMessage, message)
    })?;
    // A copy, because the value is a part of its batch and would keep the whole batch in memory.
    let mut response = room.answer("application/octet-stream", value.to_vec());
    // A browser must never render it: its producer is not trusted.
    let attachment = HeaderValue::from_static("attachment");
    response
        .headers_mut()
        .insert(CONTENT_DISPOSITION, attachment);
    Ok(response)
}
