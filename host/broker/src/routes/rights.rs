//! What a route's definition takes besides the right to set it: nobody sends or reads through a component what they may not by themselves.

use millrace_model::{RoutePath, RouteSpec};

use crate::ground::standing::Forbidden;
use crate::ground::verbs::Verb;
use crate::routes::handle::Routes;

impl Routes {
    /// Whether the caller may what a definition needs that the one before it did not: who may roll back or promote takes nothing up that
    /// they could not set.
    pub(super) fn check_further_rights(
        &self,
        path: &RoutePath,
        before: Option<&RouteSpec>,
        after: Option<&RouteSpec>,
    ) -> Result<(), Forbidden> {
        let (Some(before), Some(after)) = (before, after) else {
            return after.map_or(Ok(()), |after| self.check_rights(after));
        };
        let mut further = after.clone();
        let (had, has) = (&before.grants, &mut further.grants);
        has.topics.retain(|topic| !had.topics.contains(topic));
        has.views.retain(|view| !had.views.contains(view));
        has.secrets.retain(|secret| !had.secrets.contains(secret));
        if after.public && !before.public {
            self.caller.may(Verb::SetRoute, path.as_str())?;
        }
        self.check_rights(&further)
    }

    /// Whether the caller may send to its topics, and read the state that it reads.
    pub(super) fn check_rights(&self, spec: &RouteSpec) -> Result<(), Forbidden> {
        for topic in &spec.grants.topics {
            self.caller.may(Verb::Produce, topic.as_str())?;
        }
        for processor in &spec.grants.views {
            self.caller.may(Verb::ReadState, processor.as_str())?;
        }
        for secret in &spec.grants.secrets {
            self.caller.may(Verb::UseSecret, secret.as_str())?;
        }
        Ok(())
    }
}
