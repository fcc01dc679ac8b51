//! The plan of a worker: what to cut next, and what earlier batches have taught about it. It is
//! plain code. The worker passes clock values, asks [`Plan::next`], and reports the outcome of a
//! batch to [`Plan::on`].
//!
//! Invariant: a batch that has no effect is cut again, whole or in parts that cover it exactly.
//! Parts only group messages. Progress alone decides which message comes next and whether it
//! counts.

use std::collections::HashSet;
use std::time::Duration;

use millrace_model::processor::Order;
use millrace_model::{Offset, Parked, Timestamp};

use crate::dispatch::batcher::{self, Batch, Due};
use crate::dispatch::failed::Failed;
use crate::dispatch::pace::Pace;
use crate::dispatch::sides::{Side, Split};
use crate::dispatch::suspects::Suspects;
use crate::ground::backoff::Backoff;
use crate::ground::chains;

/// A canary's call is ended after this many times the longest of the current revision's recent
/// calls.
const CANARY_SLOWNESS_MAX: u32 = 20;
/// A canary's call is never ended sooner than this for being slower than the current revision,
/// because the machine may be busy.
const CANARY_CALL_MIN: Duration = Duration::from_secs(3);
/// With each call, the longest earlier time is multiplied by this.
const LONGEST_FADES: f64 = 0.99;

/// The running revisions and the canary's share.
type Revisions = (u32, Option<(u32, u32)>);

/// A failure that was reported to the breaker: the message, the side of its batch, and the class.
type Reported = (Offset, Side, String);

/// What one worker does next.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// The revisions that everything else here was learnt about.
    revisions: Revisions,
    /// Sizes of the parts of a batch that had no effect, the next one last.
    parts: Vec<usize>,
    /// Limits how many messages each side gets at once.
    paces: [Pace; 2],
    /// The side of the last batch.
    side: Side,
    /// Whether the last batch was one message that is called alone. If so, new messages are next.
    alone: bool,
    /// Bytes of the last batch, as a guess for the next one.
    bytes_before: usize,
    /// The longest recent times of the current revision, per call and per message; zero before its
    /// first call.
    longest: [Duration; 2],
    /// Failures that were reported to the breaker and could not be committed, so that the messages
    /// are called again.
    reported: HashSet<Reported>,
    /// Whether the next batch leaves expired state in place, because removing it made a commit too
    /// large.
    leaves_ended: bool,
    /// Messages that may have ended the host.
    pub(crate) suspects: Suspects,
    backoff: Backoff,
    has_settled: bool,
}

/// The kind of batch wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Take {
    /// As many messages as there are.
    Batch,
    /// One message, to test whether others might succeed. New and parked messages alternate, so
    /// that no message at the front is tried forever.
    Probe,
    /// One message that may have ended the host.
    Suspect,
}

/// The most that a revision gets at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Most {
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
}

/// What a batch can be cut from.
pub(crate) struct Choice<'a> {
    pub(crate) take: Take,
    pub(crate) order: Order,
    pub(crate) parked: &'a [Parked],
    /// Whether there are new messages that may be read.
    pub(crate) has_new: bool,
    pub(crate) current: Most,
    /// The canary's percentage of the keys, and the most that it gets; `None` without a canary.
    pub(crate) canary: Option<(u32, Most)>,
    pub(crate) now: Timestamp,
}

/// What to cut.
pub(crate) struct Want {
    pub(crate) take: Take,
    pub(crate) most: Most,
    /// The parked messages. They come first.
    pub(crate) due: Due,
    /// Whether new messages follow.
    pub(crate) has_new: bool,
    /// Whether to wait for a fuller batch.
    pub(crate) lingers: bool,
    /// Whether this is a part of a batch that had no effect.
    pub(crate) is_part: bool,
    /// How messages are divided if there is a canary.
    pub(crate) split: Option<Split>,
}

impl Want {
    /// Whether there is nothing to cut.
    pub(crate) fn is_nothing(&self) -> bool {
        self.due.offsets.is_empty() && !self.has_new
    }
}

/// The outcome of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Came<'a> {
    /// The batch was decided, and the decision is committed.
    Settled,
    /// The batch failed as a whole, or its results were too large for one commit. Its halves are
    /// next.
    Failed,
    /// These messages failed and wrote to state. Each is called alone, so that all others see only
    /// committed state.
    Isolated(&'a [usize]),
    /// These messages are out of hops. They are separated from those to call.
    Spent(&'a [usize]),
    /// From this message on, the batch has more dead letters than are allowed now. The messages
    /// before it are next.
    Excess(usize),
    /// The writes to state and the removal of expired state are too large for one commit. The next
    /// batch leaves expired state in place.
    TooMuchEnded,
    /// The batch has no effect, and the next one is cut from scratch.
    Discarded,
}

/// A call that was answered.
pub(crate) struct Call {
    pub(crate) side: Side,
    pub(crate) messages: usize,
    /// How long the call kept the partition waiting.
    pub(crate) took: Duration,
    /// How much of that time the component took.
    pub(crate) guest_time: Duration,
    /// The time limit of the call.
    pub(crate) time_max: Duration,
}

impl Plan {
    /// A plan that has learnt nothing yet.
    pub(crate) fn new(suspects: Suspects) -> Self {
        Self {
            suspects,
            ..Self::default()
        }
    }

    /// Sets the running revisions. If they differ from before, what was learnt is forgotten,
    /// because they may succeed where the earlier ones failed. Returns whether they differ.
    pub(crate) fn run(&mut self, revisions: Revisions) -> bool {
        if revisions == self.revisions {
            return false;
        }
        self.revisions = revisions;
        self.parts.clear();
        self.paces = Default::default();
        self.backoff.reset();
        self.reported.clear();
        self.longest = Default::default();
        true
    }

    /// What to cut next.
    pub(crate) fn next(&mut self, choice: &Choice<'_>) -> Want {
        let is_part = !self.parts.is_empty();
        let part = match choice.take {
            Take::Probe | Take::Suspect => 1,
            Take::Batch => self.parts.last().copied().unwrap_or(usize::MAX),
        };
        let current = self.paced(Side::Current, choice.current, part);
        let canary = choice
            .canary
            .map(|(percent, most)| (percent, self.paced(Side::Canary, most, part)));
        // The side of the batch is not known yet.
        let pace = match canary {
            None => self.pace(Side::Current),
            Some(_) => self.pace(Side::Current).max(self.pace(Side::Canary)),
        };
        let most = Most {
            messages: part.min(choice.current.messages).min(pace),
            ..choice.current
        };
        let due = self.due(choice, most.messages);
        self.alone = due.alone;
        let has_new = choice.has_new && !due.alone;
        Want {
            take: choice.take,
            most,
            lingers: due.offsets.is_empty() && has_new && choice.take == Take::Batch && !is_part,
            due,
            has_new,
            is_part,
            split: canary.map(|(percent, canary)| {
                let bounds = [current, canary].map(|most| (most.messages, most.bytes));
                Split::new(percent, choice.order, self.side, is_part, bounds)
            }),
        }
    }

    fn due(&self, choice: &Choice<'_>, messages_max: usize) -> Due {
        let Choice {
            parked,
            has_new,
            now,
            ..
        } = *choice;
        match choice.take {
            Take::Suspect => self.suspects.due(parked, has_new, now),
            _ if self.alone && has_new => Due::default(),
            Take::Probe => batcher::oldest_due(parked, now, &HashSet::new()),
            // New and parked messages take turns; otherwise retries would keep new messages out.
            Take::Batch if messages_max == 1 && has_new => {
                batcher::oldest_due(parked, now, &HashSet::new())
            }
            Take::Batch => {
                let most = batcher::retried_messages_max(messages_max, has_new);
                batcher::due(parked, now, most)
            }
        }
    }

    fn pace(&self, side: Side) -> usize {
        self.paces[side as usize].messages_max()
    }

    fn paced(&self, side: Side, most: Most, part: usize) -> Most {
        Most {
            messages: part.min(most.messages).min(self.pace(side)),
            ..most
        }
    }

    /// A first guess at the bytes of the next batch.
    pub(crate) fn bytes_before(&self) -> usize {
        self.bytes_before
    }

    /// Records a batch that was cut.
    pub(crate) fn cut(&mut self, batch: &Batch) {
        self.bytes_before = batch.columns.data.len();
        self.side = batch.side;
    }

    /// Records that messages are given up without a call, as a batch of the current revision.
    pub(crate) fn pick(&mut self) {
        self.side = Side::Current;
    }

    /// Forgets the parts of a batch: there is nothing to cut, or an operator asks for other
    /// messages.
    pub(crate) fn join(&mut self) {
        self.parts.clear();
    }

    /// Records the outcome of a batch.
    pub(crate) fn on(&mut self, batch: &Batch, came: Came<'_>) {
        let messages = batch.len();
        match came {
            Came::Settled => self.settled(batch),
            Came::Failed => self.part(&[messages / 2, messages - messages / 2]),
            Came::Isolated(failed) => self.part(&around(failed, messages)),
            Came::Spent(spent) => self.part(&chains::runs(spent, messages)),
            Came::Excess(0) | Came::Discarded => self.join(),
            Came::Excess(first) => self.part(&[first, messages - first]),
            Came::TooMuchEnded => self.leaves_ended = true,
        }
    }

    /// Cuts the batch again in parts of these sizes.
    fn part(&mut self, sizes: &[usize]) {
        self.parts.pop();
        self.parts.extend(sizes.iter().rev());
    }

    fn settled(&mut self, batch: &Batch) {
        self.suspects.answered();
        self.has_settled = true;
        self.leaves_ended = false;
        self.backoff.reset();
        if let Some(part) = self.parts.pop()
            && part > batch.len()
        {
            self.parts.push(part - batch.len());
        }
        if !self.reported.is_empty() {
            let here: HashSet<Offset> = batch.offsets.iter().copied().collect();
            self.reported.retain(|(offset, ..)| !here.contains(offset));
        }
    }

    /// Whether any batch was settled.
    pub(crate) fn has_settled(&self) -> bool {
        self.has_settled
    }

    /// Whether the next batch leaves expired state in place.
    pub(crate) fn leaves_ended(&self) -> bool {
        self.leaves_ended
    }

    /// Records a call that was answered.
    pub(crate) fn answered(&mut self, call: &Call) {
        self.paces[call.side as usize].answered(call.messages, call.guest_time, call.time_max);
        if call.side == Side::Current {
            let each = call.took / call.messages.max(1) as u32;
            let [longest, longest_each] = &mut self.longest;
            *longest = call.took.max(longest.mul_f64(LONGEST_FADES));
            *longest_each = each.max(longest_each.mul_f64(LONGEST_FADES));
        }
    }

    /// Records a call that timed out.
    pub(crate) fn timed_out(&mut self, side: Side, messages: usize) {
        self.paces[side as usize].timed_out(messages);
    }

    /// Maximum time a canary's call may keep the partition waiting: a multiple of the current
    /// revision's time. `None` if only the call's limit applies.
    pub(crate) fn call_max(
        &self,
        side: Side,
        messages: usize,
        time_max: Duration,
    ) -> Option<Duration> {
        let [longest, each] = self.longest;
        if side != Side::Canary || longest.is_zero() {
            return None;
        }
        let longest = longest.max(each.saturating_mul(messages as u32));
        let most = CANARY_CALL_MIN.max(longest.saturating_mul(CANARY_SLOWNESS_MAX));
        (most < time_max).then_some(most)
    }

    /// Whether this failure was reported to the breaker.
    pub(crate) fn has_reported(&self, batch: &Batch, failed: &Failed) -> bool {
        self.reported.contains(&reported(batch, failed))
    }

    /// Records failures that were reported to the breaker, until the batch is settled.
    pub(crate) fn report(&mut self, batch: &Batch, failed: &[Failed]) {
        let failed = failed.iter().map(|failed| reported(batch, failed));
        self.reported.extend(failed);
    }

    /// Forgets reported failures because the breaker has opened: their messages are called anew
    /// when it closes.
    pub(crate) fn forget_reports(&mut self) {
        self.reported.clear();
    }

    /// How long to wait for an obstacle: longer each time, until a batch is settled.
    pub(crate) fn back_off(&mut self, rng: &mut fastrand::Rng) -> Duration {
        self.backoff.next(rng)
    }
}

fn reported(batch: &Batch, failed: &Failed) -> Reported {
    let offset = batch.offsets[failed.message];
    (offset, batch.side, failed.class.clone())
}

/// Sizes of the parts of a batch if each of these messages is a part, and so is each group of
/// messages between them.
fn around(alone: &[usize], messages: usize) -> Vec<usize> {
    let mut parts = Vec::with_capacity(2 * alone.len() + 1);
    let mut begin = 0;
    for &message in alone {
        parts.extend([message - begin, 1]);
        begin = message + 1;
    }
    parts.push(messages - begin);
    parts.retain(|&part| part > 0);
    parts
}

#[cfg(test)]
mod tests;
