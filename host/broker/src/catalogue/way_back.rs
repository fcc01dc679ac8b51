//! Which revision a rollback leads to: the last one that worked, and whose topics and modules are still there.

use millrace_model::{Processor, Revision};

use crate::catalogue::handle::Catalogue;

impl Catalogue {
    /// The target of a rollback from the current revision: the last one that worked and can still run.
    pub(crate) fn way_back<'a>(&self, processor: &'a Processor) -> Option<&'a Revision> {
        processor.way_back_among(processor.current, |revision| self.can_run(revision))
    }

    /// The number of that revision.
    #[must_use]
    pub fn way_back_of(&self, processor: &Processor) -> Option<u32> {
        self.way_back(processor).map(|back| back.number)
    }

    /// Whether the topics and modules of a revision still exist.
    pub(crate) fn can_run(&self, revision: &Revision) -> bool {
        let spec = &revision.spec;
        let mut topics = spec
            .topics
            .iter()
            .chain(&spec.output)
            .chain(&spec.grants.topics);
        let mut modules = [Some(spec.module), spec.error_handler]
            .into_iter()
            .flatten();
        topics.all(|topic| self.topic(topic).is_some())
            && modules.all(|digest| self.module_of(digest).is_some())
    }
}
