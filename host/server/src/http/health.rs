//! Whether the host lives and takes work, and its metrics.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::error::{ApiError, ErrorBody};
use super::{App, Shared};

#[derive(Serialize, ToSchema)]
pub(super) struct Health {
    #[schema(example = "ready")]
    status: &'static str,
}

/// The process answers.
#[utoipa::path(get, path = "/health/live", tag = "health", responses((status = 200, body = Health)))]
pub(super) async fn live() -> Json<Health> {
    Json(Health { status: "live" })
}

/// The engine accepts commits.
#[utoipa::path(get, path = "/health/ready", tag = "health", responses(
    (status = 200, body = Health),
    (status = 503, body = ErrorBody, description = "It does not; the error says why"),
))]
pub(super) async fn ready(State(app): Shared) -> Result<Json<Health>, ApiError> {
    app.broker.ready().await?;
    if app.stopping.is_cancelled() {
        return Err(millrace_engine::CommitError::Closed.into());
    }
    Ok(Json(Health { status: "ready" }))
}

/// Metrics, as Prometheus reads them.
#[utoipa::path(get, path = "/metrics", tag = "health", responses(
    (status = 200, body = String, content_type = "text/plain"),
))]
pub(super) async fn metrics(State(app): Shared) -> Response {
    let text = app.metrics_text();
    (
        [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
        text,
    )
        .into_response()
}

impl App {
    fn metrics_text(self: &Arc<Self>) -> String {
        let metrics = self.metrics.as_ref();
        self.measure_connections();
        self.broker.measure_dead_letters();
        metrics.map_or_else(String::new, |metrics| metrics.render())
    }
}
