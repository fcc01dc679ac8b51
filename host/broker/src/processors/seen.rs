//! What this host has seen of running revisions: read when a processor changes, and stored as
//! revisions run.

use std::sync::Arc;

use millrace_model::ProcessorName;

use crate::catalogue::deployed::Deployed;
use crate::dispatch::gate::Gate;
use crate::processors::canary::wrong_of_canary;
use crate::processors::error::ProcessorError;
use crate::processors::handle::Processors;
use crate::processors::revisions::{Asked, Seen, take_down};
use crate::processors::shadow::wrong_of_shadow;

impl Processors {
    /// The caller and the present time.
    pub(super) fn asked(&self) -> Asked<'_> {
        Asked {
            by: self.caller.name(),
            now: self.inner.clock.wall(),
        }
    }

    /// What this host has seen of the processor's running revisions.
    pub(super) fn seen(&self, known: &Deployed) -> Seen {
        let processor = &known.processor;
        let supervisor = &self.inner.supervisor;
        let gate = supervisor.gate(&processor.name);
        let trial = processor.on_trial();
        let canary = self.canary_status(processor);
        let canary = canary.filter(|status| Some(status.canary.revision) == trial);
        let shadow = supervisor.shadow(&processor.name);
        let shadow = shadow.filter(|report| Some(report.revision) == trial);
        let wrong = canary.as_ref().and_then(wrong_of_canary);
        Seen {
            noted: gate.and_then(|gate| gate.record(processor.current)),
            problem: known.problem.clone(),
            trial_problem: known.trial_problem.clone(),
            trouble: canary.and_then(|status| status.trouble),
            wrong: wrong.or_else(|| shadow.as_ref().and_then(wrong_of_shadow)),
        }
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
}
