//! Bounds the records of failed attempts, over all partitions of a host. Each partition may park
//! thousands of messages and keeps the last attempts of each, with their reasons.
//!
//! At the bound, a partition with parked messages takes no new ones until some are settled, and a
//! partition without takes one message at a time. So retries continue everywhere, no partition is
//! blocked for good by others, and no message is dropped. A further attempt at a parked message is
//! shortened and replaces the earlier ones; each message counts with that size from the beginning.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use millrace_model::Progress;
use millrace_model::bounds::{ATTEMPT_SHORT_REASON_BYTES_MAX, FAILURE_CLASS_BYTES_MAX};
use millrace_model::progress::Parked;

/// Size of a parked message besides its record, and of an attempt besides its texts. Both are in
/// memory twice, in the worker and in the engine.
const ENTRY_BYTES: usize = 160;
const TIMES_IN_MEMORY: usize = 2;
/// Length of the note about attempts that were left out.
const LEFT_OUT_BYTES: usize = 72;
/// Maximum size of a shortened attempt.
const SHORT_BYTES: usize =
    ENTRY_BYTES + FAILURE_CLASS_BYTES_MAX + ATTEMPT_SHORT_REASON_BYTES_MAX + LEFT_OUT_BYTES;
/// The minimum size that a parked message counts with. It may grow to this size without a check.
const LEAST_BYTES: usize = TIMES_IN_MEMORY * (ENTRY_BYTES + SHORT_BYTES);

/// Bytes of records, and their maximum.
#[derive(Debug)]
pub(crate) struct Remembered {
    bytes: AtomicUsize,
    /// Bytes that messages in work may add.
    expected: AtomicUsize,
    bytes_max: usize,
}

/// One worker's share, returned when dropped.
#[derive(Debug)]
pub(crate) struct Part {
    of: Arc<Remembered>,
    /// Bytes that count for this worker now.
    bytes: usize,
    /// Bytes that its messages in work may add.
    expected: usize,
    /// Bytes that will count when nothing is in work.
    settled: usize,
}

impl Remembered {
    pub(crate) fn new(bytes_max: usize) -> Arc<Self> {
        Arc::new(Self {
            bytes: AtomicUsize::new(0),
            expected: AtomicUsize::new(0),
            bytes_max,
        })
    }

    fn is_full(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) >= self.bytes_max
    }

    /// Bytes that are left if every message in work is parked.
    fn left(&self) -> usize {
        let expected = self.expected.load(Ordering::Relaxed);
        let bytes = self.bytes.load(Ordering::Relaxed);
        self.bytes_max
            .saturating_sub(bytes.saturating_add(expected))
    }
}

impl Part {
    pub(crate) fn new(of: &Arc<Remembered>, progress: &Progress) -> Self {
        let mut part = Self {
            of: Arc::clone(of),
            bytes: 0,
            expected: 0,
            settled: 0,
        };
        part.set(progress);
        part
    }

    /// Sets the worker's records.
    pub(crate) fn set(&mut self, progress: &Progress) {
        self.propose(progress);
        self.settled = self.bytes;
    }

    /// Counts a progress before its commit, so that decisions of other workers include it.
    pub(crate) fn propose(&mut self, progress: &Progress) {
        self.move_to(progress.parked.iter().map(cost).sum(), 0);
    }

    /// Records that the proposed progress is committed.
    pub(crate) fn settle(&mut self) {
        self.settled = self.bytes;
    }

    /// Counts new messages that were read and may all be parked.
    pub(crate) fn expect(&mut self, messages: usize) {
        self.move_to(self.settled, messages * LEAST_BYTES);
    }

    /// Records that nothing is in work.
    pub(crate) fn rest(&mut self) {
        self.move_to(self.settled, 0);
    }

    /// Whether memory is short: then only a message's last attempt is kept, shortened.
    pub(crate) fn is_short(&self) -> bool {
        self.of.is_full()
    }

    fn move_to(&mut self, bytes: usize, expected: usize) {
        let replace = |all: &AtomicUsize, before: usize, now: usize| {
            all.fetch_add(now, Ordering::Relaxed);
            all.fetch_sub(before, Ordering::Relaxed);
        };
        replace(&self.of.bytes, self.bytes, bytes);
        replace(&self.of.expected, self.expected, expected);
        (self.bytes, self.expected) = (bytes, expected);
    }

    /// How many new messages may be read, given the partition's own room. Messages that are only in
    /// work elsewhere never stop a partition from reading one message.
    pub(crate) fn new_messages_max(&self, room: usize) -> usize {
        let least = usize::from(self.settled == 0 || !self.of.is_full());
        room.min((self.of.left() / LEAST_BYTES).max(least))
    }

    /// Why no new message may be read; `None` if some may.
    pub(crate) fn why_none(&self) -> Option<String> {
        let is_full = self.new_messages_max(1) == 0;
        is_full.then(|| {
            format!(
                "the host has {} bytes of records of failed attempts, and the maximum is {}: new messages wait until parked ones are settled",
                self.of.bytes.load(Ordering::Relaxed),
                self.of.bytes_max
            )
        })
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.move_to(0, 0);
    }
}

fn cost(parked: &Parked) -> usize {
    let words = |attempt: &millrace_model::progress::Attempt| {
        ENTRY_BYTES + attempt.class.len() + attempt.reason.len()
    };
    let log = parked.log.iter().map(words).sum::<usize>();
    TIMES_IN_MEMORY * (ENTRY_BYTES + log.max(SHORT_BYTES))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parked(count: usize) -> Progress {
        let parked = Parked {
            attempts: 1,
            ..Parked::default()
        };
        Progress {
            parked: vec![parked; count],
            ..Progress::default()
        }
    }

    #[test]
    fn at_the_hosts_bound_retries_go_on_and_new_messages_wait() {
        let host = Remembered::new(10 * LEAST_BYTES);
        let mut some = Part::new(&host, &parked(4));
        let none = Part::new(&host, &parked(0));
        let mut many = Part::new(&host, &parked(4));
        assert_eq!([&some, &none, &many].map(|p| p.new_messages_max(9)), [2; 3]);
        many.set(&parked(6));
        let rooms = [&some, &none, &many].map(|part| part.new_messages_max(9));
        assert_eq!(rooms, [0, 1, 0]);
        assert!(none.why_none().is_none() && some.why_none().is_some());
        some.set(&parked(1));
        assert_eq!(some.new_messages_max(9), 3);
        drop(many);
        assert_eq!(some.new_messages_max(9), 9);
    }

    #[test]
    fn what_is_under_way_counts_until_it_is_over_or_so() {
        let host = Remembered::new(10 * LEAST_BYTES);
        let mut one = Part::new(&host, &parked(2));
        let other = Part::new(&host, &parked(1));
        one.expect(5);
        assert_eq!(other.new_messages_max(9), 2);
        // The messages may succeed, so nothing waits because of them and nothing is shortened.
        one.expect(500);
        assert_eq!(other.new_messages_max(9), 1);
        assert!(!other.is_short() && other.why_none().is_none());
        one.propose(&parked(9));
        assert!(other.is_short());
        one.rest();
        assert_eq!(other.new_messages_max(9), 7);
        one.propose(&parked(9));
        one.settle();
        one.rest();
        assert!(other.is_short());
    }

    #[test]
    fn an_attempt_in_few_words_costs_no_more_than_a_message_counts_with() {
        let mut progress = parked(1);
        let before = cost(&progress.parked[0]);
        progress.parked[0].log.push(millrace_model::Attempt {
            at: Default::default(),
            revision: 1,
            class: "c".repeat(FAILURE_CLASS_BYTES_MAX),
            reason: "r".repeat(ATTEMPT_SHORT_REASON_BYTES_MAX + LEFT_OUT_BYTES),
        });
        assert_eq!(cost(&progress.parked[0]), before);
    }
}
