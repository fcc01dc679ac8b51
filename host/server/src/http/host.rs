//! The running host: version, uptime, settings, limits and counts.

use std::collections::BTreeMap;

use axum::Json;
use millrace_model::Timestamp;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::called::Called;
use crate::config::EngineKind;

/// The host.
#[derive(Serialize, ToSchema)]
pub(super) struct HostBody {
    /// The version of Millrace.
    version: &'static str,
    /// The process id.
    pid: u32,
    started_at: Timestamp,
    /// How long it has run.
    uptime_ms: u64,
    /// `local`, `memory`, `postgres` or `jetstream`.
    engine: &'static str,
    /// Whether stored data is encrypted.
    encrypted: bool,
    /// Whether the engine accepts commits.
    ready: bool,
    /// Why it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    trouble: Option<String>,
    /// How much there is of everything.
    counts: CountsBody,
    /// The limits of modules, by the names of the settings.
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
#[utoipa::path(get, path = "/v1/host", tag = "health", responses((status = 200, body = HostBody, description = "The running host")))]
pub(super) async fn show(app: Called) -> Json<HostBody> {
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
            EngineKind::Postgres => "postgres",
            EngineKind::Jetstream => "jetstream",
        },
        encrypted: about.encrypted,
        ready: trouble.is_none() && !app.stopping.is_cancelled(),
        trouble: trouble.map(|error| error.to_string()),
        counts: app.counts(),
        limits: app
            .session
            .catalogue()
            .guest_limits()
            .named()
            .into_iter()
            .collect(),
        settings: about.settings.clone(),
    })
}

impl Called {
    fn counts(&self) -> CountsBody {
        let topics = self.session.catalogue().topics();
        CountsBody {
            partitions: topics
                .iter()
                .map(|topic| u64::from(topic.spec.partitions))
                .sum(),
            topics: topics.len(),
            processors: self.session.catalogue().processor_names().len(),
            modules: self.session.catalogue().modules().len(),
            schedules: self.session.schedules().schedules().len(),
        }
    }

    /// Logs the start with counts.
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

    /// Removes the metrics of what was deleted.
    pub(super) fn forget_metrics(&self, label: &str, name: &str) {
        if let Some(metrics) = &self.metrics {
            metrics.forget(label, name);
        }
    }
}

/// The living hosts.
#[derive(Serialize, ToSchema)]
pub(super) struct HostsBody {
    /// By id.
    hosts: Vec<LivingBody>,
}

/// A living host.
#[derive(Serialize, ToSchema)]
pub(super) struct LivingBody {
    /// Its identity; a host that is started again has another one.
    id: String,
    /// The address that it gave to the others; empty if it gave none.
    address: String,
    /// Whether it is the one that answers.
    is_this: bool,
}

/// The hosts that live on this host's store: itself, and with a shared engine the others. One that ended without notice may be listed
/// for some seconds.
#[utoipa::path(get, path = "/v1/hosts", tag = "health", responses((status = 200, body = HostsBody, description = "The living hosts")))]
pub(super) async fn list(app: Called) -> Json<HostsBody> {
    let (this, hosts) = app.broker.hosts();
    let hosts = hosts.iter().map(|host| LivingBody {
        id: host.id.to_string(),
        address: host.address.to_string(),
        is_this: host.id == this,
    });
    Json(HostsBody {
        hosts: hosts.collect(),
    })
}
