//! What a consumer reads and commits over HTTP: messages of all partitions from the committed positions on, and with them what is to be
//! sent back when they are done.
//!
//! A reader has a lease, which the first answer gives and which every further request names. Nobody else reads as the consumer
//! meanwhile (docs/consumers.md).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use axum::{Extension, Json};
use millrace_broker::{ConsumerCommit, HoldRequest};
use millrace_model::{ConsumerName, LeaseId, Offset, PartitionId, Timestamp, Topic, TopicName};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use utoipa::ToSchema;

use super::answers::worst;
use super::app::{App, Shared, to_the_end};
use super::bounds::{FETCH_MESSAGES_MAX, FETCH_PARTITIONS_MAX, FETCH_WAIT_MS_MAX};
use super::by::{By, ByHeader};
use super::deploying::begin_at;
use super::error::{ApiError, ErrorBody};
use super::fetch::too_many_waiting;
use super::fetch_all::{Found, Problem, cursor, places, problem};
use super::messages::{MessageOut, MessageSchema};
use super::query::{InPath, InQuery};
use crate::net::{Line, Room};

/// How often a topic of more partitions than are waited for one by one is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct ReadQuery {
    /// The lease that the first answer gave; a new reader has none.
    lease: Option<String>,
    /// For how long a new lease holds after the reader was last heard of: longer than it takes to work on one answer. From 100 to
    /// 3,600,000; asking for more or less gives that.
    #[param(default = 30_000)]
    lease_ms: u64,
    /// Whether the consumer is made if there is none of its name.
    #[param(default = true)]
    create: bool,
    /// Where it begins then, as where one is made.
    from: Option<String>,
    /// Messages at the most.
    #[param(default = 100)]
    max: usize,
    /// Bytes of messages at the most; one larger message still comes.
    #[param(default = 1_048_576)]
    max_bytes: usize,
    /// How long to wait if there is nothing yet in any partition.
    #[param(default = 0)]
    wait_ms: u64,
}

impl Default for ReadQuery {
    fn default() -> Self {
        Self {
            lease: None,
            lease_ms: 30_000,
            create: true,
            from: None,
            max: 100,
            max_bytes: 1 << 20,
            wait_ms: 0,
        }
    }
}

#[derive(Serialize)]
struct ReadBody<'a> {
    messages: Vec<MessageOut<'a>>,
    commit: ToCommit,
    leased_until: Timestamp,
    created: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    passed_over: Vec<PassedOver>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    problems: Vec<Problem>,
}

/// What a consumer is to read next.
#[derive(ToSchema)]
#[schema(as = ConsumerMessages)]
#[allow(dead_code, reason = "describes ReadBody in the OpenAPI document")]
pub(super) struct ReadSchema {
    /// Of each partition in its order.
    messages: Vec<MessageSchema>,
    /// What to send to `…/commit`, as it is, when all of them are done.
    commit: ToCommit,
    /// Until when nobody else reads as this consumer, in milliseconds since the Unix epoch; a request with the lease renews it.
    leased_until: u64,
    /// Whether the consumer was made by this request.
    created: bool,
    /// Offsets that were removed before the consumer came to them. A commit goes past them.
    passed_over: Option<Vec<PassedOver>>,
    /// Partitions that cannot be read where the consumer stands. Committing their `next` goes past what cannot be read.
    problems: Option<Vec<Problem>>,
}

#[derive(Serialize, ToSchema)]
struct ToCommit {
    #[schema(example = "9b1cf00d52a80b3e")]
    lease: String,
    /// The next offset of each partition that moves on, `PARTITION:OFFSET,…`; empty if none does.
    #[schema(example = "0:17,1:5")]
    positions: String,
}

#[derive(Serialize, ToSchema)]
struct PassedOver {
    #[schema(value_type = u32)]
    partition: PartitionId,
    /// The first offset that is missing.
    #[schema(value_type = u64)]
    from: Offset,
    /// The offset after them.
    #[schema(value_type = u64)]
    to: Offset,
}

/// Reads what comes next for a consumer, of all partitions; with `wait_ms`, waits for it. Without a lease it takes one, and makes the
/// consumer if there is none of its name. The same messages come again until they are committed.
#[utoipa::path(get, path = "/v1/topics/{topic}/consumers/{name}/messages", tag = "consumers",
    params(("topic" = String, Path,), ("name" = String, Path,), ReadQuery, ByHeader), responses(
    (status = 200, body = ReadSchema, description = "Messages, and what to commit when they are done"),
    (status = 400, body = ErrorBody),
    (status = 404, body = ErrorBody, description = "There is no such topic; or the consumer of this lease was deleted"),
    (status = 409, body = ErrorBody, description = "Somebody else reads as the consumer (`consumer-busy`, with Retry-After); the lease is no longer valid (`lease-lost`); or the topic has as many as there may be"),
    (status = 422, body = ErrorBody, description = "The host has no room for a new consumer"),
    (status = 503, body = ErrorBody, description = "Too many fetches wait, or too much is being sent"),
))]
pub(super) async fn messages(
    State(app): Shared,
    InPath((topic, name)): InPath<(TopicName, ConsumerName)>,
    InQuery(query): InQuery<ReadQuery>,
    By(by): By,
    Extension(line): Extension<Arc<Line>>,
) -> Result<Response, ApiError> {
    let growths = app.broker.growths();
    let topic = app.known_topic(&topic)?;
    let from = query.from.as_deref();
    let begin_at = from.map(|from| begin_at("from", from, app.clock.wall()));
    let wait = Duration::from_millis(query.wait_ms.min(FETCH_WAIT_MS_MAX));
    let request = HoldRequest {
        lease: query.lease.as_deref().map(lease_of).transpose()?,
        lease_ms: query.lease_ms,
        wait,
        makes: query.create,
        begin_at: begin_at.transpose()?,
    };
    let hold = |request: HoldRequest| {
        let (broker, topic, name) = (app.broker.on_behalf_of(&by), topic.clone(), name.clone());
        to_the_end(async move { Ok(broker.hold_consumer(&topic, &name, request).await?) })
    };
    let held = hold(request).await?;
    let stands: BTreeMap<PartitionId, Offset> = held.positions.iter().copied().collect();
    let is_behind = |(&partition, &from): (&PartitionId, &Offset)| {
        let ends = app.broker.ends(&topic, partition);
        ends.is_some_and(|ends| from < ends.start)
    };
    if !stands.iter().any(is_behind) {
        app.await_any(&topic, &stands, wait, &line, growths).await?;
    }
    let messages_max = query.max.clamp(1, FETCH_MESSAGES_MAX);
    let bytes_max = query.max_bytes.clamp(1, app.fetch_bytes_max());
    let (found, room) = app.found(&topic, &stands, messages_max, bytes_max).await?;
    let passed_over = app.passed_over(&topic, &stands, &found);
    let mut next: BTreeMap<PartitionId, Offset> = found.next.iter().copied().collect();
    for passed in &passed_over {
        let at = next.entry(passed.partition).or_insert(passed.to);
        *at = passed.to.max(*at);
    }
    next.retain(|partition, at| stands.get(partition).is_none_or(|stood| *at > *stood));
    let (lease, created) = (held.lease, held.created);
    let Some(leased_until) = held.kept() else {
        // While it waited somebody came, set the positions or deleted the consumer; this says which.
        let lost = HoldRequest {
            lease: Some(lease),
            ..request
        };
        hold(lost).await?;
        let message = "the lease changed hands meanwhile";
        return Err(ApiError::unavailable("busy", message, "ask again", 1));
    };
    let body = ReadBody {
        messages: found
            .messages
            .iter()
            .map(|(partition, fetched)| MessageOut::of(*partition, fetched))
            .collect(),
        commit: ToCommit {
            lease: lease.to_string(),
            positions: cursor(&next),
        },
        created,
        passed_over,
        problems: found.problems.into_iter().map(problem).collect(),
        leased_until,
    };
    let answer = serde_json::to_vec(&body);
    let answer = answer.map_err(|error| ApiError::internal(error.to_string()))?;
    Ok(room.answer("application/json", answer))
}

fn lease_of(text: &str) -> Result<LeaseId, ApiError> {
    let hint = "give the lease of the last answer as it is; a new reader has none";
    text.parse()
        .map_err(|error| ApiError::malformed(format!("lease={text:?}: {error}"), hint))
}

impl App {
    /// Waits for messages in any of these places.
    async fn await_any(
        &self,
        topic: &Topic,
        stands: &BTreeMap<PartitionId, Offset>,
        wait: Duration,
        line: &Line,
        mut growths: watch::Receiver<u64>,
    ) -> Result<(), ApiError> {
        let places = stands.iter().map(|(&partition, &from)| (partition, from));
        if stands.len() <= FETCH_PARTITIONS_MAX {
            return self.awaited(topic, places, wait, line, growths).await;
        }
        // As many waits as there are partitions would be too many.
        let is_there = |(partition, from): (PartitionId, Offset)| {
            let ends = self.broker.ends(topic, partition);
            ends.is_none_or(|ends| from < ends.end)
        };
        if wait.is_zero() || places.clone().any(is_there) {
            return Ok(());
        }
        let Ok(_turn) = self.waiting.try_acquire() else {
            return Err(too_many_waiting());
        };
        let look = async {
            while !places.clone().any(is_there) {
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
        };
        tokio::select! {
            biased;
            _ = tokio::time::timeout(wait, look) => {}
            _ = growths.changed() => {}
            () = self.stopping.cancelled() => {}
            () = line.gone().cancelled() => {}
        }
        Ok(())
    }

    /// Reads, and gives room for the answer with it.
    async fn found(
        &self,
        topic: &Topic,
        stands: &BTreeMap<PartitionId, Offset>,
        messages_max: usize,
        bytes_max: usize,
    ) -> Result<(Found, Room), ApiError> {
        let mut room = self.answer_room(bytes_max).await?;
        loop {
            let found = self.read_all(topic, stands, messages_max, bytes_max).await;
            let needed = found.messages.iter().map(|(_, f)| worst(&f.message)).sum();
            if room.grow(needed) {
                return Ok((found, room));
            }
            // Nobody keeps what was read while waiting for more room.
            drop((found, room));
            room = self.answer_room(needed).await?;
        }
    }

    /// What was removed before the consumer came to it, as far as nothing of it was read just now.
    fn passed_over(
        &self,
        topic: &Topic,
        stands: &BTreeMap<PartitionId, Offset>,
        found: &Found,
    ) -> Vec<PassedOver> {
        let mut first = BTreeMap::<PartitionId, Offset>::new();
        for (partition, fetched) in &found.messages {
            first.entry(*partition).or_insert(fetched.offset);
        }
        let passed = |(&partition, &from): (&PartitionId, &Offset)| {
            let start = self.broker.ends(topic, partition)?.start;
            let to = first.get(&partition).map_or(start, |&read| read.min(start));
            (from < to).then_some(PassedOver {
                partition,
                from,
                to,
            })
        };
        stands.iter().filter_map(passed).collect()
    }
}

/// What was done.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CommitBody {
    /// That of the answer with the messages.
    #[schema(example = "9b1cf00d52a80b3e")]
    lease: String,
    /// The next offset of each partition that moves on, `PARTITION:OFFSET,…`; empty to only renew the lease.
    #[serde(default)]
    #[schema(example = "0:17,1:5")]
    positions: String,
    /// Gives the lease back: the next reader need not wait for its end.
    #[serde(default)]
    release: bool,
}

/// What came of a commit.
#[derive(Serialize, ToSchema)]
pub(super) struct CommittedBody {
    /// Until when nobody else reads as this consumer, in milliseconds since the Unix epoch; null if the lease was given back.
    #[schema(value_type = Option<u64>)]
    leased_until: Option<Timestamp>,
}

/// Commits how far a consumer has come, in all partitions named in one step, and renews the lease. Never backwards, nor past the end;
/// the same commit again changes nothing.
#[utoipa::path(post, path = "/v1/topics/{topic}/consumers/{name}/commit", tag = "consumers",
    params(("topic" = String, Path,), ("name" = String, Path,), ByHeader), request_body = CommitBody, responses(
    (status = 200, body = CommittedBody, description = "It is committed, durably"),
    (status = 400, body = ErrorBody),
    (status = 404, body = ErrorBody),
    (status = 409, body = ErrorBody, description = "The lease is no longer valid (`lease-lost`), or more is committed already (`position-behind`)"),
    (status = 422, body = ErrorBody, description = "A position past the end of its partition"),
    (status = 503, body = ErrorBody, description = "Nothing was committed; try again"),
))]
pub(super) async fn commit(
    State(app): Shared,
    InPath((topic, name)): InPath<(TopicName, ConsumerName)>,
    By(by): By,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<CommittedBody>, ApiError> {
    let body: CommitBody = app.take_json(&headers, body).await?;
    let partitions = app.known_topic(&topic)?.spec.partitions;
    let commit = ConsumerCommit {
        lease: lease_of(&body.lease)?,
        positions: match body.positions.as_str() {
            "" => BTreeMap::new(),
            text => places("positions", text, partitions)?,
        },
        release: body.release,
    };
    let broker = app.broker.on_behalf_of(&by);
    let committed = async move { Ok(broker.commit_consumer(&topic, &name, commit).await?) };
    let leased_until = to_the_end(committed).await?;
    Ok(Json(CommittedBody { leased_until }))
}
