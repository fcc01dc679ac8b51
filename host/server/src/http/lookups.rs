//! State over HTTP without a partition: a key wherever it is, and how much there is in each partition.

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use millrace_broker::StateHolding;
use millrace_model::{Offset, PartitionId, ProcessorName, TopicName};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::app::{Shared, to_the_end};
use super::error::{ApiError, ErrorBody};
use super::messages::one_of;
use super::query::{InPath, InQuery};
use super::states::{STATE_ROOM_BYTES, Shown, StateEntryBody};

/// Which key.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct KeyParams {
    /// Only in this input topic; all that it reads, or has state of, without.
    #[param(value_type = Option<String>)]
    topic: Option<TopicName>,
    /// The key.
    key: Option<String>,
    /// As `key`, for one that is not text.
    key_base64: Option<String>,
}

/// A key wherever it is.
#[derive(Serialize, ToSchema)]
pub(super) struct FoundBody {
    /// One for each partition that has it; empty where none has.
    found: Vec<FoundEntry>,
}

/// A key in a partition.
#[derive(Serialize, ToSchema)]
pub(super) struct FoundEntry {
    #[schema(value_type = String)]
    topic: TopicName,
    #[schema(value_type = u32)]
    partition: PartitionId,
    /// The partition's state holds what the messages below this offset wrote, parked ones excepted, and nothing else.
    #[schema(value_type = u64)]
    as_of: Offset,
    #[schema(value_type = StateEntryBody)]
    entry: Shown,
}

/// Looks a key up in the state of a processor, in every partition that has any: in most cases the partition of the messages with that key, but a
/// component may keep what it likes where it runs.
#[utoipa::path(get, path = "/v1/processors/{name}/state/key", tag = "processors",
    params(("name" = String, Path,), KeyParams), responses(
    (status = 200, body = FoundBody),
    (status = 400, body = ErrorBody),
    (status = 404, body = ErrorBody),
    (status = 422, body = ErrorBody, description = "It has no state of that topic"),
    (status = 503, body = ErrorBody),
))]
pub(super) async fn key(
    State(app): Shared,
    InPath(name): InPath<ProcessorName>,
    InQuery(params): InQuery<KeyParams>,
) -> Result<Response, ApiError> {
    let key = one_of("key", params.key.map(Into::into), params.key_base64)?;
    let missing = || ApiError::malformed("no key is given", "give key or key_base64");
    let key = key.ok_or_else(missing)?;
    let room = app.answer_room(STATE_ROOM_BYTES).await?;
    let broker = app.broker.clone();
    let found = to_the_end(async move {
        Ok(broker
            .state_of_key(&name, params.topic.as_ref(), &key)
            .await?)
    });
    let entry = |found: StateHolding| {
        let entry = Shown(found.page.entries.into_iter().next()?);
        Some(FoundEntry {
            topic: found.topic,
            partition: found.partition,
            as_of: found.page.as_of,
            entry,
        })
    };
    let found = found.await?.into_iter().filter_map(entry).collect();
    let written = serde_json::to_vec(&FoundBody { found });
    let written = written.map_err(|error| ApiError::internal(error.to_string()))?;
    Ok(room.answer("application/json", written))
}

/// Of which topic.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct TotalsParams {
    /// Only of this input topic; of all that it reads, or has state of, without.
    #[param(value_type = Option<String>)]
    topic: Option<TopicName>,
}

/// How much state there is.
#[derive(Serialize, ToSchema)]
pub(super) struct TotalsBody {
    /// Entries of all partitions.
    entries: usize,
    /// Bytes of all partitions, about.
    bytes: usize,
    /// One for each partition of its topics, also those without state.
    partitions: Vec<PartitionTotal>,
}

/// How much state there is of a partition.
#[derive(Serialize, ToSchema)]
pub(super) struct PartitionTotal {
    #[schema(value_type = String)]
    topic: TopicName,
    #[schema(value_type = u32)]
    partition: PartitionId,
    /// The state holds what the messages below this offset wrote, parked ones excepted, and nothing else.
    #[schema(value_type = u64)]
    as_of: Offset,
    entries: usize,
    bytes: usize,
}

/// How much a processor keeps in its state, in all partitions and in each.
#[utoipa::path(get, path = "/v1/processors/{name}/state/totals", tag = "processors",
    params(("name" = String, Path,), TotalsParams), responses(
    (status = 200, body = TotalsBody),
    (status = 400, body = ErrorBody),
    (status = 404, body = ErrorBody),
    (status = 422, body = ErrorBody, description = "It has no state of that topic"),
))]
pub(super) async fn totals(
    State(app): Shared,
    InPath(name): InPath<ProcessorName>,
    InQuery(params): InQuery<TotalsParams>,
) -> Result<Json<TotalsBody>, ApiError> {
    let holdings = app
        .broker
        .state_totals(&name, params.topic.as_ref())
        .await?;
    let total = |holding: StateHolding| PartitionTotal {
        topic: holding.topic,
        partition: holding.partition,
        as_of: holding.page.as_of,
        entries: holding.page.size.entries,
        bytes: holding.page.size.bytes,
    };
    let partitions: Vec<PartitionTotal> = holdings.into_iter().map(total).collect();
    Ok(Json(TotalsBody {
        entries: partitions.iter().map(|one| one.entries).sum(),
        bytes: partitions.iter().map(|one| one.bytes).sum(),
        partitions,
    }))
}
