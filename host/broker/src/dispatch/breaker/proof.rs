//! What proves a revision: messages that it processed, or an hour in which it processed some. Neither a start of the host nor one
//! takes that away; an hour in which it stood still or had nothing to do is no proof.

use std::time::Duration;

use millrace_model::Record;

use super::Now;
use crate::ground::planted::planted;

/// A revision that has processed so many messages is proven: what fails then is not its deployment.
pub(crate) const PROVEN_MESSAGES: u64 = 1_000;
/// A revision is proven so long after the first message that it processed, if it did not stand still meanwhile and has processed
/// [`PROVEN_LEAST`] messages.
pub(crate) const PROVEN_AFTER: Duration = Duration::from_secs(60 * 60);
/// Messages without which no hour proves a revision.
pub(crate) const PROVEN_LEAST: u64 = 20;
/// It is written down how far a proof has come whenever it has come so much further.
const WRITTEN_EVERY: u64 = PROVEN_MESSAGES / 4;
/// The first messages count for more.
const WRITTEN_FIRST_EVERY: u64 = PROVEN_LEAST / 4;

/// How far a revision's proof has come.
#[derive(Debug, Default)]
pub(super) struct Proof {
    /// Whether it ever processed a message as the current one.
    worked: bool,
    /// Whether it was proven when it was current before.
    before: bool,
    /// Whether it is since it became current last.
    anew: bool,
    /// Messages since then that are written down, of whichever host.
    written: u64,
    /// Messages since then that are not written down yet.
    fresh: u64,
    /// When the first of them was processed, or the first after it stood still; and when that is an hour ago.
    since: Option<(Now, Duration)>,
}

impl Proof {
    /// Of a revision of which so much is written down.
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

    /// So many messages were processed, and that is committed.
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

    /// Messages that are not written down yet, as far as they matter.
    pub(super) fn fresh(&self) -> u32 {
        self.fresh.min(PROVEN_MESSAGES) as u32
    }

    /// So many of them are, and nobody has followed that yet.
    pub(super) fn written(&mut self, fresh: u32) {
        self.fresh = self.fresh.saturating_sub(fresh.into());
        self.written = self.written.saturating_add(fresh.into());
    }

    /// So much is written down by now, of all hosts.
    pub(super) fn follow(&mut self, record: &Record) {
        self.worked |= record.worked_at.is_some();
        self.before |= record.proven;
        self.written = record.processed.into();
        self.anew |= record.proven_anew || self.all() >= PROVEN_MESSAGES;
    }

    /// The breaker opened: an hour of failures is no proof.
    pub(super) fn stood_still(&mut self) {
        if !planted!(IdleIsProof) {
            self.since = None;
        }
    }

    /// Whether it has processed enough for its failures to be the messages'.
    pub(super) fn is_given(&self, now: Now) -> bool {
        let idle = |(_, due): (Now, Duration)| planted!(IdleIsProof) && now.monotonic >= due;
        self.before || self.anew || self.since.is_some_and(idle)
    }

    /// Whether it is since it became current last.
    pub(super) fn is_given_anew(&self) -> bool {
        self.anew
    }

    /// Whether it processed anything, now or before.
    pub(super) fn has_worked(&self) -> bool {
        self.worked
    }

    /// What changes when there is something to write down.
    pub(super) fn step(&self) -> (bool, bool, bool, u64) {
        let processed = self.all();
        let steps = match processed < PROVEN_LEAST {
            true => processed / WRITTEN_FIRST_EVERY,
            false => PROVEN_LEAST + processed.min(PROVEN_MESSAGES) / WRITTEN_EVERY,
        };
        (self.worked, self.anew, self.since.is_some(), steps)
    }

    /// As it is to be written down.
    pub(super) fn write(&self, record: &mut Record, now: Now) {
        record.proven = self.is_given(now);
        record.proven_anew = self.anew;
        record.processed = self.all().min(PROVEN_MESSAGES) as u32;
        record.processed_since = self.since.map(|(since, _)| since.wall);
    }
}
