//! Gets the worker's next batch, and waits for everything that it needs: messages, a fuller batch,
//! room, the gate, or the end of an obstacle. A command ends every wait.
//! [`Plan`](crate::dispatch::plan::Plan) says what to cut, and [`batcher`] cuts.

use std::sync::Arc;
use std::time::Duration;

use millrace_engine::Engine;
use millrace_model::processor::Order;
use millrace_model::{Offset, TopicName};
use tokio::sync::watch;

use super::round::Round;
use super::{Trouble, Worker, changed_within, wants};
use crate::dispatch::at_hand::{self, InHand};
use crate::dispatch::batcher::{self, Batch, Cut, Due};
use crate::dispatch::command::Command;
use crate::dispatch::gate::Probe;
use crate::dispatch::live::Live;
use crate::dispatch::orders::Orders;
use crate::dispatch::plan::{Choice, Most, Take, Want};
use crate::dispatch::standing::{State, Window};
use crate::ground::tasks::SLEEP_MAX;

/// Interval at which a worker checks again whether there is room for records of failed attempts.
const FULL_LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Workers that wait for the same probe wake at most this far apart, in a random order.
const PROBE_SPREAD: Duration = Duration::from_millis(20);

/// A worker's channels to the rest of the host.
pub(super) struct Outside {
    pub(super) commands: watch::Receiver<Command>,
    pub(super) orders: Orders,
    /// Changes when waiting workers must ask the gate again.
    pub(super) gate: watch::Receiver<u64>,
    pub(super) window: Window,
}

impl Outside {
    /// Whether the processor still reads the topic that its messages came from.
    pub(super) fn wants(&self, origin: &TopicName) -> bool {
        wants(&self.commands.borrow(), origin)
    }

    /// Returns when a command is there, and leaves it to be read.
    pub(super) async fn is_told(&mut self) {
        let _ = self.commands.changed().await;
        self.commands.mark_changed();
    }

    /// Waits for a change at the gate or a command, at most this long.
    async fn gate_changes_within(&mut self, wait: Duration) {
        tokio::select! {
            _ = self.gate.changed() => {}
            _ = changed_within(&mut self.commands, wait) => {}
        }
    }
}

/// The most that a batch of a revision may have. Its bytes are limited to half of those of one
/// engine commit, because its results are committed at once.
fn most(engine: &dyn Engine, live: &Live) -> Most {
    let policy = &live.spec.batch;
    Most {
        messages: policy.messages_max as usize,
        bytes: (policy.bytes_max as usize).min(engine.limits().transaction_bytes_max / 2),
    }
}

impl Worker {
    /// Cuts the next batch from due and new messages. The batch is empty if there is nothing to do.
    /// `None` if a command came while the worker waited for room.
    pub(super) async fn next_round(
        &mut self,
        command: &Command,
        take: Take,
        probe: Option<Probe>,
    ) -> Result<Option<Round>, Trouble> {
        let (live, engine) = (&command.live, &*self.context.engine);
        self.source.look();
        let room = self.ledger.room_for_new(live.spec.order);
        // The current revision gets every probe, whatever the message's key.
        let canary = command.canary().filter(|_| probe.is_none());
        let want = self.plan.next(&Choice {
            take,
            order: live.spec.order,
            parked: &self.ledger.progress.parked,
            has_new: room > 0 && self.source.has_more(),
            current: most(engine, live),
            canary: canary.map(|canary| (canary.percent, most(engine, &canary.live))),
            now: self.now(),
        });
        if want.lingers {
            self.linger(live, want.most.messages).await;
        }
        let mut in_hand = None;
        if !want.is_nothing() {
            let canary = canary.map_or(0, |canary| at_hand::at_the_most(&canary.live.spec));
            let bytes = at_hand::at_the_most(&live.spec).max(canary);
            in_hand = self.make_room(bytes).await;
            if in_hand.is_none() {
                return Ok(None);
            }
        }
        let batch = self.cut(want, live.spec.order, room).await?;
        let new = batch.len() - batch.retried + batch.skipped.len();
        self.ledger.records.expect(new);
        let mut round = Round::new(command, &self.gate, batch);
        (round.probe, round.in_hand) = (probe, in_hand);
        Ok(Some(round))
    }

    /// Waits for a fuller batch if the policy says so. It counts offsets and reads nothing, so no
    /// memory is held meanwhile.
    async fn linger(&mut self, live: &Live, messages_max: usize) {
        let policy = &live.spec.batch;
        if policy.linger_ms == 0 {
            return;
        }
        let over = tokio::time::sleep(Duration::from_millis(policy.linger_ms));
        let mut over = std::pin::pin!(over);
        loop {
            let end = self.source.look();
            let waiting = end.0.saturating_sub(self.source.position().0);
            if waiting >= messages_max as u64 {
                return;
            }
            tokio::select! {
                () = &mut over => return,
                // The current batch still follows the old command; the next one follows the new
                // command.
                () = self.outside.is_told() => return,
                _ = self.source.wait() => {}
            }
        }
    }

    /// Reserves room for the next batch; `None` if a command came first. Nothing is held while
    /// waiting.
    async fn make_room(&mut self, bytes: usize) -> Option<InHand> {
        let at_hand = Arc::clone(&self.context.at_hand);
        if let Some(room) = at_hand.try_take(bytes) {
            return Some(room);
        }
        self.rewind();
        tokio::select! {
            room = at_hand.take(bytes) => room,
            () = self.outside.is_told() => None,
        }
    }

    /// Reads and cuts a batch. At most `room` new messages are taken or parked.
    async fn cut(&mut self, want: Want, order: Order, room: usize) -> Result<Batch, Trouble> {
        let Most { messages, bytes } = want.most;
        let mut cut = self.empty_cut(messages, bytes);
        if let Some(split) = want.split {
            cut.split(split);
        }
        if want.has_new {
            cut.share();
        }
        self.take_due(&want.due, &mut cut).await?;
        // Other workers may have used room for records meanwhile.
        let room = self.ledger.room_for_new(order).min(room);
        if want.has_new && room > 0 && !cut.is_full() {
            match self.source.fill(messages, bytes).await {
                // Retries continue even if new messages cannot be read.
                Err(_) if !cut.is_empty() => {}
                filled => filled?,
            }
            let bytes = self.plan.bytes_before();
            cut.reserve(messages.min(self.source.at_hand()), bytes);
            let parked = &self.ledger.progress.parked;
            if let Some(split) = cut.split_mut().filter(|_| want.take == Take::Batch) {
                split.begin_new(parked, want.is_part);
            }
            cut.take_new(&mut self.source, order, parked, room);
        }
        Ok(cut.finish(self.source.position()))
    }

    /// Cuts a batch of these parked messages, up to a number and a size. Messages that no longer
    /// exist are released.
    pub(super) async fn parked_batch(
        &mut self,
        offsets: &[Offset],
        most: Most,
    ) -> Result<Batch, Trouble> {
        let mut cut = self.empty_cut(most.messages, most.bytes);
        let due = Due {
            offsets: offsets.to_vec(),
            alone: false,
        };
        self.take_due(&due, &mut cut).await?;
        Ok(cut.finish(self.ledger.progress.next))
    }

    fn empty_cut(&self, messages_max: usize, bytes_max: usize) -> Cut {
        let topic = self.input.origin.as_str();
        let (partition, redriven) = (self.input.partition.0, self.input.is_redriven());
        Cut::new(topic, partition, redriven, messages_max, bytes_max)
    }

    async fn take_due(&mut self, due: &Due, cut: &mut Cut) -> Result<(), Trouble> {
        if due.offsets.is_empty() {
            return Ok(());
        }
        let located = self.source.load(&due.offsets).await?;
        let current_only = batcher::current_only(&self.ledger.progress.parked);
        if let Some(split) = cut.split_mut() {
            let found = located.iter().flatten();
            let parked = &self.ledger.progress.parked;
            split.choose(found.map(|(batch, view)| {
                let key = view.key.clone().map(|key| &batch.bytes()[key]);
                let found = parked.binary_search_by_key(&view.offset, |parked| parked.offset);
                let current_only = found.is_ok_and(|index| current_only(&parked[index]));
                (key, view.offset, current_only)
            }));
        }
        for (&offset, located) in due.offsets.iter().zip(located) {
            let parked = &self.ledger.progress.parked;
            let Ok(index) = parked.binary_search_by_key(&offset, |parked| parked.offset) else {
                continue;
            };
            match located {
                Some((batch, view)) => {
                    let current_only = current_only(&parked[index]);
                    let attempts = parked[index].attempts;
                    if !cut.take_retried(batch.bytes(), &view, attempts, current_only) {
                        break;
                    }
                }
                None => self.release_lost(index),
            }
        }
        Ok(())
    }

    /// Waits until there may be something to do.
    pub(super) async fn idle(&mut self) -> Result<(), Trouble> {
        let mut sleep = match batcher::next_due(&self.ledger.progress.parked) {
            Some(due) => self.now().until(due).min(SLEEP_MAX),
            None => SLEEP_MAX,
        };
        let order = self.outside.commands.borrow().live.spec.order;
        let room = self.ledger.room_for_new(order);
        if let Some(why) = self.ledger.records.why_none() {
            self.show(State::Waiting(why, None));
            // Nothing signals that other workers have settled some of theirs.
            sleep = sleep.min(FULL_LOOK_INTERVAL);
        }
        let reads = room > 0 && !self.source.is_done();
        if !reads {
            // This wait may take hours, so messages that were read ahead are dropped and read
            // again.
            self.rewind();
        }
        let exists = tokio::select! {
            () = self.outside.is_told() => true,
            () = tokio::time::sleep(sleep) => true,
            exists = self.source.wait(), if reads => exists,
        };
        match exists {
            true => Ok(()),
            false => Err(Trouble::Stop("the topic was deleted".to_owned())),
        }
    }

    /// Waits while the breaker is open.
    pub(super) async fn wait_for_probe(&mut self, wait: Duration, reason: String) {
        // Messages that were read ahead may be trimmed or compacted during the wait, so they are
        // read again.
        self.rewind();
        let until = self.now().after(wait);
        self.show(State::Waiting(reason, Some(until)));
        let spread = PROBE_SPREAD.min(wait).mul_f64(self.rng.f64());
        self.outside.gate_changes_within(wait + spread).await;
    }

    /// Waits while no more dead letters are allowed.
    pub(super) async fn wait_for_allowance(&mut self, wait: Duration, reason: String) {
        let until = self.now().after(wait);
        self.show(State::Waiting(reason, Some(until)));
        let wait = wait.clamp(Duration::from_millis(1), SLEEP_MAX);
        self.outside.gate_changes_within(wait).await;
    }

    /// Waits with growing delays, or until a command comes.
    pub(super) async fn back_off(&mut self, reason: String) {
        let delay = self.plan.back_off(&mut self.rng);
        let until = self.now().after(delay);
        self.show(State::Waiting(reason, Some(until)));
        changed_within(&mut self.outside.commands, delay).await;
    }
}
