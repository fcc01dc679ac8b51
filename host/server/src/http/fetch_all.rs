//! Fetch over all partitions of a topic in one request: one connection and one wait for a reader of the whole topic, however many
//! partitions it has.
//!
//! Where a reader stands is a text, `PARTITION:OFFSET,…`; each answer gives the next one. Nothing is kept for it at the host. An answer
//! is shared out among the partitions that have messages, beginning with another one each time, so none starves beside a busy one.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use millrace_broker::{FetchRequest, Fetched};
use millrace_model::{Offset, PartitionId, Topic, TopicName};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::answers::worst;
use super::app::{App, Shared};
use super::bounds::{FETCH_MESSAGES_MAX, FETCH_PARTITIONS_MAX, FETCH_WAIT_MS_MAX};
use super::error::{ApiError, ErrorBody};
use super::fetch::Begin;
use super::messages::{MessageOut, MessageSchema};
use super::query::{InPath, InQuery};
use crate::net::Line;

#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct FetchAllQuery {
    /// `earliest` (the default), `latest`, `timestamp:MS`, or the `next` of the last answer: `PARTITION:OFFSET,…`. A partition that it
    /// does not name is read from its start.
    from: Option<String>,
    /// The same as `from=timestamp:…`, as a date and time: `2026-11-21T10:00:00Z`.
    from_time: Option<String>,
    /// Only these partitions: `FIRST-LAST`, or one number. Without it, partitions that the topic is given later are read, too. A topic of more than 2,000 is read in several requests.
    partitions: Option<String>,
    /// Messages at the most.
    #[param(default = 100)]
    max: usize,
    /// Bytes of messages at the most; one larger message still comes.
    #[param(default = 1_048_576)]
    max_bytes: usize,
    /// How long to wait if there is nothing yet in any of them.
    #[param(default = 0)]
    wait_ms: u64,
}

impl Default for FetchAllQuery {
    fn default() -> Self {
        Self {
            from: None,
            from_time: None,
            partitions: None,
            max: 100,
            max_bytes: 1 << 20,
            wait_ms: 0,
        }
    }
}

#[derive(Serialize)]
struct FetchAllBody<'a> {
    messages: Vec<MessageOut<'a>>,
    next: String,
    partitions: u32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    problems: Vec<Problem>,
}

/// Messages of several partitions, and where to go on.
#[derive(ToSchema)]
#[schema(as = MessagesOfAll)]
#[allow(dead_code, reason = "describes FetchAllBody in the OpenAPI document")]
pub(super) struct FetchAllSchema {
    /// Of each partition in its order.
    messages: Vec<MessageSchema>,
    /// Where to read on: give it as `from`.
    #[schema(example = "0:17,1:5")]
    next: String,
    /// How many partitions the topic has, whichever were asked for.
    partitions: u32,
    /// Partitions that cannot be read where the reader stands. If nothing else can be read, the answer is the first of these errors.
    problems: Option<Vec<Problem>>,
}

/// A partition that cannot be read where the reader stands; `next` of the answer stays there.
#[derive(Serialize, ToSchema)]
pub(super) struct Problem {
    partition: u32,
    /// As the code of an error.
    code: String,
    message: String,
    /// The offset from which it can be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<u64>,
}

/// Reads messages of all partitions; with `wait_ms`, waits for the next ones of any. If the topic is given more partitions meanwhile, the
/// answer comes at once, so that the next request reads them, too.
#[utoipa::path(get, path = "/v1/topics/{topic}/messages", tag = "messages",
    params(("topic" = String, Path,), FetchAllQuery),
    responses(
        (status = 200, description = "Messages, and where to read on", body = FetchAllSchema),
        (status = 400, description = "The query is not understood", body = ErrorBody),
        (status = 404, description = "There is no such topic, partition or offset", body = ErrorBody),
        (status = 500, description = "Nothing can be read, and some is damaged; the error says where to read on", body = ErrorBody),
        (status = 503, description = "Too many fetches wait, or too much is being sent", body = ErrorBody),
    )
)]
pub(super) async fn fetch_all(
    State(app): Shared,
    InPath(topic): InPath<TopicName>,
    InQuery(query): InQuery<FetchAllQuery>,
    Extension(line): Extension<Arc<Line>>,
) -> Result<Response, ApiError> {
    // First of all: partitions that are added after this wake whoever waits.
    let growths = app.broker.growths();
    let topic = app.known_topic(&topic)?;
    let mut reader = app.reader(&query, &topic).await?;
    let wait = Duration::from_millis(query.wait_ms.min(FETCH_WAIT_MS_MAX));
    if reader.problems.is_empty() {
        let places = reader.places.iter().map(|(&p, &from)| (p, from));
        app.awaited(&topic, places, wait, &line, growths).await?;
    }
    let bytes_max = query.max_bytes.clamp(1, app.fetch_bytes_max());
    let messages_max = query.max.clamp(1, FETCH_MESSAGES_MAX);
    let mut room = app.answer_room(bytes_max).await?;
    let (found, room) = loop {
        let found = app
            .read_all(&topic, &reader.places, messages_max, bytes_max)
            .await;
        let needed = found.messages.iter().map(|(_, f)| worst(&f.message)).sum();
        if room.grow(needed) {
            break (found, room);
        }
        // Nobody keeps what was read while waiting for more room.
        drop((found, room));
        room = app.answer_room(needed).await?;
    };
    reader.places.extend(found.next);
    reader.problems.extend(found.problems);
    if found.messages.is_empty() && !reader.problems.is_empty() {
        let (partition, error) = reader.problems.swap_remove(0);
        return Err(error.of_partition(partition.0));
    }
    // It may have been given more meanwhile.
    let count = app.broker.topic(&topic.spec.name);
    let count = count.map_or(0, |now| now.spec.partitions);
    let body = FetchAllBody {
        messages: found
            .messages
            .iter()
            .map(|(partition, fetched)| MessageOut::of(*partition, fetched))
            .collect(),
        next: cursor(&reader.places),
        partitions: count.max(topic.spec.partitions),
        problems: reader.problems.into_iter().map(problem).collect(),
    };
    let answer =
        serde_json::to_vec(&body).map_err(|error| ApiError::internal(error.to_string()))?;
    Ok(room.answer("application/json", answer))
}

/// Where a reader stands in each partition, and where it cannot go on.
struct Reader {
    places: BTreeMap<PartitionId, Offset>,
    problems: Vec<(PartitionId, ApiError)>,
}

/// What one round over the partitions found.
pub(super) struct Found {
    pub(super) messages: Vec<(PartitionId, Fetched)>,
    pub(super) next: Vec<(PartitionId, Offset)>,
    pub(super) problems: Vec<(PartitionId, ApiError)>,
}

impl App {
    async fn reader(&self, query: &FetchAllQuery, topic: &Topic) -> Result<Reader, ApiError> {
        let wanted = wanted(query.partitions.as_deref(), topic.spec.partitions)?;
        let from = query.from.as_deref();
        let known = match from.filter(|from| from.contains(':') && !from.starts_with("timestamp:"))
        {
            Some(text) => Some(places("from", text, topic.spec.partitions)?),
            None => None,
        };
        let begin = match (&known, query.from_time.as_deref()) {
            (Some(_), None) => Begin::Earliest,
            (_, from_time) => Begin::of(from, from_time, self.clock.wall())?,
        };
        if let Begin::At(_) = begin {
            let message = "a number alone is an offset of no partition";
            let hint = "use earliest, latest, timestamp:MS, or the next of the last answer: PARTITION:OFFSET,…";
            return Err(ApiError::malformed(message, hint));
        }
        let mut reader = Reader {
            places: BTreeMap::new(),
            problems: Vec::new(),
        };
        for partition in wanted.map(PartitionId) {
            let at = known.as_ref().and_then(|known| known.get(&partition));
            let begin = at.map_or(begin, |&at| Begin::At(at));
            match (self.begin(begin, topic, partition).await, at) {
                (Ok(offset), _) => {
                    reader.places.insert(partition, offset);
                }
                // The reader stays where it is until it says otherwise.
                (Err(error), Some(_)) => reader.problems.push((partition, error)),
                (Err(error), None) => return Err(error.of_partition(partition.0)),
            }
        }
        Ok(reader)
    }

    /// Reads from each partition its share of what is left, beginning anywhere.
    pub(super) async fn read_all(
        &self,
        topic: &Topic,
        places: &BTreeMap<PartitionId, Offset>,
        messages_max: usize,
        bytes_max: usize,
    ) -> Found {
        let mut found = Found {
            messages: Vec::new(),
            next: Vec::new(),
            problems: Vec::new(),
        };
        let has_more = |(partition, from): &(PartitionId, Offset)| {
            let ends = self.broker.ends(topic, *partition);
            ends.is_none_or(|ends| *from < ends.end)
        };
        let places = places.iter().map(|(&partition, &from)| (partition, from));
        let mut ready: Vec<(PartitionId, Offset)> = places.filter(has_more).collect();
        if !ready.is_empty() {
            let first = fastrand::usize(..ready.len());
            ready.rotate_left(first);
        }
        let (mut messages_left, mut bytes_left) = (messages_max, bytes_max);
        let count = ready.len();
        for (turn, (partition, from)) in ready.into_iter().enumerate() {
            if messages_left == 0 || bytes_left == 0 {
                break;
            }
            let others = count - turn;
            let request = FetchRequest {
                topic: topic.spec.name.clone(),
                partition,
                from,
                messages_max: messages_left.div_ceil(others),
                bytes_max: bytes_left.div_ceil(others),
                wait: Duration::ZERO,
            };
            match self.broker.fetch(request).await {
                Ok(result) => {
                    let bytes = result.messages.iter().map(|f| f.message.byte_count());
                    bytes_left = bytes_left.saturating_sub(bytes.sum());
                    messages_left = messages_left.saturating_sub(result.messages.len());
                    found.next.push((partition, result.next));
                    let messages = result.messages.into_iter();
                    found.messages.extend(messages.map(|m| (partition, m)));
                }
                Err(error) => found.problems.push((partition, error.into())),
            }
        }
        found
    }
}

pub(super) fn problem((partition, error): (PartitionId, ApiError)) -> Problem {
    let (code, message, next) = error.into_problem();
    Problem {
        partition: partition.0,
        code: code.to_owned(),
        message,
        next,
    }
}

/// The partitions that are asked for.
fn wanted(text: Option<&str>, partitions: u32) -> Result<std::ops::Range<u32>, ApiError> {
    let all = 0..partitions;
    let wanted = match text {
        None => all,
        Some(text) => {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            let (Ok(first), Ok(last)) = (first.parse::<u32>(), last.parse::<u32>()) else {
                let message = format!("partitions={text:?} is no range");
                return Err(ApiError::malformed(
                    message,
                    "write FIRST-LAST, or one number",
                ));
            };
            if first > last || last >= partitions {
                let message = format!("the topic has partitions 0 to {}", partitions - 1);
                let hint = "ask for some of these";
                return Err(ApiError::unknown("unknown-partition", message, hint));
            }
            first..last + 1
        }
    };
    if wanted.len() > FETCH_PARTITIONS_MAX {
        let message = format!(
            "{} partitions are too many for one fetch, which reads {FETCH_PARTITIONS_MAX} at the most",
            wanted.len()
        );
        let hint = "read them in several requests, with partitions=FIRST-LAST";
        return Err(ApiError::too_large(message, hint));
    }
    Ok(wanted)
}

/// Reads what [`cursor`] wrote; `what` is the field that says it.
pub(super) fn places(
    what: &str,
    text: &str,
    partitions: u32,
) -> Result<BTreeMap<PartitionId, Offset>, ApiError> {
    let mut places = BTreeMap::new();
    for place in text.split(',') {
        let parsed = place
            .split_once(':')
            .and_then(|(partition, offset)| Some((partition.parse().ok()?, offset.parse().ok()?)));
        let Some((partition, offset)) = parsed else {
            let message = format!("{what}: {place:?} is no PARTITION:OFFSET");
            let hint = "give what the last answer gave as it is";
            return Err(ApiError::malformed(message, hint));
        };
        if partition >= partitions {
            let message = format!("{what}: the topic has partitions 0 to {}", partitions - 1);
            let hint = "give what the last answer of the same topic gave";
            return Err(ApiError::unknown("unknown-partition", message, hint));
        }
        if places
            .insert(PartitionId(partition), Offset(offset))
            .is_some()
        {
            let message = format!("{what} names partition {partition} twice");
            return Err(ApiError::malformed(message, "give each partition once"));
        }
    }
    Ok(places)
}

pub(super) fn cursor(places: &BTreeMap<PartitionId, Offset>) -> String {
    let mut text = String::new();
    for (partition, offset) in places {
        let comma = if text.is_empty() { "" } else { "," };
        // Writing to a text does not fail.
        let _ = write!(text, "{comma}{}:{}", partition.0, offset.0);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_reader_stands_comes_back_as_it_was_given() {
        let text = "0:17,1:5,9:18446744073709551615";
        let read = places("from", text, 10).expect("places");
        assert_eq!(cursor(&read), text);
        for wrong in ["0:", ":1", "0:1,", "1:1,1:2", "10:1", "0:-1", "0:1;1:2"] {
            assert!(places("from", wrong, 10).is_err(), "{wrong}");
        }
    }

    #[test]
    fn partitions_are_asked_for_by_range_and_within_the_bound() {
        assert_eq!(wanted(None, 4).expect("all"), 0..4);
        assert_eq!(wanted(Some("2"), 4).expect("one"), 2..3);
        assert_eq!(wanted(Some("1-3"), 4).expect("some"), 1..4);
        for wrong in ["4", "3-1", "x", "1-", "-1", "0-4"] {
            assert!(wanted(Some(wrong), 4).is_err(), "{wrong}");
        }
        assert!(wanted(None, 10_000).is_err());
        assert_eq!(
            wanted(Some("8001-9999"), 10_000).expect("some").len(),
            1_999
        );
    }
}
