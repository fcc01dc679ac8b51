//! Decides what happens to each message of a batch. [`worker`](super::worker) calls it with the
//! handler's answer; it returns everything that one commit then makes true. It uses no clock and no
//! engine, and never waits.
//!
//! Invariant: a message leaves progress exactly when its output, its dead letter or its drop is in
//! the same effects.

use std::collections::HashSet;

use millrace_engine::state::StateWrite;
use millrace_model::{
    BatchBuilder, GivenUp, Offset, Parked, ProcessorSpec, Progress, RecordBatch, Timestamp,
};

mod fate;
mod outputs;
mod progress;

use outputs::Delayed;
pub(crate) use progress::{contradictions, failures, parked_before};

use crate::dispatch::answer::Verdict;
use crate::dispatch::batcher::{Batch, behind, ordering};
use crate::dispatch::breaker::Whose;
use crate::dispatch::counts::Counts;
use crate::dispatch::input::Input;
use crate::dispatch::word::Word;
use crate::ground::planted::planted;
use crate::handler::Decision;

/// The inputs of a decision.
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
    /// Which earlier attempts count as known failures.
    pub(crate) whose: Whose,
    /// Whether the revision to go back to has the same error handler, so that it would drop the
    /// same messages.
    pub(crate) same_handler: bool,
    /// Whether rejections of this class are usual.
    pub(crate) excuses: &'a (dyn Fn(&str) -> bool + Sync),
    /// Progress before the batch.
    pub(crate) progress: &'a Progress,
    /// Whether memory for attempts is short: then only a message's last attempt is kept, shortened.
    pub(crate) is_short: bool,
    pub(crate) now: Timestamp,
}

/// The effects of one commit.
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
    /// Indexes in the batch of messages that are given up, ascending.
    pub(crate) given_up: Vec<usize>,
    /// How many given-up and dropped messages count against the bound of an unproven revision.
    pub(crate) given_up_unproven: u32,
    /// Offsets and reasons of messages that the error handler dropped.
    pub(crate) dropped: Vec<(Offset, String)>,
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

/// Parks the messages of the batch unchanged. No attempt is spent.
pub(crate) fn postpone(settling: &Settling<'_>) -> Effects {
    let mut settler = Settler::new(settling);
    settler.postpone();
    settler.finish()
}

impl Effects {
    /// Adds to the messages given up in this run of revisions. The count continues from one
    /// revision to the next until one is proven; the count of an earlier run is discarded.
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
}

struct Settler<'a> {
    settling: &'a Settling<'a>,
    effects: Effects,
    /// Order keys of messages of this batch that stay parked: later messages with these keys wait.
    blocked: HashSet<u64>,
    /// Messages whose outcome does not count; empty if all count.
    discarded: Vec<bool>,
    parked: Vec<Parked>,
    dead: BatchBuilder,
    /// Dead letters and drops that count against an unproven revision.
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

    /// Discards the message's outcome: it is called again when the message before it is done.
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
}

#[cfg(test)]
mod tests;
