//! What a connection is doing and since when: the sweep closes connections that idle too long, and at the bound the least active one
//! makes room for a new one.
//!
//! [`super::stream`] and the door that serves the connection report what happens on it. A request is under way from its whole head until the
//! last byte of its answer has left.

use std::sync::Mutex;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64};
use std::task::Waker;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// What is happening on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Phase {
    /// No part of a request has arrived yet.
    Waiting = 0,
    /// A request's head is arriving.
    Head = 1,
    /// A request is being answered.
    Busy = 2,
    /// The whole answer is ready and being sent.
    Answered = 3,
    /// It is being closed; incoming data is discarded.
    Ending = 4,
    /// Both sides may send anything, for any time.
    Session = 5,
}

impl Phase {
    fn of(number: u8) -> Self {
        match number {
            0 => Self::Waiting,
            1 => Self::Head,
            2 => Self::Busy,
            3 => Self::Answered,
            4 => Self::Ending,
            _ => Self::Session,
        }
    }
}

/// One connection, seen from outside.
pub(crate) struct Line {
    phase: AtomicU8,
    since_ms: AtomicU64,
    /// Whether it has had a request before.
    used: AtomicBool,
    /// Whether it is one of those reserved for administration, beyond the bound for all others.
    reserved: bool,
    /// Whether the body of its last request was not read to the end.
    unfinished: AtomicBool,
    /// Cancelled to end it.
    close: CancellationToken,
    /// Cancelled when the other side sends nothing more.
    gone: CancellationToken,
    /// The reader that waits for the rest of a body.
    reader: Mutex<Option<Waker>>,
}

impl Line {
    pub(crate) fn new(reserved: bool, now: Duration) -> Self {
        Self {
            phase: AtomicU8::new(Phase::Waiting as u8),
            since_ms: AtomicU64::new(ms(now)),
            used: AtomicBool::new(false),
            reserved,
            unfinished: AtomicBool::new(false),
            close: CancellationToken::new(),
            gone: CancellationToken::new(),
            reader: Mutex::new(None),
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        Phase::of(self.phase.load(Relaxed))
    }

    pub(crate) fn enter(&self, phase: Phase, now: Duration) {
        self.since_ms.store(ms(now), Relaxed);
        self.phase.store(phase as u8, Relaxed);
        if phase == Phase::Busy {
            self.used.store(true, Relaxed);
        }
    }

    /// How long it has been in its current phase.
    pub(crate) fn for_how_long(&self, now: Duration) -> Duration {
        let since = self.since_ms.load(Relaxed);
        Duration::from_millis(ms(now).saturating_sub(since))
    }

    pub(crate) fn is_used(&self) -> bool {
        self.used.load(Relaxed)
    }

    pub(crate) fn is_reserved(&self) -> bool {
        self.reserved
    }

    /// Whether a request is running.
    pub(crate) fn is_busy(&self) -> bool {
        matches!(self.phase(), Phase::Busy | Phase::Answered)
    }

    pub(crate) fn close(&self) {
        self.close.cancel();
    }

    /// Cancelled to end it.
    pub(crate) fn closing(&self) -> &CancellationToken {
        &self.close
    }

    /// The other side sends nothing more. It may still read: a client may close its sending side and wait for the answer.
    pub(crate) fn hears_no_more(&self) {
        self.gone.cancel();
        if let Some(waker) = self.reader().take() {
            waker.wake();
        }
    }

    /// Cancelled when the other side sends nothing more.
    pub(crate) fn gone(&self) -> &CancellationToken {
        &self.gone
    }

    /// Wakes this reader when the other side sends nothing more.
    pub(crate) fn wakes(&self, waker: &Waker) {
        self.reader().replace(waker.clone());
    }

    fn reader(&self) -> std::sync::MutexGuard<'_, Option<Waker>> {
        // A waker stays valid after a panic elsewhere.
        self.reader
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The body of the request was not read to the end: the other side may still be sending it.
    pub(crate) fn leaves_unfinished(&self) {
        self.unfinished.store(true, Relaxed);
    }

    pub(crate) fn is_unfinished(&self) -> bool {
        self.unfinished.load(Relaxed)
    }
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_says_what_it_does_and_for_how_long() {
        let line = Line::new(false, Duration::from_secs(1));
        assert_eq!(line.phase(), Phase::Waiting);
        assert!(!line.is_used() && !line.is_busy());
        line.enter(Phase::Busy, Duration::from_secs(2));
        assert!(line.is_used() && line.is_busy());
        assert_eq!(
            line.for_how_long(Duration::from_secs(5)),
            Duration::from_secs(3)
        );
    }
}
