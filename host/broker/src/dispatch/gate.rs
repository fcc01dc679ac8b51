//! The gate of a processor: its breaker and its allowance of dead letters, shared by the workers of all partitions. A closed
//! breaker costs a worker one look at a flag before a batch and one short lock after it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use metrics::{Counter, Gauge, counter, gauge};
use millrace_model::{Clock, ProcessorName};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use super::Live;
use super::allowance::{Allowance, Granted};
use super::breaker::{Admission, Breaker, BreakerStatus, Judgement, Now, Reason, Report, Trial};
use super::classes::Classes;
use crate::handler::Cause;

/// Told of a bad deploy whose specification asks to be taken back.
pub(crate) type Alarms = mpsc::Sender<Alarm>;

/// A revision that is to be taken back.
#[derive(Clone, Debug)]
pub(crate) struct Alarm {
    pub(crate) processor: ProcessorName,
    pub(crate) revision: u32,
    /// To which one; `None` for a canary, which is only withdrawn.
    pub(crate) predecessor: Option<u32>,
    pub(crate) text: String,
}

/// After so long a canary that should be withdrawn and still is there is reported again.
const REMINDER_INTERVAL: Duration = Duration::from_secs(1);

/// One processor's gate.
pub(crate) struct Gate {
    clock: Arc<dyn Clock>,
    alarms: Alarms,
    /// Whether the breaker is open; the truth is in `state`.
    open: AtomicBool,
    state: Mutex<State>,
    /// Changes when waiting workers should look again.
    changes: watch::Sender<u64>,
    meters: Meters,
    /// Its dead letters.
    pub(crate) classes: Classes,
    /// The gate of the current revision, if this is the one of a canary.
    elder: Option<Arc<Gate>>,
}

struct State {
    live: Arc<Live>,
    breaker: Breaker,
    allowance: Allowance,
    rng: fastrand::Rng,
    /// When it was last said that this canary is to be withdrawn.
    reported: Option<Duration>,
}

struct Meters {
    processor: String,
    open: Gauge,
    probes_ok: Counter,
    probes_failed: Counter,
}

/// What a worker may do.
pub(crate) enum Entry {
    /// Take a batch.
    Go,
    /// Take one message.
    Probe(Probe),
    /// Wait so long, for this reason.
    Wait(Duration, String),
}

/// The right to try one message while the breaker is open. Given back when it is dropped unused.
pub(crate) struct Probe {
    gate: Arc<Gate>,
    used: bool,
}

impl Drop for Probe {
    fn drop(&mut self) {
        if !self.used {
            self.gate.state.lock().breaker.give_back();
            self.gate.notify();
        }
    }
}

impl Gate {
    /// The gate of a canary: what the current revision rejects as well is nothing new, and if it opens the canary is withdrawn.
    pub(crate) fn of_canary(elder: &Arc<Self>, live: Arc<Live>) -> Self {
        let (clock, alarms) = (Arc::clone(&elder.clock), elder.alarms.clone());
        let mut gate = Self::new(clock, alarms, live);
        gate.meters.open = Gauge::noop();
        gate.elder = Some(Arc::clone(elder));
        gate
    }

    /// The gate of a processor that begins with this revision.
    pub(crate) fn new(clock: Arc<dyn Clock>, alarms: Alarms, live: Arc<Live>) -> Self {
        let now = now(&*clock);
        let breaker = Breaker::new(live.spec.breaker.clone(), &trial(&live, now), now);
        let own = || live.processor.to_string();
        let probes = |outcome: &'static str| counter!("millrace_probes_total", "processor" => own(), "outcome" => outcome);
        let meters = Meters {
            processor: own(),
            open: gauge!("millrace_breaker_state", "processor" => own()),
            probes_ok: probes("ok"),
            probes_failed: probes("failed"),
        };
        meters.open.set(0);
        let allowance = Allowance::new(live.spec.dead_letters.clone());
        let live_name = own();
        Self {
            clock,
            alarms,
            open: AtomicBool::new(false),
            state: Mutex::new(State {
                live,
                breaker,
                allowance,
                rng: fastrand::Rng::new(),
                reported: None,
            }),
            changes: watch::Sender::new(0),
            meters,
            classes: Classes::of(live_name),
            elder: None,
        }
    }

    /// Its revision takes no further batches: what is still in flight and fails is left to others.
    pub(crate) fn retire(&self) {
        self.state.lock().breaker.retire();
    }

    /// Says again that this canary is to be withdrawn, if it should have been by now.
    pub(crate) fn remind(&self) {
        if self.is_open() {
            self.report_canary(&mut self.state.lock());
        }
    }

    fn report_canary(&self, state: &mut State) {
        let now = self.clock.monotonic();
        let reported = state.reported;
        let Some(trip) = state.breaker.trip() else {
            return;
        };
        if reported.is_some_and(|at| now < at + REMINDER_INTERVAL) {
            return;
        }
        let _ = self.alarms.try_send(Alarm {
            processor: state.live.processor.clone(),
            revision: state.live.revision,
            predecessor: None,
            text: trip.text.clone(),
        });
        state.reported = Some(now);
    }

    /// Classes under which messages are rejected as a matter of course.
    fn known_rejections(&self) -> Vec<String> {
        self.state.lock().breaker.known_rejections()
    }

    /// This revision takes the next batch.
    pub(crate) fn install(&self, live: &Arc<Live>) {
        let now = self.now();
        let mut state = self.state.lock();
        if live.revision != state.live.revision {
            state.allowance.accept(None);
        }
        state.live = Arc::clone(live);
        state.allowance.set(live.spec.dead_letters.clone());
        let policy = live.spec.breaker.clone();
        state.breaker.install(policy, &trial(live, now), now);
        self.show(&state);
        drop(state);
        self.notify();
    }

    /// Tries a message at once if the breaker is open. With a number, closes it and lets so many dead letters through.
    pub(crate) fn resume(&self, accept_dead_letters: Option<u64>) {
        let now = self.now();
        let mut state = self.state.lock();
        match accept_dead_letters {
            Some(_) => {
                state.allowance.accept(accept_dead_letters);
                state.breaker.close(now);
            }
            None => state.breaker.hurry(now),
        }
        self.show(&state);
        drop(state);
        self.notify();
    }

    /// Whether a worker may take a batch.
    pub(crate) fn enter(self: &Arc<Self>) -> Entry {
        if !self.is_open() {
            return Entry::Go;
        }
        let mut state = self.state.lock();
        match state.breaker.admit(self.now()) {
            Admission::Go => Entry::Go,
            Admission::Probe => Entry::Probe(Probe {
                gate: Arc::clone(self),
                used: false,
            }),
            Admission::Wait(wait) => {
                let text = state.breaker.trip().map(ToString::to_string);
                Entry::Wait(wait, text.unwrap_or_default())
            }
        }
    }

    /// Whether nothing but probes is called.
    pub(crate) fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    /// A batch was answered, or a single message failed its call: what is to be done with it.
    pub(crate) fn report(&self, report: &Report<'_>, probe: Option<&mut Probe>) -> Judgement {
        let now = self.now();
        let is_probe = use_up(probe);
        let rejects = report.failed.iter().any(|f| f.cause == Cause::Reject);
        let known = self.elder.as_ref().filter(|_| rejects);
        let known = known.map(|elder| elder.known_rejections());
        let mut state = self.state.lock();
        let State {
            breaker,
            allowance,
            rng,
            ..
        } = &mut *state;
        if let Some(known) = known {
            breaker.learn(&known);
        }
        let was_open = breaker.trip().is_some();
        breaker.accept(allowance.accepted() > 0);
        let judgement = breaker.report(report, is_probe, now, rng);
        self.changed(was_open, is_probe, &mut state);
        judgement
    }

    /// The component said that a batch cannot be processed for a reason outside of it.
    pub(crate) fn unavailable(&self, revision: u32, why: &str, probe: Option<&mut Probe>) {
        let now = self.now();
        let is_probe = use_up(probe);
        let mut state = self.state.lock();
        let State { breaker, rng, .. } = &mut *state;
        let was_open = breaker.trip().is_some();
        breaker.unavailable(revision, why, is_probe, now, rng);
        self.changed(was_open, is_probe, &mut state);
    }

    /// As many of so many dead letters as may be made now.
    pub(crate) fn take(&self, dead_letters: u32) -> Granted {
        let now = self.clock.monotonic();
        self.state.lock().allowance.take(dead_letters, now)
    }

    /// They were not made after all.
    pub(crate) fn give_back(&self, granted: Granted) {
        if granted.count > 0 {
            self.state.lock().allowance.give_back(granted);
        }
    }

    /// Wakes when waiting workers should look again.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// How the processor's breaker stands.
    pub(crate) fn status(&self) -> BreakerStatus {
        let now = self.clock.monotonic();
        let mut state = self.state.lock();
        let left = state.allowance.left(now);
        BreakerStatus {
            dead_letters_left: left,
            dead_letters_accepted: state.allowance.accepted(),
            ..state.breaker.status()
        }
    }

    /// Tells everybody whom a report may concern.
    fn changed(&self, was_open: bool, is_probe: bool, state: &mut State) {
        if self.elder.is_some() {
            self.show(state);
            self.report_canary(state);
            return;
        }
        let trip = state.breaker.trip();
        if is_probe {
            match trip {
                None => self.meters.probes_ok.increment(1),
                Some(_) => self.meters.probes_failed.increment(1),
            }
        }
        match trip {
            Some(trip) if !was_open => {
                counter!("millrace_breaker_trips_total", "processor" => self.meters.processor.clone(), "reason" => trip.reason.as_str()).increment(1);
                tracing::error!(
                    processor = self.meters.processor,
                    reason = trip.reason.as_str(),
                    text = trip.text,
                    "the processor pauses and probes with one message at a time"
                );
            }
            None if was_open => {
                tracing::info!(processor = self.meters.processor, "the processor goes on");
            }
            _ => {}
        }
        if let Some(trip) = trip.filter(|_| !was_open || is_probe)
            && let Reason::BadDeploy {
                revision,
                predecessor,
            } = trip.reason
            && state.live.spec.auto_rollback
        {
            // If nobody takes it, the next probe that fails tells again.
            let _ = self.alarms.try_send(Alarm {
                processor: state.live.processor.clone(),
                revision,
                predecessor: Some(predecessor),
                text: trip.text.clone(),
            });
        }
        if was_open != trip.is_some() || is_probe {
            self.show(state);
            self.notify();
        }
    }

    fn show(&self, state: &State) {
        let open = state.breaker.trip().is_some();
        self.open.store(open, Ordering::Release);
        self.meters.open.set(f64::from(u8::from(open)));
    }

    fn notify(&self) {
        self.changes
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    fn now(&self) -> Now {
        now(&*self.clock)
    }
}

fn now(clock: &dyn Clock) -> Now {
    Now {
        wall: clock.wall(),
        monotonic: clock.monotonic(),
    }
}

/// The revision as the breaker sees it: one that an older one came back for is not new.
fn trial(live: &Live, now: Now) -> Trial {
    Trial {
        revision: live.revision,
        predecessor: live.predecessor,
        age: live.deployed_at.until(now.wall),
    }
}

fn use_up(probe: Option<&mut Probe>) -> bool {
    match probe {
        None => false,
        Some(probe) => !std::mem::replace(&mut probe.used, true),
    }
}
