//! Whether the host is alive and accepts work, and its metrics.

use axum::Json;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use millrace_broker::Caller;
use serde::Serialize;
use utoipa::ToSchema;

use super::called::Called;
use super::error::{ApiError, ErrorBody};

/// How far processors are behind.
const LAG: &str = "millrace_lag_messages";
/// The lag of consumers.
const CONSUMER_LAG: &str = "millrace_consumer_lag_messages";

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
pub(super) async fn ready(app: Called) -> Result<Json<Health>, ApiError> {
    app.broker.ready().await?;
    if app.stopping.is_cancelled() {
        return Err(millrace_engine::CommitError::Closed.into());
    }
    Ok(Json(Health { status: "ready" }))
}

/// Metrics in the Prometheus format.
#[utoipa::path(get, path = "/metrics", tag = "health", responses(
    (status = 200, body = String, content_type = "text/plain"),
))]
pub(super) async fn metrics(app: Called) -> Response {
    let text = app.metrics_text().await;
    (
        [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
        text,
    )
        .into_response()
}

impl Called {
    async fn metrics_text(&self) -> String {
        let Some(metrics) = &self.metrics else {
            return String::new();
        };
        self.measure_connections();
        // Whoever may read the host's metrics reads all of them.
        let all = self.broker.session(Caller::host());
        all.dead_letters().measure_dead_letters().await;
        all.catalogue().measure_left_behind().await;
        self.forget_gone();
        let lags = all.processors().lags().await;
        let consumers = all.consumers().all_consumers().await;
        let _measuring = self.measuring.lock();
        // All updated, so that deleted or moved ones leave no series.
        metrics.forget_family(LAG);
        for lag in lags {
            let (processor, topic) = (lag.processor.to_string(), lag.topic.to_string());
            let partition = lag.partition.to_string();
            metrics::gauge!(LAG, "processor" => processor, "topic" => topic, "partition" => partition)
                .set(lag.messages as f64);
        }
        metrics.forget_family(CONSUMER_LAG);
        for consumer in consumers.unwrap_or_default() {
            let (topic, name) = (consumer.topic.to_string(), consumer.name.to_string());
            metrics::gauge!(CONSUMER_LAG, "topic" => topic, "consumer" => name)
                .set(consumer.lag as f64);
        }
        metrics.render() + &crate::process::metrics_text()
    }
}
