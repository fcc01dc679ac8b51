//! Retention over HTTP: changing topics in use, and trimming.

use axum::Json;
use axum::body::Body;
use axum::http::HeaderMap;
use millrace_broker::{Before, ChangedTopic, Growth, TopicPatch};
use millrace_model::{Durability, Offset, PartitionId, SettingsPatch, TopicName, TopicSettings};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::app::to_the_end;
use super::called::Called;
use super::error::{ApiError, ErrorBody};
use super::query::InPath;
use super::topics::TopicBody;

/// The changes to a topic; omitted fields stay as they are.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TopicChangeBody {
    /// When appends are acknowledged: `durable`, `os` or `none`.
    #[serde(default)]
    durability: Option<Durability>,
    /// Settings to change; `null` removes a bound.
    #[serde(default)]
    #[schema(value_type = Option<TopicSettings>)]
    settings: SettingsPatch,
    /// The new number of partitions: the same as before, or more, never fewer. Existing messages stay where they are; keys are spread
    /// over all partitions from now on, so a key's messages may be in two of them.
    #[serde(default)]
    #[schema(example = 8)]
    partitions: Option<u32>,
    /// Add partitions although the topic is compacted, or a processor reads it in order or has state for it. Without this such a change
    /// is refused, and the error lists the affected uses.
    #[serde(default)]
    #[schema(default = false)]
    accept_moved_keys: bool,
}

/// A topic after a change.
#[derive(Serialize, ToSchema)]
pub(super) struct ChangedTopicBody {
    #[serde(flatten)]
    topic: TopicBody,
    /// The consequences of added partitions; absent if the number stayed the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    grown: Option<GrownBody>,
}

/// A topic has more partitions.
#[derive(Serialize, ToSchema)]
pub(super) struct GrownBody {
    /// How many it had.
    before: u32,
    /// Topics of processors that grew with it.
    along: Vec<TopicName>,
    /// What it means for messages and keys, and which uses are affected.
    note: String,
}

const MOVED_KEYS: &str = "Existing messages stay where they are. Keys are spread over all partitions from now on, so a key's messages may be in \
     two partitions, in order only within each.";

impl From<ChangedTopic> for ChangedTopicBody {
    fn from(changed: ChangedTopic) -> Self {
        let note = |growth: &Growth| {
            let uses = growth.uses.iter().map(|of| format!(" {of}."));
            format!("{MOVED_KEYS}{}", uses.collect::<String>())
        };
        Self {
            topic: changed.topic.into(),
            grown: changed.grown.map(|growth| GrownBody {
                note: note(&growth),
                before: growth.before,
                along: growth.along,
            }),
        }
    }
}

/// Changes the settings of a topic, at once, even while it is in use. Producers, processors and readers use added partitions from then
/// on, without a restart.
#[utoipa::path(patch, path = "/v1/topics/{topic}", tag = "topics", params(("topic" = String, Path,)),
    request_body = TopicChangeBody, responses(
    (status = 200, body = ChangedTopicBody, description = "The changed topic"),
    (status = 400, body = ErrorBody),
    (status = 404, body = ErrorBody),
    (status = 409, body = ErrorBody, description = "More partitions, but some uses depend on all messages of a key being in one partition"),
    (status = 422, body = ErrorBody, description = "A setting out of range, fewer partitions, or more than the maximum"),
))]
pub(super) async fn change(
    app: Called,
    InPath(name): InPath<TopicName>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<ChangedTopicBody>, ApiError> {
    let body: TopicChangeBody = app.take_json(&headers, body).await?;
    let patch = TopicPatch {
        durability: body.durability,
        partitions: body.partitions,
        accept_moved_keys: body.accept_moved_keys,
        settings: body.settings,
    };
    let change = async move { Ok(app.session.catalogue().change_topic(&name, patch).await?) };
    Ok(Json(to_the_end(change).await?.into()))
}

/// What to remove.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TrimBody {
    /// Only this partition; all partitions if omitted.
    #[serde(default)]
    partition: Option<u32>,
    /// The first offset to keep, or `end` to remove everything.
    #[schema(value_type = Object, example = "end")]
    before: BeforeBody,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "an offset or \"end\"")]
enum BeforeBody {
    Offset(u64),
    Word(End),
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum End {
    End,
}

/// Where partitions now start.
#[derive(Serialize, ToSchema)]
pub(super) struct TrimmedBody {
    starts: Vec<StartBody>,
}

#[derive(Serialize, ToSchema)]
struct StartBody {
    partition: PartitionId,
    /// The first offset kept.
    start: Offset,
}

/// Removes the messages before an offset, permanently. Processors that have not read them continue after them.
#[utoipa::path(post, path = "/v1/topics/{topic}/trim", tag = "topics", params(("topic" = String, Path,)),
    request_body = TrimBody, responses(
    (status = 200, body = TrimmedBody),
    (status = 400, body = ErrorBody),
    (status = 404, body = ErrorBody),
    (status = 422, body = ErrorBody, description = "The partition ends before the offset"),
))]
pub(super) async fn trim(
    app: Called,
    InPath(name): InPath<TopicName>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<TrimmedBody>, ApiError> {
    let body: TrimBody = app.take_json(&headers, body).await?;
    let before = match body.before {
        BeforeBody::Offset(offset) => Before::Offset(Offset(offset)),
        BeforeBody::Word(End::End) => Before::End,
    };
    let partition = body.partition.map(PartitionId);
    let trimmed = async move {
        Ok(app
            .session
            .catalogue()
            .trim(&name, partition, before)
            .await?)
    };
    let starts = to_the_end(trimmed).await?.into_iter();
    let starts = starts.map(|(partition, start)| StartBody { partition, start });
    Ok(Json(TrimmedBody {
        starts: starts.collect(),
    }))
}
