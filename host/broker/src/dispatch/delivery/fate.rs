//! What a revision's word makes of a message's fate: given up, held, or passed to the current revision.

use millrace_model::{Parked, Timestamp};

use super::{Fate, Settling};
use crate::dispatch::breaker::PROVEN_AFTER;
use crate::dispatch::failed::Failed;
use crate::dispatch::retry;
use crate::dispatch::word::Word;
use crate::ground::planted::planted;
use crate::handler::Cause;

impl Settling<'_> {
    /// Applies this to a fate.
    pub(super) fn by_word(
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
                // Nothing waits forever: a topic that gets nothing else would stand still.
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

    /// Whether giving up such a message is usual: its class of rejections is, or the error handler would also drop it under the
    /// revision to go back to.
    fn is_settled(&self, fate: &Fate, failed: &Failed) -> bool {
        // Parked messages are a selection of failures.
        let is_new = failed.message >= self.batch.retried;
        let is_usual = || is_new && failed.cause == Cause::Reject && (self.excuses)(&failed.class);
        let is_dropped =
            || matches!(fate, Fate::Drop(_)) && self.same_handler && !took_the_call_down(failed);
        is_usual() || is_dropped()
    }

    /// Whether the revision is not to blame for giving the message up: that is usual, or the revision to go back to had failed in the
    /// same way, with the same error handler.
    pub(super) fn is_free(&self, fate: &Fate, failed: &Failed) -> bool {
        let before = self.parked(failed.message);
        self.is_settled(fate, failed)
            || self.same_handler && self.whose.back_failed_so(before, failed)
    }
}

/// Whether the call did not return: that is not the component's decision.
fn took_the_call_down(failed: &Failed) -> bool {
    !matches!(failed.cause, Cause::Retry | Cause::Reject)
}
