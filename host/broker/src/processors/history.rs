//! A processor's history: its revisions, and what was done to it, by whom and when. Stored in the same commit as the change.

use std::sync::Arc;

use millrace_model::bounds::{CHANGE_TEXT_BYTES_MAX, CHANGES_KEPT_MAX};
use millrace_model::{
    Change, ChangeKind, Processor, ProcessorName, ProcessorSpec, Record, Revision, Stopped,
};

use crate::dispatch::gate::Gate;
use crate::ground::text::cut;
use crate::processors::error::ProcessorError;
use crate::processors::handle::Processors;
use crate::processors::revisions::{
    end_trials, first_run, forget_oldest, leave, make_void, on_trial, take_down, unproven_run,
};

impl Processors {
    /// A processor with its first revision.
    pub(crate) fn first_revision(&self, name: &ProcessorName, spec: ProcessorSpec) -> Processor {
        let now = self.inner.clock.wall();
        let mut processor = Processor {
            name: name.clone(),
            made_at: now,
            current: 1,
            paused: false,
            revisions: vec![self.revision(1, spec, None)],
            canary: None,
            shadow: None,
            replay: None,
            start: Vec::new(),
            resumes: Default::default(),
            changes: Vec::new(),
        };
        for first in &mut processor.revisions {
            first.unproven_run = first_run(now);
        }
        self.record(&mut processor, ChangeKind::Deploy, 1, None);
        processor
    }

    /// The processor with its next revision, current.
    pub(crate) fn next_revision(&self, mut processor: Processor, spec: ProcessorSpec) -> Processor {
        self.leave(&mut processor);
        let number = self.add_revision(&mut processor, spec);
        self.end_trial(&mut processor, &format!("in favour of revision {number}"));
        processor.current = number;
        self.record(&mut processor, ChangeKind::Deploy, number, None);
        processor
    }

    /// Adds a revision, which becomes current or is put on trial; returns its number.
    pub(crate) fn add_revision(&self, processor: &mut Processor, spec: ProcessorSpec) -> u32 {
        let newest = processor.revisions.iter().map(|r| r.number).max();
        let number = newest.unwrap_or(0).max(processor.current) + 1;
        let mut revision = self.revision(number, spec, Some(processor.current));
        revision.unproven_run = unproven_run(processor);
        processor.revisions.push(revision);
        forget_oldest(processor, number);
        number
    }

    /// Another revision becomes current: stores the previous one's record.
    pub(crate) fn leave(&self, processor: &mut Processor) {
        let gate = self.inner.supervisor.gate(&processor.name);
        let mut noted = gate.and_then(|gate| gate.record(processor.current));
        let known = self.known(&processor.name).ok();
        if let Some(problem) = known.and_then(|known| known.problem) {
            // A revision that cannot even be loaded is not one to go back to.
            let record = &mut noted.get_or_insert_default().record;
            record.stopped.get_or_insert(Stopped {
                class: None,
                text: problem,
            });
        }
        leave(processor, noted, self.inner.clock.wall());
    }

    /// Stores the record of a running revision.
    pub(crate) async fn note_record(
        &self,
        name: &ProcessorName,
        revision: u32,
    ) -> Result<(), ProcessorError> {
        let noted = self
            .inner
            .catalogue
            .decide(|| self.note_record_now(name, revision))
            .await;
        if noted.is_err() {
            self.gates_of(name).for_each(|gate| gate.not_written());
        }
        noted
    }

    /// The gates of the current revision and of the canary.
    fn gates_of(&self, name: &ProcessorName) -> impl Iterator<Item = Arc<Gate>> + use<> {
        let supervisor = &self.inner.supervisor;
        let canary = supervisor
            .canary(name)
            .map(|canary| Arc::clone(&canary.gate));
        supervisor.gate(name).into_iter().chain(canary)
    }

    async fn note_record_now(
        &self,
        name: &ProcessorName,
        revision: u32,
    ) -> Result<(), ProcessorError> {
        for gate in self.gates_of(name) {
            let (Some(noted), Ok(known)) = (gate.record(revision), self.known(name)) else {
                continue;
            };
            let mut processor = known.processor;
            let fresh = noted.fresh;
            if take_down(&mut processor, revision, noted, self.inner.clock.wall()) {
                let version = self.keep(&processor).await?;
                gate.written(revision, fresh);
                self.know_with(processor, version, known.problem, known.trial_problem);
            }
        }
        Ok(())
    }

    /// Ends the trial, if there is one; the history says why.
    pub(crate) fn end_trial(&self, processor: &mut Processor, why: &str) {
        if let Some(revision) = on_trial(processor) {
            end_trials(processor);
            make_void(processor, revision);
            self.record(
                processor,
                ChangeKind::Withdraw,
                revision,
                Some(why.to_owned()),
            );
        }
    }

    fn revision(&self, number: u32, spec: ProcessorSpec, predecessor: Option<u32>) -> Revision {
        Revision {
            number,
            spec,
            deployed_at: self.inner.clock.wall(),
            deployed_by: self.caller.name().map(str::to_owned),
            predecessor,
            trial: false,
            note: None,
            unproven_run: 0,
            redrive_due: None,
            record: Record::default(),
        }
    }

    /// Records a change.
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
            by: self.caller.name().map(str::to_owned),
            what,
            revision,
            text: text.map(|text| cut(text, CHANGE_TEXT_BYTES_MAX)),
        });
    }
}
