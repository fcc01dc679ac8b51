//! Routes over HTTP: paths whose requests a component answers. [`super::mount`] answers those requests.

use axum::Json;
use axum::body::Body;
use axum::http::{HeaderMap, StatusCode};
use millrace_broker::{GuestLine, RouteError, RouteStatus};
use millrace_model::processor::{Config, Grants, Limits};
use millrace_model::{Digest, RoutePath, RouteSpec, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::app::to_the_end;
use super::body::json;
use super::bounds::JSON_BODY_BYTES_MAX;
use super::by::ByHeader;
use super::called::Called;
use super::error::{ApiError, ErrorBody};
use super::query::InPath;

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
    /// How often it was set.
    revision: u32,
    /// When it was last set, in milliseconds since the Unix epoch.
    set_at: Timestamp,
    /// Who set it, as claimed.
    set_by: Option<String>,
    /// Why it cannot answer on this host; null if it can.
    problem: Option<String>,
}

impl From<RouteStatus> for RouteBody {
    fn from(status: RouteStatus) -> Self {
        let RouteStatus { route, problem } = status;
        let spec = route.spec.clone();
        Self {
            path: route.path.to_string(),
            module: spec.module,
            grants: spec.grants,
            config: spec.config,
            limits: spec.limits,
            revision: route.revision,
            set_at: route.set_at,
            set_by: route.set_by.clone(),
            problem,
        }
    }
}

#[derive(Serialize, ToSchema)]
pub(super) struct RoutesBody {
    /// By path.
    routes: Vec<RouteBody>,
}

/// A route and what its component logged.
#[derive(Serialize, ToSchema)]
pub(super) struct RouteShown {
    #[serde(flatten)]
    route: RouteBody,
    /// The last lines that its component logged on this host, at most 1,000, newest last.
    lines: Vec<GuestLine>,
}

/// The path of a route, as the rest of a request's path.
fn path_of(rest: &str) -> Result<RoutePath, ApiError> {
    RoutePath::parse(&format!("/{rest}")).map_err(|error| {
        let hint = "write the route's path after /v1/routes, as in /v1/routes/hooks/orders";
        ApiError::malformed(error.to_string(), hint)
    })
}

/// All routes, by path.
#[utoipa::path(get, path = "/v1/routes", tag = "routes", responses((status = 200, body = RoutesBody)))]
pub(super) async fn list(app: Called) -> Json<RoutesBody> {
    let routes = app.session.routes().routes().into_iter();
    Json(RoutesBody {
        routes: routes.map(RouteBody::from).collect(),
    })
}

/// One route, and what its component logged.
#[utoipa::path(get, path = "/v1/routes/{path}", tag = "routes", params(("path" = String, Path, description = "The route's path, with slashes")), responses(
    (status = 200, body = RouteShown),
    (status = 404, body = ErrorBody),
))]
pub(super) async fn show(
    app: Called,
    InPath(rest): InPath<String>,
) -> Result<Json<RouteShown>, ApiError> {
    let path = path_of(&rest)?;
    let routes = app.session.routes();
    let found = routes.route(&path);
    let found = found.ok_or_else(|| RouteError::Unknown(path.clone()))?;
    Ok(Json(RouteShown {
        route: found.into(),
        lines: routes.logs(&path),
    }))
}

/// Creates or changes a route: from now on the component answers requests to its path and everything under it, each on a fresh instance.
/// Requests that are being answered end as they began.
#[utoipa::path(put, path = "/v1/routes/{path}", tag = "routes", params(("path" = String, Path, description = "The route's path, with slashes"), ByHeader), request_body = RouteIn, responses(
    (status = 200, body = RouteBody),
    (status = 400, body = ErrorBody, description = "The path cannot be a route's, or the definition cannot be read"),
    (status = 404, body = ErrorBody, description = "The module does not exist"),
    (status = 409, body = ErrorBody, description = "The maximum number of routes exists"),
    (status = 413, body = ErrorBody),
    (status = 422, body = ErrorBody, description = "The module cannot be used for this; the error says why"),
))]
pub(super) async fn put(
    app: Called,
    InPath(rest): InPath<String>,
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
    };
    to_the_end(async move {
        let set = app.session.routes().set_route(&path, spec).await?;
        Ok(Json(set.into()))
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
