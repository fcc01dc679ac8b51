//! Fetch over all partitions of a topic in one request: one connection and one wait for a reader of the whole topic, however many
//! partitions it has.
//!
//! A reader's position is a text, `PARTITION:OFFSET,…`, and each answer has the next one. The host keeps no state for it. An answer is
//! divided among the partitions that have messages, starting with a different one each time, so a busy one does not starve the others.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::response::Response;
use millrace_broker::{FetchRequest, Fetched};
use millrace_model::{Code, Offset, PartitionId, Topic, TopicName};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::answers::worst;
use super::bounds::{FETCH_MESSAGES_MAX, FETCH_PARTITIONS_MAX, FETCH_WAIT_MS_MAX};
use super::called::Called;
use super::error::{ApiError, ErrorBody};
use super::fetch::Begin;
use super::messages::{MessageOut, MessageSchema};
use super::query::{InPath, InQuery};
use crate::net::Line;

#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct FetchAllQuery {
    /// `earliest` (the default), `latest`, `timestamp:MS`, or the `next` of the last answer: `PARTITION:OFFSET,…`. Partitions that it
    /// does not name are read from their start.
    from: Option<String>,
    /// The same as `from=timestamp:…`, as a date and time: `2026-11-21T10:00:00Z`.
    from_time: Option<String>,
    /// Only these partitions: `FIRST-LAST`, or one number. Without it, partitions that are added later are read, too. A topic with more
    /// than 2,000 takes several requests.
    partitions: Option<String>,
    /// Maximum number of messages.
    #[param(default = 100)]
    max: usize,
    /// Maximum bytes of messages; one larger message is still returned.
    #[param(default = 1_048_576)]
    max_bytes: usize,
    /// How long to wait if there is nothing new in any of them: at most 30,000. A longer wait ends then, without messages.
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

/// Messages of several partitions, and where to continue.
#[derive(Serialize, ToSchema)]
#[schema(as = MessagesOfAll)]
pub(super) struct FetchAllBody<'a> {
    /// In order for each partition.
    #[schema(value_type = Vec<MessageSchema>)]
    messages: Vec<MessageOut<'a>>,
    /// Where to continue: pass it as `from`.
    #[schema(example = "0:17,1:5")]
    next: String,
    /// How many partitions the topic has, whichever were requested.
    partitions: u32,
    /// Partitions that cannot be read at the reader's position. If nothing else can be read, the answer is the first of these errors.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    problems: Vec<Problem>,
}

/// A partition that cannot be read at the reader's position; `next` of the answer does not move past it.
#[derive(Serialize, ToSchema)]
pub(super) struct Problem {
    partition: u32,
    /// The code of the error.
    code: String,
    message: String,
    /// The offset where reading can continue.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<u64>,
}

/// Reads messages of all partitions; with `wait_ms`, waits for the next ones in any of them. If partitions are added meanwhile, the
/// answer comes at once, so that the next request reads them, too.
#[utoipa::path(get, path = "/v1/topics/{topic}/messages", tag = "messages",
    params(("topic" = String, Path,), FetchAllQuery),
    responses(
        (status = 200, description = "Messages, and where to continue", body = FetchAllBody),
        (status = 400, description = "The query is invalid", body = ErrorBody),
        (status = 404, description = "The topic, partition or offset does not exist", body = ErrorBody),
        (status = 500, description = "Nothing can be read, because of damage; the error says where to continue", body = ErrorBody),
        (status = 503, description = "Too many fetches are waiting, or the memory for answers is in use", body = ErrorBody),
    )
)]
pub(super) async fn fetch_all(
    app: Called,
    InPath(topic): InPath<TopicName>,
    InQuery(query): InQuery<FetchAllQuery>,
    Extension(line): Extension<Arc<Line>>,
) -> Result<Response, ApiError> {
    // First of all: partitions that are added after this wake the waiting request.
    let growths = app.session.catalogue().growths();
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
        // Messages already read are not held while waiting for more room.
        drop((found, room));
        room = app.answer_room(needed).await?;
    };
    reader.places.extend(found.next);
    reader.problems.extend(found.problems);
    if found.messages.is_empty() && !reader.problems.is_empty() {
        let (partition, error) = reader.problems.swap_remove(0);
        return Err(error.of_partition(partition.0));
    }
    // Partitions may have been added meanwhile.
    let count = app.session.catalogue().topic(&topic.spec.name);
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

/// A reader's position in each partition, and where it cannot continue.
struct Reader {
    places: BTreeMap<PartitionId, Offset>,
    problems: Vec<(PartitionId, ApiError)>,
}

/// The result of one round over the partitions.
pub(super) struct Found {
    pub(super) messages: Vec<(PartitionId, Fetched)>,
    pub(super) next: Vec<(PartitionId, Offset)>,
    pub(super) problems: Vec<(PartitionId, ApiError)>,
}

impl Called {
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
            let message = "a number alone does not name a partition";
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
                // The reader's position stays until the reader moves it.
                (Err(error), Some(_)) => reader.problems.push((partition, error)),
                (Err(error), None) => return Err(error.of_partition(partition.0)),
            }
        }
        Ok(reader)
    }

    /// Reads its share of what is left from each partition, starting at an arbitrary one.
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
            let ends = self.session.catalogue().ends(topic, *partition);
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
            match self.session.messages().fetch(request).await {
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

/// The requested partitions.
fn wanted(text: Option<&str>, partitions: u32) -> Result<std::ops::Range<u32>, ApiError> {
    let all = 0..partitions;
    let wanted = match text {
        None => all,
        Some(text) => {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            let (Ok(first), Ok(last)) = (first.parse::<u32>(), last.parse::<u32>()) else {
                let message = format!("partitions={text:?} is not a range");
                return Err(ApiError::malformed(
                    message,
                    "write FIRST-LAST, or one number",
                ));
            };
            if first > last || last >= partitions {
                let message = format!("the topic has partitions 0 to {}", partitions - 1);
                let hint = "request some of these";
                return Err(ApiError::new(Code::UnknownPartition, message, hint));
            }
            first..last + 1
        }
    };
    if wanted.len() > FETCH_PARTITIONS_MAX {
        let message = format!(
            "{} partitions are too many for one fetch; the maximum is {FETCH_PARTITIONS_MAX}",
            wanted.len()
        );
        let hint = "read them in several requests, with partitions=FIRST-LAST";
        return Err(ApiError::too_large(message, hint));
    }
    Ok(wanted)
}

/// Reads what [`cursor`] wrote; `what` is the field's name.
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
            let message = format!("{what}: {place:?} is not PARTITION:OFFSET");
            let hint = "send the value of the last answer unchanged";
            return Err(ApiError::malformed(message, hint));
        };
        if partition >= partitions {
            let message = format!("{what}: the topic has partitions 0 to {}", partitions - 1);
            let hint = "send the value of the last answer for the same topic";
            return Err(ApiError::new(Code::UnknownPartition, message, hint));
        }
        if places
            .insert(PartitionId(partition), Offset(offset))
            .is_some()
        {
            let message = format!("{what} names partition {partition} twice");
            return Err(ApiError::malformed(message, "name each partition once"));
        }
    }
    Ok(places)
}

pub(super) fn cursor(places: &BTreeMap<PartitionId, Offset>) -> String {
    let mut text = String::new();
    for (partition, offset) in places {
        let comma = if text.is_empty() { "" } else { "," };
        // Writing to a string does not fail.
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
