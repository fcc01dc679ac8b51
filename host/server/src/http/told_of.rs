//! Removes the metrics of deleted topics, processors, schedules and routes.

use std::collections::HashSet;

use millrace_broker::Session;

use crate::registry::Registry;

/// The series at the last update, and those gone then.
#[derive(Default)]
pub(super) struct ToldOf {
    there: Names,
    gone: Names,
}

/// Labels and names.
type Names = HashSet<(&'static str, String)>;

impl ToldOf {
    /// Series gone since the last update are removed now and again at the next update, because a running task may still write them.
    pub(super) fn forget_gone(&mut self, session: &Session, metrics: &Registry) {
        let there = names(session);
        let went: Names = self.there.difference(&there).cloned().collect();
        for (label, name) in self.gone.difference(&there).chain(&went) {
            metrics.forget(label, name);
        }
        (self.there, self.gone) = (there, went);
    }
}

fn names(session: &Session) -> Names {
    let topics = session.catalogue().topics().into_iter();
    let topics = topics.map(|topic| ("topic", topic.spec.name.to_string()));
    let processors = session.catalogue().processor_names().into_iter();
    let processors = processors.map(|name| ("processor", name.to_string()));
    let schedules = session.schedules().schedules().into_iter();
    let schedules = schedules.map(|one| ("schedule", one.schedule.name.to_string()));
    let routes = session.routes().routes().into_iter();
    let routes = routes.map(|one| ("route", one.route.path.to_string()));
    let deployed = topics.chain(processors);
    deployed.chain(schedules).chain(routes).collect()
}
