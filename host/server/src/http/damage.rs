//! Damage over HTTP: what is known to be damaged, the progress of the search for more, and accepting losses.

use axum::Json;
use axum::body::Body;
use axum::http::HeaderMap;
use millrace_broker::known_partition;
use millrace_engine::{DamageKind, DamagedRange, DamagedState, FoundBy, ScrubStatus};
use millrace_model::{Code, Offset, PartitionId, TopicName, TopicPartition};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::app::to_the_end;
use super::called::Called;
use super::error::{ApiError, ErrorBody};
use super::query::InPath;

/// The known damage.
#[derive(Serialize, ToSchema)]
pub(super) struct DamageBody {
    /// Messages that cannot be read.
    ranges: Vec<RangeBody>,
    /// Modules whose bytes differ from those that were uploaded, by digest; uploading them again repairs them.
    modules: Vec<String>,
    /// Files of processors' state with unreadable parts, as far as the background search has come since the host started.
    state: Vec<StateFileBody>,
    /// The background search for damage; absent if the engine has none.
    scrub: Option<ScrubBody>,
}

/// Messages that are not there as they were written.
#[derive(Serialize, ToSchema)]
struct RangeBody {
    topic: String,
    partition: u32,
    /// The first of them.
    from: u64,
    /// The offset after the last of them, where reading can continue.
    to: u64,
    /// The file, relative to the data directory.
    file: String,
    /// The position in the file; absent until the file has been scanned.
    bytes: Option<BytesBody>,
    /// `changed`, or `misplaced`: the data belongs to another topic or partition.
    kind: &'static str,
    /// Milliseconds since the Unix epoch.
    found_at: u64,
    /// `read` or `scrub`.
    found_by: &'static str,
    /// When the loss was accepted; processors wait before the range until then.
    accepted_at: Option<u64>,
}

/// A file of a processor's state with unreadable parts.
#[derive(Serialize, ToSchema)]
struct StateFileBody {
    /// The processor.
    processor: String,
    topic: String,
    partition: u32,
    /// The file, relative to the data directory.
    file: String,
    /// The first problem found in it.
    reason: String,
    /// Milliseconds since the Unix epoch.
    found_at: u64,
}

#[derive(Serialize, ToSchema)]
struct BytesBody {
    from: u64,
    to: u64,
}

/// The progress of the background search.
#[derive(Serialize, ToSchema)]
struct ScrubBody {
    /// The maximum; 0 is off.
    bytes_per_second: u64,
    /// Bytes read since the host started.
    bytes: u64,
    /// Absent between rounds.
    round_began_at: Option<u64>,
    /// The share of the partitions that the current round has finished.
    round_done: f64,
    round_finished_at: Option<u64>,
}

/// The damaged messages to accept as lost.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AcceptBody {
    /// The first offset.
    from: u64,
    /// The offset after the last one.
    to: u64,
}

#[derive(Serialize, ToSchema)]
pub(super) struct AcceptedBody {
    accepted: Vec<RangeBody>,
}

impl RangeBody {
    fn of(topic: &str, range: DamagedRange) -> Self {
        Self {
            topic: topic.to_owned(),
            partition: range.partition.partition.0,
            from: range.from.0,
            to: range.to.0,
            file: range.file,
            bytes: range.bytes.map(|bytes| BytesBody {
                from: bytes.start,
                to: bytes.end,
            }),
            kind: match range.kind {
                DamageKind::Changed => "changed",
                DamageKind::Misplaced => "misplaced",
            },
            found_at: range.found_at.0,
            found_by: match range.found_by {
                FoundBy::Read => "read",
                FoundBy::Scrub => "scrub",
            },
            accepted_at: range.accepted_at.map(|at| at.0),
        }
    }
}

impl From<ScrubStatus> for ScrubBody {
    fn from(status: ScrubStatus) -> Self {
        Self {
            bytes_per_second: status.bytes_per_second,
            bytes: status.bytes,
            round_began_at: status.round_began_at.map(|at| at.0),
            round_done: status.round_done,
            round_finished_at: status.round_finished_at.map(|at| at.0),
        }
    }
}

/// All known damage, and the progress of the search for more.
#[utoipa::path(get, path = "/v1/damage", tag = "damage", responses((status = 200, body = DamageBody)))]
pub(super) async fn list(app: Called) -> Json<DamageBody> {
    let report = app.session.catalogue().damage();
    let topics = app.session.catalogue().topics();
    let name = |partition: TopicPartition| {
        let topic = topics.iter().find(|t| t.id == partition.topic)?;
        Some(topic.spec.name.as_str())
    };
    let named = |range: DamagedRange| Some(RangeBody::of(name(range.partition)?, range));
    let of_state = |state: DamagedState| {
        Some(StateFileBody {
            processor: state.group.to_string(),
            topic: name(state.partition)?.to_owned(),
            partition: state.partition.partition.0,
            file: state.file,
            reason: state.reason,
            found_at: state.found_at.0,
        })
    };
    Json(DamageBody {
        ranges: report.ranges.into_iter().filter_map(named).collect(),
        modules: report.modules.iter().map(ToString::to_string).collect(),
        state: report.state.into_iter().filter_map(of_state).collect(),
        scrub: report.scrub.map(ScrubBody::from),
    })
}

/// Accepts the loss of the damaged messages within these offsets: processors continue after them. Nothing is removed.
#[utoipa::path(post, path = "/v1/topics/{topic}/partitions/{partition}/damage/accept", tag = "damage",
    params(("topic" = String, Path,), ("partition" = u32, Path,)), request_body = AcceptBody,
    responses(
        (status = 200, body = AcceptedBody),
        (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody, description = "There is no known damage within these offsets"),
    )
)]
pub(super) async fn accept(
    app: Called,
    InPath((topic, partition)): InPath<(TopicName, u32)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<AcceptedBody>, ApiError> {
    let AcceptBody { from, to } = app.take_json(&headers, body).await?;
    let topic = app.known_topic(&topic)?;
    let partition = PartitionId(partition);
    known_partition(&topic, partition)?;
    let name = topic.spec.name.clone();
    let accepted = to_the_end(async move {
        let (from, to) = (Offset(from), Offset(to));
        Ok(app
            .session
            .catalogue()
            .accept_damage(&topic, partition, from, to)
            .await?)
    });
    let accepted = accepted.await?;
    if accepted.is_empty() {
        let message = format!(
            "there is no known damage entirely within offsets {from} to {to} (exclusive) of {name}/{partition}"
        );
        return Err(ApiError::of(Code::NoSuchDamage, message));
    }
    let accepted = accepted.into_iter();
    let shown = accepted.map(|range| RangeBody::of(name.as_str(), range));
    Ok(Json(AcceptedBody {
        accepted: shown.collect(),
    }))
}

/// A range of one partition, as a topic shows it.
#[derive(Serialize, ToSchema)]
pub(super) struct DamagedOffsets {
    from: u64,
    to: u64,
}

impl Called {
    /// The damaged offsets of a topic's partition.
    pub(super) fn damaged(
        report: &millrace_engine::DamageReport,
        partition: TopicPartition,
    ) -> Vec<DamagedOffsets> {
        let ranges = report.ranges.iter().filter(|r| r.partition == partition);
        let offsets = ranges.map(|range| DamagedOffsets {
            from: range.from.0,
            to: range.to.0,
        });
        offsets.collect()
    }
}
