//! A verdict on its way to the commit: the decision about each message, retried until the engine accepts it, and the worker's state
//! afterwards.

use std::sync::Arc;
use std::time::Duration;

use millrace_engine::state::Turn;
use millrace_engine::{CommitError, Kept, ProgressWrite, Transaction};
use millrace_model::Progress;

use super::{HeldUp, Worker};
use crate::dispatch::allowance::Granted;
use crate::dispatch::answer::Verdict;
use crate::dispatch::batcher::Batch;
use crate::dispatch::breaker::Judgement;
use crate::dispatch::delivery::{self, Effects, Settling};
use crate::dispatch::live::Live;
use crate::dispatch::plan::Came;
use crate::dispatch::sides::Side;
use crate::dispatch::standing::State;
use crate::dispatch::word::Word;
use crate::ground::columns;
use crate::handler::{CallError, Cause, Decision};
use crate::messages::delays::stored::Additions;

impl Worker {
    /// The error handler's decisions. `None` if the call was interrupted: the batch has no effect.
    pub(super) async fn decide(
        &mut self,
        live: &Live,
        batch: &Batch,
        verdict: &Verdict,
    ) -> Option<Vec<Decision>> {
        let failed = &verdict.failed;
        let asks = !failed.is_empty()
            && !verdict.is_final
            && failed.iter().all(|f| f.cause != Cause::HostDied);
        let Some(handler) = live.failures.as_ref().filter(|_| asks) else {
            return Some(Vec::new());
        };
        let failures =
            delivery::failures(batch, verdict, &self.progress, live.revision, self.now());
        let messages = failed.iter().map(|failed| failed.message);
        let columns = Arc::new(columns::select(&batch.columns, messages));
        let before = self.context.clock.monotonic();
        let end = self.end_of_call(live);
        let decided = tokio::select! {
            biased;
            decided = handler.handle(&failures, &columns) => decided,
            () = end => Err(CallError::Interrupted),
        };
        let problem = match decided {
            Ok(decisions) if decisions.len() == failures.len() => return Some(decisions),
            Ok(given) => format!("{} decisions for {} failures", given.len(), failures.len()),
            Err(CallError::Interrupted) => {
                let took = self.context.clock.monotonic().saturating_sub(before);
                // If the host continues with this revision, the next round does not follow at once.
                let _ = self.interrupt(live, batch, took);
                return None;
            }
            Err(error) => error.to_string(),
        };
        tracing::warn!(processor = %live.processor, revision = live.revision, problem, "the error handler failed; the retry policy decides");
        Some(Vec::new())
    }

    /// Decides about the batch and commits the decision; waits while the disk is full, or there is no room for delayed outputs.
    pub(super) async fn settle(
        &mut self,
        live: &Live,
        batch: &Batch,
        verdict: &Verdict,
        places: &[u32],
        decisions: &[Decision],
        judgement: Judgement,
    ) -> Result<(), CommitError> {
        let (gate, run) = (Arc::clone(&self.gate), live.unproven_run);
        let contradictions = self.contradictions(batch, verdict);
        let mut settling = Settling {
            processor: live.processor.as_str(),
            revision: live.revision,
            module: &live.module,
            spec: &live.spec,
            input: &self.input.clone(),
            batch,
            verdict,
            places,
            decisions,
            word: Word::Counts,
            whose: live.whose(self.now()),
            same_handler: live.back.as_ref().is_some_and(|back| back.same_handler),
            excuses: &|class| gate.excuses(class),
            progress: &Arc::clone(&self.progress),
            is_short: false,
            now: self.now(),
        };
        loop {
            settling.now = self.now();
            settling.is_short = self.remembered.is_short();
            if !verdict.failed.is_empty() {
                settling.word = self.word(live).await;
            }
            let mut effects = match judgement {
                Judgement::Settle => delivery::settle(&settling, &mut self.rng),
                _ => delivery::postpone(&settling),
            };
            let unproven = effects.given_up_unproven;
            if unproven > 0 && !self.gate.take_unproven(run, unproven) {
                // Another partition was faster, or another revision runs by now: the allowance shrinks, eventually to nothing.
                tokio::task::yield_now().await;
                continue;
            }
            effects.count_unproven(run);
            let progress = Arc::new(std::mem::take(&mut effects.progress));
            // Before the commit, so that other workers' decisions account for it.
            self.remembered.propose(&progress);
            let granted = match verdict.is_by_hand() {
                true => Granted::default(),
                false => match self.take_dead_letters(live, batch, &effects) {
                    Some(granted) => granted,
                    None => {
                        self.gate.give_back_unproven(run, unproven);
                        return Ok(());
                    }
                },
            };
            let give_back = |granted: Granted| {
                gate.give_back(granted);
                gate.give_back_unproven(run, unproven);
            };
            self.pack(live, &mut effects).await;
            let reason = match self.delay(live, &mut effects).await {
                Err(full) => full.to_string(),
                Ok(delayed) => match self.commit(live, &mut effects, &progress, delayed).await {
                    Ok(took) => {
                        self.count_classes(verdict, &effects.given_up);
                        if let Some(canary) = self.canary.as_ref().filter(|_| contradictions > 0) {
                            canary.gate.contradicted(contradictions);
                        }
                        self.committed(batch, effects, progress, took);
                        return Ok(());
                    }
                    Err(error @ CommitError::DiskFull) => error.to_string(),
                    Err(CommitError::RoomFull(full)) if full.kept == Kept::Delayed => {
                        full.to_string()
                    }
                    // Removing expired state may be what exceeds the limit: the batch is called again, and leaves that to another one.
                    Err(CommitError::TooLarge { .. })
                        if verdict.removes_ended && !self.plan.leaves_ended() =>
                    {
                        give_back(granted);
                        self.put_back(batch, Came::TooMuchEnded);
                        return Ok(());
                    }
                    Err(CommitError::RoomFull(full)) => {
                        // Other workers took the room meanwhile. The component is called again and gets the answer `full` itself.
                        give_back(granted);
                        self.held_up = Some(HeldUp::Trouble(full.to_string()));
                        self.rewind();
                        return Ok(());
                    }
                    Err(error) => {
                        give_back(granted);
                        self.rewind();
                        return Err(error);
                    }
                },
            };
            give_back(granted);
            self.pause_turn();
            // Its writes to state are not held while it waits: it is called again.
            let writes = self.attempt_room.take().is_some();
            let at_hand = Arc::clone(&self.context.at_hand);
            let is_wanted = tokio::select! {
                biased;
                () = at_hand.wanted(), if !verdict.is_by_hand() => true,
                () = self.back_off(reason.clone()) => false,
            };
            if is_wanted {
                // Other workers need its room. The batch is called again.
                self.held_up = Some(HeldUp::Trouble(reason));
                self.rewind();
                return Ok(());
            }
            if writes || !self.resume_turn().await {
                self.rewind();
                return Ok(());
            }
            let command = self.commands.borrow().clone();
            // Operators' orders come first, except the one being carried out.
            let is_told = self.orders.wait() && !verdict.is_by_hand();
            let is_paused = command.paused && !verdict.is_by_hand();
            if command.stopped || is_paused || is_told || !command.runs(live.revision) {
                self.rewind();
                return Ok(());
            }
        }
    }

    /// One transaction: outputs, dead letters, progress.
    async fn commit(
        &mut self,
        live: &Live,
        effects: &mut Effects,
        progress: &Arc<Progress>,
        mut delayed: Additions,
    ) -> Result<Duration, CommitError> {
        let mut state = delayed.take_writes();
        state.extend(effects.state.take());
        let transaction = Transaction {
            appends: self.appends(live, effects),
            progress: vec![ProgressWrite {
                partition: self.partition,
                lease: self.lease.clone(),
                progress: self.stored.change_to(progress),
            }],
            durability: Some(self.input.topic.spec.durability),
            state,
            expects: self.beginning.iter().cloned().collect(),
            turns: self.turn.iter().filter_map(Turn::held).collect(),
            ..Transaction::default()
        };
        let before = self.context.clock.monotonic();
        self.share.commit(transaction).await?;
        self.beginning = None;
        self.stored = Arc::clone(progress);
        self.context.delays.expect(&delayed).await;
        Ok(self.context.clock.monotonic().saturating_sub(before))
    }

    fn committed(
        &mut self,
        batch: &Batch,
        effects: Effects,
        progress: Arc<Progress>,
        took: Duration,
    ) {
        let dropped = effects.dropped.len() as u64;
        self.meters.committed(took, effects.counts, dropped);
        if self.side == Side::Current {
            self.gate.processed(progress.revision, effects.counts.ok);
        }
        self.commits += 1;
        if let Some(canary) = &self.canary {
            canary.tally.committed(self.side, effects.counts);
        }
        self.show_state();
        for (offset, reason) in &effects.dropped {
            tracing::warn!(topic = %self.input.topic.spec.name, partition = %self.input.partition, %offset, reason, "a message was dropped");
        }
        self.remembered.settle();
        self.progress = progress;
        self.plan.on(batch, Came::Settled);
        if self.source.position() != self.progress.next {
            // The commit came after a rewind: messages that it settled must not be read again.
            self.rewind();
        }
        self.show(State::Running);
    }
}
