//! The breaker of a processor: distinguishes one poison message from an outage, a bad deploy and a
//! flood of poison. It is plain synchronous code that is given the time; [`gate`](super::gate)
//! shares it among the processor's workers.
//!
//! While it is closed, everything runs and every batch is reported. It opens when many *different*
//! messages in a row, or most of the latest ones, fail alike. It opens at once when the component
//! reports that something outside is down. While it is open, only one message at a time is called:
//! the probe. The first successful probe closes it. Failures in the batch that opened it, and
//! failed probes, spend no attempt and never create a dead letter.
//!
//! Every failed attempt is evidence about the revision that made it, except repetitions of known
//! failures and messages that the error handler settled. So one message that keeps failing counts
//! once. A revision's habitual rejections are judged by their share ([`usual`]).

use std::collections::HashSet;
use std::fmt;
use std::time::Duration;

use millrace_model::processor::BreakerPolicy;
use millrace_model::{Offset, Record, Rejections, Stopped, Timestamp, TopicPartition};
use serde::{Deserialize, Serialize};

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

/// A canary is withdrawn after this many consecutive timeouts: each one keeps the current revision
/// waiting.
pub(crate) const CANARY_TIMEOUTS_MAX: u32 = 2;
/// Messages needed before shares of rejections mean anything.
const MEASURED_AT_LEAST: u32 = 250;
/// If the breaker opens again within this time after it closed, the delays between probes continue
/// from their previous length.
const HEALTHY: Duration = Duration::from_secs(10);
/// How long a worker waits for another worker's probe before it checks again.
const PROBE_WAIT: Duration = Duration::from_secs(1);

/// A moment, on both clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    pub(crate) wall: Timestamp,
    pub(crate) monotonic: Duration,
}

/// Why a breaker opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Something outside that the messages need is down.
    Outage,
    /// An unproven revision fails messages that the revision to go back to did not.
    BadDeploy { revision: u32, back: u32 },
    /// Most messages cannot be processed by any revision.
    PoisonFlood,
}

/// The end of the text of a bad deploy.
const ADVICE: &str = "; roll back, or deploy a fixed one";

impl Reason {
    /// A trip's text without its advice.
    pub(crate) fn without_advice(text: &str) -> &str {
        text.find(ADVICE).map_or(text, |end| &text[..end])
    }

    /// The reason in metrics and answers.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Outage => "outage",
            Self::BadDeploy { .. } => "bad-deploy",
            Self::PoisonFlood => "poison-flood",
        }
    }
}

/// What to do with a reported batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Judgement {
    /// Settle each message as its outcome and the policy say.
    Settle,
    /// Discard the outcomes: the batch is tried again when the breaker closes.
    Discard,
    /// Park the message of a failed probe again, without spending an attempt, so that the next
    /// probe may be another message.
    Postpone,
}

/// Whether a worker may go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    Go,
    /// With one message. The worker must report its outcome or return the probe.
    Probe,
    /// Wait this long, or until something changes.
    Wait(Duration),
}

/// Why the breaker is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trip {
    pub(crate) reason: Reason,
    pub(crate) since: Timestamp,
    /// An explanation for operators.
    pub(crate) text: String,
    /// What the failures have in common; `None` if the component reported that the batch cannot be
    /// processed.
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
    /// Failed probes.
    probes: u32,
    /// Number of delays between probes so far, which sets the bound of the next one.
    waits: u32,
    /// When the next probe is due.
    next: Now,
    probing: bool,
}

/// The state of a processor's breaker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BreakerStatus {
    /// `closed`, `open`, or `off` if the specification disables it.
    pub state: String,
    /// Why the breaker is open: `outage`, `bad-deploy` or `poison-flood`.
    pub reason: Option<String>,
    /// The reason as a sentence.
    pub text: Option<String>,
    /// Since when it has been open, in milliseconds since the Unix epoch.
    pub since: Option<Timestamp>,
    /// When the next message is tried.
    pub next_probe_at: Option<Timestamp>,
    /// Failed probes since the breaker opened.
    pub probes: u32,
    /// How often the breaker has opened since the host started.
    pub trips: u64,
    /// Dead letters that may still be created before a partition waits.
    pub dead_letters_left: u32,
    /// Dead letters that an operator accepted in advance and that have not been created yet.
    pub dead_letters_accepted: u64,
}

/// What the breaker needs to know about the running revision.
#[derive(Clone, Debug, Default)]
pub(crate) struct Subject {
    pub(crate) revision: u32,
    /// The revision to go back to.
    pub(crate) back: Option<Back>,
    /// The stored record.
    pub(crate) record: Record,
}

/// The revision to go back to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Back {
    pub(crate) revision: u32,
    /// The record of that revision.
    pub(crate) record: Record,
    /// Whether the same error handler settles its failures.
    pub(crate) same_handler: bool,
    /// The usual rejections: those of the last proven revision. An unproven revision's rejections
    /// are not usual for any other revision.
    pub(crate) usual: Vec<Rejections>,
}

impl Back {
    /// Whether this failure stopped the revision before.
    fn failed_so(&self, kind: &Kind) -> bool {
        let stopped = self.record.stopped.as_ref();
        stopped.is_some_and(|stopped| stopped.class.as_ref() == Some(&kind.class))
    }
}

/// The parts of a revision's record whose changes are stored.
#[derive(Debug, Default, PartialEq, Eq)]
struct Written {
    proof: (bool, bool, bool, u64),
    stopped: bool,
    doubted: usize,
    /// The number of rejected classes, and the number of messages over which they were measured.
    rejects: (usize, u32),
}

/// One processor's breaker.
#[derive(Debug)]
pub(crate) struct Breaker {
    policy: BreakerPolicy,
    /// Whether an operator has accepted dead letters, so that failures are handled one by one for
    /// now.
    accepting: bool,
    revision: u32,
    back: Option<Back>,
    proof: Proof,
    /// Why the revision is stopped, or why it was stopped if it has processed nothing since.
    stopped: Option<Stopped>,
    /// Whether it stopped here, not on another host or before this process started.
    stopped_here: bool,
    /// Whether it has processed something since it stopped, and that is not stored yet.
    goes_on: bool,
    /// Consecutive calls that timed out.
    timeouts: u32,
    /// The stored record.
    written: Written,
    open: Option<Open>,
    /// Different messages that failed alike since the last success.
    run: HashSet<(TopicPartition, Offset)>,
    run_kind: Option<Kind>,
    window: Window,
    usual: Usual,
    /// When the breaker last closed, and the number of delays until then.
    closed: Option<(Duration, u32)>,
    trips: u64,
}

impl Breaker {
    /// A closed breaker for the processor's first revision in this process.
    pub(crate) fn new(policy: BreakerPolicy, subject: &Subject, now: Now) -> Self {
        let mut breaker = Self {
            policy,
            accepting: false,
            revision: subject.revision,
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
        breaker.begin_with(subject, now);
        breaker
    }

    /// Makes this revision take the next batch. A new revision may succeed where the previous one
    /// failed, so the breaker closes.
    pub(crate) fn install(&mut self, policy: BreakerPolicy, subject: &Subject, now: Now) {
        self.policy = policy;
        if subject.revision == self.revision {
            // The revision to go back to may have changed.
            self.back.clone_from(&subject.back);
            return;
        }
        self.open = None;
        self.closed = None;
        self.forget();
        self.begin_with(subject, now);
    }

    /// Ends the revision: failures of calls in flight no longer count here.
    pub(crate) fn retire(&mut self) {
        self.revision = 0;
    }

    /// The rejections that were measured for this revision.
    pub(crate) fn rejections(&self) -> Vec<Rejections> {
        self.usual.own()
    }

    /// Whether rejections of this class are usual.
    pub(crate) fn excuses(&self, class: &str) -> bool {
        self.usual.excuses(class) || planted!(KnownClassExcuses) && self.usual.knows(class)
    }

    /// Sets the usual shares of rejections.
    pub(crate) fn learn(&mut self, rejections: &[Rejections]) {
        self.usual.learn(rejections);
    }

    fn begin_with(&mut self, subject: &Subject, now: Now) {
        self.revision = subject.revision;
        self.back.clone_from(&subject.back);
        self.proof = Proof::of(&subject.record, now);
        self.stopped.clone_from(&subject.record.stopped);
        (self.stopped_here, self.goes_on) = (false, false);
        self.timeouts = 0;
        self.usual = Usual::of(&subject.record);
        if let Some(back) = &subject.back {
            self.usual.learn(&back.usual);
        }
        self.written.rejects = (subject.record.rejections.len(), subject.record.measured);
        self.written = self.as_written();
    }

    fn as_written(&self) -> Written {
        let (classes, measured) = self.written.rejects;
        // Shares are stored only for a proven revision: when a class is new, and again once they
        // are measured over four times as many messages.
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

    /// The revision's record in the form to store. The caller sets when it first worked.
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

    /// Whether more processed messages may still prove the revision, or show that it is no longer
    /// stopped.
    pub(crate) fn is_watched(&self) -> bool {
        self.revision > 0 && (!self.proof.is_given_anew() || self.stopped.is_some())
    }

    /// Whether part of the record must be stored. Returns true once for each change.
    pub(crate) fn take_news(&mut self) -> bool {
        let is = self.as_written();
        let news = self.revision > 0 && is != self.written;
        if news {
            self.written = is;
        }
        news
    }

    /// Storing failed, so the change is reported again.
    pub(crate) fn not_written(&mut self) {
        self.written = Written::default();
    }

    /// Sets whether failures are handled one by one, however many there are.
    pub(crate) fn accept(&mut self, accepting: bool) {
        self.accepting = accepting;
    }

    /// Why the breaker is open; `None` if it is closed.
    pub(crate) fn trip(&self) -> Option<&Trip> {
        self.open.as_ref().map(|open| &open.trip)
    }

    /// Whether a worker may take a batch now. A worker that gets the probe must report it or return
    /// it.
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

    /// Returns a probe that was not used.
    pub(crate) fn give_back(&mut self) {
        if let Some(open) = &mut self.open {
            open.probing = false;
        }
    }

    /// Reports a batch that was answered, or a single message that failed its call.
    pub(crate) fn report(
        &mut self,
        report: &Report<'_>,
        is_probe: bool,
        now: Now,
        rng: &mut fastrand::Rng,
    ) -> Judgement {
        if report.revision != self.revision {
            // The batch of a revision that no longer runs does not count; the running revision may
            // succeed.
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
                // Earlier failures may have been enough evidence, but a batch without such a
                // failure must not open the breaker.
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

    /// Reports that the component cannot process a batch for an outside reason.
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

    /// Reports that a call of a canary timed out.
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
            let text = format!("{} calls in a row timed out", self.timeouts);
            self.trip_for(Some(kind), text, now, rng);
        }
    }

    /// Reports messages that a canary failed and the current revision processed.
    pub(crate) fn contradicted(&mut self, messages: u32, now: Now, rng: &mut fastrand::Rng) {
        if self.open.is_none() && self.revision > 0 {
            let text = format!(
                "the current revision processed {messages} messages that the canary would have given up"
            );
            let kind = Kind {
                cause: Cause::Reject,
                class: String::new(),
            };
            self.trip_for(Some(kind), text, now, rng);
        }
    }

    /// Allows the next probe at once.
    pub(crate) fn hurry(&mut self, now: Now) {
        if let Some(open) = &mut self.open {
            open.next = now;
            open.waits = 0;
        }
    }

    /// Closes the breaker: for an operator, or after a successful probe.
    pub(crate) fn close(&mut self, now: Now) {
        if let Some(open) = self.open.take() {
            self.closed = Some((now.monotonic, open.waits));
            self.forget();
        }
    }

    /// The breaker's status. Fields that the breaker does not know have their defaults.
    pub(crate) fn status(&self) -> BreakerStatus {
        let open = self.open.as_ref();
        BreakerStatus {
            state: match open {
                Some(_) => "open",
                None if self.policy.enabled => "closed",
                None => "off",
            }
            .to_owned(),
            reason: open.map(|open| open.trip.reason.as_str().to_owned()),
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

    /// Whether the revision has processed enough that failures count as the messages' fault.
    fn is_proven(&self, now: Now) -> bool {
        self.proof.is_given(now)
    }

    /// Whether the revision is not proven and there is one to go back to.
    pub(crate) fn is_new(&self, now: Now) -> bool {
        self.back.is_some() && !self.is_proven(now)
    }

    /// Reports that this many messages were processed and committed.
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
                "bad deploy: revision {revision} fails where revision {back} did not: {text}{ADVICE}, and redrive what \
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
    /// A random delay of at least half of a limit that doubles with each probe. So an outage is
    /// neither hammered nor noticed late.
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
