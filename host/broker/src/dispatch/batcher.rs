//! Cuts batches: due parked messages first, then new ones, up to the policy's bounds. It decides
//! only; the worker reads. A new message that must wait behind a parked one with the same key is
//! parked here.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use millrace_model::batch::RecordView;
use millrace_model::bounds::PARKED_MESSAGES_MAX;
use millrace_model::hash::fnv1a;
use millrace_model::processor::Order;
use millrace_model::{ColumnBatch, Offset, Parked, Timestamp};

use crate::dispatch::dead_letter;
use crate::dispatch::sides::{Side, Sorted, Split};
use crate::dispatch::source::Source;
use crate::ground::columns::put;
use crate::ground::planted::planted;
use crate::handler::Cause;

/// Messages for one call.
#[derive(Clone, Debug, Default)]
pub(crate) struct Batch {
    /// The messages in the form that the handler gets.
    pub(crate) columns: Arc<ColumnBatch>,
    /// Their offsets in the input partition: first the retried ones, then the new ones, each
    /// ascending.
    pub(crate) offsets: Vec<Offset>,
    /// How many of the messages are retries.
    pub(crate) retried: usize,
    /// How often each message was redriven as a dead letter; empty for an input that is not a
    /// redrive topic.
    pub(crate) redrives: Vec<u32>,
    /// The side that the batch belongs to.
    pub(crate) side: Side,
    /// New messages to park: they wait behind a parked message with the same key, or belong to the
    /// other side.
    pub(crate) skipped: Vec<Parked>,
    /// The offset after everything that the batch covers.
    pub(crate) next: Offset,
}

impl Batch {
    /// The number of messages.
    pub(crate) fn len(&self) -> usize {
        self.offsets.len()
    }
}

/// The order key of every message if the whole partition keeps its order.
pub(super) const WHOLE_PARTITION: u64 = 0;

/// The order key of a message. It is stored with progress, so it must never change.
pub(crate) fn ordering(order: Order, key: Option<&[u8]>) -> Option<u64> {
    match order {
        Order::None => None,
        Order::Partition => Some(WHOLE_PARTITION),
        Order::Key => key.map(|key| fnv1a(key.iter().copied())),
    }
}

/// A message that waits behind an earlier one.
pub(crate) fn behind(offset: Offset, ordering: Option<u64>) -> Parked {
    Parked {
        offset,
        ordering,
        ..Parked::default()
    }
}

/// Parked messages to run now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Due {
    /// The messages' offsets, ascending.
    pub(crate) offsets: Vec<Offset>,
    /// Whether it is a single message to call alone, as after it failed its whole batch.
    pub(crate) alone: bool,
}

/// The parked messages to run now: due ones and those behind them, unless an earlier one with the
/// same order key still waits.
pub(crate) fn due(parked: &[Parked], now: Timestamp, messages_max: usize) -> Due {
    let mut due = Due::default();
    let mut held = HashSet::new();
    for message in parked {
        if due.offsets.len() == messages_max {
            break;
        }
        if message.ordering.is_some_and(|o| held.contains(&o)) {
            continue;
        }
        let runs = message.due.is_none_or(|due| due <= now);
        if runs && fails_batches(message) {
            if due.offsets.is_empty() {
                due.offsets.push(message.offset);
                due.alone = true;
                return due;
            }
        } else if runs {
            due.offsets.push(message.offset);
            continue;
        }
        held.extend(message.ordering);
    }
    due
}

/// The parked message to call alone: among those that could run now, the one that was due first.
pub(crate) fn oldest_due(parked: &[Parked], now: Timestamp, but_not: &HashSet<Offset>) -> Due {
    let mut held = HashSet::new();
    let fronts = parked
        .iter()
        .filter(|message| message.ordering.is_none_or(|o| held.insert(o)));
    let due = fronts.filter(|message| message.due.is_none_or(|due| due <= now));
    let due = due.filter(|message| !but_not.contains(&message.offset));
    let oldest = due.min_by_key(|message| message.due);
    Due {
        offsets: oldest.map(|message| message.offset).into_iter().collect(),
        alone: oldest.is_some(),
    }
}

/// Tells which parked messages only the current revision may process: those that a canary failed,
/// and those behind them, which must not overtake.
pub(crate) fn current_only(parked: &[Parked]) -> impl Fn(&Parked) -> bool + use<> {
    let asked_again = parked.iter().filter(|parked| parked.current_only);
    let orders: HashSet<u64> = match planted!(OthersOvertake) {
        true => HashSet::new(),
        false => asked_again.filter_map(|parked| parked.ordering).collect(),
    };
    move |parked| parked.current_only || parked.ordering.is_some_and(|o| orders.contains(&o))
}

/// Whether a message waits because of a revision whose decisions no longer count, and so is due at
/// once. This also holds for a message that was held under another revision.
pub(crate) fn waits_in_vain(
    parked: &Parked,
    revision: u32,
    voided: &[u32],
    now: Timestamp,
) -> bool {
    let is_held = parked.held_since.is_some() && parked.revision != revision;
    let waits = parked.due.is_some_and(|due| due > now);
    waits && (is_held || voided.contains(&parked.revision))
}

/// When the next parked message is due; `None` if nothing is parked.
pub(crate) fn next_due(parked: &[Parked]) -> Option<Timestamp> {
    next_front(parked).map(|message| message.due.unwrap_or_default())
}

/// The parked message that is due next.
pub(crate) fn next_front(parked: &[Parked]) -> Option<&Parked> {
    let mut held = HashSet::new();
    let fronts = parked
        .iter()
        .filter(|message| message.ordering.is_none_or(|o| held.insert(o)));
    fronts.min_by_key(|message| message.due.unwrap_or_default())
}

/// Whether the message's last attempt failed its whole batch. It would do so again.
fn fails_batches(message: &Parked) -> bool {
    let last = message.log.last().map(|attempt| attempt.class.as_str());
    [Cause::Trap, Cause::Timeout, Cause::Memory, Cause::BadAnswer]
        .iter()
        .any(|cause| last == Some(cause.as_str()))
}

/// How many new messages may be read: none while the whole partition waits, and never more than may
/// be parked. A message that an earlier revision parked for the partition's order holds back all
/// keys.
pub(crate) fn new_messages_max(order: Order, parked: &[Parked]) -> usize {
    let waits = match order {
        Order::Partition => !parked.is_empty(),
        Order::Key => parked.iter().any(|p| p.ordering == Some(WHOLE_PARTITION)),
        Order::None => false,
    };
    if waits {
        return 0;
    }
    PARKED_MESSAGES_MAX.saturating_sub(parked.len())
}

/// How many of a batch's messages may be retries: half, if new ones wait.
pub(crate) fn retried_messages_max(messages_max: usize, has_new: bool) -> usize {
    match has_new {
        true => messages_max.div_ceil(2),
        false => messages_max,
    }
}

/// A batch being built.
pub(crate) struct Cut {
    columns: ColumnBatch,
    offsets: Vec<Offset>,
    retried: usize,
    redrives: Vec<u32>,
    skipped: Vec<Parked>,
    bytes: usize,
    messages_max: usize,
    bytes_max: usize,
    redriven: bool,
    /// Whether new messages wait. If so, retries must leave room for them.
    shared: bool,
    /// How messages are divided if there is a canary.
    split: Option<Split>,
}

impl Cut {
    /// An empty batch of a partition of the topic. With `redriven`, its messages carry their
    /// original position.
    pub(crate) fn new(
        topic: &str,
        partition: u32,
        redriven: bool,
        messages_max: usize,
        bytes_max: usize,
    ) -> Self {
        Self {
            columns: ColumnBatch {
                topic: topic.to_owned(),
                partition,
                ..ColumnBatch::default()
            },
            offsets: Vec::new(),
            retried: 0,
            redrives: Vec::new(),
            skipped: Vec::new(),
            bytes: 0,
            messages_max,
            bytes_max,
            redriven,
            shared: false,
            split: None,
        }
    }

    /// Makes the batch take messages of one side only.
    pub(crate) fn split(&mut self, split: Split) {
        self.split = Some(split);
    }

    /// How messages are divided between the sides.
    pub(crate) fn split_mut(&mut self) -> Option<&mut Split> {
        self.split.as_mut()
    }

    /// Reserves half of the batch's bytes for new messages.
    pub(crate) fn share(&mut self) {
        self.shared = true;
    }

    /// Whether a bound is reached.
    pub(crate) fn is_full(&self) -> bool {
        self.offsets.len() >= self.messages_max || self.bytes >= self.bytes_max
    }

    /// Whether nothing is in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.offsets.is_empty()
    }

    /// Allocates memory for about this many messages and bytes.
    pub(crate) fn reserve(&mut self, messages: usize, bytes: usize) {
        self.offsets.reserve(messages);
        let columns = &mut self.columns;
        columns.data.reserve(bytes);
        columns.offsets.reserve(messages);
        columns.timestamps.reserve(messages);
        columns.attempts.reserve(messages);
        columns.keys.reserve(messages * 2);
        columns.values.reserve(messages * 2);
        columns.header_ends.reserve(messages);
    }

    /// Adds a parked message for its next attempt, or leaves it parked if it belongs to the other
    /// side; false if it no longer fits.
    pub(crate) fn take_retried(
        &mut self,
        bytes: &Bytes,
        view: &RecordView,
        attempts: u32,
        current_only: bool,
    ) -> bool {
        if self.shared && self.bytes >= self.bytes_max / 2 && !self.is_empty() {
            return false;
        }
        if let Some(split) = &mut self.split {
            match split.sort_parked(key_of(bytes, view), view.offset, current_only) {
                Sorted::Take => {}
                Sorted::Aside => return true,
                Sorted::End => return false,
            }
        }
        let taken = self.take(bytes, view, attempts.saturating_add(1));
        self.retried += usize::from(taken);
        taken
    }

    /// Adds new messages until a bound is reached. Those that must wait behind a parked message are
    /// parked. At most `room` are added or parked.
    pub(crate) fn take_new(
        &mut self,
        source: &mut Source,
        order: Order,
        parked: &[Parked],
        mut room: usize,
    ) {
        let held: HashSet<u64> = parked.iter().filter_map(|p| p.ordering).collect();
        while room > 0
            && let Some((batch, view)) = source.peek()
        {
            let bytes = batch.bytes();
            if let Some(ordering) = waits_behind(&held, order, bytes, view) {
                self.skipped.push(behind(view.offset, Some(ordering)));
            } else {
                match self.sort_new(bytes, view) {
                    Sorted::Take if self.take(bytes, view, 1) => {}
                    Sorted::Take | Sorted::End => break,
                    Sorted::Aside => {
                        let ordering = ordering(order, key_of(bytes, view));
                        self.skipped.push(behind(view.offset, ordering));
                    }
                }
            }
            source.advance();
            room -= 1;
        }
    }

    fn sort_new(&mut self, bytes: &Bytes, view: &RecordView) -> Sorted {
        let ends = self.is_full() && !self.is_empty();
        match &mut self.split {
            None => Sorted::Take,
            Some(_) if ends => Sorted::End,
            Some(split) => split.sort_new(key_of(bytes, view), view.offset),
        }
    }

    fn take(&mut self, bytes: &Bytes, view: &RecordView, attempt: u32) -> bool {
        if let Some(split) = self.split.as_ref().filter(|_| self.offsets.is_empty()) {
            (self.messages_max, self.bytes_max) = split.bounds();
        }
        let length = |range: &Option<Range<usize>>| range.as_ref().map_or(0, |r| r.len());
        let size = length(&view.key) + length(&view.value);
        if !self.is_empty() && (self.is_full() || self.bytes + size > self.bytes_max) {
            return false;
        }
        let columns = &mut self.columns;
        let lying = |range: &Option<Range<usize>>| range.clone().map(|range| &bytes[range]);
        put(&mut columns.data, &mut columns.keys, lying(&view.key));
        put(&mut columns.data, &mut columns.values, lying(&view.value));
        let mut history = self.redriven.then(History::default);
        let before = columns.data.len();
        if view.header_count() > 0 {
            put_headers(columns, bytes, view, history.as_mut());
        }
        let origin = history.as_ref().and_then(|history| history.origin);
        self.redrives
            .extend(history.map(|history| history.redrives));
        self.bytes += size + columns.data.len() - before;
        columns.header_ends.push((columns.headers.len() / 4) as u32);
        columns.offsets.push(origin.unwrap_or(view.offset.0));
        columns.timestamps.push(view.timestamp.0);
        columns.attempts.push(attempt);
        self.offsets.push(view.offset);
        true
    }

    /// The finished batch; `next` is the offset after everything that it covers.
    pub(crate) fn finish(self, next: Offset) -> Batch {
        Batch {
            columns: Arc::new(self.columns),
            offsets: self.offsets,
            retried: self.retried,
            redrives: self.redrives,
            side: self.split.map(|split| split.side()).unwrap_or_default(),
            skipped: self.skipped,
            next,
        }
    }
}

fn key_of<'a>(bytes: &'a Bytes, view: &RecordView) -> Option<&'a [u8]> {
    view.key.as_ref().map(|key| &bytes[key.clone()])
}

fn waits_behind(
    held: &HashSet<u64>,
    order: Order,
    bytes: &Bytes,
    view: &RecordView,
) -> Option<u64> {
    if held.is_empty() {
        return None;
    }
    ordering(order, key_of(bytes, view)).filter(|ordering| held.contains(ordering))
}

/// The earlier life of a redriven message.
struct History {
    /// The message's original offset.
    origin: Option<u64>,
    /// How often it was redriven: at least once, even if the header is missing or wrong.
    redrives: u32,
}

impl Default for History {
    fn default() -> Self {
        Self {
            origin: None,
            redrives: 1,
        }
    }
}

impl History {
    /// Takes a header if it belongs to the history; returns whether it did.
    fn take(&mut self, name: &[u8], value: Option<&[u8]>) -> bool {
        let text = value.and_then(|value| str::from_utf8(value).ok());
        if name == dead_letter::ORIGIN_OFFSET.as_bytes() {
            self.origin = text.and_then(|text| text.parse().ok());
        } else if name == dead_letter::REDRIVES.as_bytes() {
            self.redrives = text.and_then(|text| text.parse().ok()).unwrap_or(1);
        } else {
            return false;
        }
        true
    }
}

/// Adds a message's headers; for a redriven message, without those of its history.
fn put_headers(
    columns: &mut ColumnBatch,
    bytes: &Bytes,
    view: &RecordView,
    mut history: Option<&mut History>,
) {
    for (name, value) in view.headers(bytes).flatten() {
        if let Some(history) = &mut history {
            let value = value.clone().map(|value| &bytes[value]);
            if history.take(&bytes[name.clone()], value) {
                continue;
            }
        }
        let (data, spans) = (&mut columns.data, &mut columns.headers);
        put(data, spans, Some(&bytes[name]));
        put(data, spans, value.map(|value| &bytes[value]));
    }
}

#[cfg(test)]
mod tests;
