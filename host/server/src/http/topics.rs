//! Topics over HTTP.

use axum::body::Body;
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

use super::app::to_the_end;
use super::called::Called;
use super::damage::DamagedOffsets;
use super::error::{ApiError, ErrorBody};
use super::query::{InPath, InQuery};
use super::record::Subject;

/// A new topic.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewTopicBody {
    /// 1 to 249 letters, digits, '.', '_', '-'.
    name: TopicName,
    /// At least one. It can be raised later, never lowered.
    #[serde(default = "one")]
    #[schema(default = 1)]
    partitions: u32,
    /// When appends are acknowledged.
    #[serde(default)]
    #[schema(value_type = String, default = "durable", example = "durable")]
    durability: Durability,
    /// A module that exports `partitioner`, by digest, prefix or tag; the built-in partitioner if omitted.
    #[serde(default)]
    partitioner: Option<String>,
    /// Settings that can be changed later; omitted ones have their defaults.
    #[serde(default)]
    #[schema(value_type = Option<TopicSettings>)]
    settings: TopicSettings,
}

fn one() -> u32 {
    1
}

/// A topic.
#[derive(Serialize, ToSchema)]
pub(super) struct TopicBody {
    id: u64,
    name: TopicName,
    partitions: u32,
    durability: Durability,
    partitioner: Option<Digest>,
    /// The processor that owns it.
    owner: Option<ProcessorName>,
    created_at: Timestamp,
    settings: TopicSettings,
    /// The start and end of each partition.
    #[serde(skip_serializing_if = "Option::is_none")]
    ends: Option<Vec<EndsBody>>,
}

#[derive(Serialize, ToSchema)]
struct EndsBody {
    partition: PartitionId,
    /// The first offset kept.
    start: Offset,
    /// The offset that the next message will have.
    end: Offset,
    /// How many messages are kept: fewer than the offsets between start and end if some were removed by compaction.
    messages: u64,
    /// Known damaged offsets.
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
pub(super) async fn list(app: Called) -> Json<TopicsBody> {
    let topics = app.session.catalogue().topics();
    let topics = topics.into_iter().map(TopicBody::from).collect();
    Json(TopicsBody { topics })
}

/// Creates a topic. Creating the same topic again changes nothing.
#[utoipa::path(post, path = "/v1/topics", tag = "topics", request_body = NewTopicBody, responses(
    (status = 201, body = TopicBody, description = "Made"),
    (status = 200, body = TopicBody, description = "It already exists with the same settings"),
    (status = 400, body = ErrorBody),
    (status = 409, body = ErrorBody, description = "It already exists with other settings"),
    (status = 422, body = ErrorBody),
))]
pub(super) async fn create(
    app: Called,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let body: NewTopicBody = app.take_json(&headers, body).await?;
    app.admitted(body.partitioner.iter().cloned().collect())
        .await;
    let new = NewTopic {
        partitioner: app.partitioner(body.partitioner)?,
        name: body.name,
        partitions: body.partitions,
        durability: body.durability,
        settings: body.settings,
    };
    to_the_end(async move {
        let (status, topic) = match app.session.catalogue().create_topic(new.clone()).await {
            Ok(topic) => (StatusCode::CREATED, topic),
            Err(error) => (StatusCode::OK, app.identical(&new, error)?),
        };
        let subject = Subject(topic.spec.name.to_string());
        Ok((status, Extension(subject), Json(TopicBody::from(topic))).into_response())
    })
    .await
}

impl Called {
    fn partitioner(&self, reference: Option<String>) -> Result<Option<Digest>, ApiError> {
        let digest_of = |reference: String| self.digest_of(&reference);
        reference.map(digest_of).transpose()
    }

    /// The existing topic, if it equals the requested one.
    fn identical(&self, new: &NewTopic, error: TopicCreateError) -> Result<Topic, ApiError> {
        let exists = matches!(error, TopicCreateError::Topic(TopicError::Exists(_)));
        let found = exists
            .then(|| self.session.catalogue().topic(&new.name))
            .flatten();
        let same = |topic: &Topic| {
            topic.spec.partitions == new.partitions
                && topic.spec.durability == new.durability
                && topic.spec.partitioner == new.partitioner
                && topic.spec.settings == new.settings
        };
        found.filter(same).ok_or_else(|| error.into())
    }

    pub(super) fn known_topic(&self, name: &TopicName) -> Result<Topic, ApiError> {
        Ok(self.session.catalogue().known_topic(name)?)
    }
}

/// A topic with the start and end of its partitions.
#[utoipa::path(get, path = "/v1/topics/{topic}", tag = "topics", params(("topic" = String, Path,)), responses(
    (status = 200, body = TopicBody),
    (status = 404, body = ErrorBody),
))]
pub(super) async fn show(
    app: Called,
    InPath(name): InPath<TopicName>,
) -> Result<Json<TopicBody>, ApiError> {
    let topic = app.known_topic(&name)?;
    let damage = app.session.catalogue().damage();
    let mut ends = Vec::new();
    for at in topic.partitions() {
        let partition = at.partition;
        // None if the topic was just deleted.
        let Some(found) = app.session.catalogue().ends(&topic, partition) else {
            continue;
        };
        ends.push(EndsBody {
            partition,
            start: found.start,
            end: found.end,
            messages: app
                .session
                .catalogue()
                .count(at, found.start, found.end)
                .await?,
            damaged: Called::damaged(&damage, at),
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
    /// Delete it even if a rollback of a processor would need it, or messages in it wait for a processor that no longer reads it.
    #[serde(default)]
    #[param(default = false)]
    accept_loss: bool,
}

/// A topic that was deleted although it was still needed.
#[derive(Serialize, ToSchema)]
pub(super) struct TopicDeletedBody {
    /// What was lost with it, one sentence each.
    lost: Vec<String>,
}

/// Deletes a topic and its messages.
#[utoipa::path(delete, path = "/v1/topics/{topic}", tag = "topics", params(("topic" = String, Path,), TopicDeleteParams), responses(
    (status = 200, body = TopicDeletedBody, description = "Deleted with accept_loss, and something was lost"),
    (status = 204, description = "Deleted; nothing was lost"),
    (status = 400, body = ErrorBody),
    (status = 404, body = ErrorBody),
    (status = 409, body = ErrorBody, description = "A processor uses it (`in-use`), a rollback needs it (`way-back`), or messages in it wait (`messages-wait`)"),
))]
pub(super) async fn remove(
    app: Called,
    InPath(name): InPath<TopicName>,
    InQuery(params): InQuery<TopicDeleteParams>,
) -> Result<Response, ApiError> {
    to_the_end(async move {
        let losses = app
            .session
            .catalogue()
            .delete_topic(&name, params.accept_loss)
            .await?;
        app.forget_metrics("topic", name.as_str());
        let lost: Vec<String> = losses.iter().map(ToString::to_string).collect();
        Ok(match lost.is_empty() {
            true => StatusCode::NO_CONTENT.into_response(),
            false => Json(TopicDeletedBody { lost }).into_response(),
        })
    })
    .await
}
