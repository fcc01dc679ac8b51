//! Calls the author's function with columns and returns columns: exported by the macros, and called
//! natively by tests and benchmarks.

use crate::batch::Batch;
use crate::columns::{Answer, Columns};
use crate::failure::{Decision, Failure, FailureFacts};
use crate::message::Message;
use crate::outcome::{Outcome, Unavailable};
use crate::outcomes::Outcomes;

/// What a function of one message may return: an outcome, or that the batch cannot be processed
/// now.
pub trait Verdict {
    /// Converts it to a result.
    fn into_result(self) -> Result<Outcome, Unavailable>;
}

impl Verdict for Outcome {
    #[inline]
    fn into_result(self) -> Result<Outcome, Unavailable> {
        Ok(self)
    }
}

impl Verdict for Result<Outcome, Unavailable> {
    #[inline]
    fn into_result(self) -> Self {
        self
    }
}

/// What a function of a batch may return: nothing, or that the batch cannot be processed now.
pub trait Finished {
    /// Converts it to a result.
    fn into_result(self) -> Result<(), Unavailable>;
}

impl Finished for () {
    fn into_result(self) -> Result<(), Unavailable> {
        Ok(())
    }
}

impl Finished for Result<(), Unavailable> {
    fn into_result(self) -> Self {
        self
    }
}

/// Answers a batch with a function of one message.
#[inline]
pub fn process<V: Verdict>(
    columns: Columns,
    process: impl Fn(&Message) -> V,
) -> Result<Answer, Unavailable> {
    process_batch(columns, |batch: &Batch, outcomes: &mut Outcomes| {
        for message in batch.messages() {
            outcomes.push(process(&message).into_result()?);
        }
        Ok(())
    })
}

/// Answers a batch with a function of the batch.
#[inline]
pub fn process_batch<F: Finished>(
    columns: Columns,
    process: impl Fn(&Batch, &mut Outcomes) -> F,
) -> Result<Answer, Unavailable> {
    let batch = Batch::new(columns);
    let mut outcomes = Outcomes::new(&batch);
    process(&batch, &mut outcomes).into_result()?;
    Ok(outcomes.into_answer())
}

/// The partition of each message, from a function of one message.
#[must_use]
pub fn assign(
    columns: Columns,
    partitions: u32,
    choose: impl Fn(&Message, u32) -> u32,
) -> Vec<u32> {
    let batch = Batch::new(columns);
    batch
        .messages()
        .map(|message| choose(&message, partitions))
        .collect()
}

/// A decision for each failure, from a function of one failure.
#[must_use]
pub fn decide(
    columns: Columns,
    failures: Vec<FailureFacts>,
    decide: impl Fn(&Failure) -> Decision,
) -> Vec<Decision> {
    let batch = Batch::new(columns);
    let failed = |facts| Failure {
        facts,
        message: batch.message(facts.message as usize),
    };
    failures
        .iter()
        .map(|facts: &FailureFacts| decide(&failed(facts)))
        .collect()
}
