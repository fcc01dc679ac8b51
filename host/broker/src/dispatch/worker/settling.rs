//! The end of a round: everything is decided, and one transaction commits the decision. While there
//! is no room for it, it is made again.

use std::sync::Arc;
use std::time::Duration;

use millrace_engine::state::Turn;
use millrace_engine::{Append, CommitError, Kept, Transaction};
use millrace_model::{
    Compression, GivenUp, PartitionId, Progress, RecordBatch, Topic, TopicPartition,
};

use super::Worker;
use super::round::{Round, Settled};
use crate::dispatch::answered::Answered;
use crate::dispatch::breaker::Judgement;
use crate::dispatch::delivery::{self, Effects, Settling};
use crate::dispatch::failed::Failed;
use crate::dispatch::gate::NotLookedUp;
use crate::dispatch::live::{Live, OutputTopic};
use crate::dispatch::plan::Came;
use crate::dispatch::sides::Side;
use crate::dispatch::standing::State;
use crate::dispatch::taken::{Short, Taken};
use crate::dispatch::word::{Left, Word};
use crate::ground::packing;
use crate::messages::delays::delayed::DelaysFull;
use crate::messages::delays::stored::Additions;

/// Why a decision is not committed.
enum Refused {
    /// There is no room for it on the disk or among delayed messages. That is worth waiting for,
    /// because the call need not be repeated.
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

impl Worker {
    /// Decides about the batch and commits the decision. Waits while the disk is full or there is
    /// no room for delayed outputs.
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
            let run = round.live.unproven_run;
            let taken = match Taken::take(&self.gate, run, &effects, is_by_hand) {
                Ok(taken) => taken,
                Err(Short::Outrun) => {
                    tokio::task::yield_now().await;
                    continue;
                }
                Err(Short::DeadLetters { first, more_in }) => {
                    return Ok(self.cut_short(round, first, more_in));
                }
            };
            effects.count_unproven(run);
            let progress = Arc::new(std::mem::take(&mut effects.progress));
            // Proposed before the commit, so that other workers' decisions include it.
            self.ledger.records.propose(&progress);
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

    /// Whether the called revision may give messages up. If necessary, reads how many messages
    /// unproven revisions gave up before.
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
                    // The next batch asks again. Until then nothing is given up.
                    Err(_) => return Word::CountsFor(Left::default()),
                }
            }
            self.gate.looked_up(GivenUp { run, messages });
        }
    }

    /// The effects that the commit will have.
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

    /// Ends a round that has more dead letters than are allowed. The messages before the first
    /// excess one are next; if there are none, the worker waits.
    fn cut_short(&mut self, round: &Round, first: usize, more_in: Duration) -> Settled {
        self.put_back(round, Came::Excess(first));
        if first > 0 {
            return Settled::PutBack;
        }
        let Live {
            spec, processor, ..
        } = &*round.live;
        let policy = &spec.dead_letters;
        tracing::warn!(%processor, max = policy.max, per_ms = policy.per_ms, "a partition waits: the maximum number of dead letters is reached");
        self.meters.dead_letters_held();
        let reason = format!(
            "poison flood: {} dead letters in {} ms, the maximum of dead_letters; continuing in {} s, or resume with --accept-dead-letters",
            policy.max,
            policy.per_ms,
            more_in.as_secs_f64().ceil(),
        );
        Settled::Held(reason, more_in)
    }

    /// Commits outputs, dead letters and progress in one transaction; returns how long that took.
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

    /// Compresses outputs as their topics now require. Dead letters stay uncompressed, because they
    /// are few and people read them.
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

    /// Gives delayed outputs their ids. Without room for them, the partition waits.
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

    /// Publishes the effects of a settled batch; the worker continues after it.
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
            // The commit came after a rewind, so the messages that it settled must be skipped.
            self.rewind();
        }
        self.show(State::Running);
    }

    /// Handles a commit that the engine refused.
    fn refused(
        &mut self,
        round: &Round,
        answered: &Answered,
        error: CommitError,
    ) -> Result<Settled, CommitError> {
        match error {
            // Removing expired state may be what exceeds the limit. The batch is called again and
            // leaves expired state in place.
            CommitError::TooLarge { .. }
                if answered.verdict.removes_ended && !self.plan.leaves_ended() =>
            {
                self.put_back(round, Came::TooMuchEnded);
                Ok(Settled::PutBack)
            }
            // Other workers took the room. The component is called again and gets the answer `full`
            // itself.
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

    /// Waits before a decision is made again. Returns how the round ends if its answer no longer
    /// holds or its memory is needed.
    async fn wait_for_room(
        &mut self,
        round: &mut Round,
        reason: String,
        is_by_hand: bool,
    ) -> Option<Settled> {
        // The call's writes to state are not held during the wait. A batch that could write is
        // called again.
        let wrote = round.writing.pause();
        let at_hand = Arc::clone(&self.context.at_hand);
        let is_wanted = tokio::select! {
            biased;
            () = at_hand.wanted(), if !is_by_hand => true,
            () = self.back_off(reason.clone()) => false,
        };
        if is_wanted {
            // Other workers need this memory, so the batch is called again.
            self.rewind();
            return Some(Settled::Blocked(reason));
        }
        let holds = !wrote && round.writing.resume().await && {
            let command = self.outside.commands.borrow();
            // Operators' orders come first, unless this is one of them.
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

/// An append of one batch. If the partition does not exist, the commit fails: only the engine knows
/// the present partitions, because some may have been added after the revision was loaded.
fn append(topic: &Topic, partition: PartitionId, batch: RecordBatch) -> Append {
    let partition = TopicPartition {
        topic: topic.id,
        partition,
    };
    Append { partition, batch }
}
