//! Time, passed in. The only file of the product that reads a clock; all other code is given a [`Clock`].

use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Milliseconds since the Unix epoch, as Kafka's records carry them.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// This moment plus `delay`; saturates instead of wrapping.
    #[must_use]
    pub fn after(self, delay: Duration) -> Self {
        let delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(delay_ms))
    }

    /// How long from this moment until `later`; zero if `later` has passed.
    #[must_use]
    pub fn until(self, later: Self) -> Duration {
        Duration::from_millis(later.0.saturating_sub(self.0))
    }
}

/// Where time comes from. The wall clock may jump; the monotonic one never goes back.
pub trait Clock: Send + Sync + 'static {
    /// The wall clock: for timestamps that people read and for delays that outlive the process.
    fn wall(&self) -> Timestamp;
    /// Time since an arbitrary start: for measuring and for delays within the process.
    fn monotonic(&self) -> Duration;
    /// CPU time of the calling thread: the difference of two readings on one thread is the cost of the work in between, however busy
    /// the machine is.
    fn thread(&self) -> Duration;
    /// Sets the wall clock forward, or back (negative), from here on: hosts that share a store go by its clock.
    fn correct(&self, _by_ms: i64) {}
}

/// A difference between the clocks of hosts that is smaller is nobody's concern.
const CLOCKS_DIFFERENCE_MS_MAX: u64 = 250;

/// Corrects a clock by that of a store, which said `there` between the times `before` and `after` of this one. Nothing happens if they differ
/// by less than a quarter of a second, or than the question took. Returns by how many milliseconds it was corrected.
pub fn go_by(
    clock: &dyn Clock,
    (before, after): (Timestamp, Timestamp),
    there: Timestamp,
) -> Option<i64> {
    let between = before.0 / 2 + after.0 / 2;
    let by_ms = (there.0 as i64).wrapping_sub(between as i64);
    let took_ms = after.0.saturating_sub(before.0);
    let is_wrong = by_ms.unsigned_abs() > CLOCKS_DIFFERENCE_MS_MAX.max(took_ms);
    is_wrong.then(|| {
        clock.correct(by_ms);
        by_ms
    })
}

/// The machine's clocks.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
    /// By how much the wall clock was corrected.
    corrected_ms: AtomicI64,
}

impl SystemClock {
    /// A clock whose monotonic time starts now.
    #[must_use]
    pub fn new() -> Self {
        Self {
            start: Instant::now(),
            corrected_ms: AtomicI64::new(0),
        }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn wall(&self) -> Timestamp {
        let since_epoch = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let since_epoch = u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX);
        Timestamp(since_epoch.saturating_add_signed(self.corrected_ms.load(Ordering::Relaxed)))
    }

    fn correct(&self, by_ms: i64) {
        self.corrected_ms.fetch_add(by_ms, Ordering::Relaxed);
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    fn thread(&self) -> Duration {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        time.try_into().unwrap_or_default()
    }
}

/// A clock that moves only when told, for tests.
#[derive(Debug, Default)]
pub struct ManualClock {
    since_epoch: Mutex<Duration>,
    /// By how much the wall clock was set.
    set_ms: AtomicI64,
}

impl ManualClock {
    /// A clock that stands at `start`.
    #[must_use]
    pub fn at(start: Timestamp) -> Self {
        Self {
            since_epoch: Mutex::new(Duration::from_millis(start.0)),
            set_ms: AtomicI64::new(0),
        }
    }

    /// Moves time forward.
    pub fn advance(&self, by: Duration) {
        *self.lock() += by;
    }

    /// Sets the wall clock forward, or back (negative); the monotonic one continues.
    pub fn step(&self, by_ms: i64) {
        self.set_ms.fetch_add(by_ms, Ordering::SeqCst);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Duration> {
        self.since_epoch
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Clock for ManualClock {
    fn wall(&self) -> Timestamp {
        let since_epoch = u64::try_from(self.lock().as_millis()).unwrap_or(u64::MAX);
        Timestamp(since_epoch.saturating_add_signed(self.set_ms.load(Ordering::SeqCst)))
    }

    fn correct(&self, by_ms: i64) {
        self.step(by_ms);
    }

    fn monotonic(&self) -> Duration {
        *self.lock()
    }

    fn thread(&self) -> Duration {
        self.monotonic()
    }
}
