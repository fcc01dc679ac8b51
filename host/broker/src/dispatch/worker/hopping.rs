//! Messages that came round too often: given up without a call.

use millrace_engine::CommitError;

use super::Worker;
use crate::chains::{Hops, runs};
use crate::dispatch::Live;
use crate::dispatch::answer::Verdict;
use crate::dispatch::batcher::Batch;
use crate::dispatch::breaker::Judgement;

impl Worker {
    /// Gives a batch up whose messages all have as many hops behind them as there may be; one with some of them is cut, to be tried
    /// in parts. Whether either was so. The breaker is not told: nobody was called.
    pub(super) async fn end_of_chain(
        &mut self,
        live: &Live,
        batch: &Batch,
    ) -> Result<bool, CommitError> {
        let Some(hops_max) = live.spec.hops_max else {
            return Ok(false);
        };
        let spent = Hops::of(&batch.columns, true).spent(hops_max);
        if spent.is_empty() {
            return Ok(false);
        }
        if spent.len() == batch.len() {
            let verdict = Verdict::spent(batch.len(), hops_max);
            self.settle(live, batch, &verdict, &[], Judgement::Settle)
                .await?;
            return Ok(true);
        }
        self.pieces.pop();
        self.pieces
            .extend(runs(&spent, batch.len()).into_iter().rev());
        self.rewind();
        Ok(true)
    }
}
