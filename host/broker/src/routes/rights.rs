//! What a route's definition takes besides the right to set it: nobody sends or reads through a component what they may not by themselves.

use millrace_model::RouteSpec;

use crate::ground::standing::Forbidden;
use crate::ground::verbs::Verb;
use crate::routes::handle::Routes;

impl Routes {
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
