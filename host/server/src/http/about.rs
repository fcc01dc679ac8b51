//! Facts about the host that are known from its start on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use millrace_model::{Clock, Timestamp};
use serde_json::Value;

use crate::config::{Config, EngineKind};

/// Facts that do not change while the host runs.
pub(super) struct About {
    pub(super) started_at: Timestamp,
    pub(super) started: Duration,
    pub(super) engine: EngineKind,
    pub(super) encrypted: bool,
    pub(super) settings: BTreeMap<String, Value>,
}

impl About {
    pub(super) fn of(config: &Config, clock: &Arc<dyn Clock>) -> Self {
        Self {
            started_at: clock.wall(),
            started: clock.monotonic(),
            engine: config.engine.kind,
            encrypted: config.encryption.is_on(),
            settings: settings(config),
        }
    }
}

/// The settings, by their paths in the configuration file. Encryption keys are never shown;
/// settings of modules are shown as limits.
fn settings(config: &Config) -> BTreeMap<String, Value> {
    let mut settings = BTreeMap::new();
    let config = serde_json::to_value(config).unwrap_or_default();
    collect(String::new(), config, &mut settings);
    let is_told = |path: &str| !path.starts_with("encryption.") && !path.starts_with("modules.");
    settings.retain(|path, value| is_told(path) && !value.is_null());
    settings
}

fn collect(path: String, value: Value, settings: &mut BTreeMap<String, Value>) {
    let Value::Object(fields) = value else {
        settings.insert(path, value);
        return;
    };
    for (name, value) in fields {
        let path = match path.is_empty() {
            true => name,
            false => format!("{path}.{name}"),
        };
        collect(path, value, settings);
    }
}
