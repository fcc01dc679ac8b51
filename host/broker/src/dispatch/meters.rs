//! A worker's metrics. Handles are created once; nothing is looked up per message.

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use millrace_engine::state::StateSize;

use crate::dispatch::counts::Counts;
use crate::handler::CallError;

/// One worker's meters.
pub(crate) struct Meters {
    commit_seconds: Histogram,
    batch_messages: Histogram,
    guest_seconds: Histogram,
    ok: Counter,
    failed: Counter,
    retries: Counter,
    dead_letters: Counter,
    dead_letters_held: Counter,
    dropped: Counter,
    missed: Counter,
    traps: [Counter; 4],
    parked: Gauge,
    /// This worker's share of `parked`, which counts the whole processor.
    parked_count: usize,
    state_entries: Gauge,
    state_bytes: Gauge,
    /// This worker's share of both gauges, which count the whole processor.
    state: StateSize,
}

impl Meters {
    /// The metrics of a processor's worker.
    pub(crate) fn new(processor: &str) -> Self {
        let own = || processor.to_owned();
        let processed = |outcome: &'static str| counter!("millrace_messages_processed_total", "processor" => own(), "outcome" => outcome);
        let trap = |cause: &'static str| counter!("millrace_traps_total", "processor" => own(), "cause" => cause);
        Self {
            commit_seconds: histogram!("millrace_commit_seconds", "processor" => own()),
            batch_messages: histogram!("millrace_batch_messages", "processor" => own()),
            guest_seconds: histogram!("millrace_guest_seconds", "processor" => own()),
            ok: processed("ok"),
            failed: processed("failed"),
            retries: counter!("millrace_retries_total", "processor" => own()),
            dead_letters: counter!("millrace_dead_letters_total", "processor" => own()),
            dead_letters_held: counter!("millrace_dead_letters_held_total", "processor" => own()),
            dropped: counter!("millrace_dropped_total", "processor" => own()),
            missed: counter!("millrace_missed_total", "processor" => own()),
            traps: ["trap", "timeout", "memory", "bad-answer"].map(trap),
            parked: gauge!("millrace_parked_messages", "processor" => own()),
            parked_count: 0,
            state_entries: gauge!("millrace_state_entries", "processor" => own()),
            state_bytes: gauge!("millrace_state_bytes", "processor" => own()),
            state: StateSize::default(),
        }
    }

    /// Records a call of this many messages and its time.
    pub(crate) fn called(&self, took: Duration, messages: usize) {
        self.guest_seconds.record(took.as_secs_f64());
        self.batch_messages.record(messages as f64);
    }

    /// Counts a call that failed as a whole.
    pub(crate) fn call_failed(&self, error: &CallError) {
        let cause = match error {
            CallError::Trap { .. } => 0,
            CallError::Timeout(_) => 1,
            CallError::Memory(_) => 2,
            CallError::BadAnswer(_) => 3,
            CallError::Unavailable(_) | CallError::Interrupted | CallError::Host(_) => return,
        };
        self.traps[cause].increment(1);
    }

    /// Counts a committed batch.
    pub(crate) fn committed(&self, took: Duration, counts: Counts, dropped: u64) {
        self.commit_seconds.record(took.as_secs_f64());
        for (counter, count) in [
            (&self.ok, counts.ok),
            (&self.failed, counts.failed),
            (&self.retries, counts.retries),
            (&self.dead_letters, counts.dead_letters),
            (&self.dropped, dropped),
        ] {
            if count > 0 {
                counter.increment(count);
            }
        }
    }

    /// Counts a time that a partition had to wait before it could create another dead letter.
    pub(crate) fn dead_letters_held(&self) {
        self.dead_letters_held.increment(1);
    }

    /// Counts messages that were lost before they could be processed.
    pub(crate) fn lost(&self, messages: u64) {
        if messages > 0 {
            self.missed.increment(messages);
        }
    }

    /// Sets the size of the state in the worker's partition.
    pub(crate) fn state(&mut self, size: StateSize) {
        if size != self.state {
            self.state_entries
                .increment(size.entries as f64 - self.state.entries as f64);
            self.state_bytes
                .increment(size.bytes as f64 - self.state.bytes as f64);
            self.state = size;
        }
    }

    /// Sets the number of parked messages of the worker's partition.
    pub(crate) fn parked(&mut self, parked: usize) {
        if parked != self.parked_count {
            self.parked
                .increment(parked as f64 - self.parked_count as f64);
            self.parked_count = parked;
        }
    }
}

impl Drop for Meters {
    fn drop(&mut self) {
        self.parked(0);
        self.state(StateSize::default());
    }
}
