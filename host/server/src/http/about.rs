//! What is known of the host from its start on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use millrace_model::{Clock, Timestamp};
use serde_json::{Value, json};

use crate::config::{Config, EngineKind};

/// What is known of the host from its start on.
pub(super) struct About {
    pub(super) started_at: Timestamp,
    pub(super) started: Duration,
    pub(super) engine: EngineKind,
    pub(super) encrypted: bool,
    pub(super) settings: BTreeMap<&'static str, Value>,
}

impl About {
    pub(super) fn of(config: &Config, clock: &Arc<dyn Clock>) -> Self {
        Self {
            started_at: clock.wall(),
            started: clock.monotonic(),
            engine: config.engine,
            encrypted: config.encrypts(),
            settings: settings(config),
        }
    }
}

/// The settings by their names in the configuration file. Keys of the encryption are no setting that is told.
fn settings(config: &Config) -> BTreeMap<&'static str, Value> {
    let ms = |time: Duration| json!(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    let storage = config.storage.options();
    BTreeMap::from([
        ("listen", json!(config.listen)),
        ("data_dir", json!(config.data_dir.display().to_string())),
        ("insecure_no_auth", json!(config.insecure_no_auth)),
        ("allowed_hosts", json!(config.allowed_hosts)),
        ("connections_max", json!(config.connections_max)),
        ("stop_deadline_ms", ms(config.stop_deadline)),
        (
            "scrub_bytes_per_second",
            json!(config.scrub_bytes_per_second),
        ),
        ("scrub_interval_s", json!(config.scrub_interval.as_secs())),
        ("cleaning_interval_ms", ms(config.cleaning_interval)),
        (
            "log_format",
            json!(format!("{:?}", config.log_format).to_lowercase()),
        ),
        ("log_filter", json!(config.log_filter)),
        (
            "guest_log",
            json!(format!("{:?}", config.guest_log).to_lowercase()),
        ),
        ("journal_file_bytes", json!(storage.journal_file_bytes)),
        ("segment_bytes", json!(storage.segment_bytes)),
        (
            "checkpoint_journal_bytes",
            json!(storage.checkpoint_journal_bytes),
        ),
    ])
}
