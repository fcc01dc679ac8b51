//! Divides messages between two revisions: the current one, and a canary that takes the messages of
//! a share of the keys. A batch belongs to one side. Messages of the other side are parked and form
//! that side's next batch.
//!
//! A key stays on its side while the share stays the same. Messages of one key stay in order
//! whichever side runs: parked ones come first, and the worker runs one batch at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use metrics::{Counter, counter};
use millrace_model::bounds::CANARY_ASIDE_MESSAGES_MAX;
use millrace_model::hash::fnv1a;
use millrace_model::processor::Order;
use millrace_model::{Offset, Parked, ProcessorName};
use serde::{Deserialize, Serialize};

use crate::dispatch::counts::Counts;
use crate::dispatch::gate::Gate;
use crate::dispatch::live::Live;

/// The revision that a batch is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Side {
    #[default]
    Current,
    Canary,
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::Current => Self::Canary,
            Self::Canary => Self::Current,
        }
    }
}

/// A revision that takes a share of the messages.
pub(crate) struct Canary {
    pub(crate) live: Arc<Live>,
    pub(crate) percent: u32,
    /// The canary's own breaker. When it opens, all messages belong to the current revision.
    pub(crate) gate: Arc<Gate>,
    pub(crate) tally: Arc<Tally>,
}

/// The results of one side since the canary began on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SideStatus {
    /// The revision.
    pub revision: u32,
    /// Messages that the revision processed.
    pub messages: u64,
    /// Failed attempts.
    pub failed: u64,
    /// Calls that failed as a whole.
    pub failed_calls: u64,
    /// Messages that the revision gave up.
    pub dead_letters: u64,
    /// Messages that this canary would have given up and passed to the current revision. A canary
    /// gives none up.
    pub asked_again: u64,
}

/// The counts of both sides.
pub(crate) struct Tally {
    current: Count,
    canary: Count,
}

struct Count {
    messages: AtomicU64,
    failed: AtomicU64,
    failed_calls: AtomicU64,
    dead_letters: AtomicU64,
    asked_again: AtomicU64,
    ok_total: Counter,
    failed_total: Counter,
}

impl Tally {
    /// A tally of zeros.
    pub(crate) fn new(processor: &ProcessorName) -> Self {
        Self {
            current: Count::new(processor, "current"),
            canary: Count::new(processor, "canary"),
        }
    }

    /// Counts a committed batch of this side.
    pub(crate) fn committed(&self, side: Side, counts: Counts) {
        let count = self.of(side);
        let add = |to: &AtomicU64, number| to.fetch_add(number, Ordering::Relaxed);
        add(&count.messages, counts.ok + counts.failed);
        add(&count.failed, counts.failed);
        add(&count.dead_letters, counts.dead_letters);
        add(&count.asked_again, counts.asked_again);
        count.ok_total.increment(counts.ok);
        count.failed_total.increment(counts.failed);
    }

    /// Counts a call of this side that failed as a whole.
    pub(crate) fn call_failed(&self, side: Side) {
        let failed = &self.of(side).failed_calls;
        failed.fetch_add(1, Ordering::Relaxed);
    }

    /// The results of one side.
    pub(crate) fn status(&self, side: Side, revision: u32) -> SideStatus {
        let count = self.of(side);
        let read = |of: &AtomicU64| of.load(Ordering::Relaxed);
        SideStatus {
            revision,
            messages: read(&count.messages),
            failed: read(&count.failed),
            failed_calls: read(&count.failed_calls),
            dead_letters: read(&count.dead_letters),
            asked_again: read(&count.asked_again),
        }
    }

    fn of(&self, side: Side) -> &Count {
        match side {
            Side::Current => &self.current,
            Side::Canary => &self.canary,
        }
    }
}

impl Count {
    fn new(processor: &ProcessorName, side: &'static str) -> Self {
        let total = |outcome: &'static str| counter!("millrace_canary_messages_total", "processor" => processor.to_string(), "side" => side, "outcome" => outcome);
        Self {
            messages: AtomicU64::default(),
            failed: AtomicU64::default(),
            failed_calls: AtomicU64::default(),
            dead_letters: AtomicU64::default(),
            asked_again: AtomicU64::default(),
            ok_total: total("ok"),
            failed_total: total("failed"),
        }
    }
}

/// The side of a message by its key, or without a key by its offset.
pub(crate) fn side_of(percent: u32, key: Option<&[u8]>, offset: Offset) -> Side {
    let hash = match key {
        Some(key) => fnv1a(key.iter().copied()),
        None => offset.0,
    };
    match scattered(hash) % 100 < u64::from(percent) {
        true => Side::Canary,
        false => Side::Current,
    }
}

/// Spreads small differences over all bits (the final step of SplitMix64).
fn scattered(mut bits: u64) -> u64 {
    bits = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// Decides for each message, in order, whether it belongs to the batch's side.
#[derive(Clone, Debug)]
pub(crate) struct Split {
    percent: u32,
    in_line: bool,
    /// The batch's side; `None` until a message is added.
    side: Option<Side>,
    /// The side to choose if both have messages.
    prefers: Side,
    /// Number of messages that may still be parked for the other side.
    aside_max: usize,
    /// Maximum messages and bytes of a batch of the current revision, and of the canary.
    bounds: [(usize, usize); 2],
}

/// What to do with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sorted {
    /// It belongs to the batch's side: take it.
    Take,
    /// It belongs to the other side: park it for that side's next batch.
    Aside,
    /// End the batch before it.
    End,
}

impl Split {
    /// For a batch that follows one of side `before`: if both sides have messages, the other side
    /// is next. With `again`, the batch repeats another one in parts, and all parts belong to the
    /// same side.
    pub(crate) fn new(
        percent: u32,
        order: Order,
        before: Side,
        again: bool,
        bounds: [(usize, usize); 2],
    ) -> Self {
        Self {
            percent,
            in_line: order == Order::Partition,
            side: None,
            prefers: if again { before } else { before.other() },
            aside_max: 0,
            bounds,
        }
    }

    /// Maximum messages and bytes of the batch.
    pub(crate) fn bounds(&self) -> (usize, usize) {
        self.bounds[usize::from(self.side() == Side::Canary)]
    }

    /// The batch's side so far.
    pub(crate) fn side(&self) -> Side {
        self.side.unwrap_or_default()
    }

    /// Chooses the side for parked messages with these keys and offsets, which are about to be
    /// added.
    pub(crate) fn choose<'a>(
        &mut self,
        mut messages: impl Iterator<Item = (Option<&'a [u8]>, Offset, bool)>,
    ) {
        let Some((key, offset, current_only)) = messages.next() else {
            return;
        };
        let first = self.side_of_parked(key, offset, current_only);
        let is_preferred = |(key, offset, current_only)| {
            self.side_of_parked(key, offset, current_only) == self.prefers
        };
        let other = !self.in_line && first != self.prefers && messages.any(is_preferred);
        self.side = Some(if other { self.prefers } else { first });
    }

    /// Prepares for new messages. Only the larger side parks messages of the other side, and only
    /// up to a maximum number, because they are a small part of what it takes.
    pub(crate) fn begin_new(&mut self, parked: &[Parked], again: bool) {
        let larger = match self.percent > 50 {
            true => Side::Canary,
            false => Side::Current,
        };
        if self.side.is_none() && !again {
            self.prefers = larger;
        }
        if self.in_line || self.side.unwrap_or(self.prefers) != larger {
            return;
        }
        let waiting = parked.iter().filter(|p| p.due.is_none()).count();
        self.aside_max = CANARY_ASIDE_MESSAGES_MAX.saturating_sub(waiting);
    }

    /// A parked message's side. A message that a canary failed belongs to the current revision,
    /// whatever its key.
    fn side_of_parked(&self, key: Option<&[u8]>, offset: Offset, current_only: bool) -> Side {
        match current_only {
            true => Side::Current,
            false => side_of(self.percent, key, offset),
        }
    }

    /// What to do with a parked message.
    pub(crate) fn sort_parked(
        &mut self,
        key: Option<&[u8]>,
        offset: Offset,
        current_only: bool,
    ) -> Sorted {
        let side = self.side_of_parked(key, offset, current_only);
        match *self.side.get_or_insert(side) == side {
            true => Sorted::Take,
            false if self.in_line => Sorted::End,
            false => Sorted::Aside,
        }
    }

    /// What to do with a new message.
    pub(crate) fn sort_new(&mut self, key: Option<&[u8]>, offset: Offset) -> Sorted {
        let side = side_of(self.percent, key, offset);
        let wanted = match self.side {
            Some(side) => side,
            // Nothing may be parked: the batch takes the side of its first message.
            None if self.aside_max == 0 => side,
            None => self.prefers,
        };
        if side == wanted {
            self.side = Some(side);
            return Sorted::Take;
        }
        match self.aside_max {
            0 => Sorted::End,
            _ => {
                self.aside_max -= 1;
                Sorted::Aside
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sides(percent: u32) -> Vec<Side> {
        let keys = (0..2_000).map(|n| format!("customer-{n}"));
        keys.map(|key| side_of(percent, Some(key.as_bytes()), Offset(0)))
            .collect()
    }

    #[test]
    fn a_share_of_the_keys_is_about_what_was_asked_for_and_a_larger_one_holds_the_smaller() {
        let mut before = sides(0);
        assert!(before.iter().all(|side| *side == Side::Current));
        for percent in [1, 10, 20, 50, 99, 100] {
            let now = sides(percent);
            let share = now.iter().filter(|side| **side == Side::Canary).count();
            let wanted = percent as usize * 20;
            assert!(share.abs_diff(wanted) < 60, "{share} of {wanted}");
            let left = before
                .iter()
                .zip(&now)
                .any(|(before, now)| (*before, *now) == (Side::Canary, Side::Current));
            assert!(!left, "at {percent} %");
            before = now;
        }
    }

    #[test]
    fn messages_without_a_key_are_shared_out_by_their_offsets() {
        let side = |offset| side_of(20, None, Offset(offset));
        let share = (0..1_000).filter(|&o| side(o) == Side::Canary).count();
        assert!((150..250).contains(&share), "{share}");
    }
}
