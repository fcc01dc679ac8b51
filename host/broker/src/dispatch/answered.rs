//! An answer before its commit: checked, with a partition for each output and the writes to state,
//! and with the opinions of the shadow, the error handler and the breaker.

use std::time::Duration;

use millrace_engine::Lease;
use millrace_engine::state::StateAttempt;
use millrace_model::{Answer, Timestamp, TopicPartition};

use crate::dispatch::answer::{Glance, Verdict};
use crate::dispatch::batcher::Batch;
use crate::dispatch::breaker::Judgement;
use crate::dispatch::live::Live;
use crate::dispatch::{placing, writes};
use crate::ground::chains::Hops;
use crate::handler::{CallError, Decision};

/// All opinions about a batch that the decision needs.
pub(crate) struct Answered {
    pub(crate) verdict: Verdict,
    /// The partition of each output.
    pub(crate) places: Vec<u32>,
    /// The answer of a shadow that reads state.
    pub(crate) glance: Glance,
    /// The error handler's decision on each failure; empty without an error handler.
    pub(crate) decisions: Vec<Decision>,
    /// The breaker's opinion.
    pub(crate) judgement: Judgement,
}

/// Why an answer cannot be settled.
pub(crate) enum Unusable {
    /// The call failed as a whole.
    Failed(CallError),
    /// These messages failed, and others may have seen their writes to state. They must be called
    /// alone.
    Mixed(Vec<usize>),
}

impl From<CallError> for Unusable {
    fn from(error: CallError) -> Self {
        Self::Failed(error)
    }
}

impl From<Verdict> for Answered {
    /// A verdict without outputs.
    fn from(verdict: Verdict) -> Self {
        Self {
            verdict,
            places: Vec::new(),
            glance: None,
            decisions: Vec::new(),
            judgement: Judgement::Settle,
        }
    }
}

/// The call, and when it was answered.
pub(crate) struct Asked<'a> {
    pub(crate) live: &'a Live,
    pub(crate) batch: &'a Batch,
    /// The right to write state, and the partition that the state belongs to.
    pub(crate) lease: &'a Lease,
    pub(crate) origin: TopicPartition,
    pub(crate) now: Timestamp,
    pub(crate) monotonic: Duration,
}

impl Answered {
    /// Checks an answer and the call's writes to state.
    pub(crate) async fn check(
        asked: &Asked<'_>,
        (answer, attempt): (Answer, Option<Box<StateAttempt>>),
    ) -> Result<Self, Unusable> {
        let Asked { live, batch, .. } = *asked;
        let outputs_max = live.spec.limits.answer_outputs_max as usize;
        let mut verdict = Verdict::of(answer, &batch.columns, &live.outputs, outputs_max)?;
        let outputs = &mut verdict.outputs;
        outputs.check_times(&batch.columns, asked.now)?;
        outputs.carry(Hops::of(&batch.columns, live.spec.hops_max.is_some()));
        if let Some(attempt) = attempt {
            let alone = writes::must_stand_alone(live.spec.order, batch, &verdict, &attempt);
            if !alone.is_empty() {
                return Err(Unusable::Mixed(alone));
            }
            verdict.removes_ended = attempt.removes_ended();
            verdict.state = writes::to_commit(asked.lease, asked.origin, batch, &verdict, *attempt);
        }
        let places = placing::place(
            &verdict.outputs,
            &batch.columns,
            &live.outputs,
            asked.monotonic,
        );
        Ok(Self {
            places: places.await?,
            ..verdict.into()
        })
    }
}
