//! What this host has seen of running revisions: read when a processor changes, and stored as
//! revisions run.

use std::sync::Arc;

use millrace_model::ProcessorName;

use crate::catalogue::deployed::Deployed;
use crate::dispatch::gate::Gate;
use crate::processors::canary::{CanaryStatus, TrialSeen, wrong_of_canary};
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

    /// What this host has seen of the revision on trial.
    pub fn trial_seen(&self, name: &ProcessorName) -> TrialSeen {
        let known = self.known(name).ok();
        TrialSeen {
            canary: known.and_then(|known| self.canary_status(&known.processor)),
            shadow: self.inner.supervisor.shadow(name),
        }
    }

    /// What this host has seen of the processor's running revisions.
    pub(super) fn seen(&self, known: &Deployed) -> Seen {
        self.seen_by(known, &self.trial_seen(&known.processor.name))
    }

    /// What this host has seen of the current revision, and what was seen of the one on trial.
    pub(super) fn seen_by(&self, known: &Deployed, on_trial: &TrialSeen) -> Seen {
        let processor = &known.processor;
        let gate = self.inner.supervisor.gate(&processor.name);
        let trial = processor.on_trial();
        let of_trial = |status: &&CanaryStatus| Some(status.canary.revision) == trial;
        let canary = on_trial.canary.as_ref().filter(of_trial);
        // It may have come while the change waited for its turn.
        let newest = self.canary_status(processor);
        let trouble = [canary, newest.as_ref().filter(of_trial)];
        let mut trouble = trouble.into_iter().flatten();
        let shadow = on_trial.shadow.as_ref();
        let shadow = shadow.filter(|report| Some(report.revision) == trial);
        let wrong = canary.and_then(wrong_of_canary);
        Seen {
            noted: gate.and_then(|gate| gate.record(processor.current)),
            problem: known.problem.clone(),
            trial_problem: known.trial_problem.clone(),
            trouble: trouble.find_map(|status| status.trouble.clone()),
            wrong: wrong.or_else(|| shadow.and_then(wrong_of_shadow)),
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
