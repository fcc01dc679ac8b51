//! The tick that interrupts guests: one thread that advances the engine's epoch while any call is being made.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{JoinHandle, Thread};
use std::time::Duration;

use wasmtime::Engine;

/// The interval at which a running guest yields.
pub(crate) const TICK: Duration = Duration::from_millis(1);

/// After this many ticks without a call the thread sleeps until the next one: an idle host does not wake up.
const IDLE_TICKS_MAX: u32 = 200;

/// Owns the thread; dropping it ends the ticks.
pub(crate) struct Ticker {
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct State {
    calls: AtomicUsize,
    asleep: AtomicBool,
    stopped: AtomicBool,
}

/// Proof that the epoch advances while a call is being made.
pub(crate) struct Ticking(Arc<State>);

impl Ticker {
    pub(crate) fn start(engine: Engine) -> std::io::Result<Self> {
        let state = Arc::new(State::default());
        let thread = std::thread::Builder::new()
            .name("guest-epoch".into())
            .spawn({
                let state = Arc::clone(&state);
                move || tick(&engine, &state)
            })?;
        Ok(Self {
            state,
            thread: Some(thread),
        })
    }

    /// The epoch advances until the answer is dropped.
    pub(crate) fn ticking(&self) -> Ticking {
        self.state.calls.fetch_add(1, Ordering::SeqCst);
        if self.state.asleep.load(Ordering::SeqCst) {
            self.thread().inspect(|thread| thread.unpark());
        }
        Ticking(Arc::clone(&self.state))
    }

    fn thread(&self) -> Option<&Thread> {
        self.thread.as_ref().map(JoinHandle::thread)
    }
}

fn tick(engine: &Engine, state: &State) {
    let mut idle_ticks = 0;
    while !state.stopped.load(Ordering::SeqCst) {
        std::thread::sleep(TICK);
        engine.increment_epoch();
        idle_ticks = match state.calls.load(Ordering::SeqCst) {
            0 => idle_ticks + 1,
            _ => 0,
        };
        if idle_ticks > IDLE_TICKS_MAX {
            sleep_until_a_call(state);
            idle_ticks = 0;
        }
    }
}

fn sleep_until_a_call(state: &State) {
    // Announced before looking: a call that begins in between is either seen here, or sees the announcement and unparks.
    state.asleep.store(true, Ordering::SeqCst);
    while state.calls.load(Ordering::SeqCst) == 0 && !state.stopped.load(Ordering::SeqCst) {
        std::thread::park();
    }
    state.asleep.store(false, Ordering::SeqCst);
}

impl Drop for Ticking {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.state.stopped.store(true, Ordering::SeqCst);
        self.thread().inspect(|thread| thread.unpark());
        if let Some(thread) = self.thread.take() {
            // The ticker cannot panic; nothing to report.
            let _ = thread.join();
        }
    }
}
