//! Revisions on trial over HTTP: a canary's share, a shadow's report, promotion.

use std::collections::BTreeMap;

use axum::Json;
use axum::body::Body;
use axum::http::HeaderMap;
use millrace_broker::ShadowReport;
use millrace_model::{Processor, ProcessorName};
use serde::Deserialize;
use utoipa::ToSchema;

use super::app::to_the_end;
use super::by::ByHeader;
use super::called::Called;
use super::deploying::DeployedBody;
use super::error::{ApiError, ErrorBody};
use super::query::InPath;
use super::shapes::ProcessorSchema;

/// How a shadow compares with the current revision, since it began on this host.
#[derive(ToSchema)]
#[schema(as = ShadowReport)]
#[allow(dead_code, reason = "the shape is read by the derive only")]
pub(super) struct ShadowReportSchema {
    revision: u32,
    /// Milliseconds since the Unix epoch.
    since: u64,
    /// Messages that both revisions answered.
    compared: u64,
    /// Those with the same answer.
    alike: u64,
    /// Messages with a different outcome or class, by both: `emit -> reject too-old`.
    outcomes: BTreeMap<String, u64>,
    /// Messages with the same outcome and different outputs.
    outputs: u64,
    /// Calls of the shadow that failed, by cause.
    failed_calls: BTreeMap<String, u64>,
    /// Messages without an answer because of such calls.
    not_answered: u64,
    /// Messages that the shadow was not called with, because it was busy.
    skipped: u64,
    /// Some of the messages that differ.
    samples: Vec<ShadowSampleSchema>,
}

/// A message with different answers.
#[derive(ToSchema)]
#[schema(as = ShadowSample)]
#[allow(dead_code, reason = "the shape is read by the derive only")]
struct ShadowSampleSchema {
    topic: String,
    partition: u32,
    offset: u64,
    /// As text, cut to a maximum length.
    key: Option<String>,
    /// Whether the key is not shown exactly: it is cut, or not UTF-8.
    key_lossy: bool,
    /// An entry of `outcomes`, or `outputs`.
    differs: String,
    current: SaidSchema,
    shadow: SaidSchema,
}

/// A revision's answer to a message.
#[derive(ToSchema)]
#[schema(as = Said)]
#[allow(dead_code, reason = "the shape is read by the derive only")]
struct SaidSchema {
    outcome: String,
    reason: Option<String>,
    output_count: usize,
    /// The first few, as text, cut to a maximum length.
    outputs: Vec<SaidOutputSchema>,
}

/// An output as text, cut to a maximum length.
#[derive(ToSchema)]
#[schema(as = SaidOutput)]
#[allow(dead_code, reason = "the shape is read by the derive only")]
struct SaidOutputSchema {
    topic: String,
    partition: Option<u32>,
    key: Option<String>,
    value: Option<String>,
    /// The first few, as `name: value`.
    headers: Vec<String>,
    header_count: usize,
    /// Whether it is not shown exactly: long values are cut, and bytes that are not UTF-8 are replaced.
    lossy: bool,
}

/// A canary's share.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CanaryBody {
    /// Percentage of the keys, 1 to 99; 0 withdraws it.
    percent: u32,
}

/// Changes the canary's share of the keys. A larger share includes the smaller one, so raising it moves no key back.
#[utoipa::path(post, path = "/v1/processors/{name}/canary", tag = "processors", params(("name" = String, Path,), ByHeader),
    request_body = CanaryBody,
    responses(
        (status = 200, body = DeployedBody),
        (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "There is no canary"),
        (status = 422, body = ErrorBody, description = "The share is not 0 to 99"),
    )
)]
pub(super) async fn canary(
    app: Called,
    InPath(name): InPath<ProcessorName>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<DeployedBody>, ApiError> {
    let body: CanaryBody = app.take_json(&headers, body).await?;
    let (session, processor) = (app.session.clone(), name.clone());
    let change = async move { session.processors().set_canary(&name, body.percent).await };
    Ok(Json(DeployedBody::by(&app, processor, change).await?))
}

/// How to promote.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PromoteBody {
    /// Promote even a canary that is about to be withdrawn.
    #[serde(default)]
    force: bool,
}

/// Makes the revision on trial current. The answer's `note` lists its failures on trial.
#[utoipa::path(post, path = "/v1/processors/{name}/promote", tag = "processors", params(("name" = String, Path,), ByHeader),
    request_body = Option<PromoteBody>,
    responses(
        (status = 200, body = DeployedBody),
        (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "No revision is on trial, or it is about to be withdrawn"),
    )
)]
pub(super) async fn promote(
    app: Called,
    InPath(name): InPath<ProcessorName>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<DeployedBody>, ApiError> {
    let body: PromoteBody = app.take_json_or_default(&headers, body).await?;
    let (session, processor) = (app.session.clone(), name.clone());
    let change = async move {
        match body.force {
            true => session.processors().promote_anyway(&name).await,
            false => session.processors().promote(&name).await,
        }
    };
    Ok(Json(DeployedBody::by(&app, processor, change).await?))
}

/// How the processor's shadow compares with its current revision. The report is in memory, and starts over when the host restarts.
#[utoipa::path(get, path = "/v1/processors/{name}/shadow", tag = "processors", params(("name" = String, Path,)), responses(
    (status = 200, body = ShadowReportSchema),
    (status = 404, body = ErrorBody),
    (status = 409, body = ErrorBody, description = "There is no shadow, or it could not be loaded when the host started"),
))]
pub(super) async fn shadow(
    app: Called,
    InPath(name): InPath<ProcessorName>,
) -> Result<Json<ShadowReport>, ApiError> {
    Ok(Json(app.session.processors().shadow_report(&name)?))
}

/// Ends the shadow and discards its report.
#[utoipa::path(delete, path = "/v1/processors/{name}/shadow", tag = "processors", params(("name" = String, Path,), ByHeader), responses(
    (status = 200, body = ProcessorSchema),
    (status = 404, body = ErrorBody),
    (status = 409, body = ErrorBody, description = "There is no shadow"),
))]
pub(super) async fn end_shadow(
    app: Called,
    InPath(name): InPath<ProcessorName>,
) -> Result<Json<Processor>, ApiError> {
    let session = app.session.clone();
    to_the_end(async move { Ok(Json(session.processors().end_shadow(&name).await?)) }).await
}
