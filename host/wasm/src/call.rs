//! Makes one call under its limits and returns the result.
//!
//! A call starts directly on the calling task: most end within microseconds, and switching to another thread would cost more. The epoch
//! interrupts a guest every millisecond; a guest that is still running after a few is continued on the threads for guests, so it never
//! holds up the network or the engine, and its owner's next call starts there. A call's time is the time that its guest runs or waits
//! for the host, not the time it waits for a core: a busy host fails no call.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use millrace_broker::handler::{CallError, Interface};
use millrace_broker::state::StateError;
use millrace_model::{Clock, ColumnBatch};
use rustc_demangle::try_demangle;
use tokio::time::Sleep;
use wasmtime::{Error, Trap, WasmBacktrace};
use wasmtime_wasi::I32Exit;

use crate::logs::clean;
use crate::notes::Notes;
use crate::pool::{Guest, GuestState};
use crate::threads::{Carried, GuestThreads, Lane};

/// Interruptions of a call before it moves to the threads for guests.
const INLINE_YIELDS_MAX: u32 = 2;

/// After a call longer than this, its owner's next call starts on the threads for guests.
const INLINE_TIME_MAX: Duration = Duration::from_millis(3);

/// Bytes of a trap's message.
const MESSAGE_BYTES_MAX: usize = 1_500;

/// Bytes of a backtrace.
const BACKTRACE_BYTES_MAX: usize = 4 << 10;

/// A function of an interface and its arguments.
pub(crate) trait GuestCall: Send + 'static {
    /// Its result.
    type Output: Send + 'static;
    /// Its interface.
    const INTERFACE: Interface;
    /// Its name there.
    const FUNCTION: &'static str;

    /// Whether an instance may be called again.
    const REUSES: bool = true;

    /// Whether the guest's function has the required type.
    fn check(guest: &Guest) -> wasmtime::Result<()>;

    /// The messages of the call.
    fn batch(&self) -> Option<&Arc<ColumnBatch>> {
        None
    }

    /// Makes the call.
    fn make(
        self,
        guest: &mut Guest,
    ) -> impl Future<Output = wasmtime::Result<Returned<Self::Output>>> + Send;
}

/// A guest's result.
pub(crate) enum Returned<T> {
    Answer(T),
    /// Well-formed, but over a bound.
    Bad(String),
    Unavailable(String),
}

/// Runs `work` for at most `time_max` of its own time, and also returns that time; `notes` count its interruptions. It is boxed by
/// whoever makes it: a call's future is large, and would be copied at each step on its way here.
pub(crate) async fn run<F>(
    work: Pin<Box<F>>,
    time_max: Duration,
    notes: Arc<Notes>,
    clock: Arc<dyn Clock>,
    threads: &GuestThreads,
    lane: &Lane,
) -> (Result<F::Output, CallError>, Duration)
where
    F: Future<Output: Send> + Send + 'static,
{
    let mut metered = Metered {
        work,
        notes,
        clock,
        time_max,
        time: Duration::ZERO,
        waited: Duration::ZERO,
        waiting_since: None,
        alarm: None,
        is_carried: false,
    };
    if !lane.is_slow()
        && let Some(ended) = metered.poll_inline().await
    {
        return (ended.result, ended.time);
    }
    metered.is_carried = true;
    let carried = threads.carry(lane, Box::pin(metered)).await;
    let ended = carried.unwrap_or_else(|error| Ended {
        result: Err(CallError::Host(format!(
            "the guest's thread failed: {error}"
        ))),
        time: Duration::ZERO,
        waited: Duration::ZERO,
    });
    // Whoever only waits for a server needs no thread for it.
    lane.set_slow(ended.time.saturating_sub(ended.waited) > INLINE_TIME_MAX);
    (ended.result, ended.time)
}

/// How a call ended.
struct Ended<T> {
    result: Result<T, CallError>,
    /// All of its time.
    time: Duration,
    /// Its part in which the guest waited for the host.
    waited: Duration,
}

/// A future whose own time is measured and bounded.
struct Metered<F> {
    work: Pin<Box<F>>,
    notes: Arc<Notes>,
    clock: Arc<dyn Clock>,
    time_max: Duration,
    time: Duration,
    waited: Duration,
    /// When it began to wait for the host; `None` while it runs or waits for a core.
    waiting_since: Option<Duration>,
    alarm: Option<Pin<Box<Sleep>>>,
    /// Whether it runs on a thread for guests, where others may keep it from a core.
    is_carried: bool,
}

impl<F: Future> Metered<F> {
    /// Polls on this thread until there is a result (`Some`) or the work takes too long for it (`None`).
    async fn poll_inline(&mut self) -> Option<Ended<F::Output>> {
        std::future::poll_fn(|context| match Pin::new(&mut *self).poll(context) {
            Poll::Ready(result) => Poll::Ready(Some(result)),
            Poll::Pending if self.notes.yields() > INLINE_YIELDS_MAX => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        })
        .await
    }

    fn poll_work(&mut self, context: &mut Context<'_>) -> Poll<F::Output> {
        self.end_wait();
        if self.time >= self.time_max {
            return Poll::Pending;
        }
        let (start, yields) = (self.running(), self.notes.yields());
        let polled = self.work.as_mut().poll(context);
        self.time += self.running().saturating_sub(start);
        // A read from the disk is the host's time, and has its own bound.
        if polled.is_pending() && self.notes.yields() == yields && !self.notes.is_reading() {
            self.waiting_since = Some(self.clock.monotonic());
        }
        polled
    }

    fn end_wait(&mut self) {
        if let Some(since) = self.waiting_since.take() {
            let waited = self.clock.monotonic().saturating_sub(since);
            self.time += waited;
            self.waited += waited;
        }
    }

    fn ended(&self, result: Result<F::Output, CallError>) -> Ended<F::Output> {
        Ended {
            result,
            time: self.time,
            waited: self.waited,
        }
    }

    /// For short calls, elapsed time is as good as CPU time and cheaper to read.
    fn running(&self) -> Duration {
        match self.is_carried {
            true => self.clock.thread(),
            false => self.clock.monotonic(),
        }
    }

    /// Ends a wait for the host in time.
    fn set_alarm(&mut self, context: &mut Context<'_>) {
        let left = self.time_max.saturating_sub(self.time);
        let mut alarm = Box::pin(tokio::time::sleep(left));
        if alarm.as_mut().poll(context).is_ready() {
            context.waker().wake_by_ref();
        }
        self.alarm = Some(alarm);
    }
}

impl<F: Future> Future for Metered<F> {
    type Output = Ended<F::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let Poll::Ready(output) = this.poll_work(context) {
            return Poll::Ready(this.ended(Ok(output)));
        }
        if this.time >= this.time_max {
            return Poll::Ready(this.ended(Err(CallError::Timeout(this.time_max))));
        }
        if this.waiting_since.is_some() {
            this.set_alarm(context);
        }
        Poll::Pending
    }
}

impl<F: Future> Carried for Metered<F> {
    fn is_waiting(&self) -> bool {
        self.waiting_since.is_some()
    }

    fn end_wait(&mut self) {
        Self::end_wait(self);
    }
}

/// The meaning of a failed call.
pub(crate) fn explain(error: &Error, guest: &GuestState) -> CallError {
    if let Some(refusal) = guest.instance_limits.refusal() {
        return CallError::Memory(refusal);
    }
    if error.is::<wasmtime::PoolConcurrencyLimitError>() {
        return CallError::Host(format!("no room for another instance: {error}"));
    }
    // Whatever the guest was doing: stored data could not be read.
    if let Some(unreadable @ StateError::Unreadable(_)) = error.downcast_ref() {
        return CallError::Host(unreadable.to_string());
    }
    let frames = error.downcast_ref::<WasmBacktrace>();
    let cause = match (
        error.downcast_ref::<Trap>(),
        error.downcast_ref::<I32Exit>(),
    ) {
        (Some(trap), _) => trap.to_string(),
        (None, Some(exit)) => format!("the guest exited with status {}", exit.0),
        (None, None) if frames.is_some() => error.root_cause().to_string(),
        // Not from within the guest: the host could not read its result.
        (None, None) => {
            return CallError::BadAnswer(clean(&format!("{error:#}"), MESSAGE_BYTES_MAX));
        }
    };
    CallError::Trap {
        message: guest
            .log
            .hidden
            .removed_from(with_words(&cause, &guest.last_words())),
        backtrace: frames.map_or_else(String::new, backtrace),
    }
}

/// The trap and the guest's last output.
fn with_words(cause: &str, words: &str) -> String {
    match words {
        "" => clean(cause, MESSAGE_BYTES_MAX),
        words => clean(&format!("{words} ({cause})"), MESSAGE_BYTES_MAX),
    }
}

fn backtrace(frames: &WasmBacktrace) -> String {
    let names = frames.frames().iter().map(|frame| {
        let name = frame.func_name().unwrap_or("(no name)");
        clean(&demangled(name), LINE_OF_BACKTRACE_BYTES_MAX)
    });
    let mut lines = names.collect::<Vec<_>>().join("\n");
    if lines.len() > BACKTRACE_BYTES_MAX {
        // The outermost frames say least; none is cut in the middle.
        lines.truncate(lines.floor_char_boundary(BACKTRACE_BYTES_MAX));
        lines.truncate(lines.rfind('\n').unwrap_or(lines.len()));
    }
    lines
}

/// Bytes of a function's name.
const LINE_OF_BACKTRACE_BYTES_MAX: usize = 300;

/// `core::panicking::panic` for `_ZN4core9panicking5panic17h0123456789abcdefE` and `_RNvNtCs…_4core9panicking5panic`, without the
/// hashes; names from other languages stay as they are.
fn demangled(name: &str) -> String {
    match try_demangle(name) {
        // A name this long says nothing that its beginning does not.
        Ok(demangled) => bounded(format_args!("{demangled:#}")),
        Err(_) => name.to_owned(),
    }
}

/// The text up to a limit: some mangled names are short and expand to very long ones.
fn bounded(text: fmt::Arguments<'_>) -> String {
    struct Bounded(String);
    impl fmt::Write for Bounded {
        fn write_str(&mut self, part: &str) -> fmt::Result {
            self.0.push_str(part);
            match self.0.len() > LINE_OF_BACKTRACE_BYTES_MAX {
                true => Err(fmt::Error),
                false => Ok(()),
            }
        }
    }
    let mut bounded = Bounded(String::new());
    // Cut where it is clean.
    let _ = fmt::Write::write_fmt(&mut bounded, text);
    bounded.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rust_names_are_readable_and_others_stay_as_they_are() {
        let names = [
            (
                "_ZN4core9panicking5panic17h0123456789abcdefE",
                "core::panicking::panic",
            ),
            (
                "_ZN26_$LT$a..B$u20$as$u20$C$GT$3run17h0123456789abcdefE",
                "<a::B as C>::run",
            ),
            ("_RNvCs1234_7mycrate3foo", "mycrate::foo"),
            ("_RNvNtCs1234_7mycrate6module3foo", "mycrate::module::foo"),
            ("_RNCNvCs1234_7mycrate3foo0", "mycrate::foo::{closure#0}"),
        ];
        for (name, readable) in names {
            assert_eq!(demangled(name), readable);
        }
        let others = [
            "main", "_ZN", "_ZNE9", "_ZN99xE", "_ZN1éE", "_R", "_RNv", "",
        ];
        for name in others {
            assert_eq!(demangled(name), name);
        }
    }

    #[test]
    fn a_name_is_written_no_further_than_it_is_shown() {
        let name = format!("_ZN{}E", "3abc".repeat(400));
        let shown = demangled(&name);
        assert!(shown.starts_with("abc::abc::"), "{shown}");
        assert!(shown.len() < LINE_OF_BACKTRACE_BYTES_MAX + 10, "{shown}");
    }
}
