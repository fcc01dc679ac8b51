//! How the worker gets its next batch: it reads and waits, [`batcher`] decides.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use millrace_model::Offset;
use millrace_model::processor::BatchPolicy;

use super::{Trouble, Worker};
use crate::dispatch::at_hand;
use crate::dispatch::batcher::{self, Batch, Cut, Due};
use crate::dispatch::command::Command;
use crate::dispatch::live::Live;
use crate::dispatch::sides::{Canary, Side, Split};
use crate::handler::CallError;

/// The kind of batch wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Take {
    /// As much as there is.
    Batch,
    /// One message, to see whether others might succeed.
    Probe,
    /// One message during which the host may have ended.
    Suspect,
}

/// A canary's call is ended after this many times the longest of the current revision's recent calls.
const CANARY_SLOWNESS_MAX: u32 = 20;
/// A canary's call is never ended sooner than this for being slower than the current revision: a machine may be busy.
const CANARY_CALL_MIN: Duration = Duration::from_secs(3);
/// With each call, the longest earlier one decays by this fraction.
const LONGEST_FADES: f64 = 0.99;

impl Worker {
    /// The next batch, cut from due and new messages; empty if there is nothing to do, and `None` if a command came while it waited for
    /// room.
    ///
    /// A probe is one message: new and parked ones alternate, so that no message at the front is tried forever.
    pub(super) async fn next_batch(
        &mut self,
        command: &Command,
        take: Take,
    ) -> Result<Option<Batch>, Trouble> {
        let live = &command.live;
        let policy = &live.spec.batch;
        let piece = match take {
            Take::Probe | Take::Suspect => 1,
            Take::Batch => self.pieces.last().copied().unwrap_or(usize::MAX),
        };
        // It is not known yet which side the batch is for.
        let paced = match command.canary() {
            None => self.paced(Side::Current),
            Some(_) => self.paced(Side::Current).max(self.paced(Side::Canary)),
        };
        let messages_max = piece.min(policy.messages_max as usize).min(paced);
        let bytes_max = self.batch_bytes_max(policy);
        let mut cut = self.empty_cut(messages_max, bytes_max);
        if let Some(canary) = command.canary() {
            cut.split(self.sharing(live, canary, piece));
        }
        self.seen = self.source.end();
        let room = self.room_for_new(live.spec.order);
        let reads = room > 0 && self.source.has_more();
        if reads {
            cut.share();
        }
        let due_max = cut.retried_messages_max();
        let parked = &self.progress.parked;
        let due = match take {
            Take::Suspect => match batcher::oldest_due(parked, self.now(), &self.cleared) {
                // The next suspect waits behind one that was called before: that one continues first.
                due if due.offsets.is_empty() && !reads => {
                    batcher::oldest_due(parked, self.now(), &HashSet::new())
                }
                due => due,
            },
            _ if self.alone && reads => Due::default(),
            Take::Probe => batcher::oldest_due(parked, self.now(), &HashSet::new()),
            // In turns, or retries would keep new messages out.
            Take::Batch if messages_max == 1 && reads => {
                batcher::oldest_due(parked, self.now(), &HashSet::new())
            }
            Take::Batch => batcher::due(parked, self.now(), due_max),
        };
        self.alone = due.alone;
        let lingers = due.offsets.is_empty() && reads;
        if lingers && take == Take::Batch {
            self.linger(live, messages_max).await;
        }
        if (lingers || !due.offsets.is_empty()) && !self.make_room(command).await {
            return Ok(None);
        }
        self.take_due(&due, &mut cut).await?;
        // Other workers may have used the room for records meanwhile.
        let room = self.room_for_new(live.spec.order).min(room);
        if reads && room > 0 && !due.alone && !cut.is_full() {
            match self.source.fill(messages_max, bytes_max).await {
                // Retries continue, whatever is in the way of new messages.
                Err(_) if !cut.is_empty() => {}
                filled => filled?,
            }
            cut.reserve(messages_max.min(self.source.at_hand()), self.bytes_before);
            let parked = &self.progress.parked;
            if let Some(split) = cut.split_mut().filter(|_| take == Take::Batch) {
                split.begin_new(parked, !self.pieces.is_empty());
            }
            cut.take_new(&mut self.source, live.spec.order, parked, room);
        }
        let batch = cut.finish(self.source.position());
        let new = batch.len() - batch.retried + batch.skipped.len();
        self.remembered.expect(new);
        Ok(Some(batch))
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

    /// What a call reveals about the guest's speed.
    pub(super) fn learn(
        &mut self,
        live: &Live,
        messages: usize,
        took: Duration,
        error: Option<&CallError>,
    ) {
        let time_max = Duration::from_millis(live.spec.limits.call_ms_max);
        match error {
            None => self.pace[self.side as usize].answered(messages, took, time_max),
            Some(CallError::Timeout(_)) => self.pace[self.side as usize].timed_out(messages),
            Some(_) => {}
        }
    }

    /// A call of the current revision took this long, including its waits.
    pub(super) fn took(&mut self, messages: usize, took: Duration) {
        if self.side == Side::Current {
            let each = took / messages.max(1) as u32;
            let [longest, longest_each] = &mut self.longest;
            *longest = took.max(longest.mul_f64(LONGEST_FADES));
            *longest_each = each.max(longest_each.mul_f64(LONGEST_FADES));
        }
    }

    /// How long the running call may keep the partition waiting, if that is shorter than its limit: a canary's call must not take many
    /// times as long as the current revision's.
    pub(super) fn call_max(&self, live: &Live, messages: usize) -> Option<Duration> {
        let [longest, each] = self.longest;
        if self.side != Side::Canary || longest.is_zero() {
            return None;
        }
        let longest = longest.max(each.saturating_mul(messages as u32));
        let most = CANARY_CALL_MIN.max(longest.saturating_mul(CANARY_SLOWNESS_MAX));
        (most < Duration::from_millis(live.spec.limits.call_ms_max)).then_some(most)
    }

    fn paced(&self, side: Side) -> usize {
        self.pace[side as usize].messages_max()
    }

    /// How the next batch is divided.
    fn sharing(&self, live: &Live, canary: &Canary, piece: usize) -> Split {
        let bounds = |of: &Live, side| {
            let policy = &of.spec.batch;
            let messages_max = piece.min(policy.messages_max as usize);
            (
                messages_max.min(self.paced(side)),
                self.batch_bytes_max(policy),
            )
        };
        Split::new(
            canary.percent,
            live.spec.order,
            self.side,
            !self.pieces.is_empty(),
            [
                bounds(live, Side::Current),
                bounds(&canary.live, Side::Canary),
            ],
        )
    }

    /// Bytes of a batch: at most half of one engine commit, because its results are committed at once.
    fn batch_bytes_max(&self, policy: &BatchPolicy) -> usize {
        let limits = self.context.engine.limits();
        (policy.bytes_max as usize).min(limits.transaction_bytes_max / 2)
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
        if policy.linger_ms == 0 || !self.pieces.is_empty() {
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
