//! Progress of a batch's messages, before and after the decision.

use millrace_model::{Attempt, Parked, Progress, Timestamp};

use super::{Effects, Settler, Settling};
use crate::dispatch::answer::Verdict;
use crate::dispatch::batcher::{Batch, behind};
use crate::dispatch::failed::Failed;
use crate::handler::Failure;

/// A batch's failures in the form that the error handler gets.
pub(crate) fn failures(
    batch: &Batch,
    verdict: &Verdict,
    progress: &Progress,
    revision: u32,
    now: Timestamp,
) -> Vec<Failure> {
    let failure = |(place, failed): (usize, &Failed)| {
        let before = parked_before(batch, progress, failed.message);
        Failure {
            message: place as u32,
            revision,
            attempt: before.map_or(0, |parked| parked.attempts).saturating_add(1),
            first_failed_at: first_failed_at(before, now),
            cause: failed.cause,
            class: failed.class.clone(),
            reason: failed.reason.clone(),
        }
    };
    verdict.failed.iter().enumerate().map(failure).collect()
}

/// How many messages of a batch the canary had failed and the current revision has processed.
pub(crate) fn contradictions(
    canary: u32,
    batch: &Batch,
    verdict: &Verdict,
    progress: &Progress,
) -> u32 {
    let contradicts = |message: &usize| {
        let before = parked_before(batch, progress, *message);
        let failed_at = |parked: &Parked| {
            let by = |attempt: &Attempt| attempt.revision == canary;
            parked.revision == canary || parked.log.iter().any(by)
        };
        before.is_some_and(|parked| parked.current_only && failed_at(parked))
            && verdict
                .failed
                .iter()
                .all(|failed| failed.message != *message)
    };
    (0..batch.retried).filter(contradicts).count() as u32
}

/// The message's entry in progress; `None` for a new message.
pub(crate) fn parked_before<'a>(
    batch: &Batch,
    progress: &'a Progress,
    message: usize,
) -> Option<&'a Parked> {
    if message >= batch.retried {
        return None;
    }
    let offset = batch.offsets[message];
    let parked = &progress.parked;
    let found = parked.binary_search_by_key(&offset, |parked| parked.offset);
    found.ok().map(|index| &parked[index])
}

pub(super) fn first_failed_at(before: Option<&Parked>, now: Timestamp) -> Timestamp {
    before
        .filter(|parked| parked.attempts > 0)
        .map_or(now, |parked| parked.first_failed_at)
}

impl Settler<'_> {
    /// Completes the effects.
    pub(super) fn finish(mut self) -> Effects {
        self.close_dead_letters();
        let Settling {
            batch, progress, ..
        } = *self.settling;
        let retried = &batch.offsets[..batch.retried];
        let waiting = progress
            .parked
            .iter()
            .filter(|parked| retried.binary_search(&parked.offset).is_err())
            .chain(&batch.skipped);
        self.parked.extend(waiting.cloned());
        self.parked.sort_unstable_by_key(|parked| parked.offset);
        self.effects.progress = Progress {
            next: batch.next,
            revision: self.settling.revision,
            parked: self.parked,
            first_call: None,
            given_up: progress.given_up,
        };
        self.effects
    }

    /// Parks every message of the batch again, to run after others that can run.
    pub(super) fn postpone(&mut self) {
        let settling = self.settling;
        for (message, &offset) in settling.batch.offsets.iter().enumerate() {
            let ordering = settling.ordering(message);
            let before = settling.parked(message).cloned();
            self.parked.push(Parked {
                due: Some(settling.now),
                ordering,
                ..before.unwrap_or_else(|| behind(offset, ordering))
            });
        }
    }
}
