//! How the worker gets its next batch: it reads and waits, [`batcher`] decides.

use std::sync::Arc;
use std::time::Duration;

use millrace_engine::Engine;
use millrace_model::Offset;
use millrace_model::processor::Order;

use super::{Trouble, Worker};
use crate::dispatch::at_hand;
use crate::dispatch::batcher::{self, Batch, Cut, Due};
use crate::dispatch::command::Command;
use crate::dispatch::live::Live;
use crate::dispatch::plan::{Choice, Most, Take, Want};

/// The most that a batch of a revision has: at most half of the bytes of one engine commit, because its results are committed at
/// once.
fn most(engine: &dyn Engine, live: &Live) -> Most {
    let policy = &live.spec.batch;
    Most {
        messages: policy.messages_max as usize,
        bytes: (policy.bytes_max as usize).min(engine.limits().transaction_bytes_max / 2),
    }
}

impl Worker {
    /// The next batch, cut from due and new messages; empty if there is nothing to do, and `None` if a command came while it waited for
    /// room.
    pub(super) async fn next_batch(
        &mut self,
        command: &Command,
        take: Take,
    ) -> Result<Option<Batch>, Trouble> {
        let live = &command.live;
        self.seen = self.source.end();
        let room = self.room_for_new(live.spec.order);
        let canary = command.canary();
        let want = self.plan.next(&Choice {
            take,
            order: live.spec.order,
            parked: &self.progress.parked,
            has_new: room > 0 && self.source.has_more(),
            current: most(&*self.context.engine, live),
            canary: canary
                .map(|canary| (canary.percent, most(&*self.context.engine, &canary.live))),
            now: self.now(),
        });
        if want.lingers {
            self.linger(live, want.most.messages).await;
        }
        if !want.is_nothing() && !self.make_room(command).await {
            return Ok(None);
        }
        let batch = self.cut(want, live.spec.order, room).await?;
        let new = batch.len() - batch.retried + batch.skipped.len();
        self.remembered.expect(new);
        Ok(Some(batch))
    }

    /// Reads and cuts what is wanted; at most `room` new messages are taken or passed over.
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
        // Other workers may have used the room for records meanwhile.
        let room = self.room_for_new(order).min(room);
        if want.has_new && room > 0 && !cut.is_full() {
            match self.source.fill(messages, bytes).await {
                // Retries continue, whatever is in the way of new messages.
                Err(_) if !cut.is_empty() => {}
                filled => filled?,
            }
            let bytes = self.plan.bytes_before();
            cut.reserve(messages.min(self.source.at_hand()), bytes);
            let parked = &self.progress.parked;
            if let Some(split) = cut.split_mut().filter(|_| want.take == Take::Batch) {
                split.begin_new(parked, want.is_part);
            }
            cut.take_new(&mut self.source, order, parked, room);
        }
        Ok(cut.finish(self.source.position()))
    }

    /// Reserves room for the next batch; false if a command came first. Nothing is held while waiting.
    async fn make_room(&mut self, command: &Command) -> bool {
        let most = |live: &Live| at_hand::at_the_most(&live.spec);
        let canary = command.canary().map_or(0, |canary| most(&canary.live));
        let bytes = most(&command.live).max(canary);
        let at_hand = Arc::clone(&self.context.at_hand);
        self.in_hand = at_hand.try_take(bytes);
        if self.in_hand.is_none() {
            self.rewind();
            self.in_hand = tokio::select! {
                room = at_hand.take(bytes) => room,
                _ = self.commands.changed() => {
                    self.commands.mark_changed();
                    None
                }
            };
        }
        self.in_hand.is_some()
    }

    pub(super) fn empty_cut(&self, messages_max: usize, bytes_max: usize) -> Cut {
        let topic = self.input.origin.as_str();
        let (partition, redriven) = (self.input.partition.0, self.input.is_redriven());
        Cut::new(topic, partition, redriven, messages_max, bytes_max)
    }

    /// One parked message; none if it is gone.
    pub(super) async fn parked_alone(&mut self, offset: Offset) -> Result<Batch, Trouble> {
        let mut cut = self.empty_cut(1, usize::MAX);
        let due = Due {
            offsets: vec![offset],
            alone: true,
        };
        self.take_due(&due, &mut cut).await?;
        Ok(cut.finish(self.progress.next))
    }

    pub(super) async fn take_due(&mut self, due: &Due, cut: &mut Cut) -> Result<(), Trouble> {
        if due.offsets.is_empty() {
            return Ok(());
        }
        let located = self.source.load(&due.offsets).await?;
        let current_only = batcher::current_only(&self.progress.parked);
        if let Some(split) = cut.split_mut() {
            let found = located.iter().flatten();
            let parked = &self.progress.parked;
            split.choose(found.map(|(batch, view)| {
                let key = view.key.clone().map(|key| &batch.bytes()[key]);
                let found = parked.binary_search_by_key(&view.offset, |parked| parked.offset);
                let current_only = found.is_ok_and(|index| current_only(&parked[index]));
                (key, view.offset, current_only)
            }));
        }
        for (&offset, located) in due.offsets.iter().zip(located) {
            let parked = &self.progress.parked;
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
                None => {
                    // There is nothing left to retry or to show: what is known of it is logged.
                    let gone = Arc::make_mut(&mut self.progress).parked.remove(index);
                    self.remembered.set(&self.progress);
                    self.meters.lost(1);
                    let last = gone.log.last();
                    let reason =
                        last.map_or("it waited behind another message", |last| &last.reason);
                    tracing::warn!(topic = %self.input.topic.spec.name, partition = %self.input.partition, %offset, attempts = gone.attempts, reason, "a parked message is no longer kept and is given up");
                }
            }
        }
        Ok(())
    }

    /// Waits for a fuller batch, if the policy says so and nothing is urgent. It goes by offsets and reads nothing, so nothing is held
    /// while it lingers.
    async fn linger(&mut self, live: &Live, messages_max: usize) {
        let policy = &live.spec.batch;
        if policy.linger_ms == 0 {
            return;
        }
        let over = tokio::time::sleep(Duration::from_millis(policy.linger_ms));
        let mut over = std::pin::pin!(over);
        loop {
            self.seen = self.source.end();
            let waiting = self.seen.0.saturating_sub(self.source.position().0);
            if waiting >= messages_max as u64 {
                return;
            }
            tokio::select! {
                () = &mut over => return,
                _ = self.commands.changed() => {
                    // Seen, but not yet obeyed: the current batch still follows the old command, the next one the new command.
                    self.commands.mark_changed();
                    return;
                }
                _ = self.source.wait(self.seen) => {}
            }
        }
    }
}
