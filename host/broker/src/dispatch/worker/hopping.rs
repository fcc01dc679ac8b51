//! Messages that came round too often: given up without a call.

use millrace_engine::CommitError;

use super::Worker;
use crate::chains::{Hops, runs};
use crate::dispatch::Live;
use crate::dispatch::answer::Verdict;
use crate::dispatch::batcher::Batch;
use crate::dispatch::breaker::Judgement;

/// The messages of a batch that have as many hops behind them as there may be.
pub(super) fn spent(live: &Live, batch: &Batch) -> Vec<usize> {
    let hops_max = live.spec.hops_max;
    hops_max.map_or_else(Vec::new, |max| Hops::of(&batch.columns, true).spent(max))
}

impl Worker {
    /// Gives a batch up whose messages are all spent; one with some of them is cut, to be tried in parts. The breaker is not told:
    /// nobody was called.
    pub(super) async fn end_of_chain(
        &mut self,
        live: &Live,
        batch: &Batch,
        spent: &[usize],
    ) -> Result<(), CommitError> {
        if spent.len() == batch.len() {
            let verdict = Verdict::spent(batch.len(), live.spec.hops_max.unwrap_or_default());
            return self
                .settle(live, batch, &verdict, &[], Judgement::Settle)
                .await;
        }
        self.pieces.pop();
        self.pieces
            .extend(runs(spent, batch.len()).into_iter().rev());
        self.rewind();
        Ok(())
    }
}
