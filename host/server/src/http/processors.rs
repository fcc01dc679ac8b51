//! Processors over HTTP: deploy, look, pause, roll back, delete.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use millrace_broker::{
    BreakerStatus, CanaryStatus, GuestLine, LeftBehind, PartitionStatus, ProcessorError,
    ProcessorStatus,
};
use millrace_model::processor::{
    BatchPolicy, BreakerPolicy, DeadLetterPolicy, Limits, Order, RetryPolicy,
};
use millrace_model::{Processor, ProcessorName, ProcessorSpec, TopicName};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::app::{App, Shared, to_the_end};
use super::body::json;
use super::bounds::JSON_BODY_BYTES_MAX;
use super::by::{By, ByHeader};
use super::deploying::{DeployedBody, deployed};
use super::error::{ApiError, ErrorBody};
use super::query::{InPath, InQuery};
use super::shapes::{
    BatchPolicySchema, BreakerPolicySchema, BreakerStatusSchema, CanaryStatusSchema,
    DeadLetterPolicySchema, GuestLineSchema, LimitsSchema, PartitionStatusSchema, ProcessorSchema,
    RetryPolicySchema,
};

/// What a revision is made of.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SpecBody {
    /// Topics that it reads; at least one.
    #[schema(value_type = Vec<String>)]
    topics: Vec<TopicName>,
    /// The module that processes, by digest, prefix or tag.
    module: String,
    /// Where outputs go that name no topic.
    #[schema(value_type = Option<String>)]
    output: Option<TopicName>,
    /// Further topics that it may write to.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    grants: Vec<TopicName>,
    /// What keeps its order: `key`, `partition` or `none`.
    #[serde(default)]
    #[schema(value_type = String, default = "key")]
    order: Order,
    #[serde(default)]
    #[schema(value_type = BatchPolicySchema)]
    batch: BatchPolicy,
    #[serde(default)]
    #[schema(value_type = RetryPolicySchema)]
    retry: RetryPolicy,
    /// The module that decides about failures.
    error_handler: Option<String>,
    #[serde(default)]
    #[schema(value_type = LimitsSchema)]
    limits: Limits,
    #[serde(default)]
    #[schema(value_type = BreakerPolicySchema)]
    breaker: BreakerPolicy,
    #[serde(default)]
    #[schema(value_type = DeadLetterPolicySchema)]
    dead_letters: DeadLetterPolicy,
    /// Whether a bad deploy takes itself back to the last revision that worked.
    #[serde(default)]
    auto_rollback: bool,
    /// Whether what a revision gave up is sent again by itself once the host has taken that revision back.
    #[serde(default)]
    auto_redrive: bool,
    /// Counts hops in the header `millrace-hops`, and gives up messages that have so many; a cycle of processors needs one such.
    hops_max: Option<u32>,
}

impl App {
    fn spec(&self, body: SpecBody) -> Result<ProcessorSpec, ApiError> {
        let error_handler = body.error_handler;
        let digest_of = |reference: String| self.digest_of(&reference);
        Ok(ProcessorSpec {
            module: self.digest_of(&body.module)?,
            error_handler: error_handler.map(digest_of).transpose()?,
            topics: body.topics,
            output: body.output,
            grants: body.grants,
            order: body.order,
            batch: body.batch,
            retry: body.retry,
            limits: body.limits,
            breaker: body.breaker,
            dead_letters: body.dead_letters,
            auto_rollback: body.auto_rollback,
            auto_redrive: body.auto_redrive,
            hops_max: body.hops_max,
        })
    }

    pub(super) async fn status(&self, name: &ProcessorName) -> Result<ProcessorStatus, ApiError> {
        let status = self.broker.processor(name).await;
        status.ok_or_else(|| ProcessorError::Unknown(name.clone()).into())
    }
}

/// A processor and how it does in each partition.
#[derive(Serialize, ToSchema)]
pub(super) struct StatusBody {
    #[serde(flatten)]
    #[schema(value_type = ProcessorSchema)]
    processor: Processor,
    #[schema(value_type = Vec<PartitionStatusSchema>)]
    partitions: Vec<PartitionStatus>,
    /// How its breaker stands; absent if the processor cannot be started.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<BreakerStatusSchema>)]
    breaker: Option<BreakerStatus>,
    /// How its canary and its current revision do beside each other; absent without a canary.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<CanaryStatusSchema>)]
    canary_status: Option<CanaryStatus>,
    /// Why the revision on trial does not run beside the current one, since this host started; absent if it does, or there is none. Deploy it anew
    /// to try again, or end it.
    #[serde(skip_serializing_if = "Option::is_none")]
    trial_problem: Option<String>,
    /// The revision that a rollback leads to: the last one that worked. Absent if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    way_back: Option<u32>,
    /// Why the host could not take the current revision back by itself, when it tried last; absent if it could, or did not try.
    #[serde(skip_serializing_if = "Option::is_none")]
    way_back_problem: Option<String>,
    /// The revision from which the current one was gone back to, as long as nothing else came after that and it is kept. What it gave up is sent
    /// again by a redrive whose filter names it as `revision`.
    #[serde(skip_serializing_if = "Option::is_none")]
    gone_back_from: Option<u32>,
    /// Messages that wait in topics which the current revision does not read; absent if there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<LeftBehindSchema>)]
    left_behind: Vec<LeftBehind>,
}

/// Messages that wait where the current revision does not read.
#[derive(ToSchema)]
#[schema(as = LeftBehind)]
#[allow(dead_code, reason = "the shape is read by the derive only")]
pub(super) struct LeftBehindSchema {
    /// Of dead letters that were sent again the topic through which they come.
    topic: String,
    /// Messages that wait for their next attempt, or behind such a one.
    parked: u64,
    /// Dead letters that were sent again and are not read; absent if there are none.
    unread: Option<u64>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct StatusesBody {
    processors: Vec<StatusBody>,
}

impl From<ProcessorStatus> for StatusBody {
    /// Without its changes: the history shows them. Nor with where it began: its partitions say where it is.
    fn from(status: ProcessorStatus) -> Self {
        Self {
            left_behind: status.left_behind,
            way_back: status.way_back,
            way_back_problem: status.way_back_problem,
            gone_back_from: status.gone_back_from,
            processor: Processor {
                changes: Vec::new(),
                start: Vec::new(),
                ..status.processor
            },
            partitions: status.partitions,
            breaker: status.breaker,
            canary_status: status.canary,
            trial_problem: status.trial_problem,
        }
    }
}

/// All processors.
#[utoipa::path(get, path = "/v1/processors", tag = "processors", responses((status = 200, body = StatusesBody)))]
pub(super) async fn list(State(app): Shared) -> Json<StatusesBody> {
    let processors = app.broker.processors().await;
    let processors = processors.into_iter().map(StatusBody::from).collect();
    Json(StatusesBody { processors })
}

/// A processor, its revisions, and how it does in each partition.
#[utoipa::path(get, path = "/v1/processors/{name}", tag = "processors", params(("name" = String, Path,)), responses(
    (status = 200, body = StatusBody),
    (status = 404, body = ErrorBody),
))]
pub(super) async fn show(
    State(app): Shared,
    InPath(name): InPath<ProcessorName>,
) -> Result<Json<StatusBody>, ApiError> {
    Ok(Json(app.status(&name).await?.into()))
}

/// How to deploy.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct DeployParams {
    /// Whether the revision begins with empty state in every partition. Then the same spec makes a new revision as well.
    #[serde(default)]
    pub(super) reset_state: bool,
    /// Makes it a canary: it takes the messages of this percentage of the keys (1 to 99), the current revision keeps the others.
    pub(super) canary: Option<u32>,
    /// Makes it a shadow: it is called beside the current revision, and its answers only count for a report.
    #[serde(default)]
    #[param(default = false)]
    pub(super) shadow: bool,
    /// Refuses to deploy (409) unless this revision is the current one; 0: unless there is no such processor yet.
    pub(super) expected_revision: Option<u32>,
    /// Where a processor begins that this makes: `earliest` (as without), `latest`, an offset, `timestamp:MS` or `2026-11-21T10:00:00Z`. One
    /// that is there goes on where it is.
    pub(super) from: Option<String>,
}

impl DeployParams {
    pub(super) fn check(&self) -> Result<(), ApiError> {
        let on_trial = self.shadow || self.canary.is_some();
        let problem = match self {
            Self {
                shadow: true,
                canary: Some(_),
                ..
            } => "a revision is a canary or a shadow, not both",
            Self {
                reset_state: true, ..
            } if on_trial => {
                "a revision on trial uses the state of the current one; it cannot be reset"
            }
            _ => return Ok(()),
        };
        let hint = "leave one of them out, or deploy the revision whole";
        Err(ApiError::refused("invalid-spec", problem, hint))
    }
}

/// Deploys a processor or its next revision, which takes over between two batches. The spec is all that it is made of: a field that is left
/// out has its default, whatever the current revision has there (PATCH keeps it). The same spec again changes nothing. State stays
/// unless it is reset. With `canary` or `shadow` the current revision stays; the spec of the canary that is there gives it another share.
#[utoipa::path(put, path = "/v1/processors/{name}", tag = "processors", params(("name" = String, Path,), ByHeader, DeployParams),
    request_body = SpecBody,
    responses(
        (status = 201, body = DeployedBody, description = "The first revision"),
        (status = 200, body = DeployedBody, description = "The next revision, or no change"),
        (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody, description = "A topic or module is unknown"),
        (status = 409, body = ErrorBody, description = "Another revision is current than expected_revision, or it is the one on trial and fails there; nothing has changed"),
        (status = 422, body = ErrorBody, description = "Refused; nothing has changed"),
        (status = 503, body = ErrorBody, description = "The engine takes no commits now; nothing has changed"),
    )
)]
pub(super) async fn deploy(
    State(app): Shared,
    InPath(name): InPath<ProcessorName>,
    InQuery(params): InQuery<DeployParams>,
    By(by): By,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    params.check()?;
    let broker = app.broker.on_behalf_of(&by);
    let spec = app.spec(app.take_json(&headers, body).await?)?;
    let now = app.clock.wall();
    to_the_end(deployed(broker, name, params, spec.into(), now)).await
}

/// Which revision to go back to.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RollbackBody {
    /// The revision to go back to; if absent, the last one that worked. The current one: only a revision on trial is withdrawn.
    revision: Option<u32>,
    /// Refuses to go back (409) unless this is the revision that is taken back: the one on trial if there is one, else the current one. So a
    /// call that is sent twice goes back once.
    expected_revision: Option<u32>,
}

/// Makes an earlier revision the current one. Without a number that is the last one that worked; a revision on trial is withdrawn first, and
/// the current one stays.
#[utoipa::path(post, path = "/v1/processors/{name}/rollback", tag = "processors", params(("name" = String, Path,), ByHeader),
    request_body = Option<RollbackBody>,
    responses(
        (status = 200, body = DeployedBody),
        (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "There is no earlier one, the host has just gone back or withdrawn a canary by itself, or another revision is current than expected_revision"),
    )
)]
pub(super) async fn rollback(
    State(app): Shared,
    InPath(name): InPath<ProcessorName>,
    By(by): By,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<DeployedBody>, ApiError> {
    let taken = app.take_body(&headers, body, JSON_BODY_BYTES_MAX).await?;
    let body = match taken.bytes.trim_ascii() {
        b"" => RollbackBody::default(),
        bytes => json(bytes)?,
    };
    let broker = app.broker.on_behalf_of(&by);
    to_the_end(async move {
        let before = broker.deployed_as(&name);
        let after = broker
            .rollback_expecting(&name, body.revision, body.expected_revision)
            .await?;
        let unchanged = format!(
            "revision {} is the current one already; nothing was changed",
            after.current
        );
        let answer = DeployedBody::after(&broker, before.as_ref(), after).await;
        Ok(Json(answer.noting(unchanged)))
    })
    .await
}

/// Takes no further batches until it is resumed. It is answered when the batches that are being processed have ended,
/// or after five seconds.
#[utoipa::path(post, path = "/v1/processors/{name}/pause", tag = "processors", params(("name" = String, Path,), ByHeader), responses(
    (status = 200, body = ProcessorSchema),
    (status = 404, body = ErrorBody),
))]
pub(super) async fn pause(
    State(app): Shared,
    InPath(name): InPath<ProcessorName>,
    By(by): By,
) -> Result<Json<Processor>, ApiError> {
    let broker = app.broker.on_behalf_of(&by);
    to_the_end(async move { Ok(Json(broker.pause(&name).await?)) }).await
}

/// How to go on.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ResumeBody {
    /// Closes an open breaker and lets so many dead letters through before it and the bound of dead letters judge again.
    accept_dead_letters: Option<u64>,
}

/// Goes on where it paused. If its breaker is open, a message is tried at once.
#[utoipa::path(post, path = "/v1/processors/{name}/resume", tag = "processors", params(("name" = String, Path,), ByHeader),
    request_body = Option<ResumeBody>,
    responses(
        (status = 200, body = ProcessorSchema),
        (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody),
    )
)]
pub(super) async fn resume(
    State(app): Shared,
    InPath(name): InPath<ProcessorName>,
    By(by): By,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Processor>, ApiError> {
    let taken = app.take_body(&headers, body, JSON_BODY_BYTES_MAX).await?;
    let body = match taken.bytes.trim_ascii() {
        b"" => ResumeBody::default(),
        bytes => json(bytes)?,
    };
    let accept = body.accept_dead_letters;
    let broker = app.broker.on_behalf_of(&by);
    to_the_end(async move { Ok(Json(broker.resume(&name, accept).await?)) }).await
}

/// What goes with a processor.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct DeleteParams {
    /// Its state goes with it, in every partition. Without, it stays, can still be shown, exported and emptied under the processor's
    /// name, and takes up memory.
    #[serde(default)]
    #[param(default = false)]
    reset_state: bool,
    /// The topics that it made for itself (dead letters, redrives, their audit) go with it, and what they hold.
    #[serde(default)]
    #[param(default = false)]
    topics: bool,
}

/// A processor that is gone, and what it leaves.
#[derive(Serialize, ToSchema)]
pub(super) struct ProcessorDeletedBody {
    /// Messages that wait for it, until a processor is made again under its name that reads them.
    #[schema(value_type = Vec<LeftBehindSchema>)]
    left_behind: Vec<LeftBehind>,
    /// Why topics of its own were not deleted that were to go with it: somebody else uses them, or would miss them.
    topics_kept: Vec<String>,
}

/// Deletes a processor. Its dead letters stay as topics, and so do its progress and its state: made again under the same name it goes on.
#[utoipa::path(delete, path = "/v1/processors/{name}", tag = "processors", params(("name" = String, Path,), DeleteParams), responses(
    (status = 200, body = ProcessorDeletedBody, description = "Deleted; messages wait for it still, or topics of its own were kept"),
    (status = 204, description = "Deleted; nothing waits for it"),
    (status = 400, body = ErrorBody),
    (status = 404, body = ErrorBody),
    (status = 503, body = ErrorBody, description = "The engine takes no commits now; nothing has changed"),
))]
pub(super) async fn remove(
    State(app): Shared,
    InPath(name): InPath<ProcessorName>,
    InQuery(params): InQuery<DeleteParams>,
) -> Result<Response, ApiError> {
    to_the_end(async move {
        match params.reset_state {
            true => app.broker.delete_processor_and_state(&name).await?,
            false => app.broker.delete_processor(&name).await?,
        }
        app.forget_metrics("processor", name.as_str());
        let mut topics_kept = Vec::new();
        if params.topics {
            let (deleted, kept) = app.broker.delete_topics_of(&name).await?;
            for topic in deleted {
                app.forget_metrics("topic", topic.as_str());
            }
            topics_kept = kept;
        }
        // It is deleted whatever can be said of what it leaves.
        let left_behind = app.broker.left_behind(&name).await.unwrap_or_default();
        Ok(match left_behind.is_empty() && topics_kept.is_empty() {
            true => StatusCode::NO_CONTENT.into_response(),
            false => Json(ProcessorDeletedBody {
                left_behind,
                topics_kept,
            })
            .into_response(),
        })
    })
    .await
}

#[derive(Serialize, ToSchema)]
pub(super) struct LogsBody {
    /// Newest last.
    #[schema(value_type = Vec<GuestLineSchema>)]
    lines: Vec<GuestLine>,
    /// Lines that were dropped since the host started, because there were more in a second than its limits allow; absent if none.
    #[serde(skip_serializing_if = "Option::is_none")]
    dropped: Option<u64>,
}

/// What its components wrote lately.
#[utoipa::path(get, path = "/v1/processors/{name}/logs", tag = "processors", params(("name" = String, Path,)), responses(
    (status = 200, body = LogsBody),
    (status = 404, body = ErrorBody),
))]
pub(super) async fn logs(
    State(app): Shared,
    InPath(name): InPath<ProcessorName>,
) -> Result<Json<LogsBody>, ApiError> {
    app.status(&name).await?;
    let lines = app.broker.logs(&name);
    let dropped = Some(app.broker.log_lines_dropped(&name)).filter(|dropped| *dropped > 0);
    Ok(Json(LogsBody { lines, dropped }))
}
