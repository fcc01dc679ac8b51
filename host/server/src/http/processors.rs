//! Processors over HTTP: deploy, show, pause, roll back, delete.

use std::collections::BTreeMap;

use axum::Json;
use axum::body::Body;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use millrace_broker::{
    BreakerStatus, CanaryStatus, ConfigChange, GuestLine, LeftBehind, NextSpec, PartitionStatus,
    ProcessorError, ProcessorStatus,
};
use millrace_model::processor::{
    BatchPolicy, BreakerPolicy, DeadLetterPolicy, Grants, Limits, Order, RetryPolicy,
};
use millrace_model::{Code, Processor, ProcessorName, ProcessorSpec, TopicName};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::app::to_the_end;
use super::by::ByHeader;
use super::called::Called;
use super::configuring::ConfigChanges;
use super::deploying::{DeployedBody, deployed};
use super::error::{ApiError, ErrorBody};
use super::gathering::{Counted, CountedList, Line, LinesOfHost, add_up, in_order};
use super::others::{Gathered, HostsParams, OfThis, Whose};
use super::query::{InPath, InQuery};
use super::shapes::{CanaryStatusSchema, ProcessorSchema};

/// A revision's specification.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SpecBody {
    /// Topics that it reads; at least one.
    topics: Vec<TopicName>,
    /// The module that processes messages, by digest, prefix or tag.
    module: String,
    /// The topic for outputs that name none.
    output: Option<TopicName>,
    #[serde(default)]
    grants: Grants,
    /// What stays in order when a message is retried: `key`, `partition` or `none`.
    #[serde(default)]
    #[schema(value_type = String, default = "key")]
    order: Order,
    #[serde(default)]
    batch: BatchPolicy,
    #[serde(default)]
    retry: RetryPolicy,
    /// The module that decides what to do about failures.
    error_handler: Option<String>,
    #[serde(default)]
    limits: Limits,
    #[serde(default)]
    breaker: BreakerPolicy,
    #[serde(default)]
    dead_letters: DeadLetterPolicy,
    /// Whether the host rolls a bad deploy back to the last revision that worked.
    #[serde(default)]
    auto_rollback: bool,
    /// Whether, after an automatic rollback, the host redrives what the failed revision gave up.
    #[serde(default)]
    auto_redrive: bool,
    /// Counts hops in the header `millrace-hops`, and gives up messages that have reached this many; every cycle of processors needs a
    /// processor that does.
    hops_max: Option<u32>,
    /// Settings that its component reads. They are not part of the revision: omitted, they stay as they are.
    config: Option<ConfigChanges>,
}

impl SpecBody {
    /// The change of the settings, if there is one.
    pub(super) fn config(&mut self, replaces: bool) -> ConfigChange {
        let values = self.config.take();
        values.map_or_else(ConfigChange::default, |values| ConfigChange {
            replaces,
            values,
        })
    }
}

impl Called {
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

    async fn every_status(&self) -> Vec<StatusBody> {
        let processors = self.session.processors().processors().await;
        processors.into_iter().map(StatusBody::from).collect()
    }

    pub(super) async fn status(&self, name: &ProcessorName) -> Result<ProcessorStatus, ApiError> {
        let status = self.session.processors().processor(name).await;
        status.ok_or_else(|| ProcessorError::Unknown(name.clone()).into())
    }
}

/// A processor and its status in each partition.
#[derive(Serialize, ToSchema)]
pub(super) struct StatusBody {
    #[serde(flatten)]
    #[schema(value_type = ProcessorSchema)]
    processor: Processor,
    partitions: Vec<PartitionStatus>,
    /// The state of its breaker; absent if the processor cannot be started.
    #[serde(skip_serializing_if = "Option::is_none")]
    breaker: Option<BreakerStatus>,
    /// How its canary compares with the current revision; absent without a canary.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<CanaryStatusSchema>)]
    canary_status: Option<CanaryStatus>,
    /// Why the revision on trial does not run, since this host started; absent if it does, or there is none. Deploy it again to retry,
    /// or end it.
    #[serde(skip_serializing_if = "Option::is_none")]
    trial_problem: Option<String>,
    /// The revision that a rollback would return to: the last one that worked. Absent if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    way_back: Option<u32>,
    /// Why the host could not roll the current revision back by itself, at its last try; absent if it could, or did not try.
    #[serde(skip_serializing_if = "Option::is_none")]
    way_back_problem: Option<String>,
    /// The revision from which the host or an operator rolled back, if that was the last change and the revision is kept. To redrive
    /// what it gave up, filter by it as `revision`.
    #[serde(skip_serializing_if = "Option::is_none")]
    gone_back_from: Option<u32>,
    /// Messages that wait in topics which the current revision does not read; absent if there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    left_behind: Vec<LeftBehind>,
    #[serde(flatten)]
    gathered: Gathered,
}

#[derive(Serialize, ToSchema)]
pub(super) struct StatusesBody {
    processors: Vec<StatusBody>,
    #[serde(flatten)]
    gathered: Gathered,
}

impl From<ProcessorStatus> for StatusBody {
    /// Without its changes, which the history shows, and without where it started: its partitions show where it is.
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
            gathered: Gathered::default(),
        }
    }
}

impl StatusBody {
    /// Adds what other hosts count.
    fn with(
        self,
        this: &str,
        others: Vec<(String, Counted)>,
        lacks: impl Fn(&str) -> bool,
    ) -> Self {
        let own = Counted {
            name: self.processor.name.clone(),
            partitions: self.partitions,
            breaker: self.breaker,
            canary_status: self.canary_status,
        };
        let all = add_up(this, own, others, lacks);
        Self {
            partitions: all.partitions,
            breaker: all.breaker,
            canary_status: all.canary_status,
            ..self
        }
    }
}

/// All processors. If several hosts work, each partition shows how it is on its host; counts are added up.
#[utoipa::path(get, path = "/v1/processors", tag = "processors", params(HostsParams), responses((status = 200, body = StatusesBody)))]
pub(super) async fn list(
    app: Called,
    InQuery(HostsParams { hosts }): InQuery<HostsParams>,
) -> OfThis<StatusesBody> {
    let others = app.of_others::<CountedList>(hosts, "/v1/processors");
    let (processors, mut others) = tokio::join!(app.every_status(), others);
    let this = app.name_of_this();
    let given = std::mem::take(&mut others.given);
    let mut counted: BTreeMap<ProcessorName, Vec<(String, Counted)>> = BTreeMap::new();
    for (host, list) in given {
        for one in list.processors {
            let of = counted.entry(one.name.clone()).or_default();
            of.push((host.clone(), one));
        }
    }
    let with_others = |status: StatusBody| {
        let of = counted.remove(&status.processor.name).unwrap_or_default();
        status.with(&this, of, |host| others.lacks(host))
    };
    let body = StatusesBody {
        processors: processors.into_iter().map(with_others).collect(),
        gathered: others.gathered(),
    };
    app.answer_of_this(hosts, body)
}

/// A processor, its revisions, and its status in each partition. If several hosts work on it, each partition shows how it is on its host;
/// counts are added up.
#[utoipa::path(get, path = "/v1/processors/{name}", tag = "processors", params(("name" = String, Path,), HostsParams), responses(
    (status = 200, body = StatusBody),
    (status = 404, body = ErrorBody),
))]
pub(super) async fn show(
    app: Called,
    InPath(name): InPath<ProcessorName>,
    InQuery(HostsParams { hosts }): InQuery<HostsParams>,
) -> Result<OfThis<StatusBody>, ApiError> {
    let path = format!("/v1/processors/{name}");
    let others = app.of_others::<Counted>(hosts, &path);
    let (status, mut others) = tokio::join!(app.status(&name), others);
    let given = std::mem::take(&mut others.given);
    let this = app.name_of_this();
    let status = StatusBody::from(status?).with(&this, given, |host| others.lacks(host));
    let gathered = others.gathered();
    Ok(app.answer_of_this(hosts, StatusBody { gathered, ..status }))
}

/// How to deploy.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct DeployParams {
    /// Whether the revision starts with empty state in every partition. Then the same specification creates a new revision as well.
    #[serde(default)]
    pub(super) reset_state: bool,
    /// Makes it a canary: it takes the messages of this percentage of the keys (1 to 99), and the current revision keeps the others.
    pub(super) canary: Option<u32>,
    /// Makes it a shadow: it is called beside the current revision, and its answers only count for a report.
    #[serde(default)]
    #[param(default = false)]
    pub(super) shadow: bool,
    /// Refuses to deploy (409) unless this revision is current; 0: unless the processor does not exist yet.
    pub(super) expected_revision: Option<u32>,
    /// Where a new processor starts: `earliest` (the default), `latest`, an offset, `timestamp:MS` or `2026-11-21T10:00:00Z`. An
    /// existing one continues where it is.
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
        let hint = "omit one of them, or deploy the revision without a trial";
        Err(ApiError::new(Code::InvalidSpec, problem, hint))
    }
}

/// Deploys a processor or its next revision, which takes over between two batches. The body is the whole specification: an omitted
/// field gets its default, whatever the current revision has (PATCH keeps it). The same specification again changes nothing. State
/// stays unless it is reset. With `canary` or `shadow` the current revision stays; the specification of the existing canary changes its
/// share.
#[utoipa::path(put, path = "/v1/processors/{name}", tag = "processors", params(("name" = String, Path,), ByHeader, DeployParams),
    request_body = SpecBody,
    responses(
        (status = 201, body = DeployedBody, description = "The first revision"),
        (status = 200, body = DeployedBody, description = "The next revision, or no change"),
        (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody, description = "A topic or module is unknown"),
        (status = 409, body = ErrorBody, description = "The current revision is not expected_revision, or the revision is on trial and failing; nothing has changed"),
        (status = 422, body = ErrorBody, description = "Refused; nothing has changed"),
        (status = 503, body = ErrorBody, description = "The engine accepts no commits now; nothing has changed"),
    )
)]
pub(super) async fn deploy(
    app: Called,
    InPath(name): InPath<ProcessorName>,
    InQuery(params): InQuery<DeployParams>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    params.check()?;
    let session = app.session.clone();
    let mut body: SpecBody = app.take_json(&headers, body).await?;
    let config = body.config(true);
    let named = [Some(&body.module), body.error_handler.as_ref()];
    app.admitted(named.into_iter().flatten().cloned().collect())
        .await;
    let next = NextSpec::from(app.spec(body)?).configuring(config);
    let now = app.clock.wall();
    to_the_end(deployed(session, name, params, next, now)).await
}

/// Which revision to go back to.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RollbackBody {
    /// The revision to return to; if absent, the last one that worked. The current one: only a revision on trial is withdrawn.
    pub(super) revision: Option<u32>,
    /// Refuses (409) unless this is the revision being rolled back: the one on trial if there is one, otherwise the current one. So a
    /// call that is sent twice rolls back once.
    pub(super) expected_revision: Option<u32>,
}

/// Makes an earlier revision current. Without a number that is the last one that worked; if a revision is on trial, it is withdrawn
/// instead, and the current one stays.
#[utoipa::path(post, path = "/v1/processors/{name}/rollback", tag = "processors", params(("name" = String, Path,), ByHeader),
    request_body = Option<RollbackBody>,
    responses(
        (status = 200, body = DeployedBody),
        (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "There is no earlier one, the host has just rolled back or withdrawn a canary by itself, or the revision being rolled back is not expected_revision"),
    )
)]
pub(super) async fn rollback(
    app: Called,
    InPath(name): InPath<ProcessorName>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<DeployedBody>, ApiError> {
    let body: RollbackBody = app.take_json_or_default(&headers, body).await?;
    let (session, processor) = (app.session.clone(), name.clone());
    let RollbackBody {
        revision,
        expected_revision,
    } = body;
    let change = async move {
        let processors = session.processors();
        let rolled_back = processors.rollback_expecting(&name, revision, expected_revision);
        rolled_back.await
    };
    let answer = DeployedBody::by(&app, processor, change).await?;
    let unchanged = format!(
        "revision {} is already current; nothing was changed",
        answer.current()
    );
    Ok(Json(answer.noting(unchanged)))
}

/// Takes no further batches until it is resumed. Answered when running batches have ended, or after five seconds.
#[utoipa::path(post, path = "/v1/processors/{name}/pause", tag = "processors", params(("name" = String, Path,), ByHeader), responses(
    (status = 200, body = ProcessorSchema),
    (status = 404, body = ErrorBody),
))]
pub(super) async fn pause(
    app: Called,
    InPath(name): InPath<ProcessorName>,
) -> Result<Json<Processor>, ApiError> {
    let session = app.session.clone();
    to_the_end(async move { Ok(Json(session.processors().pause(&name).await?)) }).await
}

/// How to resume.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ResumeBody {
    /// Closes an open breaker and lets up to this many dead letters through before it and the bound of dead letters apply again.
    accept_dead_letters: Option<u64>,
}

/// Resumes after a pause. If the breaker is open, a message is tried at once.
#[utoipa::path(post, path = "/v1/processors/{name}/resume", tag = "processors", params(("name" = String, Path,), ByHeader),
    request_body = Option<ResumeBody>,
    responses(
        (status = 200, body = ProcessorSchema),
        (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody),
    )
)]
pub(super) async fn resume(
    app: Called,
    InPath(name): InPath<ProcessorName>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Processor>, ApiError> {
    let body: ResumeBody = app.take_json_or_default(&headers, body).await?;
    let accept = body.accept_dead_letters;
    let session = app.session.clone();
    to_the_end(async move { Ok(Json(session.processors().resume(&name, accept).await?)) }).await
}

/// What to delete with a processor.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct DeleteParams {
    /// Also deletes its state in every partition. Otherwise it stays, can still be shown, exported and emptied under the processor's
    /// name, and takes up memory.
    #[serde(default)]
    #[param(default = false)]
    reset_state: bool,
    /// Also deletes the topics that it owns (dead letters, redrives, audit trail), with their content.
    #[serde(default)]
    #[param(default = false)]
    topics: bool,
}

/// A deleted processor, and what it leaves.
#[derive(Serialize, ToSchema)]
pub(super) struct ProcessorDeletedBody {
    /// Messages that wait for it, until a processor is created under its name that reads them.
    left_behind: Vec<LeftBehind>,
    /// Why topics of its own were not deleted: they are used or needed elsewhere.
    topics_kept: Vec<String>,
}

/// Deletes a processor. Its dead-letter topics, progress and state stay: created again under the same name, it continues.
#[utoipa::path(delete, path = "/v1/processors/{name}", tag = "processors", params(("name" = String, Path,), DeleteParams), responses(
    (status = 200, body = ProcessorDeletedBody, description = "Deleted; messages still wait for it, or topics of its own were kept"),
    (status = 204, description = "Deleted; nothing waits for it"),
    (status = 400, body = ErrorBody),
    (status = 404, body = ErrorBody),
    (status = 503, body = ErrorBody, description = "The engine accepts no commits now; nothing has changed"),
))]
pub(super) async fn remove(
    app: Called,
    InPath(name): InPath<ProcessorName>,
    InQuery(params): InQuery<DeleteParams>,
) -> Result<Response, ApiError> {
    to_the_end(async move {
        if params.topics {
            app.session.catalogue().may_delete_topics_of(&name)?;
        }
        match params.reset_state {
            true => {
                app.session
                    .processors()
                    .delete_processor_and_state(&name)
                    .await?
            }
            false => app.session.processors().delete_processor(&name).await?,
        }
        app.forget_metrics("processor", name.as_str());
        let mut topics_kept = Vec::new();
        if params.topics {
            let (deleted, kept) = app.session.catalogue().delete_topics_of(&name).await?;
            for topic in deleted {
                app.forget_metrics("topic", topic.as_str());
            }
            topics_kept = kept;
        }
        // It is deleted, even if what it leaves cannot be determined.
        let left_behind = app
            .session
            .catalogue()
            .left_behind(&name)
            .await
            .unwrap_or_default();
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
    /// Newest last, by the clocks of their hosts.
    lines: Vec<Line>,
    /// Lines that were dropped since the host started because they exceeded its rate; absent if none.
    #[serde(skip_serializing_if = "Option::is_none")]
    dropped: Option<u64>,
    #[serde(flatten)]
    gathered: Gathered,
}

/// The latest log lines of its components, as many of each host as it keeps.
#[utoipa::path(get, path = "/v1/processors/{name}/logs", tag = "processors", params(("name" = String, Path,), HostsParams), responses(
    (status = 200, body = LogsBody),
    (status = 404, body = ErrorBody),
))]
pub(super) async fn logs(
    app: Called,
    InPath(name): InPath<ProcessorName>,
    InQuery(HostsParams { hosts }): InQuery<HostsParams>,
) -> Result<OfThis<LogsBody>, ApiError> {
    let processors = app.session.processors();
    if processors.deployed_as(&name).is_none() {
        return Err(ProcessorError::Unknown(name).into());
    }
    let path = format!("/v1/processors/{name}/logs");
    let mut others = app.of_others::<LinesOfHost>(hosts, &path).await;
    let given = std::mem::take(&mut others.given);
    let elsewhere = given.iter().filter_map(|(_, of)| of.dropped).sum::<u64>();
    let dropped = processors.log_lines_dropped(&name) + elsewhere;
    let body = LogsBody {
        lines: app.lines(hosts, processors.logs(&name)?, given),
        dropped: Some(dropped).filter(|dropped| *dropped > 0),
        gathered: others.gathered(),
    };
    Ok(app.answer_of_this(hosts, body))
}

impl Called {
    /// The lines of all hosts in order. With several hosts, each line names its own.
    pub(super) fn lines(
        &self,
        whose: Whose,
        own: Vec<GuestLine>,
        others: Vec<(String, LinesOfHost)>,
    ) -> Vec<Line> {
        let is_alone = whose == Whose::This || self.broker.hosts().1.len() < 2;
        let this = (!is_alone).then(|| self.name_of_this());
        in_order(this, own, others)
    }
}
