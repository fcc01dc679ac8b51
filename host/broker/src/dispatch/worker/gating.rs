//! What the worker asks its processor's gate: whether it may continue, what a batch means for the whole processor, and whether more
//! dead letters are allowed.

use std::time::Duration;

use millrace_engine::CommitError;
use millrace_model::GivenUp;

use super::{HeldUp, SLEEP_MAX, Worker, changed_within};
use crate::dispatch::allowance::Granted;
use crate::dispatch::answer::Verdict;
use crate::dispatch::batcher::Batch;
use crate::dispatch::breaker::{Judgement, Report, Says};
use crate::dispatch::delivery::{Effects, contradictions, parked_before};
use crate::dispatch::failed::Failed;
use crate::dispatch::gate::{Gate, NotLookedUp, Probe};
use crate::dispatch::live::Live;
use crate::dispatch::plan::Came;
use crate::dispatch::sides::Side;
use crate::dispatch::standing::State;
use crate::dispatch::word::{Left, Word};
use crate::handler::Decision;

/// Workers that wait for the same probe wake at most this far apart, in a different order each time.
const PROBE_SPREAD: Duration = Duration::from_millis(20);

impl Worker {
    /// Waits while the breaker is open.
    pub(super) async fn hold(&mut self, wait: Duration, reason: String) {
        // Messages read ahead may be trimmed or compacted meanwhile: they are read again.
        self.rewind();
        let until = self.now().after(wait);
        self.show(State::Waiting(reason, Some(until)));
        let spread = PROBE_SPREAD.min(wait).mul_f64(self.rng.f64());
        tokio::select! {
            _ = self.gate_changes.changed() => {}
            _ = changed_within(&mut self.commands, wait + spread) => {}
        }
    }

    /// Reports an answer, and does what the gate decides.
    pub(super) async fn judge(
        &mut self,
        live: &Live,
        batch: &Batch,
        verdict: &Verdict,
        places: &[u32],
        probe: Option<&mut Probe>,
    ) -> Result<(), CommitError> {
        // First of all, because a failure settled here is no failure.
        let Some(decisions) = self.decide(live, batch, verdict).await else {
            return Ok(());
        };
        let whose = live.whose(self.now());
        let failed = verdict.failed.iter().enumerate();
        let says: Vec<Says> = failed
            .map(|(index, failed)| match decisions.get(index) {
                Some(Decision::Drop(_)) => Says::Settled,
                _ if self.plan.has_reported(batch, failed) => Says::Nothing,
                _ => {
                    let before = parked_before(batch, &self.progress, failed.message);
                    whose.says(before, failed)
                }
            })
            .collect();
        let report = Report {
            revision: live.revision,
            partition: self.partition,
            offsets: &batch.offsets,
            retried: batch.retried,
            failed: &verdict.failed,
            says: &says,
        };
        match self.breaker().report(&report, probe) {
            Judgement::Discard => {
                self.plan.forget_reports();
                self.put_back(batch, Came::Discarded);
                Ok(())
            }
            judgement => {
                self.plan.report(batch, &verdict.failed);
                self.settle(live, batch, verdict, places, &decisions, judgement)
                    .await
            }
        }
    }

    /// The breaker of the current batch's side.
    pub(super) fn breaker(&self) -> &Gate {
        match (&self.canary, self.side) {
            (Some(canary), Side::Canary) => &canary.gate,
            _ => &self.gate,
        }
    }

    /// Whether the called revision may give messages up. Reads how many others gave up before, if that is not known yet.
    pub(super) async fn word(&self, live: &Live) -> Word {
        if self.side == Side::Canary {
            return Word::IsAskedAgain;
        }
        loop {
            let NotLookedUp { run, inputs } = match self.gate.word(live.revision) {
                Ok(word) => return word,
                Err(missing) => missing,
            };
            let mut messages = 0_u32;
            for partition in inputs.iter() {
                let engine = &self.context.engine;
                match engine.progress(&live.processor.group(), *partition).await {
                    Ok(progress) => {
                        let given_up = progress.and_then(|progress| progress.given_up);
                        let given_up = given_up.filter(|given_up| given_up.run == run);
                        messages += given_up.map_or(0, |given_up| given_up.messages);
                    }
                    // It is asked again with the next batch; until then nothing is given up.
                    Err(_) => return Word::CountsFor(Left::default()),
                }
            }
            self.gate.looked_up(GivenUp { run, messages });
        }
    }

    /// How many messages of the batch the canary had failed and the current revision has processed.
    pub(super) fn contradictions(&self, batch: &Batch, verdict: &Verdict) -> u32 {
        let Some(canary) = self.canary.as_ref().filter(|_| self.side == Side::Current) else {
            return 0;
        };
        contradictions(canary.live.revision, batch, verdict, &self.progress)
    }

    /// Takes the dead letters of a batch from the processor's allowance. If there are too many (`None`), the messages before the first
    /// excess one are next; if that is the first message of all, the worker waits.
    pub(super) fn take_dead_letters(
        &mut self,
        live: &Live,
        batch: &Batch,
        effects: &Effects,
    ) -> Option<Granted> {
        let wanted = effects.given_up.len();
        if wanted == 0 {
            return Some(Granted::default());
        }
        let granted = self.gate.take(wanted as u32);
        let Some(&excess) = effects.given_up.get(granted.count as usize) else {
            return Some(granted);
        };
        self.gate.give_back(granted);
        if excess == 0 {
            self.held_up = Some(self.too_many_dead_letters(live, granted.more_in));
        }
        self.put_back(batch, Came::Excess(excess));
        None
    }

    /// Counts messages given up, by class.
    pub(super) fn count_classes(&self, verdict: &Verdict, given_up: &[usize]) {
        let dead = |failed: &&Failed| given_up.binary_search(&failed.message).is_ok();
        for failed in verdict.failed.iter().filter(dead) {
            self.gate.classes.count(&failed.class);
        }
    }

    fn too_many_dead_letters(&self, live: &Live, wait: Duration) -> HeldUp {
        let policy = &live.spec.dead_letters;
        tracing::warn!(processor = %live.processor, max = policy.max, per_ms = policy.per_ms, "a partition waits: the maximum number of dead letters is reached");
        self.meters.dead_letters_held();
        let reason = format!(
            "poison flood: {} dead letters in {} ms, the maximum of dead_letters; continuing in {} s, or resume with --accept-dead-letters",
            policy.max,
            policy.per_ms,
            wait.as_secs_f64().ceil(),
        );
        HeldUp::Allowance(reason, wait)
    }

    pub(super) async fn wait_for_allowance(&mut self, reason: String, wait: Duration) {
        let until = self.now().after(wait);
        self.show(State::Waiting(reason, Some(until)));
        tokio::select! {
            _ = self.gate_changes.changed() => {}
            _ = changed_within(&mut self.commands, wait.clamp(Duration::from_millis(1), SLEEP_MAX)) => {}
        }
    }
}
