//! Decides about a failed message: retry, hold, pass to the current revision, or give up with
//! evidence. The error handler or the policy decides, within the limits of an unproven revision.

use std::time::Duration;

use millrace_model::bounds::{
    ATTEMPT_LOG_MAX, ATTEMPT_REASON_BYTES_MAX, ATTEMPT_SHORT_REASON_BYTES_MAX,
};
use millrace_model::{Attempt, BatchBuilder, Parked, Timestamp};

use super::progress::first_failed_at;
use super::{Settler, Settling};
use crate::dispatch::breaker::PROVEN_AFTER;
use crate::dispatch::dead_letter::{self, Death};
use crate::dispatch::failed::Failed;
use crate::dispatch::retry;
use crate::dispatch::word::Word;
use crate::ground::chains::{HOPS_CLASS, Trail, after, trail_of};
use crate::ground::planted::planted;
use crate::ground::text::cut;
use crate::handler::{Cause, Decision};

/// Approximate size of the batches of dead letters in one commit.
const DEAD_LETTER_BATCH_BYTES: usize = 8 << 20;

/// Minimum delay of a held message, whatever the policy says.
pub(super) const HELD_DELAY_MIN: Duration = Duration::from_secs(1);
/// Maximum delay of a held message: the revision may be proven meanwhile.
pub(super) const HELD_DELAY_MAX: Duration = Duration::from_secs(5 * 60);

/// The decision about a failed message.
enum Fate {
    Retry(Duration),
    /// The message would be given up, but the revision is not proven.
    Hold,
    DeadLetter,
    Drop(String),
    /// The current revision is called instead.
    AskAgain,
}

impl Settler<'_> {
    /// Decides about a failed message.
    pub(super) fn fail(
        &mut self,
        failure: usize,
        failed: &Failed,
        ordering: Option<u64>,
        rng: &mut fastrand::Rng,
    ) {
        let settling = self.settling;
        let parked = attempted(settling, failed, ordering);
        self.effects.counts.failed += 1;
        self.discarded[failed.message] = true;
        let attempts = match planted!(AttemptsAddUp) {
            true => parked.attempts,
            false => parked.own_attempts,
        };
        let fate = settling.fate(failure, failed, attempts, rng);
        let given_up = (self.letters, self.drops);
        match settling.by_word(fate, failed, &parked, given_up, rng) {
            Fate::AskAgain => {
                self.effects.counts.asked_again += 1;
                self.blocked.extend(ordering);
                self.parked.push(Parked {
                    due: Some(settling.now),
                    current_only: true,
                    ..parked
                });
            }
            Fate::Hold => {
                let delay = Duration::from_millis(settling.spec.retry.delay_max_ms);
                self.effects.counts.retries += 1;
                self.blocked.extend(ordering);
                self.parked.push(Parked {
                    due: Some(
                        settling
                            .now
                            .after(delay.clamp(HELD_DELAY_MIN, HELD_DELAY_MAX)),
                    ),
                    held_since: parked.held_since.or(Some(settling.now)),
                    ..parked
                });
            }
            Fate::Retry(delay) => {
                let delay = retry::bounded(delay);
                self.effects.counts.retries += 1;
                self.blocked.extend(ordering);
                self.parked.push(Parked {
                    due: Some(settling.now.after(delay)),
                    ..parked
                });
            }
            Fate::DeadLetter => {
                self.count(&Fate::DeadLetter, failed);
                self.die(failed, &parked);
            }
            Fate::Drop(reason) => {
                let fate = Fate::Drop(reason.clone());
                self.count(&fate, failed);
                self.effects.dropped.push((parked.offset, reason));
            }
        }
    }

    /// Counts a given-up message against an unproven revision, unless the revision is not to blame.
    fn count(&mut self, fate: &Fate, failed: &Failed) {
        let settling = self.settling;
        let Word::CountsFor(may) = settling.word else {
            return;
        };
        let is_the_hosts =
            settling.verdict.is_final || matches!(failed.cause, Cause::HostDied | Cause::GivenUp);
        let (letters, drops) = match fate {
            Fate::Drop(_) => (self.letters, self.drops + 1),
            _ => (self.letters + 1, self.drops),
        };
        // A message that has been held for an hour is given up even beyond the bound, and does not
        // count.
        let is_over = may.counted(letters, drops) > may.unproven;
        if !is_the_hosts && !is_over && !settling.is_free(fate, failed) {
            (self.letters, self.drops) = (letters, drops);
            self.effects.given_up_unproven = may.counted(letters, drops);
        }
    }

    fn die(&mut self, failed: &Failed, parked: &Parked) {
        let settling = self.settling;
        let death = Death {
            input: settling.input,
            processor: settling.processor,
            revision: settling.revision,
            module: settling.module,
            failed,
            attempts: parked.attempts,
            first_failed_at: parked.first_failed_at,
            died_at: settling.now,
            log: &parked.log,
            used: settling.verdict.used.as_ref(),
            redrives: settling
                .batch
                .redrives
                .get(failed.message)
                .map_or(0, |n| *n),
            trail: settling.trail(failed),
        };
        let columns = &settling.batch.columns;
        dead_letter::write(columns, failed.message, &death, &mut self.dead);
        self.effects.counts.dead_letters += 1;
        self.effects.given_up.push(failed.message);
        if self.dead.byte_count() >= DEAD_LETTER_BATCH_BYTES {
            self.close_dead_letters();
        }
    }

    pub(super) fn close_dead_letters(&mut self) {
        let full = std::mem::replace(&mut self.dead, BatchBuilder::with_capacity(0));
        self.effects.dead_letters.extend(full.finish());
    }
}

impl Settling<'_> {
    fn fate(
        &self,
        failure: usize,
        failed: &Failed,
        attempts: u32,
        rng: &mut fastrand::Rng,
    ) -> Fate {
        if self.is_spent(failed) && self.came(failed).ended {
            return Fate::Drop(
                "it was already given up for its hops, has its dead letter, and came round once more".to_owned(),
            );
        }
        match self.decisions.get(failure) {
            Some(Decision::RetryAfter(delay)) => Fate::Retry(*delay),
            Some(Decision::DeadLetter) => Fate::DeadLetter,
            Some(Decision::Drop(reason)) => Fate::Drop(reason.clone()),
            Some(Decision::Policy) | None => self.by_policy(failed, attempts, rng),
        }
    }

    /// Whether the message was out of hops and was not even called.
    fn is_spent(&self, failed: &Failed) -> bool {
        self.verdict.is_final && failed.class == HOPS_CLASS
    }

    /// The hops that the message arrived with.
    fn came(&self, failed: &Failed) -> Trail {
        trail_of(&self.batch.columns, failed.message).unwrap_or_default()
    }

    /// The hops of the dead letter, and those the message arrived with. A dead letter counts like
    /// an output, because processors may read it.
    fn trail(&self, failed: &Failed) -> Option<(Trail, u32)> {
        let came = self.came(failed);
        if self.is_spent(failed) {
            return Some((
                Trail {
                    ended: true,
                    ..came
                },
                came.hops,
            ));
        }
        let before = trail_of(&self.batch.columns, failed.message);
        let trail = after(before, self.spec.hops_max.is_some());
        trail.map(|trail| (trail, came.hops))
    }

    fn by_policy(&self, failed: &Failed, attempts: u32, rng: &mut fastrand::Rng) -> Fate {
        let hopeless = matches!(
            failed.cause,
            Cause::Reject | Cause::HostDied | Cause::GivenUp
        );
        if hopeless || attempts >= self.spec.retry.attempts_max {
            return Fate::DeadLetter;
        }
        Fate::Retry(match failed.after_ms {
            Some(after_ms) => Duration::from_millis(after_ms),
            None => retry::message_delay(&self.spec.retry, attempts, rng),
        })
    }

    /// Changes a fate as the revision's standing requires.
    fn by_word(
        &self,
        fate: Fate,
        failed: &Failed,
        parked: &Parked,
        given_up: (u32, u32),
        rng: &mut fastrand::Rng,
    ) -> Fate {
        let is_the_hosts =
            self.verdict.is_final || matches!(failed.cause, Cause::HostDied | Cause::GivenUp);
        let is_free = match self.word {
            Word::Counts => false,
            Word::CountsFor(_) => planted!(NoBound),
            Word::IsAskedAgain => planted!(CanaryGivesUp),
        };
        if is_the_hosts || is_free {
            return fate;
        }
        match (self.word, &fate) {
            (Word::IsAskedAgain, Fate::Retry(_)) if !took_the_call_down(failed) => fate,
            (Word::IsAskedAgain, _) => Fate::AskAgain,
            (Word::CountsFor(may), Fate::DeadLetter | Fate::Drop(_)) => {
                if self.is_settled(&fate, failed) {
                    return fate;
                }
                let is_its_first = parked.own_attempts <= 1 && parked.attempts > 1;
                if is_its_first && !planted!(FirstIsLast) {
                    return Fate::Retry(retry::message_delay(&self.spec.retry, 1, rng));
                }
                if self.is_free(&fate, failed) {
                    return fate;
                }
                // No message is held forever: a topic without other messages would stand still.
                let has_waited = |since: Timestamp| since.after(PROVEN_AFTER) <= self.now;
                let (letters, drops) = match &fate {
                    Fate::Drop(_) => (given_up.0, given_up.1 + 1),
                    _ => (given_up.0 + 1, given_up.1),
                };
                let may = may.counted(letters, drops) <= may.unproven;
                match may || parked.held_since.is_some_and(has_waited) {
                    true => fate,
                    false => Fate::Hold,
                }
            }
            _ => fate,
        }
    }

    /// Whether giving the message up is usual: its class of rejections is usual, or the error
    /// handler would also drop it under the revision to go back to.
    fn is_settled(&self, fate: &Fate, failed: &Failed) -> bool {
        // Retried messages are a selection of failures, so their rate of rejections means nothing.
        let is_new = failed.message >= self.batch.retried;
        let is_usual = || is_new && failed.cause == Cause::Reject && (self.excuses)(&failed.class);
        let is_dropped =
            || matches!(fate, Fate::Drop(_)) && self.same_handler && !took_the_call_down(failed);
        is_usual() || is_dropped()
    }

    /// Whether the revision is not to blame for giving the message up: that is usual, or the
    /// revision to go back to had failed in the same way with the same error handler.
    fn is_free(&self, fate: &Fate, failed: &Failed) -> bool {
        let before = self.parked(failed.message);
        self.is_settled(fate, failed)
            || self.same_handler && self.whose.back_failed_so(before, failed)
    }
}

/// Whether the call did not return. The component did not decide this.
fn took_the_call_down(failed: &Failed) -> bool {
    !matches!(failed.cause, Cause::Retry | Cause::Reject)
}

/// The message's entry with this attempt added.
fn attempted(settling: &Settling<'_>, failed: &Failed, ordering: Option<u64>) -> Parked {
    let before = settling.parked(failed.message);
    // An operator's giving up is not an attempt.
    let attempts = before
        .map_or(0, |parked| parked.attempts)
        .saturating_add(u32::from(failed.cause != Cause::GivenUp));
    // A deleted processor of the same name may have had a revision with this number.
    let made_at = settling.whose.made_at;
    let is_its_own = |parked: &Parked| {
        let last = parked.log.last();
        parked.revision == settling.revision && last.is_none_or(|last| last.at >= made_at)
    };
    let own_before = before
        .filter(|parked| is_its_own(parked))
        .map_or(0, |parked| parked.own_attempts);
    let held_since = before.filter(|parked| is_its_own(parked));
    let mut log = match before {
        Some(before) if !settling.is_short => before.log.clone(),
        _ => Vec::new(),
    };
    if log.len() >= ATTEMPT_LOG_MAX {
        log.remove(0);
    }
    log.push(Attempt {
        at: settling.now,
        revision: settling.revision,
        class: failed.class.clone(),
        reason: match settling.is_short {
            false => cut(failed.reason.clone(), ATTEMPT_REASON_BYTES_MAX),
            true => shortened(&failed.reason, attempts.saturating_sub(1)),
        },
    });
    Parked {
        offset: settling.batch.offsets[failed.message],
        ordering,
        due: None,
        attempts,
        revision: settling.revision,
        own_attempts: own_before.saturating_add(u32::from(failed.cause != Cause::GivenUp)),
        current_only: before.is_some_and(|parked| parked.current_only),
        held_since: held_since.and_then(|parked| parked.held_since),
        first_failed_at: first_failed_at(before, settling.now),
        log,
    }
}

/// The beginning of a reason, with a note on how many earlier attempts are left out.
fn shortened(reason: &str, before: u32) -> String {
    let kept = &reason[..reason.floor_char_boundary(ATTEMPT_SHORT_REASON_BYTES_MAX)];
    let end = if kept.len() < reason.len() { "…" } else { "" };
    let left_out = match before {
        0 => String::new(),
        before => format!(" [{before} earlier attempts were not recorded for lack of room]"),
    };
    format!("{kept}{end}{left_out}")
}
