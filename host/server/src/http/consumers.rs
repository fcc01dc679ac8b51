//! Consumers over HTTP: create, list, show, reset, delete. [`super::consuming`] has their reads and commits.

use axum::Json;
use axum::body::Body;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use millrace_broker::{ConsumerPlace, ConsumerStatus, ReaderStatus};
use millrace_model::{ConsumerName, Noted, Offset, PartitionId, Timestamp, TopicName};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::app::to_the_end;
use super::by::ByHeader;
use super::called::Called;
use super::deploying::begin_at;
use super::error::{ApiError, ErrorBody};
use super::query::{InPath, InQuery};

/// A consumer and its status.
#[derive(Serialize, ToSchema)]
#[schema(as = Consumer)]
pub(super) struct ConsumerBody {
    topic: TopicName,
    name: ConsumerName,
    /// In milliseconds since the Unix epoch, like all times.
    created_at: Timestamp,
    /// Offsets still to read, over all partitions.
    lag: u64,
    /// The current reader; null if there is none.
    reader: Option<ReaderBody>,
    /// When it last committed.
    committed_at: Option<Timestamp>,
    /// By whom, as claimed.
    committed_by: Option<String>,
    /// When its positions were last reset.
    reset_at: Option<Timestamp>,
    /// By whom, as claimed.
    reset_by: Option<String>,
    /// Its position in each partition; omitted in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    partitions: Option<Vec<PlaceBody>>,
}

/// The reader of a consumer.
#[derive(Serialize, ToSchema)]
#[schema(as = ConsumerReader)]
struct ReaderBody {
    /// Its name, as claimed.
    by: String,
    /// When the lease ends, unless the reader renews it.
    until: Timestamp,
}

/// A consumer's position in a partition.
#[derive(Serialize, ToSchema)]
#[schema(as = ConsumerPlace)]
struct PlaceBody {
    partition: PartitionId,
    /// The next offset to read, as committed. If it is below `start`, messages were removed before the consumer reached them.
    position: Offset,
    /// The first offset kept.
    start: Offset,
    /// The offset that the next message will have.
    end: Offset,
    /// Offsets still to read.
    lag: u64,
}

#[derive(Serialize, ToSchema)]
pub(super) struct ConsumersBody {
    /// By topic and name; at most 1,000 per topic.
    consumers: Vec<ConsumerBody>,
}

impl From<ConsumerPlace> for PlaceBody {
    fn from(place: ConsumerPlace) -> Self {
        Self {
            partition: place.partition,
            position: place.position,
            start: place.start,
            end: place.end,
            lag: place.lag,
        }
    }
}

impl ConsumerBody {
    fn short(status: ConsumerStatus) -> Self {
        let noted = |noted: Option<Noted>| noted.map(|noted| (noted.at, noted.by)).unzip();
        let (committed_at, committed_by) = noted(status.committed);
        let (reset_at, reset_by) = noted(status.reset);
        let reader = |ReaderStatus { by, until }| ReaderBody { by, until };
        Self {
            topic: status.topic,
            name: status.name,
            created_at: status.created_at,
            lag: status.lag,
            reader: status.reader.map(reader),
            committed_at,
            committed_by,
            reset_at,
            reset_by,
            partitions: None,
        }
    }

    fn whole(mut status: ConsumerStatus) -> Self {
        let places = std::mem::take(&mut status.partitions);
        Self {
            partitions: Some(places.into_iter().map(PlaceBody::from).collect()),
            ..Self::short(status)
        }
    }
}

impl ConsumersBody {
    fn of(consumers: Vec<ConsumerStatus>) -> Self {
        let consumers = consumers.into_iter().map(ConsumerBody::short).collect();
        Self { consumers }
    }
}

/// All consumers of all topics.
#[utoipa::path(get, path = "/v1/consumers", tag = "consumers", responses((status = 200, body = ConsumersBody)))]
pub(super) async fn list_all(app: Called) -> Result<Json<ConsumersBody>, ApiError> {
    Ok(Json(ConsumersBody::of(
        app.session.consumers().all_consumers().await?,
    )))
}

/// The consumers of a topic, by name.
#[utoipa::path(get, path = "/v1/topics/{topic}/consumers", tag = "consumers", params(("topic" = String, Path,)), responses(
    (status = 200, body = ConsumersBody),
    (status = 404, body = ErrorBody),
))]
pub(super) async fn list_of_topic(
    app: Called,
    InPath(topic): InPath<TopicName>,
) -> Result<Json<ConsumersBody>, ApiError> {
    let consumers = app.session.consumers().consumers(&topic).await?;
    Ok(Json(ConsumersBody::of(consumers)))
}

/// One consumer, with its position in each partition.
#[utoipa::path(get, path = "/v1/topics/{topic}/consumers/{name}", tag = "consumers",
    params(("topic" = String, Path,), ("name" = String, Path,)), responses(
    (status = 200, body = ConsumerBody),
    (status = 404, body = ErrorBody),
))]
pub(super) async fn show(
    app: Called,
    InPath((topic, name)): InPath<(TopicName, ConsumerName)>,
) -> Result<Json<ConsumerBody>, ApiError> {
    let status = app.session.consumers().consumer(&topic, &name).await?;
    Ok(Json(ConsumerBody::whole(status)))
}

#[derive(Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct MakeQuery {
    /// Where it starts: `earliest` (the default), `latest`, an offset in each partition or the nearest that exists, or a time, as
    /// `timestamp:MS`, `2026-11-21T10:00:00Z` or `-15m`.
    from: Option<String>,
}

/// Creates a consumer. An existing one is not changed.
#[utoipa::path(put, path = "/v1/topics/{topic}/consumers/{name}", tag = "consumers",
    params(("topic" = String, Path,), ("name" = String, Path,), MakeQuery), responses(
    (status = 201, body = ConsumerBody, description = "Made"),
    (status = 200, body = ConsumerBody, description = "It already exists"),
    (status = 400, body = ErrorBody),
    (status = 404, body = ErrorBody),
    (status = 409, body = ErrorBody, description = "The topic has the maximum number of consumers"),
    (status = 422, body = ErrorBody, description = "The host has no room for it"),
))]
pub(super) async fn make(
    app: Called,
    InPath((topic, name)): InPath<(TopicName, ConsumerName)>,
    InQuery(query): InQuery<MakeQuery>,
) -> Result<Response, ApiError> {
    let now = app.clock.wall();
    let from = query.from.as_deref();
    let begin_at = from.map(|from| begin_at("from", from, now)).transpose()?;
    to_the_end(async move {
        let (status, made) = app
            .session
            .consumers()
            .make_consumer(&topic, &name, begin_at)
            .await?;
        let code = match made {
            true => StatusCode::CREATED,
            false => StatusCode::OK,
        };
        Ok((code, Json(ConsumerBody::whole(status))).into_response())
    })
    .await
}

/// Where to continue.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ResetBody {
    /// As `from` for a new consumer.
    #[schema(example = "earliest")]
    to: String,
    /// Only this partition; all partitions if omitted.
    #[serde(default)]
    partition: Option<u32>,
}

/// Sets the positions of a consumer, forward or back. Its reader loses the lease, so it cannot commit over them.
#[utoipa::path(post, path = "/v1/topics/{topic}/consumers/{name}/reset", tag = "consumers",
    params(("topic" = String, Path,), ("name" = String, Path,), ByHeader), request_body = ResetBody, responses(
    (status = 200, body = ConsumerBody, description = "The changed consumer"),
    (status = 400, body = ErrorBody),
    (status = 404, body = ErrorBody),
))]
pub(super) async fn reset(
    app: Called,
    InPath((topic, name)): InPath<(TopicName, ConsumerName)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<ConsumerBody>, ApiError> {
    let body: ResetBody = app.take_json(&headers, body).await?;
    let to = begin_at("to", &body.to, app.clock.wall())?;
    let partition = body.partition.map(PartitionId);
    let session = app.session.clone();
    to_the_end(async move {
        let status = session
            .consumers()
            .reset_consumer(&topic, &name, partition, to)
            .await?;
        Ok(Json(ConsumerBody::whole(status)))
    })
    .await
}

/// Deletes a consumer and its positions. Its reader learns of it with its next request.
#[utoipa::path(delete, path = "/v1/topics/{topic}/consumers/{name}", tag = "consumers",
    params(("topic" = String, Path,), ("name" = String, Path,)), responses(
    (status = 204),
    (status = 404, body = ErrorBody),
))]
pub(super) async fn remove(
    app: Called,
    InPath((topic, name)): InPath<(TopicName, ConsumerName)>,
) -> Result<StatusCode, ApiError> {
    let removal = async move {
        Ok(app
            .session
            .consumers()
            .delete_consumer(&topic, &name)
            .await?)
    };
    to_the_end(removal).await?;
    Ok(StatusCode::NO_CONTENT)
}
