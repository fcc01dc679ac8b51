//! What all partitions of a host remember of failed attempts, and its bound: each may park thousands of messages, and of each the last
//! attempts are kept with their reasons.
//!
//! At the bound a partition that has parked messages takes no new ones before some are settled, and one that has none takes one at a
//! time: retries go on everywhere, nobody is blocked by others for good, and nothing is dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use millrace_model::Progress;
use millrace_model::progress::Parked;

/// What a parked message takes beside what is remembered of it, and likewise an attempt beside its words. Each is in memory twice, with
/// the worker and with the engine.
const ENTRY_BYTES: usize = 160;
const TIMES_IN_MEMORY: usize = 2;

/// Bytes that are remembered, and how many may be.
#[derive(Debug)]
pub(crate) struct Remembered {
    bytes: AtomicUsize,
    bytes_max: usize,
}

/// The part of one worker, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Part {
    of: Arc<Remembered>,
    bytes: usize,
}

impl Remembered {
    pub(crate) fn new(bytes_max: usize) -> Arc<Self> {
        Arc::new(Self {
            bytes: AtomicUsize::new(0),
            bytes_max,
        })
    }

    fn is_full(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) > self.bytes_max
    }
}

impl Part {
    pub(crate) fn new(of: &Arc<Remembered>, progress: &Progress) -> Self {
        let mut part = Self {
            of: Arc::clone(of),
            bytes: 0,
        };
        part.set(progress);
        part
    }

    /// The worker remembers this now.
    pub(crate) fn set(&mut self, progress: &Progress) {
        let bytes = progress.parked.iter().map(cost).sum();
        self.move_to(bytes);
    }

    fn move_to(&mut self, bytes: usize) {
        self.of.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.of.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.bytes = bytes;
    }

    /// How many new messages may be read, of so many that the partition has room for.
    pub(crate) fn new_messages_max(&self, room: usize) -> usize {
        match self.of.is_full() {
            false => room,
            true if self.bytes == 0 => room.min(1),
            true => 0,
        }
    }

    /// Why there may be none, if that is so.
    pub(crate) fn why_none(&self) -> Option<String> {
        let full = self.of.is_full() && self.bytes > 0;
        full.then(|| {
            format!(
                "the host remembers {} bytes of failed attempts, at most {} are kept: new messages wait until parked ones are settled",
                self.of.bytes.load(Ordering::Relaxed),
                self.of.bytes_max
            )
        })
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.move_to(0);
    }
}

fn cost(parked: &Parked) -> usize {
    let words = |attempt: &millrace_model::progress::Attempt| {
        ENTRY_BYTES + attempt.class.len() + attempt.reason.len()
    };
    TIMES_IN_MEMORY * (ENTRY_BYTES + parked.log.iter().map(words).sum::<usize>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parked(count: usize) -> Progress {
        let parked = Parked {
            offset: Default::default(),
            ordering: None,
            due: None,
            attempts: 1,
            first_failed_at: Default::default(),
            log: Vec::new(),
        };
        Progress {
            parked: vec![parked; count],
            ..Progress::default()
        }
    }

    #[test]
    fn at_the_hosts_bound_retries_go_on_and_new_messages_wait() {
        let host = Remembered::new(10 * TIMES_IN_MEMORY * ENTRY_BYTES);
        let mut some = Part::new(&host, &parked(4));
        let none = Part::new(&host, &parked(0));
        let mut many = Part::new(&host, &parked(6));
        assert_eq!([&some, &none, &many].map(|p| p.new_messages_max(9)), [9; 3]);
        many.set(&parked(7));
        let rooms = [&some, &none, &many].map(|part| part.new_messages_max(9));
        assert_eq!(rooms, [0, 1, 0]);
        assert!(none.why_none().is_none() && some.why_none().is_some());
        some.set(&parked(1));
        assert_eq!(some.new_messages_max(9), 9);
        some.set(&parked(8));
        drop(many);
        assert_eq!(some.new_messages_max(9), 9);
    }
}
