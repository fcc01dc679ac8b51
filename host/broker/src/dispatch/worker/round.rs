//! A round: one batch from its cut to its end. The component is called, its answer is checked, the
//! shadow, the error handler and the breaker are asked, and one commit settles everything.

use std::sync::Arc;
use std::time::Duration;

use millrace_engine::CommitError;
use millrace_model::{Progress, TopicName};
use tokio::sync::watch;

use super::state::{Home, Writing};
use super::{Step, Trouble, Worker, changed_within, wants};
use crate::dispatch::answer::Verdict;
use crate::dispatch::answered::{Answered, Asked, Unusable};
use crate::dispatch::at_hand::{self, InHand};
use crate::dispatch::batcher::Batch;
use crate::dispatch::command::Command;
use crate::dispatch::gate::{Gate, Probe};
use crate::dispatch::live::Live;
use crate::dispatch::plan::{Call, Came, Take};
use crate::dispatch::sides::{Canary, Side};
use crate::dispatch::suspects;
use crate::ground::chains;
use crate::ground::tasks::SLEEP_MAX;
use crate::handler::{CallError, CallUse, Called};

/// The result of a call, and the resources that the call used.
type Outcome = (Result<Answered, Unusable>, Option<CallUse>);

/// One batch, and everything that is held for it.
pub(super) struct Round {
    /// The revision that is called: the current one or the canary.
    pub(super) live: Arc<Live>,
    /// The canary, for the counts of both sides; `None` without a canary.
    pub(super) canary: Option<Arc<Canary>>,
    /// The breaker of the revision that is called.
    pub(super) breaker: Arc<Gate>,
    /// The right to call while the breaker is open.
    pub(super) probe: Option<Probe>,
    pub(super) batch: Batch,
    /// The reserved memory of the batch.
    pub(super) in_hand: Option<InHand>,
    pub(super) writing: Writing,
    /// How long the call kept the partition waiting.
    pub(super) took: Duration,
    /// Whether the call was interrupted, so that it has no effect.
    interrupted: bool,
}

impl Round {
    /// A round that has not called anything yet.
    pub(super) fn new(command: &Command, gate: &Arc<Gate>, batch: Batch) -> Self {
        let canary = command.canary.clone();
        let called = canary.as_ref().filter(|_| batch.side == Side::Canary);
        Self {
            live: Arc::clone(called.map_or(&command.live, |canary| &canary.live)),
            breaker: Arc::clone(called.map_or(gate, |canary| &canary.gate)),
            canary,
            probe: None,
            batch,
            in_hand: None,
            writing: Writing::default(),
            took: Duration::ZERO,
            interrupted: false,
        }
    }

    /// Returns reserved memory beyond this much.
    fn keep(&mut self, bytes: usize) {
        if let Some(in_hand) = &mut self.in_hand {
            in_hand.keep(bytes);
        }
    }

    /// Returns the memory that was reserved for a larger answer.
    fn keep_answer(&mut self, verdict: &Verdict) {
        let outputs = &verdict.outputs;
        let bytes = at_hand::answered(&self.batch, outputs.byte_count(), outputs.len());
        self.keep(bytes);
    }
}

/// The time limit of a call.
fn call_time_max(live: &Live) -> Duration {
    Duration::from_millis(live.spec.limits.call_ms_max)
}

/// Returns when a call of this revision is no longer useful and its time to end by itself is over.
async fn pointless(
    mut commands: watch::Receiver<Command>,
    clock: Arc<dyn millrace_model::Clock>,
    origin: TopicName,
    revision: u32,
) {
    let mut until: Option<Duration> = None;
    loop {
        {
            let command = commands.borrow_and_update();
            until = match wants(&command, &origin) && command.runs(revision) {
                true => None,
                // A later command must not extend the time.
                false => Some(until.unwrap_or(Duration::MAX).min(command.patience)),
            };
        }
        let now = clock.monotonic();
        let wait = match until {
            Some(until) if until <= now => return,
            Some(until) => (until - now).min(SLEEP_MAX),
            None => SLEEP_MAX,
        };
        if !changed_within(&mut commands, wait).await {
            return;
        }
    }
}

/// How a round ended.
pub(super) enum Settled {
    Committed,
    /// The round had no effect. Its messages are cut again.
    PutBack,
    /// The round had no effect, because of this obstacle.
    Blocked(String),
    /// The round had no effect, and no more dead letters are allowed for this time.
    Held(String, Duration),
}

impl Settled {
    /// The result of the worker's step.
    pub(super) fn step(self) -> Result<Step, Trouble> {
        match self {
            Self::Committed | Self::PutBack => Ok(Step::Done),
            Self::Blocked(reason) => Err(Trouble::Wait(reason)),
            Self::Held(reason, wait) => Ok(Step::Held(reason, wait)),
        }
    }
}

impl Worker {
    /// Processes the next batch to its end.
    pub(super) async fn advance(
        &mut self,
        command: &Command,
        probe: Option<Probe>,
    ) -> Result<Step, Trouble> {
        let take = match &probe {
            _ if self.has_suspects() => Take::Suspect,
            Some(_) => Take::Probe,
            None => Take::Batch,
        };
        let Some(mut round) = self.next_round(command, take, probe).await? else {
            // A command came while the worker waited for room.
            return Ok(Step::Done);
        };
        self.meters.lost(self.source.take_lost());
        if round.batch.len() == 0 {
            return self.pass(command, round).await;
        }
        self.plan.cut(&round.batch);
        if !self.outside.wants(&self.input.origin) {
            // A command came while the worker waited for a fuller batch. No new batch may start.
            self.put_back(&round, Came::Discarded);
            return Ok(Step::Done);
        }
        let spent = chains::spent(round.live.spec.hops_max, &round.batch.columns);
        if !spent.is_empty() {
            return self.end_of_chain(round, &spent).await;
        }
        round.keep(at_hand::called(&round.live.spec, &round.batch));
        self.mark(&mut round).await?;
        self.outside.window.lock().calling = Some(self.context.clock.monotonic());
        self.hold.share.calls();
        let processed = self.process(&mut round).await;
        self.hold.share.answered();
        self.outside.window.lock().calling = None;
        round.writing = Writing::default();
        self.unmark(&round).await;
        processed
    }

    /// Ends a round without a message to call. Messages that were read wait behind others.
    async fn pass(&mut self, command: &Command, round: Round) -> Result<Step, Trouble> {
        let Round { batch, probe, .. } = round;
        let (next, passes) = (batch.next, batch.next != self.ledger.progress.next);
        if passes {
            // These messages are not read again: the parked entries are in memory, and the next
            // batch commits them.
            let progress = Arc::make_mut(&mut self.ledger.progress);
            progress.next = next;
            progress.parked.extend(batch.skipped);
            self.ledger.count();
        }
        if passes || self.plan.suspects.end_at(next) {
            return Ok(Step::Done);
        }
        if self.hold.committed() != next {
            // Nothing comes that could commit it.
            self.keep(Progress::clone(&self.ledger.progress)).await?;
        }
        self.plan.join();
        self.source.rest();
        if probe.is_none() {
            let state = self.resting(&command.live);
            self.show(state);
        }
        // Another revision may now use state for the first time, and others may have written it.
        self.home(&command.live).await?;
        self.show_state();
        Ok(Step::Idle)
    }

    /// Gives up a batch whose messages are all out of hops. If only some are, cuts the batch into
    /// parts. The breaker is not told, because nothing was called.
    async fn end_of_chain(&mut self, mut round: Round, spent: &[usize]) -> Result<Step, Trouble> {
        round.probe = None;
        let messages = round.batch.len();
        if spent.len() < messages {
            self.put_back(&round, Came::Spent(spent));
            return Ok(Step::Done);
        }
        let hops_max = round.live.spec.hops_max.unwrap_or_default();
        let verdict = Verdict::spent(messages, hops_max);
        self.settle(&mut round, &verdict.into()).await?.step()
    }

    /// Calls the component with the batch and settles the result.
    async fn process(&mut self, round: &mut Round) -> Result<Step, Trouble> {
        let Some(mut answered) = self.answer(round).await? else {
            return Ok(Step::Done);
        };
        if !self.judge(round, &mut answered).await {
            return Ok(Step::Done);
        }
        let settled = match self.settle(round, &answered).await {
            // The engine's limit is not the component's fault, so no attempt is spent. Smaller
            // batches need less.
            Err(CommitError::TooLarge { .. }) if round.batch.len() > 1 => {
                self.put_back(round, Came::Failed);
                Settled::PutBack
            }
            Err(CommitError::TooLarge { bytes, max }) if answered.verdict.is_returned() => {
                return Err(Trouble::Wait(format!(
                    "the handler's result for one message needs a commit of {bytes} bytes, and this engine takes {max}: deploy a revision that emits less"
                )));
            }
            settled => settled?,
        };
        if let (Settled::Committed, Some(echo)) = (&settled, &self.echo) {
            echo.offer(&self.input, &round.live, &round.batch, answered);
        }
        settled.step()
    }

    /// Calls the component, unless the call takes too long or is interrupted; `None` if there is no
    /// answer to settle.
    async fn answer(&mut self, round: &mut Round) -> Result<Option<Answered>, Trouble> {
        let home = self.take_turn(&round.live, &mut round.writing).await?;
        let (batch, time_max) = (&round.batch, call_time_max(&round.live));
        let most = self.plan.call_max(batch.side, batch.len(), time_max);
        let before = self.context.clock.monotonic();
        let end = self.end_of_call(&round.live);
        let (called, used) = tokio::select! {
            biased;
            called = self.call(round, home.as_ref()) => called,
            () = end => (Err(CallError::Interrupted.into()), None),
            () = tokio::time::sleep(most.unwrap_or_default()), if most.is_some() => {
                (Err(CallError::Timeout(most.unwrap_or_default()).into()), None)
            }
        };
        round.took = self.context.clock.monotonic().saturating_sub(before);
        self.learn(round, &called, used.as_ref());
        self.usable(round, called, used)
    }

    /// Records what the call shows about the component's speed.
    fn learn(
        &mut self,
        round: &Round,
        called: &Result<Answered, Unusable>,
        used: Option<&CallUse>,
    ) {
        let (side, messages) = (round.batch.side, round.batch.len());
        match called {
            Err(Unusable::Failed(CallError::Timeout(_))) => self.plan.timed_out(side, messages),
            Err(Unusable::Failed(_)) => {}
            Ok(_) | Err(Unusable::Mixed(_)) => self.plan.answered(&Call {
                side,
                messages,
                took: round.took,
                guest_time: used.map_or(round.took, CallUse::guest_time),
                time_max: call_time_max(&round.live),
            }),
        }
    }

    /// The answer to settle; `None` if the batch has no effect.
    fn usable(
        &mut self,
        round: &mut Round,
        called: Result<Answered, Unusable>,
        used: Option<CallUse>,
    ) -> Result<Option<Answered>, Trouble> {
        let mut answered = match called {
            Ok(answered) => answered,
            Err(Unusable::Mixed(failed)) => {
                let came = match round.breaker.is_open() {
                    true => Came::Discarded,
                    false => Came::Isolated(&failed),
                };
                self.put_back(round, came);
                return Ok(None);
            }
            Err(Unusable::Failed(error)) => match self.failed(round, error)? {
                Some(verdict) => verdict.into(),
                None => return Ok(None),
            },
        };
        round.keep_answer(&answered.verdict);
        if !answered.verdict.failed.is_empty() {
            answered.verdict.used = used;
        }
        Ok(Some(answered))
    }

    /// Calls the component and checks its answer.
    async fn call(&self, round: &Round, home: Option<&Home>) -> Outcome {
        let Round { live, batch, .. } = round;
        let clock = &self.context.clock;
        let before = clock.monotonic();
        let attempt = match home {
            Some(home) => Some(self.attempt(batch, home).await),
            None => None,
        };
        let Called { outcome, used } = live.handler.call(&batch.columns, attempt).await;
        let monotonic = clock.monotonic();
        self.meters
            .called(monotonic.saturating_sub(before), batch.len());
        let asked = Asked {
            live,
            batch,
            lease: &self.hold.lease,
            origin: self.hold.origin,
            now: self.now(),
            monotonic,
        };
        let answered = match outcome {
            Ok(answer) => Answered::check(&asked, answer).await,
            Err(error) => Err(error.into()),
        };
        (answered, used)
    }

    /// Handles a call that failed as a whole. A message that was called alone gets a verdict; any
    /// other batch has no effect, and `None` is returned.
    fn failed(&mut self, round: &mut Round, error: CallError) -> Result<Option<Verdict>, Trouble> {
        if matches!(error, CallError::Interrupted) {
            let took = round.took;
            return self.interrupt(round, took).map(|()| None);
        }
        self.meters.call_failed(&error);
        let (side, messages) = (round.batch.side, round.batch.len());
        let (revision, processor) = (round.live.revision, &round.live.processor);
        if let Some(canary) = &round.canary {
            canary.tally.call_failed(side);
            if side == Side::Canary && matches!(error, CallError::Timeout(_)) {
                canary.gate.timed_out(revision);
            }
        }
        let came = match error {
            CallError::Unavailable(reason) => {
                let probe = round.probe.as_mut();
                round.breaker.unavailable(revision, &reason, probe);
                Came::Discarded
            }
            CallError::Host(_) => {
                tracing::error!(%processor, revision, %error, "a call could not be made");
                self.rewind();
                return Err(Trouble::Wait(error.to_string()));
            }
            _ if messages == 1 => return Ok(Some(Verdict::alone(&error, None))),
            _ if round.breaker.is_open() => Came::Discarded,
            _ => {
                tracing::debug!(%processor, messages, %error, "a batch failed; bisecting");
                Came::Failed
            }
        };
        self.put_back(round, came);
        Ok(None)
    }

    /// Returns when the running call must be interrupted.
    pub(super) fn end_of_call(&self, live: &Live) -> impl Future<Output = ()> + Send + 'static {
        let commands = self.outside.commands.clone();
        let clock = Arc::clone(&self.context.clock);
        pointless(commands, clock, self.input.origin.clone(), live.revision)
    }

    /// Discards a batch whose call was interrupted after this time. That says nothing about its
    /// messages. If the host continues with this revision, the error delays the next round.
    pub(super) fn interrupt(&mut self, round: &mut Round, took: Duration) -> Result<(), Trouble> {
        round.interrupted = true;
        let Round { live, batch, .. } = &*round;
        tracing::warn!(processor = %live.processor, topic = %self.input.topic.spec.name, partition = %self.input.partition, revision = live.revision, messages = batch.len(), after_ms = took.as_millis() as u64, "a call was interrupted because its result was no longer useful; its messages are unchanged and no attempt is spent");
        self.put_back(round, Came::Discarded);
        let commands = self.outside.commands.borrow();
        match wants(&commands, &self.input.origin) && commands.runs(round.live.revision) {
            false => Ok(()),
            true => Err(Trouble::Wait(CallError::Interrupted.to_string())),
        }
    }

    /// Whether messages are called alone, because one of them may have ended the host.
    pub(super) fn has_suspects(&mut self) -> bool {
        if self.plan.suspects.end(&self.ledger.progress, self.now()) {
            tracing::info!(topic = %self.input.topic.spec.name, partition = %self.input.partition, "every message in flight at the host's last end has been called alone; continuing with batches");
        }
        self.plan.suspects.are_there()
    }

    /// Commits a mark before the worker's first call, or before the call of a suspect.
    async fn mark(&mut self, round: &mut Round) -> Result<(), Trouble> {
        if self.plan.suspects.are_there() {
            return self.mark_suspect(round).await;
        }
        if self.plan.suspects.is_first_call() {
            let mut marked = Progress::clone(&self.ledger.progress);
            marked.first_call = Some(round.batch.next);
            self.keep(marked).await?;
            self.plan.suspects.mark();
        }
        Ok(())
    }

    /// Parks the suspect with its mark, so that it is found again wherever it came from.
    async fn mark_suspect(&mut self, round: &mut Round) -> Result<(), Trouble> {
        let Round { live, batch, .. } = round;
        let (offset, at) = (batch.offsets[0], self.now());
        let progress = suspects::parked(&self.ledger.progress, live.spec.order, batch, at);
        let marked = self
            .plan
            .suspects
            .marked(&progress, offset, live.revision, at);
        let (share, partition) = (Arc::clone(&self.hold.share), self.hold.partition);
        // If the commit is in doubt, this worker ends without a call. The next worker on this host
        // must not take the mark for an end of the host.
        share.marks(partition, (offset, at));
        self.keep(marked).await?;
        share.marked(partition);
        self.plan.suspects.mark();
        self.ledger.progress = progress.into();
        Ok(())
    }

    /// Removes the mark after the call, unless the batch's commit has removed it.
    async fn unmark(&mut self, round: &Round) {
        let suspects = &mut self.plan.suspects;
        if suspects.called(&round.batch.offsets, round.interrupted) {
            // If this fails, the mark stays until the next commit, which cannot succeed before the
            // disk works again.
            let _ = self.keep(Progress::clone(&self.ledger.progress)).await;
        }
    }
}
