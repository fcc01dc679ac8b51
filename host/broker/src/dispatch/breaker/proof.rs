//! The proof of a revision: enough processed messages, or an hour in which it processed some. A
//! restart of the host keeps both. Time in which it was stopped or had no messages does not count.

use std::time::Duration;

use millrace_model::Record;

use super::Now;
use crate::ground::planted::planted;

/// A revision is proven after this many processed messages: later failures are not blamed on its
/// deployment.
pub(crate) const PROVEN_MESSAGES: u64 = 1_000;
/// A revision is proven this long after its first processed message, if it was not stopped
/// meanwhile and has processed [`PROVEN_LEAST`] messages.
pub(crate) const PROVEN_AFTER: Duration = Duration::from_secs(60 * 60);
/// Messages needed before an hour proves a revision.
pub(crate) const PROVEN_LEAST: u64 = 20;
/// The progress of a proof is stored whenever it has advanced by this many messages.
const WRITTEN_EVERY: u64 = PROVEN_MESSAGES / 4;
/// Until [`PROVEN_LEAST`], the progress is stored whenever it has advanced by this many messages.
const WRITTEN_FIRST_EVERY: u64 = PROVEN_LEAST / 4;

/// The progress of a revision's proof.
#[derive(Debug, Default)]
pub(super) struct Proof {
    /// Whether the revision ever processed a message as the current one.
    worked: bool,
    /// Whether it was proven in an earlier time as the current revision.
    before: bool,
    /// Whether it was proven since it last became current.
    anew: bool,
    /// Messages since then that are stored, over all hosts.
    written: u64,
    /// Messages since then that are not stored yet.
    fresh: u64,
    /// When the first of them was processed, or the first after a stop, and when an hour will have
    /// passed since then.
    since: Option<(Now, Duration)>,
}

impl Proof {
    /// The proof from a stored record.
    pub(super) fn of(record: &Record, now: Now) -> Self {
        let since = record.processed_since.map(|since| {
            let left = PROVEN_AFTER.saturating_sub(since.until(now.wall));
            (Now { wall: since, ..now }, now.monotonic + left)
        });
        let idle = planted!(IdleIsProof).then_some((now, now.monotonic + PROVEN_AFTER));
        Self {
            worked: record.worked_at.is_some(),
            before: record.proven,
            anew: record.proven_anew,
            written: record.processed.into(),
            fresh: 0,
            since: since.or(idle),
        }
    }

    /// Adds processed and committed messages.
    pub(super) fn processed(&mut self, messages: u64, now: Now) {
        self.worked = true;
        self.fresh = self.fresh.saturating_add(messages);
        let (_, due) = *self
            .since
            .get_or_insert((now, now.monotonic + PROVEN_AFTER));
        let in_time = self.all() >= PROVEN_LEAST && now.monotonic >= due;
        self.anew |= in_time || self.all() >= PROVEN_MESSAGES;
    }

    fn all(&self) -> u64 {
        self.written.saturating_add(self.fresh)
    }

    /// Messages that are not stored yet, up to the number that proves a revision.
    pub(super) fn fresh(&self) -> u32 {
        self.fresh.min(PROVEN_MESSAGES) as u32
    }

    /// Records that this many messages are stored; [`follow`](Self::follow) brings them back as
    /// part of all hosts' count.
    pub(super) fn written(&mut self, fresh: u32) {
        self.fresh = self.fresh.saturating_sub(fresh.into());
        self.written = self.written.saturating_add(fresh.into());
    }

    /// Takes over the stored record of all hosts.
    pub(super) fn follow(&mut self, record: &Record) {
        self.worked |= record.worked_at.is_some();
        self.before |= record.proven;
        self.written = record.processed.into();
        self.anew |= record.proven_anew || self.all() >= PROVEN_MESSAGES;
    }

    /// Restarts the hour because the breaker opened: an hour of failures proves nothing.
    pub(super) fn stood_still(&mut self) {
        if !planted!(IdleIsProof) {
            self.since = None;
        }
    }

    /// Whether the revision has processed enough that failures count as the messages' fault.
    pub(super) fn is_given(&self, now: Now) -> bool {
        let idle = |(_, due): (Now, Duration)| planted!(IdleIsProof) && now.monotonic >= due;
        self.before || self.anew || self.since.is_some_and(idle)
    }

    /// Whether the revision was proven since it last became current.
    pub(super) fn is_given_anew(&self) -> bool {
        self.anew
    }

    /// Whether the revision ever processed anything.
    pub(super) fn has_worked(&self) -> bool {
        self.worked
    }

    /// The stages of the proof. When they change, the record must be stored.
    pub(super) fn step(&self) -> (bool, bool, bool, u64) {
        let processed = self.all();
        let steps = match processed < PROVEN_LEAST {
            true => processed / WRITTEN_FIRST_EVERY,
            false => PROVEN_LEAST + processed.min(PROVEN_MESSAGES) / WRITTEN_EVERY,
        };
        (self.worked, self.anew, self.since.is_some(), steps)
    }

    /// Writes the proof into a record.
    pub(super) fn write(&self, record: &mut Record, now: Now) {
        record.proven = self.is_given(now);
        record.proven_anew = self.anew;
        record.processed = self.all().min(PROVEN_MESSAGES) as u32;
        record.processed_since = self.since.map(|(since, _)| since.wall);
    }
}
