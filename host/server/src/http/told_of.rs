//! Forgets the metrics of topics, processors and schedules that are gone.

use std::collections::HashSet;

use millrace_broker::Broker;

use crate::registry::Registry;

/// What there are metrics about, as of the last look; and what was gone then.
#[derive(Default)]
pub(super) struct ToldOf {
    there: Names,
    gone: Names,
}

/// Labels and names.
type Names = HashSet<(&'static str, String)>;

impl ToldOf {
    /// What went since the last look is forgotten now, and at the next look once more: something about it may have been under way.
    pub(super) fn forget_gone(&mut self, broker: &Broker, metrics: &Registry) {
        let there = names(broker);
        let went: Names = self.there.difference(&there).cloned().collect();
        for (label, name) in self.gone.difference(&there).chain(&went) {
            metrics.forget(label, name);
        }
        (self.there, self.gone) = (there, went);
    }
}

fn names(broker: &Broker) -> Names {
    let topics = broker.topics().into_iter();
    let topics = topics.map(|topic| ("topic", topic.spec.name.to_string()));
    let processors = broker.processor_names().into_iter();
    let processors = processors.map(|name| ("processor", name.to_string()));
    let schedules = broker.schedules().into_iter();
    let schedules = schedules.map(|one| ("schedule", one.schedule.name.to_string()));
    topics.chain(processors).chain(schedules).collect()
}
