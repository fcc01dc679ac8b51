//! The gate of a processor: its breaker and its allowance of dead letters, shared by the workers of
//! all partitions. While the breaker is closed, the gate costs a worker one check of a flag before
//! each batch and one short lock after it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use metrics::{Counter, Gauge, counter, gauge};
use millrace_engine::HostInfo;
use millrace_model::{Clock, GivenUp, ProcessorName, Record, Rejections, TopicPartition};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use crate::dispatch::allowance::{Allowance, Granted};
use crate::dispatch::breaker::{
    Admission, Breaker, BreakerStatus, Judgement, Noted, Now, Reason, Report, Subject,
};
use crate::dispatch::classes::Classes;
use crate::dispatch::live::Live;
use crate::dispatch::word::{Left, Word};
use crate::handler::Cause;
use crate::hosts::living::Hosts;

/// Receives requests to act on a revision.
pub(crate) type Alarms = mpsc::Sender<Alarm>;

/// A request to act on a revision.
#[derive(Clone, Debug)]
pub(crate) struct Alarm {
    pub(crate) processor: ProcessorName,
    pub(crate) revision: u32,
    pub(crate) wanted: Wanted,
}

/// The action.
#[derive(Clone, Debug)]
pub(crate) enum Wanted {
    /// The revision is a bad deploy, for this reason, and must be rolled back to revision `to`.
    TakeBack { to: u32, why: String },
    /// The canary must be withdrawn, for this reason.
    Withdraw { why: String },
    /// The revision's record must be stored.
    Note,
}

/// A canary that is still there this long after its withdrawal was requested is reported again.
const REMINDER_INTERVAL: Duration = Duration::from_secs(1);

/// One processor's gate.
pub(crate) struct Gate {
    clock: Arc<dyn Clock>,
    alarms: Alarms,
    /// Whether the breaker is open. Only a copy: `state` decides.
    open: AtomicBool,
    /// Whether the breaker must be told of processed messages. Only a copy: `state` decides.
    watched: AtomicBool,
    state: Mutex<State>,
    /// Changes when waiting workers must check again.
    changes: watch::Sender<u64>,
    meters: Meters,
    /// The processor's dead letters by class.
    pub(crate) classes: Classes,
    /// The current revision's gate, if this gate is a canary's.
    elder: Option<Arc<Gate>>,
    /// The hosts that share the processor's work.
    hosts: Option<Arc<Hosts>>,
}

/// The hosts that share a processor's work, its inputs, and how often this host took up work.
type SharedBy = (Arc<[HostInfo]>, Arc<[TopicPartition]>, u64);

struct State {
    live: Arc<Live>,
    breaker: Breaker,
    allowance: Allowance,
    rng: fastrand::Rng,
    /// When the withdrawal of this canary was last reported.
    reported: Option<Duration>,
    /// Messages that this canary failed and the current revision processed.
    contradicted: u32,
    /// How many messages unproven revisions have given up, and in which run of revisions; `None`
    /// until it is looked up.
    given_up: Option<GivenUp>,
    /// The processor's inputs.
    inputs: Arc<[TopicPartition]>,
    /// For which hosts and inputs the allowance's share was computed.
    shared: Option<SharedBy>,
    /// The revision that ran before, with its final record.
    before: Option<(u32, Noted)>,
}

struct Meters {
    processor: String,
    open: Gauge,
    probes_ok: Counter,
    probes_failed: Counter,
}

/// What a worker may do now.
pub(crate) enum Entry {
    /// Take a batch.
    Go,
    /// Take one message.
    Probe(Probe),
    /// Wait this long, for this reason.
    Wait(Duration, String),
}

/// The right to try one message while the breaker is open. Dropping it unused returns it.
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
    /// The gate of a canary. Rejections that the current revision shares are not new. When the
    /// canary's breaker opens, the canary is withdrawn.
    pub(crate) fn of_canary(elder: &Arc<Self>, live: Arc<Live>) -> Self {
        let (clock, alarms) = (Arc::clone(&elder.clock), elder.alarms.clone());
        // A canary's processed messages do not prove it and are not stored.
        let mut gate = Self::new(clock, alarms, live);
        gate.meters.open = Gauge::noop();
        gate.elder = Some(Arc::clone(elder));
        gate.watched = AtomicBool::new(false);
        gate
    }

    /// The gate of a processor that starts with this revision.
    pub(crate) fn new(clock: Arc<dyn Clock>, alarms: Alarms, live: Arc<Live>) -> Self {
        let now = now(&*clock);
        let breaker = Breaker::new(live.spec.breaker.clone(), &subject(&live), now);
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
            watched: AtomicBool::new(breaker.is_watched()),
            state: Mutex::new(State {
                live,
                breaker,
                allowance,
                rng: fastrand::Rng::new(),
                reported: None,
                contradicted: 0,
                given_up: None,
                inputs: Arc::default(),
                shared: None,
                before: None,
            }),
            changes: watch::Sender::new(0),
            meters,
            classes: Classes::of(live_name),
            elder: None,
            hosts: None,
        }
    }

    /// The same gate, on a host that shares the processor's work with others.
    pub(crate) fn among(self, hosts: &Arc<Hosts>) -> Self {
        Self {
            hosts: Some(Arc::clone(hosts)),
            ..self
        }
    }

    /// Gives the allowance this host's share, which changes when hosts join or leave.
    fn share(&self, state: &mut State) {
        let Some(hosts) = self.hosts.as_ref().filter(|hosts| hosts.had_others()) else {
            return;
        };
        let (listed, _) = hosts.now();
        let (inputs, taken_up) = (&state.inputs, hosts.taken_up(0));
        let is_known = |(before, read, count): &SharedBy| {
            Arc::ptr_eq(before, &listed) && Arc::ptr_eq(read, inputs) && *count == taken_up
        };
        if state.shared.as_ref().is_some_and(is_known) {
            return;
        }
        let here = hosts.wanted_here(&state.live.processor.group(), inputs);
        state.allowance.share(here, inputs.len());
        state.shared = Some((listed, Arc::clone(inputs), taken_up));
    }

    /// Ends the gate's revision: failures of calls in flight no longer count here.
    pub(crate) fn retire(&self) {
        self.state.lock().breaker.retire();
    }

    /// Requests the withdrawal of this canary again, if it should be gone by now.
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
            wanted: Wanted::Withdraw {
                why: Reason::without_advice(&trip.text).to_owned(),
            },
        });
        state.reported = Some(now);
    }

    /// The revision's rejections that are usual for its canary; empty while the revision itself is
    /// not proven.
    fn rejections(&self) -> Vec<Rejections> {
        let now = self.now();
        let state = self.state.lock();
        match state.breaker.is_new(now) {
            true => Vec::new(),
            false => state.breaker.rejections(),
        }
    }

    /// The revision's record in the form to store; `None` unless this revision runs or was the last
    /// to run.
    pub(crate) fn record(&self, revision: u32) -> Option<Noted> {
        let now = self.now();
        let state = self.state.lock();
        if state.live.revision == revision {
            return Some(state.breaker.noted(now));
        }
        let before = state.before.as_ref().filter(|(of, _)| *of == revision);
        before.map(|(_, noted)| noted.clone())
    }

    /// Records that this many messages that the revision processed here are stored.
    pub(crate) fn written(&self, revision: u32, fresh: u32) {
        let mut state = self.state.lock();
        if state.live.revision == revision {
            state.breaker.written(fresh);
        }
        if let Some((_, noted)) = state.before.as_mut().filter(|(of, _)| *of == revision) {
            noted.fresh = noted.fresh.saturating_sub(fresh);
        }
    }

    /// Takes over the revision's record as any host has stored it.
    pub(crate) fn follow(&self, revision: u32, record: &Record) {
        let mut state = self.state.lock();
        if state.live.revision != revision {
            return;
        }
        state.breaker.follow(record);
        if self.elder.is_none() && state.breaker.take_news() {
            self.tell(&mut state);
        }
        self.watch(&state);
    }

    /// Storing the revision's record failed, so the request is repeated.
    pub(crate) fn not_written(&self) {
        self.state.lock().breaker.not_written();
    }

    /// Makes this revision take the next batch.
    pub(crate) fn install(&self, live: &Arc<Live>) {
        let now = self.now();
        let mut state = self.state.lock();
        if live.revision != state.live.revision {
            state.allowance.accept(None);
            // Messages that it processed while its successor was being prepared count, too.
            state.before = Some((state.live.revision, state.breaker.noted(now)));
            if state.breaker.take_news() {
                self.tell(&mut state);
            }
        }
        state.live = Arc::clone(live);
        state.allowance.set(live.spec.dead_letters.clone());
        let policy = live.spec.breaker.clone();
        state.breaker.install(policy, &subject(live), now);
        self.watch(&state);
        self.show(&state);
        drop(state);
        self.notify();
    }

    /// Lets the next probe run at once if the breaker is open. With a number, closes the breaker
    /// and lets up to this many dead letters through.
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

    /// Whether the breaker is open, so that only probes are called.
    pub(crate) fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    /// Reports a batch that was answered, or a single message that failed its call; returns what to
    /// do with it.
    pub(crate) fn report(&self, report: &Report<'_>, probe: Option<&mut Probe>) -> Judgement {
        let now = self.now();
        let is_probe = use_up(probe);
        let rejects = report.failed.iter().any(|f| f.cause == Cause::Reject);
        let known = self.elder.as_ref().filter(|_| rejects);
        let known = known.map(|elder| elder.rejections());
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
        if self.elder.is_none() && breaker.take_news() {
            self.tell(&mut state);
        }
        self.watch(&state);
        self.changed(was_open, is_probe, &mut state);
        judgement
    }

    /// Reports that this many messages of a batch were processed and committed.
    pub(crate) fn processed(&self, revision: u32, messages: u64) {
        if messages == 0 || !self.watched.load(Ordering::Relaxed) {
            return;
        }
        let now = self.now();
        let mut state = self.state.lock();
        state.breaker.has_processed(revision, messages, now);
        if self.elder.is_none() && state.breaker.take_news() {
            self.tell(&mut state);
        }
        self.watch(&state);
    }

    fn watch(&self, state: &State) {
        let watched = self.elder.is_none() && state.breaker.is_watched();
        self.watched.store(watched, Ordering::Relaxed);
    }

    /// Requests that the revision's record is stored.
    fn tell(&self, state: &mut State) {
        let told = self.alarms.try_send(Alarm {
            processor: state.live.processor.clone(),
            revision: state.live.revision,
            wanted: Wanted::Note,
        });
        if told.is_err() {
            // The queue is full. The next batch reports the change again.
            state.breaker.not_written();
        }
    }

    /// Reports that a call of this canary timed out.
    pub(crate) fn timed_out(&self, revision: u32) {
        let now = self.now();
        let mut state = self.state.lock();
        let State { breaker, rng, .. } = &mut *state;
        let was_open = breaker.trip().is_some();
        breaker.timed_out(revision, now, rng);
        self.changed(was_open, false, &mut state);
    }

    /// Reports messages that this canary would have given up and the current revision has
    /// processed.
    pub(crate) fn contradicted(&self, messages: u32) {
        let now = self.now();
        let mut state = self.state.lock();
        let State {
            breaker,
            rng,
            live,
            contradicted,
            ..
        } = &mut *state;
        *contradicted = contradicted.saturating_add(messages);
        let policy = &live.spec.dead_letters;
        if *contradicted < policy.unproven_max.min(policy.max).max(1) {
            return;
        }
        let was_open = breaker.trip().is_some();
        breaker.contradicted(*contradicted, now, rng);
        self.changed(was_open, false, &mut state);
    }

    /// Whether the revision may give messages up. `Err` until the number given up before is looked
    /// up.
    pub(crate) fn word(&self, revision: u32) -> Result<Word, NotLookedUp> {
        let now = self.now();
        let state = self.state.lock();
        if state.live.revision != revision {
            return Ok(Word::CountsFor(Left::default()));
        }
        if !state.breaker.is_new(now) {
            return Ok(Word::Counts);
        }
        if state.inputs.is_empty() {
            // The partitions in which to look are not known yet.
            return Ok(Word::CountsFor(Left::default()));
        }
        let run = state.live.unproven_run;
        let known = state.given_up.filter(|known| known.run == run);
        let not_looked_up = || NotLookedUp {
            run,
            inputs: Arc::clone(&state.inputs),
        };
        let given_up = known.ok_or_else(not_looked_up)?.messages;
        let left = state.live.spec.dead_letters.unproven_max;
        Ok(Word::CountsFor(Left {
            unproven: left.saturating_sub(given_up),
            accepted: u32::try_from(state.allowance.accepted()).unwrap_or(u32::MAX),
        }))
    }

    /// Sets the processor's inputs.
    pub(crate) fn reads(&self, inputs: Arc<[TopicPartition]>) {
        self.state.lock().inputs = inputs;
    }

    /// Sets how many messages were given up in committed progress, over all partitions. Messages
    /// taken meanwhile are added.
    pub(crate) fn looked_up(&self, given_up: GivenUp) {
        let mut state = self.state.lock();
        let run = given_up.run;
        if state.given_up.is_none_or(|known| known.run != run) {
            state.given_up = Some(given_up);
        }
    }

    /// Takes this many of the messages that may be given up; false if there are not enough.
    pub(crate) fn take_unproven(&self, run: u32, messages: u32) -> bool {
        let mut state = self.state.lock();
        let unproven_max = state.live.spec.dead_letters.unproven_max;
        match &mut state.given_up {
            Some(known) if known.run == run => {
                let then = known.messages.saturating_add(messages);
                let may = then <= unproven_max;
                if may {
                    known.messages = then;
                }
                may
            }
            _ => false,
        }
    }

    /// Returns messages that were taken and not given up.
    pub(crate) fn give_back_unproven(&self, run: u32, messages: u32) {
        let mut state = self.state.lock();
        if let Some(known) = state.given_up.as_mut().filter(|known| known.run == run) {
            known.messages = known.messages.saturating_sub(messages);
        }
    }

    /// Whether rejections of this class are usual.
    pub(crate) fn excuses(&self, class: &str) -> bool {
        self.state.lock().breaker.excuses(class)
    }

    /// Reports that the component cannot process a batch for an outside reason.
    pub(crate) fn unavailable(&self, revision: u32, why: &str, probe: Option<&mut Probe>) {
        let now = self.now();
        let is_probe = use_up(probe);
        let mut state = self.state.lock();
        let State { breaker, rng, .. } = &mut *state;
        let was_open = breaker.trip().is_some();
        breaker.unavailable(revision, why, is_probe, now, rng);
        self.changed(was_open, is_probe, &mut state);
    }

    /// How many of these dead letters may be created now.
    pub(crate) fn take(&self, dead_letters: u32) -> Granted {
        let now = self.clock.monotonic();
        let mut state = self.state.lock();
        self.share(&mut state);
        state.allowance.take(dead_letters, now)
    }

    /// Returns dead letters that were taken and not created.
    pub(crate) fn give_back(&self, granted: Granted) {
        if granted.count > 0 {
            self.state.lock().allowance.give_back(granted);
        }
    }

    /// Notifies waiting workers when they must check again.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The state of the processor's breaker.
    pub(crate) fn status(&self) -> BreakerStatus {
        let now = self.clock.monotonic();
        let mut state = self.state.lock();
        self.share(&mut state);
        let left = state.allowance.left(now);
        BreakerStatus {
            dead_letters_left: left,
            dead_letters_accepted: state.allowance.accepted(),
            ..state.breaker.status()
        }
    }

    /// Publishes the effects of a report: metrics, logs, alarms, and a notice to workers.
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
                tracing::info!(processor = self.meters.processor, "the processor resumes");
            }
            _ => {}
        }
        if let Some(trip) = trip.filter(|_| !was_open || is_probe)
            && let Reason::BadDeploy { revision, back } = trip.reason
            && state.live.spec.auto_rollback
        {
            // If the queue is full, the next failed probe reports it again.
            let _ = self.alarms.try_send(Alarm {
                processor: state.live.processor.clone(),
                revision,
                wanted: Wanted::TakeBack {
                    to: back,
                    why: Reason::without_advice(&trip.text).to_owned(),
                },
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

/// The number of messages given up must be looked up first: for this run of revisions, in these
/// partitions.
#[derive(Clone, Debug)]
pub(crate) struct NotLookedUp {
    pub(crate) run: u32,
    pub(crate) inputs: Arc<[TopicPartition]>,
}

/// The revision as the breaker needs it.
fn subject(live: &Live) -> Subject {
    Subject {
        revision: live.revision,
        back: live.back.clone(),
        record: live.record.clone(),
    }
}

fn use_up(probe: Option<&mut Probe>) -> bool {
    match probe {
        None => false,
        Some(probe) => !std::mem::replace(&mut probe.used, true),
    }
}
