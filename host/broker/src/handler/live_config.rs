//! The settings of a processor as its component's calls see them.

use std::sync::Arc;

use millrace_model::processor::Config;
use parking_lot::RwLock;

/// Settings that change while their component is loaded. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct LiveConfig(Arc<RwLock<Arc<Config>>>);

impl LiveConfig {
    /// The settings for a call that begins now.
    #[must_use]
    pub fn now(&self) -> Arc<Config> {
        Arc::clone(&self.0.read())
    }

    /// Whether anyone else holds them.
    pub(crate) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    /// Replaces the settings, for every call that begins from now on.
    pub fn set(&self, config: &Config) {
        if **self.0.read() != *config {
            *self.0.write() = Arc::new(config.clone());
        }
    }
}
