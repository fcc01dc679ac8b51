//! A processor's history: its revisions, and what was done with it, by whom and when. Written with what it tells of, in one commit.

use millrace_model::bounds::{CHANGE_TEXT_BYTES_MAX, CHANGES_KEPT_MAX, REVISIONS_KEPT_MAX};
use millrace_model::{Change, ChangeKind, Processor, ProcessorName, ProcessorSpec, Revision};

use crate::broker::Broker;
use crate::dispatch::answer::cut;

/// As whom the host signs what it does by itself.
const HOST: &str = "host";

impl Broker {
    /// The same broker, whose changes of processors are made in this name. A claim that is written down, not a proof.
    #[must_use]
    pub fn on_behalf_of(&self, by: &str) -> Self {
        Self {
            by: Some(by.into()),
            ..self.clone()
        }
    }

    /// The same broker, for what the host does by itself.
    pub(crate) fn by_itself(&self) -> Self {
        self.on_behalf_of(HOST)
    }

    /// A processor with its first revision.
    pub(crate) fn first_revision(&self, name: &ProcessorName, spec: ProcessorSpec) -> Processor {
        let mut processor = Processor {
            name: name.clone(),
            current: 1,
            paused: false,
            revisions: vec![self.revision(1, spec, None)],
            canary: None,
            shadow: None,
            replay: None,
            start: Vec::new(),
            changes: Vec::new(),
        };
        self.record(&mut processor, ChangeKind::Deploy, 1, None);
        processor
    }

    /// The processor with its next revision, current.
    pub(crate) fn next_revision(&self, mut processor: Processor, spec: ProcessorSpec) -> Processor {
        let number = self.add_revision(&mut processor, spec);
        end_trials(&mut processor);
        processor.current = number;
        self.record(&mut processor, ChangeKind::Deploy, number, None);
        processor
    }

    /// Adds a revision that takes over from the current one, or is tried beside it; its number.
    pub(crate) fn add_revision(&self, processor: &mut Processor, spec: ProcessorSpec) -> u32 {
        let newest = processor.revisions.iter().map(|r| r.number).max();
        let number = newest.unwrap_or(0).max(processor.current) + 1;
        let revision = self.revision(number, spec, Some(processor.current));
        processor.revisions.push(revision);
        while processor.revisions.len() > REVISIONS_KEPT_MAX {
            let goes = |r: &Revision| r.number != number && !processor.runs(r.number);
            let Some(oldest) = processor.revisions.iter().position(goes) else {
                break;
            };
            processor.revisions.remove(oldest);
        }
        number
    }

    fn revision(&self, number: u32, spec: ProcessorSpec, predecessor: Option<u32>) -> Revision {
        Revision {
            number,
            spec,
            deployed_at: self.inner.clock.wall(),
            deployed_by: self.by.as_deref().map(str::to_owned),
            predecessor,
            trial: false,
            note: None,
        }
    }

    /// Writes down what is being done.
    pub(crate) fn record(
        &self,
        processor: &mut Processor,
        what: ChangeKind,
        revision: u32,
        text: Option<String>,
    ) {
        let excess = (processor.changes.len() + 1).saturating_sub(CHANGES_KEPT_MAX);
        processor.changes.drain(..excess);
        processor.changes.push(Change {
            at: self.inner.clock.wall(),
            by: self.by.as_deref().map(str::to_owned),
            what,
            revision,
            text: text.map(|text| cut(text, CHANGE_TEXT_BYTES_MAX)),
        });
    }
}

/// Another revision becomes current: what was tried beside the one before is tried no longer.
pub(crate) fn end_trials(processor: &mut Processor) {
    processor.canary = None;
    processor.shadow = None;
}
