//! What a specification takes besides the right to deploy: nobody reads, writes or calls through a component what they may not by themselves.

use millrace_model::ProcessorSpec;

use crate::ground::verbs::Verb;
use crate::processors::error::ProcessorError;
use crate::processors::handle::Processors;

impl Processors {
    /// Whether the caller may read its topics, and send to those that it sends to.
    pub(super) fn check_rights(&self, spec: &ProcessorSpec) -> Result<(), ProcessorError> {
        for topic in &spec.topics {
            self.caller.may(Verb::Read, topic.as_str())?;
        }
        for topic in spec.output.iter().chain(&spec.grants.topics) {
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
