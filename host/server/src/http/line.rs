//! What a connection is doing and since when: the sweep closes connections that idle too long, and at the bound the least active one
//! makes room for a new one.
//!
//! [`super::stream`] and [`super::listener`] report what happens. A request is running from its complete head until the last byte of
//! its answer has left; anything else that the connection writes is a refusal by the HTTP library, and is intercepted.

use std::sync::Mutex;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU64};
use std::task::Waker;
use std::time::Duration;

use axum::http::StatusCode;
use tokio_util::sync::CancellationToken;

/// What is happening on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Phase {
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
}

impl Phase {
    fn of(number: u8) -> Self {
        match number {
            0 => Self::Waiting,
            1 => Self::Head,
            2 => Self::Busy,
            3 => Self::Answered,
            _ => Self::Ending,
        }
    }
}

/// One connection, seen from outside.
pub(super) struct Line {
    phase: AtomicU8,
    since_ms: AtomicU64,
    /// Whether it had a request before.
    used: AtomicBool,
    /// Whether it is one of those reserved for administration, beyond the bound for all others.
    reserved: bool,
    /// Whether the body of its last request was not read to the end.
    unfinished: AtomicBool,
    /// The status of a refusal by the HTTP library itself; 0 for none.
    caught: AtomicU16,
    /// Cancelled to close it.
    close: CancellationToken,
    /// Cancelled when the other side sends nothing more.
    gone: CancellationToken,
    /// The reader that waits for the rest of a body.
    reader: Mutex<Option<Waker>>,
}

impl Line {
    pub(super) fn new(reserved: bool, now: Duration) -> Self {
        Self {
            phase: AtomicU8::new(Phase::Waiting as u8),
            since_ms: AtomicU64::new(ms(now)),
            used: AtomicBool::new(false),
            reserved,
            unfinished: AtomicBool::new(false),
            caught: AtomicU16::new(0),
            close: CancellationToken::new(),
            gone: CancellationToken::new(),
            reader: Mutex::new(None),
        }
    }

    pub(super) fn phase(&self) -> Phase {
        Phase::of(self.phase.load(Relaxed))
    }

    pub(super) fn enter(&self, phase: Phase, now: Duration) {
        self.since_ms.store(ms(now), Relaxed);
        self.phase.store(phase as u8, Relaxed);
        if phase == Phase::Busy {
            self.used.store(true, Relaxed);
        }
    }

    /// For how long it has been in its present state.
    pub(super) fn for_how_long(&self, now: Duration) -> Duration {
        let since = self.since_ms.load(Relaxed);
        Duration::from_millis(ms(now).saturating_sub(since))
    }

    pub(super) fn is_used(&self) -> bool {
        self.used.load(Relaxed)
    }

    pub(super) fn is_reserved(&self) -> bool {
        self.reserved
    }

    /// Whether a request is running.
    pub(super) fn is_busy(&self) -> bool {
        matches!(self.phase(), Phase::Busy | Phase::Answered)
    }

    pub(super) fn close(&self) {
        self.close.cancel();
    }

    /// Cancelled to close it.
    pub(super) fn closing(&self) -> &CancellationToken {
        &self.close
    }

    /// The other side sends nothing more. It may still read: a client may close its sending side and wait for the answer.
    pub(super) fn hears_no_more(&self) {
        self.gone.cancel();
        if let Some(waker) = self.reader().take() {
            waker.wake();
        }
    }

    /// Cancelled when the other side sends nothing more.
    pub(super) fn gone(&self) -> &CancellationToken {
        &self.gone
    }

    /// Wakes this reader when the other side sends nothing more.
    pub(super) fn wakes(&self, waker: &Waker) {
        self.reader().replace(waker.clone());
    }

    fn reader(&self) -> std::sync::MutexGuard<'_, Option<Waker>> {
        // A waker stays valid after a panic elsewhere.
        self.reader
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The body of the request was not read to the end: the other side may still be sending it.
    pub(super) fn leaves_unfinished(&self) {
        self.unfinished.store(true, Relaxed);
    }

    pub(super) fn is_unfinished(&self) -> bool {
        self.unfinished.load(Relaxed)
    }

    /// Keeps the status of what the HTTP library writes outside a request.
    pub(super) fn catch(&self, bytes: &[u8]) {
        if self.caught.load(Relaxed) == 0 {
            let status = bytes
                .get(9..12)
                .and_then(|digits| str::from_utf8(digits).ok());
            let status = status.and_then(|digits| digits.parse().ok());
            self.caught.store(status.unwrap_or(400), Relaxed);
        }
    }

    /// The status of a refusal by the HTTP library itself.
    pub(super) fn caught(&self) -> Option<StatusCode> {
        StatusCode::from_u16(self.caught.load(Relaxed)).ok()
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

    #[test]
    fn what_the_library_refuses_is_known_by_its_status() {
        let line = Line::new(false, Duration::ZERO);
        assert_eq!(line.caught(), None);
        line.catch(b"HTTP/1.1 431 Request Header Fields Too Large\r\n");
        line.catch(b"content-length: 0\r\n\r\n");
        assert_eq!(
            line.caught(),
            Some(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE)
        );
    }
}
