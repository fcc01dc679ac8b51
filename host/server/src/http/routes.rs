//! Routes over HTTP: paths whose requests a component answers. [`super::mount`] answers those requests.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use millrace_broker::{RouteCanaryStatus, RouteError, RouteSideStatus, RouteStatus};
use millrace_model::processor::{Config, Grants, Limits};
use millrace_model::{
    Change, Digest, RouteBreaker, RoutePath, RouteRevision, RouteSpec, Timestamp,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::app::to_the_end;
use super::body::json;
use super::bounds::JSON_BODY_BYTES_MAX;
use super::by::ByHeader;
use super::called::Called;
use super::error::{self, ApiError, ErrorBody};
use super::gathering::{Line, LinesOfHost};
use super::others::{Gathered, HostsParams, OfThis};
use super::processors::RollbackBody;
use super::query::{InPath, InQuery};
use super::trials::{CanaryBody, PromoteBody};

/// A route's definition.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RouteIn {
    /// The module that answers, by digest, prefix or tag. It exports `wasi:http/incoming-handler` of WASI 0.2.
    module: String,
    #[serde(default)]
    grants: Grants,
    /// Texts by key, which the component reads.
    #[serde(default)]
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    config: Config,
    #[serde(default)]
    limits: Limits,
    /// When it is withdrawn as a canary.
    #[serde(default)]
    breaker: RouteBreaker,
    /// Whether everyone may call it, such as a service whose signature the component checks. Otherwise the caller needs the right to,
    /// on a host that asks for tokens.
    #[serde(default)]
    public: bool,
}

/// How to set a route.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct SetParams {
    /// Makes it a canary: it answers this percentage of the requests (1 to 99), and the current revision answers the others.
    canary: Option<u32>,
}

/// A route.
#[derive(Serialize, ToSchema)]
#[schema(as = Route)]
pub(super) struct RouteBody {
    /// It answers this path and everything under it, unless a longer route does.
    path: String,
    module: Digest,
    grants: Grants,
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    config: Config,
    limits: Limits,
    breaker: RouteBreaker,
    /// Whether everyone may call it, without the right to.
    public: bool,
    /// The number of the current revision, whose definition this is.
    revision: u32,
    /// When it was set, in milliseconds since the Unix epoch.
    set_at: Timestamp,
    /// Who set it, as claimed.
    set_by: Option<String>,
    /// Why it cannot answer on this host; null if it can.
    problem: Option<String>,
    /// The canary; null if there is none.
    canary: Option<RouteCanaryBody>,
    /// The revision that a rollback would return to if there is no canary; null if there is none.
    way_back: Option<u32>,
}

/// How a route's canary compares with the current revision, since it began on each host.
#[derive(Serialize, Deserialize, ToSchema)]
#[schema(as = RouteCanary)]
pub(super) struct RouteCanaryBody {
    /// The revision's number.
    revision: u32,
    /// The percentage of the requests that it answers.
    percent: u32,
    /// When it began, in milliseconds since the Unix epoch.
    since: Timestamp,
    canary: RouteSideBody,
    current: RouteSideBody,
    /// Why it gets no more requests and is about to be withdrawn; null otherwise.
    trouble: Option<String>,
    /// Why it cannot answer on this host, so that the current revision answers all requests; null if it can.
    problem: Option<String>,
}

/// The requests of one side.
#[derive(Serialize, Deserialize, ToSchema)]
#[schema(as = RouteSide)]
pub(super) struct RouteSideBody {
    /// Requests whose call has ended.
    requests: u64,
    /// Those of them whose component failed or was late.
    failed: u64,
}

impl From<RouteSideStatus> for RouteSideBody {
    fn from(status: RouteSideStatus) -> Self {
        let RouteSideStatus { requests, failed } = status;
        Self { requests, failed }
    }
}

impl From<RouteCanaryStatus> for RouteCanaryBody {
    fn from(status: RouteCanaryStatus) -> Self {
        Self {
            revision: status.canary.revision,
            percent: status.canary.percent,
            since: status.canary.since,
            canary: status.requests.into(),
            current: status.current.into(),
            trouble: status.trouble,
            problem: status.problem,
        }
    }
}

impl RouteBody {
    /// A route whose current revision is kept, as it always is.
    fn of(status: RouteStatus) -> Option<Self> {
        let current = status.route.current()?.clone();
        let RouteSpec {
            module,
            grants,
            config,
            limits,
            breaker,
            public,
        } = current.spec;
        Some(Self {
            path: status.route.path.to_string(),
            module,
            grants,
            config,
            limits,
            breaker,
            public,
            revision: current.number,
            set_at: current.set_at,
            set_by: current.set_by,
            problem: status.problem,
            canary: status.canary.map(Into::into),
            way_back: status.way_back,
        })
    }
}

/// A revision of a route.
#[derive(Serialize, ToSchema)]
#[schema(as = RouteRevision)]
pub(super) struct RouteRevisionBody {
    number: u32,
    module: Digest,
    grants: Grants,
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    config: Config,
    limits: Limits,
    breaker: RouteBreaker,
    /// When it was set, in milliseconds since the Unix epoch.
    set_at: Timestamp,
    /// Who set it, as claimed.
    set_by: Option<String>,
    /// Whether it was never current: it is or was only a canary.
    trial: bool,
    /// Whether it was rolled back or withdrawn, so that no rollback leads to it unless it is named.
    voided: bool,
}

impl From<&RouteRevision> for RouteRevisionBody {
    fn from(revision: &RouteRevision) -> Self {
        let spec = revision.spec.clone();
        Self {
            number: revision.number,
            module: spec.module,
            grants: spec.grants,
            config: spec.config,
            limits: spec.limits,
            breaker: spec.breaker,
            set_at: revision.set_at,
            set_by: revision.set_by.clone(),
            trial: revision.trial,
            voided: revision.voided,
        }
    }
}

#[derive(Serialize, ToSchema)]
pub(super) struct RoutesBody {
    /// By path.
    routes: Vec<RouteBody>,
}

/// A route, its history, and what its components logged.
#[derive(Serialize, ToSchema)]
pub(super) struct RouteShown {
    #[serde(flatten)]
    route: RouteBody,
    /// Its revisions, oldest first, as far as they are kept.
    revisions: Vec<RouteRevisionBody>,
    /// What was done to it, oldest first, as far as it is kept.
    changes: Vec<Change>,
    /// The last lines that its components logged, at most 1,000 of each host, newest last.
    lines: Vec<Line>,
    #[serde(flatten)]
    gathered: Gathered,
}

/// What a host counts of a route.
#[derive(Deserialize)]
struct RouteCounted {
    canary: Option<RouteCanaryBody>,
    #[serde(flatten)]
    lines: LinesOfHost,
}

impl RouteCanaryBody {
    /// Adds another host's counts, if they are of the same canary.
    fn add(&mut self, host: &str, other: Self) {
        if other.revision != self.revision {
            return;
        }
        for (total, more) in [
            (&mut self.canary, other.canary),
            (&mut self.current, other.current),
        ] {
            total.requests = total.requests.saturating_add(more.requests);
            total.failed = total.failed.saturating_add(more.failed);
        }
        let at_host = |why: String| format!("at host {host}: {why}");
        self.trouble = self.trouble.take().or_else(|| other.trouble.map(at_host));
        self.problem = self.problem.take().or_else(|| other.problem.map(at_host));
    }
}

/// The path of a route, as the rest of a request's path.
fn path_of(rest: &str) -> Result<RoutePath, ApiError> {
    RoutePath::parse(&format!("/{rest}")).map_err(|error| {
        let hint = "write the route's path after /v1/routes, as in /v1/routes/hooks/orders";
        ApiError::malformed(error.to_string(), hint)
    })
}

fn shown(status: RouteStatus) -> Result<RouteBody, ApiError> {
    RouteBody::of(status).ok_or_else(|| ApiError::internal("the route has no current revision"))
}

/// All routes, by path.
#[utoipa::path(get, path = "/v1/routes", tag = "routes", responses((status = 200, body = RoutesBody)))]
pub(super) async fn list(app: Called) -> Json<RoutesBody> {
    let routes = app.session.routes().routes().into_iter();
    Json(RoutesBody {
        routes: routes.filter_map(RouteBody::of).collect(),
    })
}

/// One route, its revisions and changes, and what its components logged.
#[utoipa::path(get, path = "/v1/routes/{path}", tag = "routes", params(("path" = String, Path, description = "The route's path, with slashes"), HostsParams), responses(
    (status = 200, body = RouteShown),
    (status = 404, body = ErrorBody),
))]
pub(super) async fn show(
    app: Called,
    InPath(rest): InPath<String>,
    InQuery(HostsParams { hosts }): InQuery<HostsParams>,
) -> Result<OfThis<RouteShown>, ApiError> {
    let path = path_of(&rest)?;
    let routes = app.session.routes();
    let found = routes.route(&path);
    let found = found.ok_or_else(|| RouteError::Unknown(path.clone()))?;
    let route = Arc::clone(&found.route);
    let mut shown = shown(found)?;
    let at = format!("/v1/routes{path}");
    let mut others = app.of_others::<RouteCounted>(hosts, &at).await;
    let mut lines = Vec::new();
    for (host, counted) in std::mem::take(&mut others.given) {
        if let (Some(total), Some(canary)) = (&mut shown.canary, counted.canary) {
            total.add(&host, canary);
        }
        lines.push((host, counted.lines));
    }
    let body = RouteShown {
        route: shown,
        revisions: route.revisions.iter().map(Into::into).collect(),
        changes: route.changes.clone(),
        lines: app.lines(hosts, routes.logs(&path)?, lines),
        gathered: others.gathered(),
    };
    Ok(app.answer_of_this(hosts, body))
}

/// Creates a route or makes its next revision: from now on the component answers requests to its path and everything under it, each on a
/// fresh instance. Requests that are being answered end as they began. The same definition again changes nothing. With `canary` the current
/// revision stays; the definition of the existing canary changes its share, or, without `canary`, promotes it.
#[utoipa::path(put, path = "/v1/routes/{path}", tag = "routes", params(("path" = String, Path, description = "The route's path, with slashes"), ByHeader, SetParams), request_body = RouteIn, responses(
    (status = 200, body = RouteBody),
    (status = 400, body = ErrorBody, description = "The path cannot be a route's, or the definition cannot be read"),
    (status = 404, body = ErrorBody, description = "The module does not exist"),
    (status = 409, body = ErrorBody, description = "The maximum number of routes exists, or the definition is on trial and failing; nothing has changed"),
    (status = 413, body = ErrorBody),
    (status = 422, body = ErrorBody, description = "The module cannot be used for this; the error says why"),
))]
pub(super) async fn put(
    app: Called,
    InPath(rest): InPath<String>,
    InQuery(params): InQuery<SetParams>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<RouteBody>, ApiError> {
    let path = path_of(&rest)?;
    let taken = app.take_body(&headers, body, JSON_BODY_BYTES_MAX).await?;
    let given: RouteIn = json(&taken.bytes)?;
    app.admitted(vec![given.module.clone()]).await;
    let spec = RouteSpec {
        module: app.digest_of(&given.module)?,
        grants: given.grants,
        config: given.config,
        limits: given.limits,
        breaker: given.breaker,
        public: given.public,
    };
    to_the_end(async move {
        let routes = app.session.routes();
        let set = match params.canary {
            Some(percent) => routes.set_canary(&path, spec, percent).await?,
            None => routes.set_route(&path, spec).await?,
        };
        Ok(Json(shown(set)?))
    })
    .await
}

/// What can be done to the revisions of a route: the last part of the request's path. A route's own path may end like this as well, but
/// nothing else is ever posted to a route.
#[cfg(test)]
pub(super) const ACTIONS: [&str; 3] = ["rollback", "canary", "promote"];

/// Does what the last part of the path says.
pub(super) async fn act(
    app: Called,
    InPath(rest): InPath<String>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<RouteBody>, ApiError> {
    match rest.rsplit_once('/') {
        Some((rest, "rollback")) => rollback(app, path_of(rest)?, headers, body).await,
        Some((rest, "canary")) => canary(app, path_of(rest)?, headers, body).await,
        Some((rest, "promote")) => promote(app, path_of(rest)?, headers, body).await,
        _ => Err(error::unknown_route(method, uri).await),
    }
}

/// Makes an earlier revision current. Without a number that is the last one before the current one; if there is a canary, it is withdrawn
/// instead, and the current one stays.
#[utoipa::path(post, path = "/v1/routes/{path}/rollback", tag = "routes", params(("path" = String, Path, description = "The route's path, with slashes"), ByHeader),
    request_body = Option<RollbackBody>,
    responses(
        (status = 200, body = RouteBody),
        (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "There is no earlier one, the host has just withdrawn a canary by itself, or the revision being rolled back is not expected_revision"),
    )
)]
async fn rollback(
    app: Called,
    path: RoutePath,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<RouteBody>, ApiError> {
    let RollbackBody {
        revision,
        expected_revision,
    } = app.take_json_or_default(&headers, body).await?;
    to_the_end(async move {
        let routes = app.session.routes();
        let back = routes.roll_back_route(&path, revision, expected_revision);
        Ok(Json(shown(back.await?)?))
    })
    .await
}

/// Changes the canary's share of the requests.
#[utoipa::path(post, path = "/v1/routes/{path}/canary", tag = "routes", params(("path" = String, Path, description = "The route's path, with slashes"), ByHeader),
    request_body = CanaryBody,
    responses(
        (status = 200, body = RouteBody),
        (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "There is no canary"),
        (status = 422, body = ErrorBody, description = "The share is not 0 to 99"),
    )
)]
async fn canary(
    app: Called,
    path: RoutePath,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<RouteBody>, ApiError> {
    let CanaryBody { percent } = app.take_json(&headers, body).await?;
    to_the_end(async move {
        let shared = app.session.routes().share_canary(&path, percent).await?;
        Ok(Json(shown(shared)?))
    })
    .await
}

/// Makes the canary current.
#[utoipa::path(post, path = "/v1/routes/{path}/promote", tag = "routes", params(("path" = String, Path, description = "The route's path, with slashes"), ByHeader),
    request_body = Option<PromoteBody>,
    responses(
        (status = 200, body = RouteBody),
        (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "There is no canary, or it is about to be withdrawn"),
    )
)]
async fn promote(
    app: Called,
    path: RoutePath,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<RouteBody>, ApiError> {
    let PromoteBody { force } = app.take_json_or_default(&headers, body).await?;
    to_the_end(async move {
        let promoted = app.session.routes().promote_canary(&path, force).await?;
        Ok(Json(shown(promoted)?))
    })
    .await
}

/// Deletes a route: its requests are unknown paths again.
#[utoipa::path(delete, path = "/v1/routes/{path}", tag = "routes", params(("path" = String, Path, description = "The route's path, with slashes")), responses(
    (status = 204),
    (status = 404, body = ErrorBody),
))]
pub(super) async fn remove(
    app: Called,
    InPath(rest): InPath<String>,
) -> Result<StatusCode, ApiError> {
    let path = path_of(&rest)?;
    to_the_end(async move {
        app.session.routes().delete_route(&path).await?;
        app.forget_metrics("route", path.as_str());
        Ok(())
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}
