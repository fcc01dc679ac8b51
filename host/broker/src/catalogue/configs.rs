//! The settings that loaded components of processors read. An entry exists for as long as a component holds it.

use std::collections::HashMap;

use millrace_model::ProcessorName;
use millrace_model::processor::Config;
use parking_lot::Mutex;

use crate::handler::LiveConfig;

/// Settings by processor, shared with the components.
#[derive(Default)]
pub(super) struct Configs(Mutex<HashMap<ProcessorName, LiveConfig>>);

impl Configs {
    /// The settings for a component of the processor; they begin with those that are known of it.
    pub(super) fn of(&self, name: &ProcessorName, known: Option<&Config>) -> LiveConfig {
        let mut all = self.0.lock();
        if let Some(live) = all.get(name) {
            return live.clone();
        }
        // What nobody reads: the first deployment of its processor failed, or its component is gone.
        all.retain(|_, live| live.is_shared());
        let live = LiveConfig::default();
        if let Some(config) = known {
            live.set(config);
        }
        all.insert(name.clone(), live.clone());
        live
    }

    /// Changes the settings that the processor's components read.
    pub(super) fn change(&self, name: &ProcessorName, config: &Config) {
        if let Some(live) = self.0.lock().get(name) {
            live.set(config);
        }
    }

    /// Forgets a deleted processor: one of the same name has its own settings.
    pub(super) fn forget(&self, name: &ProcessorName) {
        self.0.lock().remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(n: usize) -> ProcessorName {
        ProcessorName::parse(&format!("p{n}")).expect("a name")
    }

    #[test]
    fn settings_that_no_component_reads_take_no_room_and_are_known_to_the_next_one() {
        let configs = Configs::default();
        let read = configs.of(&named(0), None);
        for n in 1..100 {
            // Its component could not be loaded.
            drop(configs.of(&named(n), None));
        }
        assert!(configs.0.lock().len() <= 2);
        let greeting = [("greeting".to_owned(), Some("hello".to_owned()))];
        let config = Config::default().with(greeting).expect("settings");
        configs.change(&named(0), &config);
        assert_eq!(read.now().get("greeting"), Some("hello"));
        configs.change(&named(1), &config);
        let loaded = configs.of(&named(1), Some(&config));
        assert_eq!(loaded.now().get("greeting"), Some("hello"));
    }
}
