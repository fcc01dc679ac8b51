//! The writes to state of one call.
//!
//! A failed message must leave no writes behind, and no other message may have seen them. If a
//! failed message, or one that waits behind it, wrote to state in a batch of several messages, the
//! whole batch has no effect. It is cut again so that each failed message is called alone and all
//! others see only committed state.

use std::collections::HashSet;
use std::sync::Arc;

use millrace_engine::Lease;
use millrace_engine::state::{StateAttempt, StateWrite};
use millrace_model::TopicPartition;
use millrace_model::processor::Order;

use crate::dispatch::answer::Verdict;
use crate::dispatch::batcher::{self, Batch};

/// The failed messages, if other messages may have seen their writes; otherwise empty.
pub(crate) fn must_stand_alone(
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

/// The state changes to commit for a call; none for a message that failed alone.
pub(crate) fn to_commit(
    lease: &Lease,
    partition: TopicPartition,
    batch: &Batch,
    verdict: &Verdict,
    attempt: StateAttempt,
) -> Option<StateWrite> {
    if batch.len() == 1 && !verdict.failed.is_empty() {
        return None;
    }
    let writes = attempt.into_writes();
    (!writes.is_empty()).then(|| StateWrite {
        group: lease.group.clone(),
        partition,
        lease: Some(lease.clone()),
        writes: Arc::new(writes),
    })
}
