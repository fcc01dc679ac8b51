//! The breaker of a processor: tells one poison message from an outage, a bad deploy and a flood of poison. Plain synchronous
//! code with the clock handed in; [`gate`](super::gate) shares it among the processor's workers.
//!
//! Closed, everything runs and every batch is reported. It opens when many *different* messages in a row, or most of the latest
//! ones, fail alike, or at once when the component says that something outside is down. Open, nothing is called but one message
//! at a time: the probe. The first probe that succeeds closes it. What failed in the batch that opened it, and what fails as a
//! probe, spends no attempt and is never a dead letter.
//!
//! Every failed attempt is evidence about the revision that made it, but for what repeats what is known and what the error handler has
//! settled: one message that keeps failing counts once. What a revision rejects as a matter of course is judged by its share
//! ([`usual`]).

use std::collections::HashSet;
use std::fmt;
use std::time::Duration;

use millrace_model::processor::BreakerPolicy;
use millrace_model::{Offset, Record, Rejections, Stopped, Timestamp, TopicPartition};
use serde::Serialize;

use crate::ground::planted::planted;
use crate::handler::Cause;

mod evidence;
mod following;
mod proof;
mod usual;
mod window;

use evidence::Kind;
pub(crate) use evidence::{Report, Says, Whose};
pub(crate) use following::Noted;
#[cfg(test)]
pub(crate) use proof::PROVEN_LEAST;
use proof::Proof;
pub(crate) use proof::{PROVEN_AFTER, PROVEN_MESSAGES};
pub(crate) use usual::KNOWN_REJECTIONS_MAX as CLASSES_MAX;
use usual::Usual;
use window::Window;

/// So many calls of a canary in a row may not end in time, or it is out: each of them keeps the current revision waiting.
pub(crate) const CANARY_TIMEOUTS_MAX: u32 = 2;
/// Shares of rejections are those of as many messages, or they say little.
const MEASURED_AT_LEAST: u32 = 250;
/// Opening again so soon after closing goes on with the longer waits of the time before.
const HEALTHY: Duration = Duration::from_secs(10);
/// How long a worker waits for another one's probe before it looks again.
const PROBE_WAIT: Duration = Duration::from_secs(1);

/// A moment, by both clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    pub(crate) wall: Timestamp,
    pub(crate) monotonic: Duration,
}

/// Why a breaker opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Something that the messages need is down.
    Outage,
    /// A revision that is not proven fails where the one to go back to did not.
    BadDeploy { revision: u32, back: u32 },
    /// Most messages are such that nobody can process them.
    PoisonFlood,
}

/// What the text of a bad deploy ends with.
const ADVICE: &str = "; roll back, or deploy a repaired one";

impl Reason {
    /// The text of a trip without what to do about it.
    pub(crate) fn without_advice(text: &str) -> &str {
        text.find(ADVICE).map_or(text, |end| &text[..end])
    }

    /// The reason's word, as metrics and answers spell it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Outage => "outage",
            Self::BadDeploy { .. } => "bad-deploy",
            Self::PoisonFlood => "poison-flood",
        }
    }
}

/// What is to be done with a batch that was reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Judgement {
    /// What the messages and the policy say.
    Settle,
    /// Nothing: it did not happen, and is tried again when the breaker closes.
    Discard,
    /// A probe that failed: it makes room for the next one, at the cost of no attempt.
    Postpone,
}

/// Whether a worker may go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    Go,
    /// With one message; the outcome is to be reported, or the probe given back.
    Probe,
    /// Not before this time, or a change.
    Wait(Duration),
}

/// Why it is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trip {
    pub(crate) reason: Reason,
    pub(crate) since: Timestamp,
    /// For people.
    pub(crate) text: String,
    /// What failures were like; `None` if the component said that the batch could not be processed.
    kind: Option<Kind>,
}

impl fmt::Display for Trip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[derive(Debug)]
struct Open {
    trip: Trip,
    /// Probes that failed.
    probes: u32,
    /// Waits so far, each longer than the one before.
    waits: u32,
    /// When the next probe is due.
    next: Now,
    probing: bool,
}

/// How a processor's breaker stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BreakerStatus {
    /// `closed`, `open`, or `off` where the specification says so.
    pub state: &'static str,
    /// Why it is open: `outage`, `bad-deploy` or `poison-flood`.
    pub reason: Option<&'static str>,
    /// The same for people.
    pub text: Option<String>,
    /// Since when it is open.
    pub since: Option<Timestamp>,
    /// When one message is tried next.
    pub next_probe_at: Option<Timestamp>,
    /// Probes that failed since it opened.
    pub probes: u32,
    /// How often it opened since the host started.
    pub trips: u64,
    /// Dead letters that may be made before a partition waits.
    pub dead_letters_left: u32,
    /// Dead letters that an operator accepted beforehand and that were not made yet.
    pub dead_letters_accepted: u64,
}

/// The revision that runs, as far as the breaker cares.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trial {
    pub(crate) revision: u32,
    /// The one to go back to.
    pub(crate) back: Option<Back>,
    /// What is written down of how it did.
    pub(crate) record: Record,
}

/// The revision to go back to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Back {
    pub(crate) revision: u32,
    /// How it did.
    pub(crate) record: Record,
    /// Whether the same error handler settles its failures.
    pub(crate) same_handler: bool,
    /// What is usually rejected: by the last revision that was proven. What one rejects that is not proven is usual for nobody.
    pub(crate) usual: Vec<Rejections>,
}

impl Back {
    /// Whether it stood still for the same.
    fn failed_so(&self, kind: &Kind) -> bool {
        let stopped = self.record.stopped.as_ref();
        stopped.is_some_and(|stopped| stopped.class.as_ref() == Some(&kind.class))
    }
}

/// What of a revision's record changes when there is something to write down.
#[derive(Debug, Default, PartialEq, Eq)]
struct Written {
    proof: (bool, bool, bool, u64),
    stopped: bool,
    doubted: usize,
    /// Classes that it rejects, and of how many messages that is known.
    rejects: (usize, u32),
}

/// One processor's breaker.
#[derive(Debug)]
pub(crate) struct Breaker {
    policy: BreakerPolicy,
    /// Whether an operator wants failures dealt with one by one for now.
    accepting: bool,
    revision: u32,
    back: Option<Back>,
    proof: Proof,
    /// Why it stands still, or stood still and has processed nothing since.
    stopped: Option<Stopped>,
    /// Whether that was here, and not on another host, or before this one began.
    stopped_here: bool,
    /// Whether it has processed something since it stood still, and that is not written down yet.
    goes_on: bool,
    /// Calls in a row that did not end in time.
    timeouts: u32,
    /// What is written down of it.
    written: Written,
    open: Option<Open>,
    /// Different messages that failed alike, since the last success.
    run: HashSet<(TopicPartition, Offset)>,
    run_kind: Option<Kind>,
    window: Window,
    usual: Usual,
    /// When it closed last, and how long its waits were then.
    closed: Option<(Duration, u32)>,
    trips: u64,
}

impl Breaker {
    /// Closed, for the processor's first revision in this process.
    pub(crate) fn new(policy: BreakerPolicy, trial: &Trial, now: Now) -> Self {
        let mut breaker = Self {
            policy,
            accepting: false,
            revision: trial.revision,
            back: None,
            proof: Proof::default(),
            stopped: None,
            stopped_here: false,
            goes_on: false,
            timeouts: 0,
            written: Written::default(),
            open: None,
            run: HashSet::new(),
            run_kind: None,
            window: Window::default(),
            usual: Usual::default(),
            closed: None,
            trips: 0,
        };
        breaker.try_out(trial, now);
        breaker
    }

    /// This revision takes the next batch. Another one than before may well manage what that one could not: the breaker closes.
    pub(crate) fn install(&mut self, policy: BreakerPolicy, trial: &Trial, now: Now) {
        self.policy = policy;
        if trial.revision == self.revision {
            // The one to go back to may be another by now.
            self.back.clone_from(&trial.back);
            return;
        }
        self.open = None;
        self.closed = None;
        self.forget();
        self.try_out(trial, now);
    }

    /// No revision is meant any more: failures of what is still in flight are left to others.
    pub(crate) fn retire(&mut self) {
        self.revision = 0;
    }

    /// What the revision rejects as a matter of course, as far as it was seen.
    pub(crate) fn rejections(&self) -> Vec<Rejections> {
        self.usual.own()
    }

    /// Whether a rejection of this class is one of those that are usual.
    pub(crate) fn excuses(&self, class: &str) -> bool {
        self.usual.excuses(class) || planted!(KnownClassExcuses) && self.usual.knows(class)
    }

    /// So much of these is usual.
    pub(crate) fn learn(&mut self, rejections: &[Rejections]) {
        self.usual.learn(rejections);
    }

    fn try_out(&mut self, trial: &Trial, now: Now) {
        self.revision = trial.revision;
        self.back.clone_from(&trial.back);
        self.proof = Proof::of(&trial.record, now);
        self.stopped.clone_from(&trial.record.stopped);
        (self.stopped_here, self.goes_on) = (false, false);
        self.timeouts = 0;
        self.usual = Usual::of(&trial.record);
        if let Some(back) = &trial.back {
            self.usual.learn(&back.usual);
        }
        self.written.rejects = (trial.record.rejections.len(), trial.record.measured);
        self.written = self.as_written();
    }

    fn as_written(&self) -> Written {
        let (classes, measured) = self.written.rejects;
        // How much of a class is usual is worth knowing of a revision that is proven, and more exactly the more there was.
        let news = self.usual.own_count() > classes
            || classes > 0 && self.usual.measured() / 4 >= measured.max(MEASURED_AT_LEAST);
        let rejects = match news && self.proof.is_given_anew() {
            true => (self.usual.own_count(), self.usual.measured()),
            false => (classes, measured),
        };
        Written {
            proof: self.proof.step(),
            stopped: self.stopped.is_some(),
            doubted: self.usual.doubted().len(),
            rejects,
        }
    }

    /// How the revision does, as it is to be written down; when it worked and was left is for whoever does.
    pub(crate) fn record(&self, now: Now) -> Record {
        let mut record = Record {
            stopped: self.stopped.clone(),
            rejections: self.rejections(),
            measured: self.usual.measured(),
            doubted: self.usual.doubted().to_vec(),
            ..Record::default()
        };
        self.proof.write(&mut record, now);
        record
    }

    /// Whether messages that it processes may still prove it, or say that it stands still no longer.
    pub(crate) fn is_watched(&self) -> bool {
        self.revision > 0 && (!self.proof.is_given_anew() || self.stopped.is_some())
    }

    /// Whether something is to be written down of the revision. Says so once.
    pub(crate) fn take_news(&mut self) -> bool {
        let is = self.as_written();
        let news = self.revision > 0 && is != self.written;
        if news {
            self.written = is;
        }
        news
    }

    /// What was to be written down was not.
    pub(crate) fn not_written(&mut self) {
        self.written = Written::default();
    }

    /// Whether failures of messages are to be dealt with one by one, however many there are.
    pub(crate) fn accept(&mut self, accepting: bool) {
        self.accepting = accepting;
    }

    /// Why it is open; `None` if it is closed.
    pub(crate) fn trip(&self) -> Option<&Trip> {
        self.open.as_ref().map(|open| &open.trip)
    }

    /// Whether a worker may take a batch now. Whoever is given the probe must report it or give it back.
    pub(crate) fn admit(&mut self, now: Now) -> Admission {
        match &mut self.open {
            None => Admission::Go,
            Some(open) if open.probing => Admission::Wait(PROBE_WAIT),
            Some(open) if now.monotonic < open.next.monotonic => {
                Admission::Wait(open.next.monotonic - now.monotonic)
            }
            Some(open) => {
                open.probing = true;
                Admission::Probe
            }
        }
    }

    /// The worker had nothing to probe with, or could not.
    pub(crate) fn give_back(&mut self) {
        if let Some(open) = &mut self.open {
            open.probing = false;
        }
    }

    /// A batch was answered, or a single message failed its call.
    pub(crate) fn report(
        &mut self,
        report: &Report<'_>,
        is_probe: bool,
        now: Now,
        rng: &mut fastrand::Rng,
    ) -> Judgement {
        if report.revision != self.revision {
            // Decided by a revision that no longer runs: its word counts no longer, the one that does may do better.
            if is_probe {
                self.give_back();
            }
            return match report.failed.is_empty() {
                true => Judgement::Settle,
                false => Judgement::Discard,
            };
        }
        if report.processed() > 0 {
            self.timeouts = 0;
        }
        let said = report.failed.iter().zip(report.says);
        let settled = |says: Says| says == Says::Settled && !planted!(DropsAreFailures);
        let mut bad = said.filter(|(failed, says)| !settled(**says) && self.counts(failed, now));
        let bad = bad.next().map(|(failed, _)| failed);
        match &self.open {
            Some(open) if is_probe => {
                if bad.is_some() && open.trip.kind.is_some() {
                    self.probe_failed(now, rng);
                    return Judgement::Postpone;
                }
                self.close(now);
                self.note(report, now);
                Judgement::Settle
            }
            Some(_) if bad.is_some() => Judgement::Discard,
            Some(_) => Judgement::Settle,
            None => {
                self.note(report, now);
                let judged =
                    match report.failed.is_empty() || !self.policy.enabled || self.accepting {
                        true => None,
                        false => self.judge(now),
                    };
                // Enough may have been there before; but nobody stops at what is no failure.
                let alike = |kind: &Kind| report.failed.iter().find(|failed| kind.is(failed));
                let judged = judged.and_then(|(kind, what)| {
                    let example = alike(&kind).or(bad)?;
                    Some((explain(&kind, &what, &example.reason), kind))
                });
                match judged {
                    Some((text, kind)) => {
                        self.trip_for(Some(kind), text, now, rng);
                        Judgement::Discard
                    }
                    None => Judgement::Settle,
                }
            }
        }
    }

    /// The component said that a batch cannot be processed for a reason outside of it.
    pub(crate) fn unavailable(
        &mut self,
        revision: u32,
        why: &str,
        is_probe: bool,
        now: Now,
        rng: &mut fastrand::Rng,
    ) {
        if revision != self.revision {
            if is_probe {
                self.give_back();
            }
            return;
        }
        match &mut self.open {
            Some(open) => {
                if open.trip.reason == Reason::Outage {
                    open.trip.text = format!("outage: {why}");
                }
                if is_probe {
                    self.probe_failed(now, rng);
                }
            }
            None => self.trip_for(None, why.to_owned(), now, rng),
        }
    }

    /// A call of a canary did not end in time.
    pub(crate) fn timed_out(&mut self, revision: u32, now: Now, rng: &mut fastrand::Rng) {
        if revision != self.revision || self.open.is_some() {
            return;
        }
        self.timeouts += 1;
        if self.timeouts >= CANARY_TIMEOUTS_MAX {
            let kind = Kind {
                cause: Cause::Timeout,
                class: Cause::Timeout.as_str().to_owned(),
            };
            let text = format!("{} calls in a row did not end in time", self.timeouts);
            self.trip_for(Some(kind), text, now, rng);
        }
    }

    /// A canary was wrong about so many messages: the current revision has processed them.
    pub(crate) fn contradicted(&mut self, messages: u32, now: Now, rng: &mut fastrand::Rng) {
        if self.open.is_none() && self.revision > 0 {
            let text = format!(
                "{messages} messages that it would have given up were processed by the current revision"
            );
            let kind = Kind {
                cause: Cause::Reject,
                class: String::new(),
            };
            self.trip_for(Some(kind), text, now, rng);
        }
    }

    /// The next probe may be made at once.
    pub(crate) fn hurry(&mut self, now: Now) {
        if let Some(open) = &mut self.open {
            open.next = now;
            open.waits = 0;
        }
    }

    /// Closed by hand.
    pub(crate) fn close(&mut self, now: Now) {
        if let Some(open) = self.open.take() {
            self.closed = Some((now.monotonic, open.waits));
            self.forget();
        }
    }

    /// How it stands; what it does not know of is left as it is by default.
    pub(crate) fn status(&self) -> BreakerStatus {
        let open = self.open.as_ref();
        BreakerStatus {
            state: match open {
                Some(_) => "open",
                None if self.policy.enabled => "closed",
                None => "off",
            },
            reason: open.map(|open| open.trip.reason.as_str()),
            text: open.map(|open| open.trip.text.clone()),
            since: open.map(|open| open.trip.since),
            next_probe_at: open.map(|open| open.next.wall),
            probes: open.map_or(0, |open| open.probes),
            trips: self.trips,
            ..BreakerStatus::default()
        }
    }

    fn forget(&mut self) {
        self.run.clear();
        self.run_kind = None;
        self.window = Window::default();
        self.usual.forget();
    }

    /// Whether it has processed enough for its failures to be the messages'.
    fn is_proven(&self, now: Now) -> bool {
        self.proof.is_given(now)
    }

    /// Whether it is not proven, and there is one to go back to.
    pub(crate) fn is_new(&self, now: Now) -> bool {
        self.back.is_some() && !self.is_proven(now)
    }

    /// So many messages were processed, and that is committed.
    pub(crate) fn has_processed(&mut self, revision: u32, messages: u64, now: Now) {
        if revision == self.revision && messages > 0 && self.open.is_none() {
            self.proof.processed(messages, now);
            self.goes_on |= self.stopped.take().is_some();
            self.stopped_here = false;
        }
    }

    fn trip_for(&mut self, kind: Option<Kind>, text: String, now: Now, rng: &mut fastrand::Rng) {
        let is_rejected = kind
            .as_ref()
            .is_some_and(|kind| kind.cause == Cause::Reject);
        let reason = self.reason(kind.as_ref(), now);
        let text = match reason {
            Reason::Outage => format!("outage: {text}"),
            Reason::PoisonFlood => format!("poison flood: {text}"),
            Reason::BadDeploy { revision, back } => format!(
                "bad deploy: revision {revision} fails where revision {back} did not: {text}{ADVICE}, and send again what \
                 it gave up (`dlq redrive --failed-revision {revision}`)"
            ),
        };
        let relapse = self
            .closed
            .filter(|(at, _)| now.monotonic < *at + HEALTHY)
            .map_or(0, |(_, waits)| waits);
        let mut open = Open {
            trip: Trip {
                reason,
                since: now.wall,
                text,
                kind,
            },
            probes: 0,
            waits: relapse,
            next: now,
            probing: false,
        };
        open.wait(&self.policy, now, rng);
        self.proof.stood_still();
        let class = open.trip.kind.as_ref().map(|kind| kind.class.clone());
        if let Some(class) = class.as_ref().filter(|_| is_rejected) {
            self.usual.doubt(class);
        }
        self.stopped_here = true;
        self.stopped = Some(Stopped {
            class,
            text: Reason::without_advice(&open.trip.text).to_owned(),
        });
        self.open = Some(open);
        self.trips += 1;
        self.forget();
    }

    fn reason(&self, kind: Option<&Kind>, now: Now) -> Reason {
        match (kind, &self.back) {
            (None, _) => Reason::Outage,
            (Some(kind), Some(back)) if self.is_new(now) && !back.failed_so(kind) => {
                Reason::BadDeploy {
                    revision: self.revision,
                    back: back.revision,
                }
            }
            (Some(kind), _) => match kind.cause {
                Cause::Retry | Cause::Timeout => Reason::Outage,
                _ => Reason::PoisonFlood,
            },
        }
    }

    fn probe_failed(&mut self, now: Now, rng: &mut fastrand::Rng) {
        if let Some(open) = &mut self.open {
            open.probing = false;
            open.probes = open.probes.saturating_add(1);
            open.wait(&self.policy, now, rng);
        }
    }
}

impl Open {
    /// At least half of a bound that doubles, so that an outage is neither hammered nor slept through.
    fn wait(&mut self, policy: &BreakerPolicy, now: Now, rng: &mut fastrand::Rng) {
        let bound = policy
            .probe_first_ms
            .saturating_mul(1 << self.waits.min(32))
            .min(policy.probe_max_ms);
        self.waits = self.waits.saturating_add(1);
        let wait = Duration::from_millis(bound).mul_f64(0.5 + rng.f64() / 2.0);
        self.next = Now {
            wall: now.wall.after(wait),
            monotonic: now.monotonic + wait,
        };
    }
}

fn explain(kind: &Kind, what: &str, example: &str) -> String {
    let class = match kind.class == kind.cause.as_str() {
        true => kind.class.clone(),
        false => format!("{} {}", kind.cause.as_str(), kind.class),
    };
    match example.is_empty() {
        true => format!("{what} alike ({class})"),
        false => format!(
            "{what} alike ({class}: {})",
            crate::ground::text::cut(example.to_owned(), 200)
        ),
    }
}

#[cfg(test)]
mod tests;
