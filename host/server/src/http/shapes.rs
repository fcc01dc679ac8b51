//! The shape of a processor and its trials in the OpenAPI document. It is written here because it
//! says more than the stored noun: how the HTTP interface shows trials, and which answers omit the
//! changes. A test of [`super::openapi`] compares it with the noun.
#![allow(dead_code, reason = "the shapes are read by the derive only")]

use std::collections::BTreeMap;

use millrace_broker::SideStatus;
use millrace_model::{Change, Replay, Resumes, Revision, TopicStart};
use utoipa::ToSchema;

/// A processor and its revisions.
#[derive(ToSchema)]
#[schema(as = Processor)]
pub(super) struct ProcessorSchema {
    name: String,
    /// When it was created, in milliseconds since the Unix epoch; 0 if an old version created it.
    made_at: u64,
    /// The number of the revision that takes the next batch.
    current: u32,
    paused: bool,
    /// The settings that its component reads; absent if there are none.
    config: Option<BTreeMap<String, String>>,
    /// Oldest first.
    revisions: Vec<Revision>,
    /// The canary.
    canary: Option<CanarySchema>,
    /// The shadow.
    shadow: Option<ShadowSchema>,
    /// The range that it reads, if it is a replay.
    replay: Option<Replay>,
    /// Where it started in each topic, if it was not the oldest message.
    start: Option<Vec<TopicStart>>,
    /// How often it was resumed; absent if it never was.
    resumes: Option<Resumes>,
    /// Its changes, oldest first; omitted in `GET /v1/processors`, see `GET /v1/processors/{name}/history`.
    changes: Option<Vec<Change>>,
}

/// A canary: a revision that takes a share of the keys while another one is current.
#[derive(ToSchema)]
#[schema(as = Canary)]
pub(super) struct CanarySchema {
    revision: u32,
    /// Percentage of the keys.
    percent: u32,
    /// Milliseconds since the Unix epoch.
    since: u64,
}

/// A shadow: a revision that is called beside the current one, and whose answers only count for a report.
#[derive(ToSchema)]
#[schema(as = Shadow)]
pub(super) struct ShadowSchema {
    revision: u32,
    /// Milliseconds since the Unix epoch.
    since: u64,
}

/// How a canary compares with the current revision, since the canary began on this host.
#[derive(ToSchema)]
#[schema(as = CanaryStatus)]
pub(super) struct CanaryStatusSchema {
    percent: u32,
    canary: SideStatus,
    current: SideStatus,
    /// Why it takes no more messages and is about to be withdrawn.
    trouble: Option<String>,
}
