//! The end of a round: the error handler and the breaker are asked, everything is decided, and the decision is committed in one
//! transaction; it is made again for as long as there is no room for it.

use std::sync::Arc;
use std::time::Duration;

use millrace_engine::state::Turn;
use millrace_engine::{Append, CommitError, Kept, Transaction};
use millrace_model::{
    Compression, GivenUp, PartitionId, Progress, RecordBatch, Topic, TopicPartition,
};

use super::round::Round;
use super::{Step, Trouble, Worker};
use crate::dispatch::allowance::Granted;
use crate::dispatch::answer::Verdict;
use crate::dispatch::answered::Answered;
use crate::dispatch::breaker::{Judgement, Report, Says};
use crate::dispatch::delivery::{self, Effects, Settling};
use crate::dispatch::failed::Failed;
use crate::dispatch::gate::{Gate, NotLookedUp};
use crate::dispatch::live::{Live, OutputTopic};
use crate::dispatch::plan::Came;
use crate::dispatch::sides::Side;
use crate::dispatch::standing::State;
use crate::dispatch::word::{Left, Word};
use crate::ground::{columns, packing};
use crate::handler::{CallError, Cause, Decision};
use crate::messages::delays::delayed::DelaysFull;
use crate::messages::delays::stored::Additions;

/// How a round ended.
pub(super) enum Settled {
    Committed,
    /// It had no effect: its messages are cut again.
    PutBack,
    /// The same, but something is in the way.
    Blocked(String),
    /// The same, and no more dead letters are allowed for this long.
    Held(String, Duration),
}

impl Settled {
    /// What this means for the worker's next step.
    pub(super) fn step(self) -> Result<Step, Trouble> {
        match self {
            Self::Committed | Self::PutBack => Ok(Step::Done),
            Self::Blocked(reason) => Err(Trouble::Wait(reason)),
            Self::Held(reason, wait) => Ok(Step::Held(reason, wait)),
        }
    }
}

/// Why a decision is not committed.
enum Refused {
    /// There is no room for it on the disk or among delayed messages. That is worth waiting for: the call need not be repeated.
    NoRoom(String),
    Failed(CommitError),
}

impl From<DelaysFull> for Refused {
    fn from(full: DelaysFull) -> Self {
        Self::NoRoom(full.to_string())
    }
}

impl From<CommitError> for Refused {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::DiskFull => Self::NoRoom(error.to_string()),
            CommitError::RoomFull(full) if full.kept == Kept::Delayed => {
                Self::NoRoom(full.to_string())
            }
            error => Self::Failed(error),
        }
    }
}

/// What was taken from the processor's allowances for one decision.
struct Taken {
    dead_letters: Granted,
    /// The run of unproven revisions, and how many messages it gives up.
    unproven: (u32, u32),
}

impl Taken {
    /// The decision is not carried out.
    fn give_back(self, gate: &Gate) {
        gate.give_back(self.dead_letters);
        let (run, messages) = self.unproven;
        gate.give_back_unproven(run, messages);
    }
}

impl Worker {
    /// Asks the error handler and then the breaker about an answer; false if that is the end of the round.
    pub(super) async fn judge(&mut self, round: &mut Round, answered: &mut Answered) -> bool {
        // First of all, because a failure settled here is no failure.
        match self.ask_error_handler(round, &answered.verdict).await {
            Some(decisions) => answered.decisions = decisions,
            // The call was interrupted: the batch has no effect.
            None => return false,
        }
        let Round {
            live,
            batch,
            breaker,
            probe,
            ..
        } = &mut *round;
        let failed = &answered.verdict.failed;
        let whose = live.whose(self.now());
        let says =
            failed
                .iter()
                .enumerate()
                .map(|(index, failed)| match answered.decisions.get(index) {
                    Some(Decision::Drop(_)) => Says::Settled,
                    _ if self.plan.has_reported(batch, failed) => Says::Nothing,
                    _ => {
                        let progress = &self.ledger.progress;
                        let before = delivery::parked_before(batch, progress, failed.message);
                        whose.says(before, failed)
                    }
                });
        let report = Report {
            revision: live.revision,
            partition: self.hold.partition,
            offsets: &batch.offsets,
            retried: batch.retried,
            failed,
            says: &Vec::from_iter(says),
        };
        answered.judgement = breaker.report(&report, probe.as_mut());
        if answered.judgement == Judgement::Discard {
            self.plan.forget_reports();
            self.put_back(round, Came::Discarded);
            return false;
        }
        self.plan.report(batch, failed);
        true
    }

    /// The error handler's decisions. `None` if the call was interrupted: the batch has no effect.
    async fn ask_error_handler(
        &mut self,
        round: &mut Round,
        verdict: &Verdict,
    ) -> Option<Vec<Decision>> {
        let Round { live, batch, .. } = &*round;
        let failed = &verdict.failed;
        let asks = !failed.is_empty()
            && !verdict.is_final
            && failed.iter().all(|f| f.cause != Cause::HostDied);
        let Some(handler) = live.failures.as_ref().filter(|_| asks) else {
            return Some(Vec::new());
        };
        let progress = &self.ledger.progress;
        let failures = delivery::failures(batch, verdict, progress, live.revision, self.now());
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
                let _ = self.interrupt(round, took);
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
        round: &mut Round,
        answered: &Answered,
    ) -> Result<Settled, CommitError> {
        let is_by_hand = answered.verdict.is_by_hand();
        loop {
            let word = match answered.verdict.failed.is_empty() {
                true => Word::Counts,
                false => self.word(round).await,
            };
            let mut effects = self.decide(round, answered, word);
            let unproven = (round.live.unproven_run, effects.given_up_unproven);
            if unproven.1 > 0 && !self.gate.take_unproven(unproven.0, unproven.1) {
                // Another partition was faster, or another revision runs by now: the allowance shrinks, eventually to nothing.
                tokio::task::yield_now().await;
                continue;
            }
            effects.count_unproven(unproven.0);
            let progress = Arc::new(std::mem::take(&mut effects.progress));
            // Before the commit, so that other workers' decisions account for it.
            self.ledger.records.propose(&progress);
            let dead_letters = match is_by_hand {
                true => Ok(Granted::default()),
                false => self.take_dead_letters(round, &effects),
            };
            let taken = match dead_letters {
                Ok(dead_letters) => Taken {
                    dead_letters,
                    unproven,
                },
                Err(settled) => {
                    self.gate.give_back_unproven(unproven.0, unproven.1);
                    return Ok(settled);
                }
            };
            let refused = match self.commit(round, &mut effects, &progress).await {
                Ok(took) => {
                    self.committed(round, answered, effects, progress, took);
                    return Ok(Settled::Committed);
                }
                Err(refused) => refused,
            };
            taken.give_back(&self.gate);
            let settled = match refused {
                Refused::NoRoom(reason) => self.wait_for_room(round, reason, is_by_hand).await,
                Refused::Failed(error) => Some(self.refused(round, answered, error)?),
            };
            if let Some(settled) = settled {
                return Ok(settled);
            }
        }
    }

    /// Whether the called revision may give messages up. Reads how many others gave up before, if that is not known yet.
    async fn word(&self, round: &Round) -> Word {
        if round.batch.side == Side::Canary {
            return Word::IsAskedAgain;
        }
        let live = &round.live;
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

    /// What the commit is to make true.
    fn decide(&mut self, round: &Round, answered: &Answered, word: Word) -> Effects {
        let Round { live, batch, .. } = round;
        let now = self.now();
        let gate = &self.gate;
        let settling = Settling {
            processor: live.processor.as_str(),
            revision: live.revision,
            module: &live.module,
            spec: &live.spec,
            input: &self.input,
            batch,
            verdict: &answered.verdict,
            places: &answered.places,
            decisions: &answered.decisions,
            word,
            whose: live.whose(now),
            same_handler: live.back.as_ref().is_some_and(|back| back.same_handler),
            excuses: &|class| gate.excuses(class),
            progress: &self.ledger.progress,
            is_short: self.ledger.records.is_short(),
            now,
        };
        match answered.judgement {
            Judgement::Settle => delivery::settle(&settling, &mut self.rng),
            _ => delivery::postpone(&settling),
        }
    }

    /// Takes the dead letters of a batch from the processor's allowance. If there are too many, the messages before the first excess one
    /// are next; if that is the first message of all, the worker waits.
    fn take_dead_letters(&mut self, round: &Round, effects: &Effects) -> Result<Granted, Settled> {
        let wanted = effects.given_up.len();
        if wanted == 0 {
            return Ok(Granted::default());
        }
        let granted = self.gate.take(wanted as u32);
        let Some(&excess) = effects.given_up.get(granted.count as usize) else {
            return Ok(granted);
        };
        self.gate.give_back(granted);
        self.put_back(round, Came::Excess(excess));
        Err(match excess {
            0 => self.too_many_dead_letters(&round.live, granted.more_in),
            _ => Settled::PutBack,
        })
    }

    fn too_many_dead_letters(&self, live: &Live, wait: Duration) -> Settled {
        let policy = &live.spec.dead_letters;
        tracing::warn!(processor = %live.processor, max = policy.max, per_ms = policy.per_ms, "a partition waits: the maximum number of dead letters is reached");
        self.meters.dead_letters_held();
        let reason = format!(
            "poison flood: {} dead letters in {} ms, the maximum of dead_letters; continuing in {} s, or resume with --accept-dead-letters",
            policy.max,
            policy.per_ms,
            wait.as_secs_f64().ceil(),
        );
        Settled::Held(reason, wait)
    }

    /// One transaction: outputs, dead letters, progress; returns how long it took.
    async fn commit(
        &mut self,
        round: &Round,
        effects: &mut Effects,
        progress: &Arc<Progress>,
    ) -> Result<Duration, Refused> {
        self.pack(&round.live, effects).await;
        let mut delayed = self.delay(&round.live, effects).await?;
        let mut state = delayed.take_writes();
        state.extend(effects.state.take());
        let transaction = Transaction {
            appends: self.appends(&round.live, effects),
            durability: Some(self.input.topic.spec.durability),
            state,
            turns: round.writing.turn.iter().filter_map(Turn::held).collect(),
            ..Transaction::default()
        };
        let before = self.context.clock.monotonic();
        self.hold.commit(progress, transaction).await?;
        self.context.delays.expect(&delayed).await;
        Ok(self.context.clock.monotonic().saturating_sub(before))
    }

    /// Compresses outputs as their topics now require. Dead letters stay uncompressed: they are few, and people read them.
    async fn pack(&self, live: &Live, effects: &mut Effects) {
        let compression = |output: &OutputTopic| {
            let topic = self.context.engine.topic(&output.topic.spec.name);
            topic.map_or(Compression::None, |topic| topic.spec.settings.compression)
        };
        let codecs: Vec<Compression> = live.outputs.topics.iter().map(compression).collect();
        let batches = effects.outputs.iter().map(|output| output.2.clone());
        let codec = |output: usize| codecs[effects.outputs[output].0 as usize];
        let packed = packing::packed(batches.collect(), codec).await;
        for (output, batch) in effects.outputs.iter_mut().zip(packed) {
            output.2 = batch;
        }
    }

    /// Gives delayed outputs their ids. If there is no room they wait, and the partition with them.
    async fn delay(&self, live: &Live, effects: &mut Effects) -> Result<Additions, DelaysFull> {
        let delays = &self.context.delays;
        let mut additions = Additions::default();
        for delayed in effects.delayed.drain(..) {
            let topic = &live.outputs.topics[delayed.topic as usize].topic;
            let id = delays.next_id(PartitionId(delayed.partition), delayed.due.into());
            additions.add(topic, id, &delayed.message);
        }
        delays.check_room(&additions).await?;
        delays.expect(&additions).await;
        Ok(additions)
    }

    fn appends(&self, live: &Live, effects: &mut Effects) -> Vec<Append> {
        let topics = &live.outputs.topics;
        let outputs = effects.outputs.drain(..).map(|(topic, partition, batch)| {
            append(&topics[topic as usize].topic, PartitionId(partition), batch)
        });
        let letters = effects
            .dead_letters
            .drain(..)
            .map(|batch| append(&self.input.dead_letters, self.input.partition, batch));
        outputs.chain(letters).collect()
    }

    /// The batch is settled: everybody who counts is told, and the worker continues behind it.
    fn committed(
        &mut self,
        round: &Round,
        answered: &Answered,
        effects: Effects,
        progress: Arc<Progress>,
        took: Duration,
    ) {
        let (batch, verdict) = (&round.batch, &answered.verdict);
        let dead = |failed: &&Failed| effects.given_up.binary_search(&failed.message).is_ok();
        for failed in verdict.failed.iter().filter(dead) {
            self.gate.classes.count(&failed.class);
        }
        let dropped = effects.dropped.len() as u64;
        self.meters.committed(took, effects.counts, dropped);
        if batch.side == Side::Current {
            self.gate.processed(progress.revision, effects.counts.ok);
        }
        if let Some(canary) = &round.canary {
            if batch.side == Side::Current {
                let before = &self.ledger.progress;
                let revision = canary.live.revision;
                let contradicted = delivery::contradictions(revision, batch, verdict, before);
                if contradicted > 0 {
                    canary.gate.contradicted(contradicted);
                }
            }
            canary.tally.committed(batch.side, effects.counts);
        }
        self.show_state();
        for (offset, reason) in &effects.dropped {
            tracing::warn!(topic = %self.input.topic.spec.name, partition = %self.input.partition, %offset, reason, "a message was dropped");
        }
        self.ledger.settle(progress);
        self.plan.on(batch, Came::Settled);
        if self.source.position() != self.ledger.progress.next {
            // The commit came after a rewind: messages that it settled must not be read again.
            self.rewind();
        }
        self.show(State::Running);
    }

    /// The engine does not take the decision.
    fn refused(
        &mut self,
        round: &Round,
        answered: &Answered,
        error: CommitError,
    ) -> Result<Settled, CommitError> {
        match error {
            // Removing expired state may be what exceeds the limit: the batch is called again, and leaves that to another one.
            CommitError::TooLarge { .. }
                if answered.verdict.removes_ended && !self.plan.leaves_ended() =>
            {
                self.put_back(round, Came::TooMuchEnded);
                Ok(Settled::PutBack)
            }
            // Other workers took the room meanwhile. The component is called again and gets the answer `full` itself.
            CommitError::RoomFull(full) => {
                self.rewind();
                Ok(Settled::Blocked(full.to_string()))
            }
            error => {
                self.rewind();
                Err(error)
            }
        }
    }

    /// Waits before a decision is made again. Returns how the round ends if it has to, because its answer no longer holds or its room is
    /// needed.
    async fn wait_for_room(
        &mut self,
        round: &mut Round,
        reason: String,
        is_by_hand: bool,
    ) -> Option<Settled> {
        // Its writes to state are not held while it waits: it is called again.
        let wrote = round.writing.pause();
        let at_hand = Arc::clone(&self.context.at_hand);
        let is_wanted = tokio::select! {
            biased;
            () = at_hand.wanted(), if !is_by_hand => true,
            () = self.back_off(reason.clone()) => false,
        };
        if is_wanted {
            // Other workers need its room. The batch is called again.
            self.rewind();
            return Some(Settled::Blocked(reason));
        }
        let holds = !wrote && round.writing.resume().await && {
            let command = self.outside.commands.borrow();
            // Operators' orders come first, except the one being carried out.
            let is_told = !is_by_hand && (self.outside.orders.wait() || command.paused);
            !command.stopped && !is_told && command.runs(round.live.revision)
        };
        if holds {
            return None;
        }
        self.rewind();
        Some(Settled::PutBack)
    }
}

/// Outputs for a missing partition make the commit fail: only the engine knows the present partitions, since some may have been added
/// after the revision was loaded.
fn append(topic: &Topic, partition: PartitionId, batch: RecordBatch) -> Append {
    let partition = TopicPartition {
        topic: topic.id,
        partition,
    };
    Append { partition, batch }
}
