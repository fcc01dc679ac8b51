//! Decides which failures are evidence about a revision, and when the evidence is enough to open
//! the breaker.

use std::time::Duration;

use millrace_model::{Attempt, Offset, Parked, Timestamp, TopicPartition};

use super::{Breaker, Now, Open};
use crate::dispatch::failed::Failed;
use crate::ground::planted::planted;
use crate::handler::Cause;

/// What alike failures have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kind {
    pub(super) cause: Cause,
    pub(super) class: String,
}

impl Kind {
    pub(super) fn of(failed: &Failed) -> Self {
        Self {
            cause: failed.cause,
            class: failed.class.clone(),
        }
    }

    pub(super) fn is(&self, failed: &Failed) -> bool {
        self.cause == failed.cause && self.class == failed.class
    }
}

/// The results of a batch.
pub(crate) struct Report<'a> {
    pub(crate) revision: u32,
    pub(crate) partition: TopicPartition,
    pub(crate) offsets: &'a [Offset],
    /// How many of the messages, from the first on, are retries.
    pub(crate) retried: usize,
    pub(crate) failed: &'a [Failed],
    /// What each failure means, in the order of `failed`.
    pub(crate) says: &'a [Says],
}

impl Report<'_> {
    /// How many messages succeeded.
    pub(super) fn processed(&self) -> u64 {
        (self.offsets.len() - self.failed.len()) as u64
    }

    /// How many messages did not fail, plus those that the error handler settled.
    pub(super) fn good(&self) -> u64 {
        let settled = self.says.iter().filter(|says| **says == Says::Settled);
        let settled = settled.filter(|_| !planted!(DropsAreFailures));
        self.processed() + settled.count() as u64
    }
}

/// What a failure means for the revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Says {
    /// A new failure.
    News,
    /// A known failure: the message failed in the same way before, under this revision or the one
    /// to go back to.
    Nothing,
    /// Not a failure: the error handler settled the message.
    Settled,
}

/// Which earlier attempts at a message count as known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Whose {
    /// The running revision.
    pub(crate) revision: u32,
    /// The one to go back to.
    pub(crate) back: Option<u32>,
    /// When the processor was created. Earlier attempts belong to a deleted processor of the same
    /// name.
    pub(crate) made_at: Timestamp,
}

impl Whose {
    /// Whether the message's last attempt by one of these revisions failed in the same way.
    fn failed_so(
        &self,
        before: Option<&Parked>,
        failed: &Failed,
        by: impl Fn(u32) -> bool,
    ) -> bool {
        let log = before.map_or(&[][..], |parked| &parked.log);
        let is_theirs = |attempt: &&Attempt| attempt.at >= self.made_at && by(attempt.revision);
        let last = log.iter().rfind(is_theirs);
        last.is_some_and(|last| last.class == failed.class)
    }

    /// Whether the message had failed in the same way under the revision to go back to.
    pub(crate) fn back_failed_so(&self, before: Option<&Parked>, failed: &Failed) -> bool {
        self.failed_so(before, failed, |by| Some(by) == self.back)
    }

    /// The meaning of a failure for the revision: none, if the message failed in this way before
    /// under it or the revision to go back to.
    pub(crate) fn says(&self, before: Option<&Parked>, failed: &Failed) -> Says {
        if planted!(FirstAttemptsOnly) && before.is_some_and(|parked| parked.attempts > 0) {
            return Says::Nothing;
        }
        let by = |by| by == self.revision || Some(by) == self.back;
        match self.failed_so(before, failed, by) {
            true => Says::Nothing,
            false => Says::News,
        }
    }
}

impl Breaker {
    /// Whether the failure may mean more than one bad message. A rejection is the component's
    /// decision, and counts only if a new revision rejects for a new reason.
    pub(super) fn counts(&self, failed: &Failed, now: Now) -> bool {
        let is_why = |open: &Open| open.trip.kind.as_ref().is_some_and(|kind| kind.is(failed));
        match failed.cause {
            Cause::Reject if self.open.as_ref().is_some_and(is_why) => true,
            Cause::Reject => self.is_new(now) && !self.usual.knows(&failed.class),
            Cause::HostDied | Cause::GivenUp => false,
            _ => true,
        }
    }

    /// Adds the batch to the evidence.
    pub(super) fn note(&mut self, report: &Report<'_>, now: Now) {
        let (good, percent) = (report.good(), self.policy.failed_percent);
        let span = match self.is_new(now) {
            // Slow traffic must not hide failures, so the window has no maximum age.
            true => Duration::MAX,
            false => Duration::from_millis(self.policy.window_ms),
        };
        if report.failed.is_empty() {
            if !self.run.is_empty() {
                self.run.clear();
            }
            self.window.good(good, now.monotonic, span, &self.policy);
            self.usual
                .note(report.offsets.len() - report.retried, &[], percent);
            return;
        }
        let said = report.failed.iter().zip(report.says);
        let evidence: Vec<&Failed> = said
            .filter(|(failed, says)| {
                let place = (report.partition, report.offsets[failed.message]);
                let is_news =
                    **says == Says::News || **says == Says::Settled && planted!(DropsAreFailures);
                is_news && self.counts(failed, now) && !self.run.contains(&place)
            })
            .map(|(failed, _)| failed)
            .collect();
        self.window
            .mixed(good, &evidence, now.monotonic, span, &self.policy);
        // Retried messages are a selection of failures, so their rejections say nothing about the
        // rate.
        let (mut repeated, mut fresh) = (report.retried, Vec::new());
        let said = report.failed.iter().zip(report.says);
        for (failed, says) in said.filter(|(failed, _)| failed.message >= report.retried) {
            match says {
                // Known failures must not count twice, and a failure that the error handler settled
                // is no rejection.
                Says::News => fresh.push((failed.message - repeated, failed)),
                Says::Nothing => repeated += 1,
                Says::Settled => {}
            }
        }
        let messages = report.offsets.len() - repeated;
        self.usual.note(messages, &fresh, percent);
        self.follow_run(report, now);
    }

    /// Extends or ends the run of failures. Failures at the end of the batch continue it; a success
    /// before them ends the earlier run.
    fn follow_run(&mut self, report: &Report<'_>, now: Now) {
        let mut end = report.offsets.len();
        let mut tail = Vec::new();
        for (failed, says) in report.failed.iter().zip(report.says).rev() {
            let ends = match says {
                Says::Settled => true,
                Says::Nothing => false,
                Says::News => !self.counts(failed, now),
            };
            if failed.message + 1 != end || ends {
                break;
            }
            end = failed.message;
            if *says == Says::News {
                tail.push(failed);
            }
        }
        if end > 0 {
            self.run.clear();
        }
        for failed in tail.into_iter().rev() {
            if !self.run_kind.as_ref().is_some_and(|kind| kind.is(failed)) {
                self.run.clear();
                self.run_kind = Some(Kind::of(failed));
            }
            if self.run.len() < self.policy.failures_min as usize {
                let place = (report.partition, report.offsets[failed.message]);
                self.run.insert(place);
            }
        }
    }

    /// The kind of failure for which the evidence is enough, with a sentence about it.
    pub(super) fn judge(&self, now: Now) -> Option<(Kind, String)> {
        let too_many = self.usual.too_many(self.policy.failures_min);
        let too_many = too_many.filter(|_| !planted!(KnownClassExcuses));
        if let Some((class, what)) = too_many.filter(|_| self.is_new(now)) {
            let cause = Cause::Reject;
            return Some((Kind { cause, class }, what));
        }
        let run = self.run.len() as u32;
        if run >= self.policy.failures_min {
            let kind = self.run_kind.clone()?;
            return Some((kind, format!("{run} different messages in a row failed")));
        }
        let (kind, failed, all) = self.window.most()?;
        let share = u64::from(failed) * 100 >= u64::from(self.policy.failed_percent) * all;
        (failed >= self.policy.failures_min && share).then(|| {
            (
                kind.clone(),
                format!("{failed} of the latest {all} messages failed"),
            )
        })
    }
}
