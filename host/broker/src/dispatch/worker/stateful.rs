//! State: where a worker's state is, what a call changes, and when a failed message has to run alone.
//!
//! A failed message must leave nothing behind, and no other message may have seen its writes. If a failed message, or one that waits
//! behind it, wrote to state in a batch of several, the whole batch has no effect: it is cut so that each failed message is called
//! alone, and all others see only committed state.

use std::collections::HashSet;
use std::sync::Arc;

use millrace_engine::Lease;
use millrace_engine::state::{Ended, StateAttempt, StateTable, StateWrite};
use millrace_model::processor::Order;
use millrace_model::{Timestamp, TopicPartition};

use super::{Trouble, Worker};
use crate::dispatch::answer::Verdict;
use crate::dispatch::batcher::{self, Batch};
use crate::dispatch::live::Live;

/// Maximum number of expired entries that one batch removes.
const SWEPT_ENTRIES_MAX: usize = 1_000;
/// Maximum journal space for removing them, where removal is journaled.
const SWEPT_BYTES_MAX: usize = 64 << 10;

/// The place of a worker's state.
#[derive(Clone)]
pub(super) struct Home {
    pub(super) table: Arc<StateTable>,
    /// The worker's partition, or for redriven messages their original one.
    partition: TopicPartition,
}

impl Home {
    /// The changes of an attempt to commit; none for a message that failed alone.
    pub(super) fn write_of(
        &self,
        lease: &Lease,
        verdict: &Verdict,
        batch: &Batch,
        attempt: StateAttempt,
    ) -> Option<StateWrite> {
        if batch.len() == 1 && !verdict.failed.is_empty() {
            return None;
        }
        let writes = attempt.into_writes();
        (!writes.is_empty()).then(|| StateWrite {
            group: lease.group.clone(),
            partition: self.partition,
            lease: Some(lease.clone()),
            writes: Arc::new(writes),
        })
    }
}

/// The failed messages, if other messages may have seen their writes; otherwise none.
pub(super) fn must_stand_alone(
    order: Order,
    batch: &Batch,
    verdict: &Verdict,
    attempt: &StateAttempt,
) -> Vec<usize> {
    let Some(first) = verdict.failed.first().map(|failed| failed.message) else {
        return Vec::new();
    };
    if batch.len() == 1 {
        return Vec::new();
    }
    let mut failed = verdict.failed.iter().peekable();
    let mut behind = HashSet::new();
    let unsettled_wrote = (first..batch.len()).any(|message| {
        let ordering = batcher::ordering(order, batch.columns.key(message));
        let has_failed = failed.next_if(|f| f.message == message).is_some();
        let waits = ordering.is_some_and(|ordering| behind.contains(&ordering));
        if has_failed {
            behind.extend(ordering);
        }
        (has_failed || waits) && attempt.wrote(message)
    });
    match unsettled_wrote {
        true => verdict.failed.iter().map(|f| f.message).collect(),
        false => Vec::new(),
    }
}

impl Worker {
    /// The place of its state, if the revision uses any.
    pub(super) async fn home(&mut self, live: &Live) -> Result<Option<Home>, Trouble> {
        if !live.handler.uses_state() {
            return Ok(None);
        }
        if self.home.is_none() {
            self.home = Some(self.find_home().await?);
            self.show_state();
        }
        Ok(self.home.clone())
    }

    async fn find_home(&self) -> Result<Home, Trouble> {
        let partition = self.origin;
        let table = self
            .context
            .engine
            .state(&self.lease.group, partition)
            .await?;
        Ok(Home { table, partition })
    }

    /// The state that a batch is called with.
    pub(super) async fn attempt(&self, batch: &Batch, home: &Home) -> Box<StateAttempt> {
        let now = self.now();
        home.table.sweep(now, SWEPT_ENTRIES_MAX);
        let table = Arc::clone(&home.table);
        let mut attempt = Box::new(StateAttempt::new(table, now, batch.len()));
        if home.table.may_have_ended(now) && !self.plan.leaves_ended() {
            attempt.remove_ended(self.ended(home, now).await);
        }
        attempt
    }

    /// Expired entries of a table that is partly in files. They are absent in any case, so a batch does not fail for this.
    async fn ended(&self, home: &Home, now: Timestamp) -> Ended {
        let table = Arc::clone(&home.table);
        let find = move || table.find_ended(now, SWEPT_ENTRIES_MAX, SWEPT_BYTES_MAX);
        let reason = match tokio::task::spawn_blocking(find).await {
            Ok(Ok(ended)) => return ended,
            Ok(Err(error)) => error.to_string(),
            Err(failed) => failed.to_string(),
        };
        tracing::warn!(processor = %self.lease.group, partition = %home.partition, reason, "expired state could not be looked for and stays for now");
        Ended::default()
    }

    /// Lets others write while it waits.
    pub(super) fn pause_turn(&mut self) {
        if let Some(turn) = &mut self.turn {
            turn.pause();
        }
    }

    /// Whether the state that the batch read is unchanged.
    pub(super) async fn resume_turn(&mut self) -> bool {
        match &mut self.turn {
            Some(turn) => turn.resume().await,
            None => true,
        }
    }

    pub(super) fn show_state(&mut self) {
        if let Some(home) = &self.home
            && !self.input.is_redriven()
        {
            self.meters.state(home.table.size());
        }
    }
}
