//! What a specification takes besides the right to deploy: nobody reads, writes or calls through a component what they may not by themselves.

use millrace_model::{Processor, ProcessorSpec};

use crate::ground::verbs::Verb;
use crate::processors::error::ProcessorError;
use crate::processors::handle::Processors;

impl Processors {
    /// Whether the caller may read all messages that the processor reads and sends, in any of its revisions.
    pub(super) fn reads_all_of(&self, processor: &Processor) -> bool {
        let specs = processor.revisions.iter().map(|revision| &revision.spec);
        let mut topics = specs.flat_map(|spec| {
            let sent = spec.output.iter().chain(&spec.grants.topics);
            spec.topics.iter().chain(sent)
        });
        topics.all(|topic| self.caller.sees(Verb::Read, topic.as_str()))
    }

    /// Whether the caller may what a specification needs that the one before it did not: who may roll back or promote takes nothing up that
    /// they could not deploy.
    pub(super) fn check_further_rights(
        &self,
        before: Option<&ProcessorSpec>,
        after: &ProcessorSpec,
    ) -> Result<(), ProcessorError> {
        let Some(before) = before else {
            return self.check_rights(after);
        };
        let mut further = after.clone();
        further
            .topics
            .retain(|topic| !before.topics.contains(topic));
        let sent: Vec<_> = before.output.iter().chain(&before.grants.topics).collect();
        further.output = further.output.filter(|topic| !sent.contains(&topic));
        further.grants.topics.retain(|topic| !sent.contains(&topic));
        let (had, has) = (&before.grants, &mut further.grants);
        has.views.retain(|view| !had.views.contains(view));
        has.secrets.retain(|secret| !had.secrets.contains(secret));
        self.check_rights(&further)
    }

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
