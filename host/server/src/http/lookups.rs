//! State over HTTP without a partition: a key in any partition, and how much state each partition has.

use axum::Json;
use axum::response::Response;
use millrace_broker::StateHolding;
use millrace_model::{Offset, PartitionId, ProcessorName, TopicName};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::app::to_the_end;
use super::called::Called;
use super::error::{ApiError, ErrorBody};
use super::messages::one_of;
use super::query::{InPath, InQuery};
use super::states::{STATE_ROOM_BYTES, Shown, StateEntryBody};

/// The key.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct KeyParams {
    /// Only in this input topic; if omitted, in all that the processor reads or has state for.
    #[param(value_type = Option<String>)]
    topic: Option<TopicName>,
    /// The key.
    key: Option<String>,
    /// As `key`, for one that is not text.
    key_base64: Option<String>,
}

/// A key in all partitions.
#[derive(Serialize, ToSchema)]
pub(super) struct FoundBody {
    /// One entry for each partition that has it; empty if none does.
    found: Vec<FoundEntry>,
}

/// A key in a partition.
#[derive(Serialize, ToSchema)]
pub(super) struct FoundEntry {
    topic: TopicName,
    partition: PartitionId,
    /// The state contains exactly the writes of the messages below this offset, except parked ones.
    as_of: Offset,
    #[schema(value_type = StateEntryBody)]
    entry: Shown,
}

/// Looks a key up in a processor's state, in every partition that has any: usually it is in the partition of the messages with that
/// key, but a component may store any key in any partition it runs in.
#[utoipa::path(get, path = "/v1/processors/{name}/state/key", tag = "processors",
    params(("name" = String, Path,), KeyParams), responses(
    (status = 200, body = FoundBody),
    (status = 400, body = ErrorBody),
    (status = 404, body = ErrorBody),
    (status = 422, body = ErrorBody, description = "It has no state for that topic"),
    (status = 503, body = ErrorBody),
))]
pub(super) async fn key(
    app: Called,
    InPath(name): InPath<ProcessorName>,
    InQuery(params): InQuery<KeyParams>,
) -> Result<Response, ApiError> {
    let key = one_of("key", params.key.map(Into::into), params.key_base64)?;
    let missing = || ApiError::malformed("no key is given", "give key or key_base64");
    let key = key.ok_or_else(missing)?;
    let room = app.answer_room(STATE_ROOM_BYTES).await?;
    let session = app.session.clone();
    let found = to_the_end(async move {
        Ok(session
            .processors()
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

/// The topic.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct TotalsParams {
    /// Only of this input topic; if omitted, of all that the processor reads or has state for.
    #[param(value_type = Option<String>)]
    topic: Option<TopicName>,
}

/// The amount of state.
#[derive(Serialize, ToSchema)]
pub(super) struct TotalsBody {
    /// Entries of all partitions.
    entries: usize,
    /// Approximate bytes of all partitions.
    bytes: usize,
    /// One for each partition of its topics, including those without state.
    partitions: Vec<PartitionTotal>,
}

/// The amount of state of a partition.
#[derive(Serialize, ToSchema)]
pub(super) struct PartitionTotal {
    topic: TopicName,
    partition: PartitionId,
    /// The state contains exactly the writes of the messages below this offset, except parked ones.
    as_of: Offset,
    entries: usize,
    bytes: usize,
}

/// How much state a processor has, in total and in each partition.
#[utoipa::path(get, path = "/v1/processors/{name}/state/totals", tag = "processors",
    params(("name" = String, Path,), TotalsParams), responses(
    (status = 200, body = TotalsBody),
    (status = 400, body = ErrorBody),
    (status = 404, body = ErrorBody),
    (status = 422, body = ErrorBody, description = "It has no state for that topic"),
))]
pub(super) async fn totals(
    app: Called,
    InPath(name): InPath<ProcessorName>,
    InQuery(params): InQuery<TotalsParams>,
) -> Result<Json<TotalsBody>, ApiError> {
    let holdings = app
        .session
        .processors()
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
