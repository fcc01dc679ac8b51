//! Topics over HTTP.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use millrace_broker::{NewTopic, TopicCreateError};
use millrace_engine::TopicError;
use millrace_model::{
    Digest, Durability, Offset, PartitionId, ProcessorName, Timestamp, Topic, TopicName,
    TopicSettings,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::app::{App, Shared, to_the_end};
use super::damage::DamagedOffsets;
use super::error::{ApiError, ErrorBody};
use super::query::{InPath, InQuery};
use super::record::Subject;
use super::shapes::TopicSettingsSchema;

/// A topic, as asked for.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewTopicBody {
    /// 1 to 249 letters, digits, '.', '_', '-'.
    #[schema(value_type = String)]
    name: TopicName,
    /// At least one. A topic can be given more later, never fewer.
    #[serde(default = "one")]
    #[schema(default = 1)]
    partitions: u32,
    /// When appends are acknowledged.
    #[serde(default)]
    #[schema(value_type = String, default = "durable", example = "durable")]
    durability: Durability,
    /// A module that exports `partitioner`, by digest, prefix or tag; the built-in one without.
    #[serde(default)]
    partitioner: Option<String>,
    /// What may be changed later; the defaults where it says nothing.
    #[serde(default)]
    #[schema(value_type = Option<TopicSettingsSchema>)]
    settings: TopicSettings,
}

fn one() -> u32 {
    1
}

/// A topic.
#[derive(Serialize, ToSchema)]
pub(super) struct TopicBody {
    id: u64,
    #[schema(value_type = String)]
    name: TopicName,
    partitions: u32,
    #[schema(value_type = String)]
    durability: Durability,
    #[schema(value_type = Option<String>)]
    partitioner: Option<Digest>,
    /// The processor that it was made for.
    #[schema(value_type = Option<String>)]
    owner: Option<ProcessorName>,
    #[schema(value_type = u64)]
    created_at: Timestamp,
    #[schema(value_type = TopicSettingsSchema)]
    settings: TopicSettings,
    /// Where each partition begins and ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    ends: Option<Vec<EndsBody>>,
}

#[derive(Serialize, ToSchema)]
struct EndsBody {
    #[schema(value_type = u32)]
    partition: PartitionId,
    /// The first offset kept.
    #[schema(value_type = u64)]
    start: Offset,
    /// The offset that the next message will have.
    #[schema(value_type = u64)]
    end: Offset,
    /// How many messages are kept: fewer than the offsets between start and end where some were compacted away.
    messages: u64,
    /// Offsets that are known to be damaged.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    damaged: Vec<DamagedOffsets>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct TopicsBody {
    topics: Vec<TopicBody>,
}

impl From<Topic> for TopicBody {
    fn from(topic: Topic) -> Self {
        Self {
            id: topic.id.0,
            name: topic.spec.name,
            partitions: topic.spec.partitions,
            durability: topic.spec.durability,
            partitioner: topic.spec.partitioner,
            owner: topic.spec.owner,
            created_at: topic.spec.created_at,
            settings: topic.spec.settings,
            ends: None,
        }
    }
}

/// All topics, by name.
#[utoipa::path(get, path = "/v1/topics", tag = "topics", responses((status = 200, body = TopicsBody)))]
pub(super) async fn list(State(app): Shared) -> Json<TopicsBody> {
    let topics = app.broker.topics();
    let topics = topics.into_iter().map(TopicBody::from).collect();
    Json(TopicsBody { topics })
}

/// Makes a topic. Making the same one twice is making it once.
#[utoipa::path(post, path = "/v1/topics", tag = "topics", request_body = NewTopicBody, responses(
    (status = 201, body = TopicBody, description = "Made"),
    (status = 200, body = TopicBody, description = "It exists already, just so"),
    (status = 400, body = ErrorBody),
    (status = 409, body = ErrorBody, description = "It exists, but differs"),
    (status = 422, body = ErrorBody),
))]
pub(super) async fn create(
    State(app): Shared,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let body: NewTopicBody = app.take_json(&headers, body).await?;
    let new = NewTopic {
        partitioner: app.partitioner(body.partitioner)?,
        name: body.name,
        partitions: body.partitions,
        durability: body.durability,
        settings: body.settings,
    };
    to_the_end(async move {
        let (status, topic) = match app.broker.create_topic(new.clone()).await {
            Ok(topic) => (StatusCode::CREATED, topic),
            Err(error) => (StatusCode::OK, app.identical(&new, error)?),
        };
        let subject = Subject(topic.spec.name.to_string());
        Ok((status, Extension(subject), Json(TopicBody::from(topic))).into_response())
    })
    .await
}

impl App {
    fn partitioner(&self, reference: Option<String>) -> Result<Option<Digest>, ApiError> {
        let digest_of = |reference: String| self.digest_of(&reference);
        reference.map(digest_of).transpose()
    }

    /// The existing topic, if that is all that stood in the way and it is what was asked for.
    fn identical(&self, new: &NewTopic, error: TopicCreateError) -> Result<Topic, ApiError> {
        let exists = matches!(error, TopicCreateError::Topic(TopicError::Exists(_)));
        let found = exists.then(|| self.broker.topic(&new.name)).flatten();
        let same = |topic: &Topic| {
            topic.spec.partitions == new.partitions
                && topic.spec.durability == new.durability
                && topic.spec.partitioner == new.partitioner
                && topic.spec.settings == new.settings
        };
        found.filter(same).ok_or_else(|| error.into())
    }

    pub(super) fn known_topic(&self, name: &TopicName) -> Result<Topic, ApiError> {
        let topic = self.broker.topic(name);
        topic.ok_or_else(|| TopicError::Unknown(name.clone()).into())
    }
}

/// A topic and where its partitions begin and end.
#[utoipa::path(get, path = "/v1/topics/{topic}", tag = "topics", params(("topic" = String, Path,)), responses(
    (status = 200, body = TopicBody),
    (status = 404, body = ErrorBody),
))]
pub(super) async fn show(
    State(app): Shared,
    InPath(name): InPath<TopicName>,
) -> Result<Json<TopicBody>, ApiError> {
    let topic = app.known_topic(&name)?;
    let damage = app.broker.damage();
    let mut ends = Vec::new();
    for at in topic.partitions() {
        let partition = at.partition;
        // None where the topic was deleted just now.
        let Some(found) = app.broker.ends(&topic, partition) else {
            continue;
        };
        ends.push(EndsBody {
            partition,
            start: found.start,
            end: found.end,
            messages: app.broker.count(at, found.start, found.end).await?,
            damaged: App::damaged(&damage, at),
        });
    }
    Ok(Json(TopicBody {
        ends: Some(ends),
        ..topic.into()
    }))
}

/// How to delete a topic.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct TopicDeleteParams {
    /// Deletes it also where a rollback of a processor would need it, or messages in it wait for a processor that no longer reads it.
    #[serde(default)]
    #[param(default = false)]
    accept_loss: bool,
}

/// A topic that is gone although somebody misses it.
#[derive(Serialize, ToSchema)]
pub(super) struct TopicDeletedBody {
    /// What was lost with it, one sentence each.
    lost: Vec<String>,
}

/// Deletes a topic and its messages.
#[utoipa::path(delete, path = "/v1/topics/{topic}", tag = "topics", params(("topic" = String, Path,), TopicDeleteParams), responses(
    (status = 200, body = TopicDeletedBody, description = "Deleted with accept_loss, and something was lost"),
    (status = 204, description = "Deleted; nobody misses it"),
    (status = 400, body = ErrorBody),
    (status = 404, body = ErrorBody),
    (status = 409, body = ErrorBody, description = "A processor uses it (`in-use`), a rollback needs it (`way-back`), or messages in it wait (`messages-wait`)"),
))]
pub(super) async fn remove(
    State(app): Shared,
    InPath(name): InPath<TopicName>,
    InQuery(params): InQuery<TopicDeleteParams>,
) -> Result<Response, ApiError> {
    to_the_end(async move {
        let losses = app.broker.delete_topic(&name, params.accept_loss).await?;
        app.forget_metrics("topic", name.as_str());
        let lost: Vec<String> = losses.iter().map(ToString::to_string).collect();
        Ok(match lost.is_empty() {
            true => StatusCode::NO_CONTENT.into_response(),
            false => Json(TopicDeletedBody { lost }).into_response(),
        })
    })
    .await
}
