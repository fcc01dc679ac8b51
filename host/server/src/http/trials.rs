//! Revisions on trial over HTTP: a canary's share, a shadow's report, promotion.

use axum::Json;
use axum::body::Body;
use axum::http::HeaderMap;
use millrace_broker::{ShadowReport, TrialSeen};
use millrace_model::{Processor, ProcessorName};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::app::to_the_end;
use super::by::ByHeader;
use super::called::Called;
use super::deploying::DeployedBody;
use super::error::{ApiError, ErrorBody};
use super::gathering::{Counted, add_canary, add_reports};
use super::others::{Gathered, HostsParams, OfThis, Whose};
use super::query::{InPath, InQuery};
use super::shapes::ProcessorSchema;

/// A canary's share.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CanaryBody {
    /// Percentage of a processor's keys or of a route's requests, 1 to 99; 0 withdraws it.
    pub(super) percent: u32,
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
    pub(super) force: bool,
}

/// Makes the revision on trial current. The answer's `note` lists its failures on trial, on all hosts that answer within a second.
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
    let seen = app.trial_seen(&name).await;
    let (session, processor) = (app.session.clone(), name.clone());
    let change = async move {
        let processors = session.processors();
        processors.promote_seen(&name, seen, body.force).await
    };
    Ok(Json(DeployedBody::by(&app, processor, change).await?))
}

impl Called {
    /// What this host and the others have seen of the revision on trial.
    async fn trial_seen(&self, name: &ProcessorName) -> TrialSeen {
        let mut seen = self.session.processors().trial_seen(name);
        let path = format!("/v1/processors/{name}");
        if let Some(canary) = &mut seen.canary {
            let others = self.of_others::<Counted>(Whose::All, &path).await;
            for (host, other) in others.given {
                if let Some(more) = other.canary_status {
                    add_canary(canary, &host, more);
                }
            }
        }
        if let Some(report) = &mut seen.shadow {
            let path = format!("{path}/shadow");
            let others = self.of_others::<ShadowReport>(Whose::All, &path).await;
            add_reports(report, others.given.into_iter().map(|(_, report)| report));
        }
        seen
    }
}

/// A shadow's report.
#[derive(Serialize, ToSchema)]
pub(super) struct ShadowBody {
    #[serde(flatten)]
    report: ShadowReport,
    #[serde(flatten)]
    gathered: Gathered,
}

/// How the processor's shadow compares with its current revision. The report is in memory, and starts over when a host restarts; the
/// reports of several hosts are added up.
#[utoipa::path(get, path = "/v1/processors/{name}/shadow", tag = "processors", params(("name" = String, Path,), HostsParams), responses(
    (status = 200, body = ShadowBody),
    (status = 404, body = ErrorBody),
    (status = 409, body = ErrorBody, description = "There is no shadow, or it could not be loaded when the host started"),
))]
pub(super) async fn shadow(
    app: Called,
    InPath(name): InPath<ProcessorName>,
    InQuery(HostsParams { hosts }): InQuery<HostsParams>,
) -> Result<OfThis<ShadowBody>, ApiError> {
    let mut report = app.session.processors().shadow_report(&name)?;
    let path = format!("/v1/processors/{name}/shadow");
    let mut others = app.of_others::<ShadowReport>(hosts, &path).await;
    let given = std::mem::take(&mut others.given);
    add_reports(&mut report, given.into_iter().map(|(_, report)| report));
    let gathered = others.gathered();
    Ok(app.answer_of_this(hosts, ShadowBody { report, gathered }))
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
