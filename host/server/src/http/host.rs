//! What runs here: version, since when, with which settings and limits, and how much there is of everything.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use millrace_model::Timestamp;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::app::{App, Shared};
use crate::config::EngineKind;

/// The host.
#[derive(Serialize, ToSchema)]
pub(super) struct HostBody {
    /// Of Millrace.
    version: &'static str,
    /// Its process at the operating system.
    pid: u32,
    #[schema(value_type = u64)]
    started_at: Timestamp,
    /// How long it has run.
    uptime_ms: u64,
    /// `local` or `memory`.
    engine: &'static str,
    /// Whether what is kept is encrypted.
    encrypted: bool,
    /// Whether the engine accepts commits.
    ready: bool,
    /// Why it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    trouble: Option<String>,
    /// How much there is of everything.
    counts: CountsBody,
    /// What modules may have, by the names of the settings.
    limits: BTreeMap<&'static str, u64>,
    /// The other settings in force, by their paths in the configuration file (`listen.http.address`).
    #[schema(value_type = BTreeMap<String, serde_json::Value>)]
    settings: BTreeMap<String, Value>,
}

/// How many there are.
#[derive(Serialize, ToSchema)]
pub(super) struct CountsBody {
    topics: usize,
    partitions: u64,
    processors: usize,
    modules: usize,
    schedules: usize,
}

/// The host: version, uptime, engine, counts, limits and settings in force.
#[utoipa::path(get, path = "/v1/host", tag = "health", responses((status = 200, body = HostBody, description = "What runs here")))]
pub(super) async fn show(State(app): Shared) -> Json<HostBody> {
    let trouble = app.broker.ready().await.err();
    let about = &app.about;
    let uptime = app.clock.monotonic().saturating_sub(about.started);
    Json(HostBody {
        version: env!("CARGO_PKG_VERSION"),
        pid: std::process::id(),
        started_at: about.started_at,
        uptime_ms: u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX),
        engine: match about.engine {
            EngineKind::Local => "local",
            EngineKind::Memory => "memory",
        },
        encrypted: about.encrypted,
        ready: trouble.is_none() && !app.stopping.is_cancelled(),
        trouble: trouble.map(|error| error.to_string()),
        counts: app.counts(),
        limits: app.broker.guest_limits().named().into_iter().collect(),
        settings: about.settings.clone(),
    })
}

impl App {
    fn counts(&self) -> CountsBody {
        let topics = self.broker.topics();
        CountsBody {
            partitions: topics
                .iter()
                .map(|topic| u64::from(topic.spec.partitions))
                .sum(),
            topics: topics.len(),
            processors: self.broker.processor_names().len(),
            modules: self.broker.modules().len(),
            schedules: self.broker.schedules().len(),
        }
    }

    /// Says in the log what is there.
    pub(crate) fn log_start(&self, address: std::net::SocketAddr, data_dir: &std::path::Path) {
        let about = &self.about;
        let counts = self.counts();
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            pid = std::process::id(),
            %address,
            engine = ?about.engine,
            encrypted = about.encrypted,
            data_dir = %data_dir.display(),
            topics = counts.topics,
            partitions = counts.partitions,
            processors = counts.processors,
            modules = counts.modules,
            schedules = counts.schedules,
            "host started"
        );
    }

    /// Metrics of what was deleted.
    pub(super) fn forget_metrics(&self, label: &str, name: &str) {
        if let Some(metrics) = &self.metrics {
            metrics.forget(label, name);
        }
    }
}
