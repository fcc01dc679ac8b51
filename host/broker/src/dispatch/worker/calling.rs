//! Runs a batch through the handler: the call, the check of its answer, and the meaning of a failed call.

use std::sync::Arc;
use std::time::Duration;

use millrace_engine::CommitError;
use millrace_engine::state::StateAttempt;
use millrace_model::Answer;

use super::stateful::{self, Home};
use super::{Trouble, Worker, pointless, wants};
use crate::dispatch::answer::Verdict;
use crate::dispatch::batcher::Batch;
use crate::dispatch::gate::Probe;
use crate::dispatch::live::Live;
use crate::dispatch::plan::{Call, Came};
use crate::dispatch::sides::Side;
use crate::dispatch::{at_hand, placing};
use crate::ground::chains::Hops;
use crate::handler::{CallError, CallUse, Called};

/// A checked answer: the verdict, and the partition of each output. If failed messages must first run alone because of writes to state,
/// they are listed first, and nothing else counts.
type Checked = (Vec<usize>, Verdict, Vec<u32>);

impl Worker {
    /// Calls the handler with a batch, and handles the result to its end.
    pub(super) async fn process(
        &mut self,
        live: &Arc<Live>,
        batch: &Batch,
        mut probe: Option<&mut Probe>,
    ) -> Result<(), Trouble> {
        let home = self.home(live).await?;
        if let Some(home) = &home {
            // Before taking the turn: nobody who has a turn waits for another.
            let attempts = Arc::clone(&self.context.attempts);
            self.attempt_room = attempts.acquire_owned().await.ok();
            self.turn = Some(home.table.turn().await);
        }
        let before = self.context.clock.monotonic();
        let end = self.end_of_call(live);
        let time_max = Duration::from_millis(live.spec.limits.call_ms_max);
        let most = self.plan.call_max(batch.side, batch.len(), time_max);
        let (called, used) = tokio::select! {
            biased;
            called = self.call(live, batch, home.as_ref()) => called,
            () = end => (Err(CallError::Interrupted), None),
            () = tokio::time::sleep(most.unwrap_or_default()), if most.is_some() => {
                (Err(CallError::Timeout(most.unwrap_or_default())), None)
            }
        };
        let took = self.context.clock.monotonic().saturating_sub(before);
        if matches!(called, Err(CallError::Interrupted)) {
            return self.interrupt(live, batch, took);
        }
        match &called {
            Ok(_) => self.plan.answered(&Call {
                side: batch.side,
                messages: batch.len(),
                took,
                guest_time: used.as_ref().map_or(took, CallUse::guest_time),
                time_max,
            }),
            Err(CallError::Timeout(_)) => self.plan.timed_out(batch.side, batch.len()),
            Err(_) => {}
        }
        let error = match called {
            Ok((failed, ..)) if !failed.is_empty() => {
                let came = match self.breaker().is_open() {
                    true => Came::Discarded,
                    false => Came::Isolated(&failed),
                };
                self.put_back(batch, came);
                return Ok(());
            }
            Ok((_, mut verdict, places)) => {
                self.keep_in_hand(batch, &verdict);
                if !verdict.failed.is_empty() {
                    verdict.used = used.clone();
                }
                let probe = probe.as_deref_mut();
                match self
                    .conclude(live, batch, verdict, &places, probe, took)
                    .await
                {
                    // The engine's limit is not the component's fault, so no attempt is spent. Smaller batches need less.
                    Err(CommitError::TooLarge { .. }) if batch.len() > 1 => {
                        self.put_back(batch, Came::Failed);
                        return Ok(());
                    }
                    Err(CommitError::TooLarge { bytes, max }) => {
                        return Err(Trouble::Wait(format!(
                            "the handler's result for one message needs a commit of {bytes} bytes, and this engine takes {max}: deploy a revision that emits less"
                        )));
                    }
                    concluded => return concluded.map_err(Trouble::from),
                }
            }
            Err(error) => error,
        };
        self.meters.call_failed(&error);
        if let Some(canary) = &self.canary {
            canary.tally.call_failed(self.side);
            if self.side == Side::Canary && matches!(error, CallError::Timeout(_)) {
                canary.gate.timed_out(live.revision);
            }
        }
        self.failed(live, batch, error, used, probe, took).await
    }

    /// The answer is known: room for a larger one is not needed.
    fn keep_in_hand(&mut self, batch: &Batch, verdict: &Verdict) {
        let outputs = &verdict.outputs;
        let bytes = at_hand::answered(batch, outputs.byte_count(), outputs.len());
        if let Some(in_hand) = &mut self.in_hand {
            in_hand.keep(bytes);
        }
    }

    /// Ends when the running call must be interrupted.
    pub(super) fn end_of_call(&self, live: &Live) -> impl Future<Output = ()> + Send + 'static {
        let commands = self.commands.clone();
        let clock = Arc::clone(&self.context.clock);
        pointless(commands, clock, self.input.origin.clone(), live.revision)
    }

    /// A call was interrupted: the batch has no effect, and this says nothing about its messages.
    pub(super) fn interrupt(
        &mut self,
        live: &Live,
        batch: &Batch,
        took: Duration,
    ) -> Result<(), Trouble> {
        self.interrupted = true;
        tracing::warn!(processor = %live.processor, topic = %self.input.topic.spec.name, partition = %self.input.partition, revision = live.revision, messages = batch.len(), after_ms = took.as_millis() as u64, "a call was interrupted because its result was no longer useful; its messages are unchanged and no attempt is spent");
        self.put_back(batch, Came::Discarded);
        let goes_on = wants(&self.commands.borrow(), &self.input.origin)
            && self.commands.borrow().runs(live.revision);
        match goes_on {
            false => Ok(()),
            true => Err(Trouble::Wait(CallError::Interrupted.to_string())),
        }
    }

    /// The meaning of a call that failed as a whole: for the processor, for the batch, or for its only message.
    async fn failed(
        &mut self,
        live: &Arc<Live>,
        batch: &Batch,
        error: CallError,
        used: Option<CallUse>,
        probe: Option<&mut Probe>,
        took: Duration,
    ) -> Result<(), Trouble> {
        match error {
            CallError::Unavailable(reason) => {
                self.breaker().unavailable(live.revision, &reason, probe);
                self.put_back(batch, Came::Discarded);
                Ok(())
            }
            CallError::Interrupted => self.interrupt(live, batch, took),
            CallError::Host(_) => {
                tracing::error!(processor = %live.processor, revision = live.revision, %error, "a call could not be made");
                self.rewind();
                Err(Trouble::Wait(error.to_string()))
            }
            _ if batch.len() > 1 && self.breaker().is_open() => {
                self.put_back(batch, Came::Discarded);
                Ok(())
            }
            _ if batch.len() > 1 => {
                tracing::debug!(processor = %live.processor, messages = batch.len(), %error, "a batch failed; bisecting");
                self.put_back(batch, Came::Failed);
                Ok(())
            }
            _ => {
                let verdict = Verdict::alone(&error, used);
                self.keep_in_hand(batch, &verdict);
                let concluded = self.conclude(live, batch, verdict, &[], probe, took);
                Ok(concluded.await?)
            }
        }
    }

    /// Decides about a verdict; once that is committed, the shadow has its turn.
    async fn conclude(
        &mut self,
        live: &Arc<Live>,
        batch: &Batch,
        verdict: Verdict,
        places: &[u32],
        probe: Option<&mut Probe>,
        took: Duration,
    ) -> Result<(), CommitError> {
        let commits = self.commits;
        let end = self.end_of_call(live);
        let glance = tokio::select! {
            biased;
            glance = self.glance(batch, took) => glance,
            // The current revision's result for the batch stands.
            () = end => None,
        };
        self.judge(live, batch, &verdict, places, probe).await?;
        if self.commits > commits {
            self.show_shadow(live, batch, verdict, glance);
        }
        Ok(())
    }

    /// Calls the handler and checks its answer; also returns what the call used.
    async fn call(
        &self,
        live: &Live,
        batch: &Batch,
        home: Option<&Home>,
    ) -> (Result<Checked, CallError>, Option<CallUse>) {
        let clock = &self.context.clock;
        let before = clock.monotonic();
        let attempt = match home {
            Some(home) => Some(self.attempt(batch, home).await),
            None => None,
        };
        let Called { outcome, used } = live.handler.call(&batch.columns, attempt).await;
        self.meters
            .called(clock.monotonic().saturating_sub(before), batch.len());
        let checked = match outcome {
            Ok(answered) => self.check(live, batch, home, answered).await,
            Err(error) => Err(error),
        };
        (checked, used)
    }

    async fn check(
        &self,
        live: &Live,
        batch: &Batch,
        home: Option<&Home>,
        (answer, attempt): (Answer, Option<Box<StateAttempt>>),
    ) -> Result<Checked, CallError> {
        let outputs_max = live.spec.limits.answer_outputs_max as usize;
        let mut verdict = Verdict::of(answer, &batch.columns, &live.outputs, outputs_max)?;
        verdict.outputs.check_times(&batch.columns, self.now())?;
        verdict
            .outputs
            .carry(Hops::of(&batch.columns, live.spec.hops_max.is_some()));
        if let (Some(home), Some(attempt)) = (home, attempt) {
            let alone = stateful::must_stand_alone(live.spec.order, batch, &verdict, &attempt);
            if !alone.is_empty() {
                return Ok((alone, verdict, Vec::new()));
            }
            verdict.removes_ended = attempt.removes_ended();
            verdict.state = home.write_of(&self.lease, &verdict, batch, *attempt);
        }
        let now = self.context.clock.monotonic();
        let places = placing::place(&verdict.outputs, &batch.columns, &live.outputs, now).await?;
        Ok((Vec::new(), verdict, places))
    }
}
