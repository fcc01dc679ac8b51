//! Reads and commits of consumers over HTTP: messages of all partitions from the committed positions on, with the commit to send back
//! afterwards.
//!
//! A reader has a lease, which the first answer contains and every further request names. Meanwhile nobody else reads as the consumer
//! (docs/consumers.md).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::HeaderMap;
use axum::response::Response;
use axum::{Extension, Json};
use millrace_broker::{ConsumerCommit, HoldRequest};
use millrace_model::{
    Code, ConsumerName, LeaseId, Offset, PartitionId, Timestamp, Topic, TopicName,
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use utoipa::ToSchema;

use super::answers::worst;
use super::app::to_the_end;
use super::bounds::{FETCH_MESSAGES_MAX, FETCH_PARTITIONS_MAX, FETCH_WAIT_MS_MAX};
use super::by::ByHeader;
use super::called::Called;
use super::deploying::begin_at;
use super::error::{ApiError, ErrorBody};
use super::fetch::too_many_waiting;
use super::fetch_all::{Found, Problem, cursor, places, problem};
use super::messages::{MessageOut, MessageSchema};
use super::query::{InPath, InQuery};
use crate::net::{Line, Room};

/// How often a topic is checked if it has too many partitions to wait for each one.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct ReadQuery {
    /// The lease from the first answer; a new reader has none.
    lease: Option<String>,
    /// How long a new lease lasts after the reader's last request: longer than it takes to process one answer. From 100 to 3,600,000;
    /// other values are moved into this range.
    #[param(default = 30_000)]
    lease_ms: u64,
    /// Whether a missing consumer is created.
    #[param(default = true)]
    create: bool,
    /// Where a new consumer starts, as in creating one.
    from: Option<String>,
    /// Maximum number of messages.
    #[param(default = 100)]
    max: usize,
    /// Maximum bytes of messages; one larger message is still returned.
    #[param(default = 1_048_576)]
    max_bytes: usize,
    /// How long to wait if there is nothing new in any partition: at most 30,000. A longer wait ends then, without messages.
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

/// The next messages for a consumer.
#[derive(Serialize, ToSchema)]
#[schema(as = ConsumerMessages)]
pub(super) struct ReadBody<'a> {
    /// In order for each partition.
    #[schema(value_type = Vec<MessageSchema>)]
    messages: Vec<MessageOut<'a>>,
    /// What to send to `…/commit`, unchanged, after processing all of them.
    commit: ToCommit,
    /// When the lease ends, in milliseconds since the Unix epoch; a request with the lease renews it.
    leased_until: Timestamp,
    /// Whether this request created the consumer.
    created: bool,
    /// Offsets that were removed before the consumer reached them. A commit moves past them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    passed_over: Vec<PassedOver>,
    /// Partitions that cannot be read at the consumer's position. Committing their `next` skips what cannot be read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    problems: Vec<Problem>,
}

#[derive(Serialize, ToSchema)]
struct ToCommit {
    #[schema(example = "9b1cf00d52a80b3e")]
    lease: String,
    /// The next offset of each partition that advances, `PARTITION:OFFSET,…`; empty if none does.
    #[schema(example = "0:17,1:5")]
    positions: String,
}

#[derive(Serialize, ToSchema)]
struct PassedOver {
    partition: PartitionId,
    /// The first missing offset.
    from: Offset,
    /// The offset after them.
    to: Offset,
}

/// Reads the next messages of a consumer, from all partitions; with `wait_ms`, waits for them. Without a lease it takes one, and
/// creates the consumer if it does not exist. The same messages are returned again until they are committed.
#[utoipa::path(get, path = "/v1/topics/{topic}/consumers/{name}/messages", tag = "consumers",
    params(("topic" = String, Path,), ("name" = String, Path,), ReadQuery, ByHeader), responses(
    (status = 200, body = ReadBody, description = "Messages, and what to commit after processing them"),
    (status = 400, body = ErrorBody),
    (status = 404, body = ErrorBody, description = "The topic does not exist, or the consumer of this lease was deleted"),
    (status = 409, body = ErrorBody, description = "Another reader has the lease (`consumer-busy`, with Retry-After); the lease is no longer valid (`lease-lost`); or the topic has the maximum number of consumers"),
    (status = 422, body = ErrorBody, description = "The host has no room for a new consumer"),
    (status = 503, body = ErrorBody, description = "Too many fetches are waiting, or the memory for answers is in use"),
))]
pub(super) async fn messages(
    app: Called,
    InPath((topic, name)): InPath<(TopicName, ConsumerName)>,
    InQuery(query): InQuery<ReadQuery>,
    Extension(line): Extension<Arc<Line>>,
) -> Result<Response, ApiError> {
    let growths = app.session.catalogue().growths();
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
        let (session, topic, name) = (app.session.clone(), topic.clone(), name.clone());
        to_the_end(async move {
            Ok(session
                .consumers()
                .hold_consumer(&topic, &name, request)
                .await?)
        })
    };
    let held = hold(request).await?;
    let stands: BTreeMap<PartitionId, Offset> = held.positions.iter().copied().collect();
    let is_behind = |(&partition, &from): (&PartitionId, &Offset)| {
        let ends = app.session.catalogue().ends(&topic, partition);
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
        // During the wait another reader may have come, or the consumer was reset or deleted; this finds out.
        let lost = HoldRequest {
            lease: Some(lease),
            ..request
        };
        hold(lost).await?;
        let message = "the lease changed hands meanwhile";
        return Err(ApiError::of(Code::Occupied, message));
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
    let hint = "send the lease of the last answer unchanged; a new reader has none";
    text.parse()
        .map_err(|error| ApiError::malformed(format!("lease={text:?}: {error}"), hint))
}

impl Called {
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
        // One wait per partition would be too many.
        let is_there = |(partition, from): (PartitionId, Offset)| {
            let ends = self.session.catalogue().ends(topic, partition);
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

    /// Reads, and reserves room for the answer with it.
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
            // Messages already read are not held while waiting for more room.
            drop((found, room));
            room = self.answer_room(needed).await?;
        }
    }

    /// Messages removed before the consumer reached them, for partitions from which nothing was read now.
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
            let start = self.session.catalogue().ends(topic, partition)?.start;
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

/// The reader's progress.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CommitBody {
    /// The lease from the answer with the messages.
    #[schema(example = "9b1cf00d52a80b3e")]
    lease: String,
    /// The next offset of each partition that advances, `PARTITION:OFFSET,…`; empty to only renew the lease.
    #[serde(default)]
    #[schema(example = "0:17,1:5")]
    positions: String,
    /// Releases the lease, so that the next reader need not wait for its end.
    #[serde(default)]
    release: bool,
}

/// The result of a commit.
#[derive(Serialize, ToSchema)]
pub(super) struct CommittedBody {
    /// When the lease ends, in milliseconds since the Unix epoch; null if it was released.
    leased_until: Option<Timestamp>,
}

/// Commits a consumer's positions, in all named partitions in one step, and renews the lease. Positions cannot move backwards or past
/// the end; repeating a commit changes nothing.
#[utoipa::path(post, path = "/v1/topics/{topic}/consumers/{name}/commit", tag = "consumers",
    params(("topic" = String, Path,), ("name" = String, Path,), ByHeader), request_body = CommitBody, responses(
    (status = 200, body = CommittedBody, description = "Durably committed"),
    (status = 400, body = ErrorBody),
    (status = 404, body = ErrorBody),
    (status = 409, body = ErrorBody, description = "The lease is no longer valid (`lease-lost`), or a later position is already committed (`position-behind`)"),
    (status = 422, body = ErrorBody, description = "A position past the end of its partition"),
    (status = 503, body = ErrorBody, description = "Nothing was committed; try again"),
))]
pub(super) async fn commit(
    app: Called,
    InPath((topic, name)): InPath<(TopicName, ConsumerName)>,
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
    let session = app.session.clone();
    let committed = async move {
        Ok(session
            .consumers()
            .commit_consumer(&topic, &name, commit)
            .await?)
    };
    let leased_until = to_the_end(committed).await?;
    Ok(Json(CommittedBody { leased_until }))
}
