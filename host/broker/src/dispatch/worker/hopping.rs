//! Messages that are out of hops: given up without a call.

use millrace_engine::CommitError;

use super::Worker;
use crate::dispatch::answer::Verdict;
use crate::dispatch::batcher::Batch;
use crate::dispatch::breaker::Judgement;
use crate::dispatch::live::Live;
use crate::dispatch::plan::Came;

impl Worker {
    /// Gives up a batch whose messages are all out of hops; a batch with some of them is cut into parts. The breaker is not told,
    /// because there was no call.
    pub(super) async fn end_of_chain(
        &mut self,
        live: &Live,
        batch: &Batch,
        spent: &[usize],
    ) -> Result<(), CommitError> {
        if spent.len() == batch.len() {
            let verdict = Verdict::spent(batch.len(), live.spec.hops_max.unwrap_or_default());
            return self
                .settle(live, batch, &verdict, &[], &[], Judgement::Settle)
                .await;
        }
        self.put_back(batch, Came::Spent(spent));
        Ok(())
    }
}
