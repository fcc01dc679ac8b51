//! How long messages stay, over HTTP: topics changed while they are used, and trimmed.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use millrace_broker::{Before, TopicPatch};
use millrace_model::{Durability, Offset, PartitionId, SettingsPatch, TopicName};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::{ApiError, ErrorBody};
use super::openapi::TopicSettingsSchema;
use super::query::InPath;
use super::topics::TopicBody;
use super::{Shared, to_the_end};

/// What is to be different about a topic; what is not named stays as it is.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TopicChangeBody {
    /// When appends are acknowledged: `durable`, `os` or `none`.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    durability: Option<Durability>,
    /// Settings to change; `null` takes a bound away.
    #[serde(default)]
    #[schema(value_type = Option<TopicSettingsSchema>)]
    settings: SettingsPatch,
}

/// Changes what may be changed about a topic, at once, whoever uses it meanwhile.
#[utoipa::path(patch, path = "/v1/topics/{topic}", tag = "topics", params(("topic" = String, Path,)),
    request_body = TopicChangeBody, responses(
    (status = 200, body = TopicBody, description = "As it is now"),
    (status = 400, body = ErrorBody),
    (status = 404, body = ErrorBody),
    (status = 422, body = ErrorBody, description = "A setting outside its bounds"),
))]
pub(super) async fn change(
    State(app): Shared,
    InPath(name): InPath<TopicName>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<TopicBody>, ApiError> {
    let body: TopicChangeBody = app.take_json(&headers, body).await?;
    let patch = TopicPatch {
        durability: body.durability,
        settings: body.settings,
    };
    let change = async move { Ok(app.broker.change_topic(&name, patch).await?) };
    Ok(Json(to_the_end(change).await?.into()))
}

/// What to remove.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TrimBody {
    /// Only this partition; all of them without.
    #[serde(default)]
    partition: Option<u32>,
    /// The first offset that stays, or `end` to remove all that is there.
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

/// Where partitions begin now.
#[derive(Serialize, ToSchema)]
pub(super) struct TrimmedBody {
    starts: Vec<StartBody>,
}

#[derive(Serialize, ToSchema)]
struct StartBody {
    #[schema(value_type = u32)]
    partition: PartitionId,
    /// The first offset kept.
    #[schema(value_type = u64)]
    start: Offset,
}

/// Removes the messages before an offset, for good. Processors that have not read them go on after them.
#[utoipa::path(post, path = "/v1/topics/{topic}/trim", tag = "topics", params(("topic" = String, Path,)),
    request_body = TrimBody, responses(
    (status = 200, body = TrimmedBody),
    (status = 400, body = ErrorBody),
    (status = 404, body = ErrorBody),
    (status = 422, body = ErrorBody, description = "The partition ends before the offset"),
))]
pub(super) async fn trim(
    State(app): Shared,
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
    let trimmed = async move { Ok(app.broker.trim(&name, partition, before).await?) };
    let starts = to_the_end(trimmed).await?.into_iter();
    let starts = starts.map(|(partition, start)| StartBody { partition, start });
    Ok(Json(TrimmedBody {
        starts: starts.collect(),
    }))
}
