//! Decides what happens to each message of a batch. Called by [`worker`](super::worker) with the handler's answer; returns everything
//! that one commit then makes true. Touches nothing else: no clock, no engine, no waiting.
//!
//! Invariant: a message leaves progress exactly when its output, its dead letter or its drop is in the same effects.

use std::collections::HashSet;
use std::time::Duration;

use millrace_engine::state::StateWrite;
use millrace_model::bounds::{
    ATTEMPT_LOG_MAX, ATTEMPT_REASON_BYTES_MAX, ATTEMPT_SHORT_REASON_BYTES_MAX,
};
use millrace_model::{
    Attempt, BatchBuilder, GivenUp, Offset, Parked, ProcessorSpec, Progress, RecordBatch, Timestamp,
};

mod fate;
mod groups;

use groups::Groups;

use crate::dispatch::answer::Verdict;
use crate::dispatch::batcher::Batch;
use crate::dispatch::batcher::behind;
use crate::dispatch::batcher::ordering;
use crate::dispatch::breaker::Whose;
use crate::dispatch::counts::Counts;
use crate::dispatch::dead_letter;
use crate::dispatch::dead_letter::Death;
use crate::dispatch::failed::Failed;
use crate::dispatch::input::Input;
use crate::dispatch::retry;
use crate::dispatch::word::Word;
use crate::ground::chains::HOPS_CLASS;
use crate::ground::chains::Trail;
use crate::ground::chains::after;
use crate::ground::chains::trail_of;
use crate::ground::planted::planted;
use crate::ground::text::cut;
use crate::handler::{Cause, Decision, Failure};

/// Dead letters of one commit are put into batches of about this size.
const DEAD_LETTER_BATCH_BYTES: usize = 8 << 20;

/// A held message is retried no sooner than this, whatever the policy says.
const HELD_DELAY_MIN: Duration = Duration::from_secs(1);
/// A held message is retried after this at the latest: the revision may be proven meanwhile.
const HELD_DELAY_MAX: Duration = Duration::from_secs(5 * 60);

/// Everything that a decision depends on.
pub(crate) struct Settling<'a> {
    pub(crate) processor: &'a str,
    pub(crate) revision: u32,
    pub(crate) module: &'a str,
    pub(crate) spec: &'a ProcessorSpec,
    pub(crate) input: &'a Input,
    pub(crate) batch: &'a Batch,
    pub(crate) verdict: &'a Verdict,
    /// The partition of each output.
    pub(crate) places: &'a [u32],
    /// The error handler's decision on each failure; empty without an error handler.
    pub(crate) decisions: &'a [Decision],
    /// Whether the revision may give messages up.
    pub(crate) word: Word,
    /// Which earlier attempts count as known.
    pub(crate) whose: Whose,
    /// Whether what the error handler drops would be dropped under the revision to go back to as well.
    pub(crate) same_handler: bool,
    /// Whether a rejection of this class is a usual one.
    pub(crate) excuses: &'a (dyn Fn(&str) -> bool + Sync),
    /// Progress before the batch.
    pub(crate) progress: &'a Progress,
    /// Whether the host has no room to keep more than a message's last attempt, shortened.
    pub(crate) is_short: bool,
    pub(crate) now: Timestamp,
}

/// What one commit makes true.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    /// Output topic (as an index), partition, messages.
    pub(crate) outputs: Vec<(u32, u32, RecordBatch)>,
    /// Delayed outputs.
    pub(crate) delayed: Vec<Delayed>,
    pub(crate) dead_letters: Vec<RecordBatch>,
    pub(crate) progress: Progress,
    pub(crate) state: Option<StateWrite>,
    pub(crate) counts: Counts,
    /// The indexes in the batch of the messages that are given up, ascending.
    pub(crate) given_up: Vec<usize>,
    /// How many of them, and of dropped messages, count against what an unproven revision may give up.
    pub(crate) given_up_unproven: u32,
    /// Offsets and reasons of messages that the error handler dropped.
    pub(crate) dropped: Vec<(Offset, String)>,
}

/// A delayed output.
#[derive(Debug)]
pub(crate) struct Delayed {
    /// Output topic, as an index.
    pub(crate) topic: u32,
    pub(crate) partition: u32,
    pub(crate) due: Timestamp,
    /// The message.
    pub(crate) message: RecordBatch,
}

/// What happens to a failed message.
enum Fate {
    Retry(Duration),
    /// It would be given up, but the revision is not proven.
    Hold,
    DeadLetter,
    Drop(String),
    /// The current revision answers instead.
    AskAgain,
}

/// Decides about a whole batch.
pub(crate) fn settle(settling: &Settling<'_>, rng: &mut fastrand::Rng) -> Effects {
    let mut settler = Settler::new(settling);
    if settling.verdict.failed.is_empty() {
        settler.effects.counts.ok = settling.batch.len() as u64;
    } else {
        settler.messages(rng);
    }
    settler.outputs();
    settler.effects.state = settling.verdict.state.clone();
    settler.finish()
}

/// The batch has no effect: its messages are parked unchanged, and no attempt is spent.
pub(crate) fn postpone(settling: &Settling<'_>) -> Effects {
    let mut settler = Settler::new(settling);
    settler.postpone();
    settler.finish()
}

/// The failures of a batch in the form for an error handler.
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

/// The message's entry in progress, if it is retried.
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

fn first_failed_at(before: Option<&Parked>, now: Timestamp) -> Timestamp {
    before
        .filter(|parked| parked.attempts > 0)
        .map_or(now, |parked| parked.first_failed_at)
}

impl Effects {
    /// Messages given up count from one revision to the next until one is proven. The count of an earlier run is discarded.
    pub(crate) fn count_unproven(&mut self, run: u32) {
        if self.given_up_unproven > 0 && !planted!(BoundPerStart) {
            let known = self.progress.given_up.filter(|known| known.run == run);
            let before = known.map_or(0, |known| known.messages);
            self.progress.given_up = Some(GivenUp {
                run,
                messages: before.saturating_add(self.given_up_unproven),
            });
        }
    }
}

impl Settling<'_> {
    fn parked(&self, message: usize) -> Option<&Parked> {
        parked_before(self.batch, self.progress, message)
    }

    fn ordering(&self, message: usize) -> Option<u64> {
        ordering(self.spec.order, self.batch.columns.key(message))
    }

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

    /// Whether it was out of hops and not even called.
    fn is_spent(&self, failed: &Failed) -> bool {
        self.verdict.is_final && failed.class == HOPS_CLASS
    }

    /// The hops that a message arrived with.
    fn came(&self, failed: &Failed) -> Trail {
        trail_of(&self.batch.columns, failed.message).unwrap_or_default()
    }

    /// The hops of its dead letter, and those it arrived with. A dead letter counts like an output, because it may be read.
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
}

struct Settler<'a> {
    settling: &'a Settling<'a>,
    effects: Effects,
    /// Order keys of parked messages in this batch: messages behind them wait.
    blocked: HashSet<u64>,
    /// Messages whose outcome does not count; empty if all count.
    discarded: Vec<bool>,
    parked: Vec<Parked>,
    dead: BatchBuilder,
    /// Dead letters and dropped messages that count against an unproven revision.
    letters: u32,
    drops: u32,
}

impl<'a> Settler<'a> {
    fn new(settling: &'a Settling<'a>) -> Self {
        Self {
            settling,
            effects: Effects::default(),
            blocked: HashSet::new(),
            discarded: Vec::new(),
            parked: Vec::new(),
            dead: BatchBuilder::with_capacity(0),
            letters: 0,
            drops: 0,
        }
    }

    fn messages(&mut self, rng: &mut fastrand::Rng) {
        let settling = self.settling;
        self.discarded = vec![false; settling.batch.len()];
        let mut failed = settling.verdict.failed.iter().enumerate().peekable();
        for message in 0..settling.batch.len() {
            let failure = failed.next_if(|(_, failed)| failed.message == message);
            let ordering = settling.ordering(message);
            if ordering.is_some_and(|ordering| self.blocked.contains(&ordering)) {
                self.wait_behind(message, ordering);
            } else if let Some((failure, failed)) = failure {
                self.fail(failure, failed, ordering, rng);
            } else {
                self.effects.counts.ok += 1;
            }
        }
    }

    /// Its outcome is discarded: it runs again when the message before it is done.
    fn wait_behind(&mut self, message: usize, ordering: Option<u64>) {
        self.discarded[message] = true;
        let settling = self.settling;
        self.parked.push(match settling.parked(message) {
            Some(before) => Parked {
                due: None,
                ordering,
                ..before.clone()
            },
            None => behind(settling.batch.offsets[message], ordering),
        });
    }

    fn fail(
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

    /// A message given up counts against an unproven revision, unless it had to end.
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
        // A message that was held for its hour is given up beyond the bound.
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

    fn close_dead_letters(&mut self) {
        let full = std::mem::replace(&mut self.dead, BatchBuilder::with_capacity(0));
        self.effects.dead_letters.extend(full.finish());
    }

    /// Copies outputs directly from the answer into one batch per topic and partition.
    fn outputs(&mut self) {
        let settling = self.settling;
        let outputs = &settling.verdict.outputs;
        let mut groups = Groups::new(outputs);
        for (output, &partition) in settling.places.iter().enumerate() {
            let source = outputs.source(output);
            if self.discarded.get(source).copied().unwrap_or(false) {
                continue;
            }
            let topic = outputs.topic(output);
            match outputs.deliver_at(output).filter(|due| *due > settling.now) {
                None => {
                    let builder = groups.of(topic, partition);
                    outputs.write(output, &settling.batch.columns, builder);
                }
                Some(due) => self.delay(output, topic, partition, due),
            }
        }
        self.effects.outputs = groups.finish();
    }

    fn delay(&mut self, output: usize, topic: u32, partition: u32, due: Timestamp) {
        let mut builder = BatchBuilder::with_capacity(0);
        let outputs = &self.settling.verdict.outputs;
        outputs.write(output, &self.settling.batch.columns, &mut builder);
        self.effects
            .delayed
            .extend(builder.finish().map(|message| Delayed {
                topic,
                partition,
                due,
                message,
            }));
    }

    fn finish(mut self) -> Effects {
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

    /// Every message of the batch runs again, after others that can run.
    fn postpone(&mut self) {
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

/// The message's entry with this attempt added.
fn attempted(settling: &Settling<'_>, failed: &Failed, ordering: Option<u64>) -> Parked {
    let before = settling.parked(failed.message);
    // Giving up is not an attempt.
    let attempts = before
        .map_or(0, |parked| parked.attempts)
        .saturating_add(u32::from(failed.cause != Cause::GivenUp));
    // A deleted processor of the same name may have had a revision of this number.
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

/// A shortened reason: its end, and how many earlier attempts are missing.
fn shortened(reason: &str, before: u32) -> String {
    let kept = &reason[..reason.floor_char_boundary(ATTEMPT_SHORT_REASON_BYTES_MAX)];
    let end = if kept.len() < reason.len() { "…" } else { "" };
    let left_out = match before {
        0 => String::new(),
        before => format!(" [{before} earlier attempts were not recorded for lack of room]"),
    };
    format!("{kept}{end}{left_out}")
}

#[cfg(test)]
mod tests;
