//! Removes the metrics of deleted topics, processors, schedules and routes, and of routes' revisions that are no longer kept.

use std::collections::HashSet;

use millrace_broker::Session;

use super::mount::REQUESTS_TOTAL;
use crate::registry::{Registry, value_of};

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
        // Every change of a route is a revision, and only the latest are kept.
        metrics.retain(REQUESTS_TOTAL, |series| {
            let revision = value_of(series, "revision").and_then(|number| number.parse().ok());
            let route = value_of(series, "route");
            let named = route.zip(revision);
            named.is_none_or(|(route, revision)| !session.routes().has_dropped(route, revision))
        });
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
