//! A step of the wall clock moves the times of delayed messages that were given as a span, so that each waits as long as it was to
//! wait. Those that were given as a time stay: they mean what the clock shows.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use millrace_engine::state::{NEVER, StateChange, StateQuery, StateTable, StateWrites};
use millrace_engine::{CommitError, Transaction};
use millrace_model::{Clock, SteadyClock, Step, TopicPartition};
use parking_lot::Mutex;

use super::stored::{GROUP, write};
use super::{DelayedId, Delays};

/// Messages that one transaction moves.
const MOVED_AT_ONCE_MAX: usize = 500;
/// Steps that wait to be followed; further ones are taken together with the last.
const STEPS_WAITING_MAX: usize = 16;

/// The steps of the clock that are not followed yet.
pub(super) struct Steps(Mutex<Known>);

struct Known {
    time: SteadyClock,
    /// Each with the first arrival after it.
    waiting: Vec<(u64, Step)>,
}

impl Steps {
    pub(super) fn begin(clock: &dyn Clock) -> Self {
        Self(Mutex::new(Known {
            time: SteadyClock::begin(clock),
            waiting: Vec::new(),
        }))
    }

    fn take(&self) -> Vec<(u64, Step)> {
        std::mem::take(&mut self.0.lock().waiting)
    }
}

impl Delays {
    /// Looks at the clock before a message arrives: those that came before a step are moved, those that come after it are not.
    pub(super) fn notice_steps(&self) {
        let mut known = self.steps.0.lock();
        if let Some(step) = known.time.follow(&*self.clock)
            && known.waiting.len() < STEPS_WAITING_MAX
        {
            let arrival = self.next_arrival.load(Ordering::Relaxed);
            known.waiting.push((arrival, step));
            self.earlier.notify_one();
        }
    }

    /// Moves what came before the steps that were noticed.
    pub(super) async fn follow_steps(&self) {
        self.notice_steps();
        for (before, step) in self.steps.take() {
            let mut moved = 0;
            for partition in self.engine.state_partitions(GROUP) {
                match self.move_spans(partition, before, step).await {
                    Ok(count) => moved += count,
                    Err(error) => {
                        tracing::warn!(partition = %partition, %error, by_ms = step.ms(), "delayed messages keep their times by the clock as it was set");
                    }
                }
            }
            if moved > 0 {
                tracing::info!(
                    messages = moved,
                    by_ms = step.ms(),
                    "the wall clock was set; messages delayed by a span wait as long as they were to wait"
                );
                self.look();
            }
        }
    }

    async fn move_spans(
        &self,
        partition: TopicPartition,
        before: u64,
        step: Step,
    ) -> Result<usize, CommitError> {
        let Ok(table) = self.engine.state(GROUP, partition) else {
            // Gone with its topic.
            return Ok(0);
        };
        let mut moved = 0;
        let mut keys = Vec::new();
        table.each_key(|key| {
            let id = DelayedId::of_key(partition.partition, key);
            keys.extend(id.filter(|id| id.is_span() && id.arrival < before));
        });
        for ids in keys.chunks(MOVED_AT_ONCE_MAX) {
            // Nobody delivers or cancels them meanwhile.
            let _turn = table.turn().await;
            let changes: Vec<_> = ids
                .iter()
                .flat_map(|id| moves(&table, *id, step))
                .flatten()
                .collect();
            moved += changes.len() / 2;
            let writes = StateWrites {
                resets: false,
                changes,
            };
            let transaction = Transaction {
                state: vec![write(partition, writes)],
                ..Transaction::default()
            };
            self.engine.commit(transaction).await?;
        }
        Ok(moved)
    }
}

/// The entry under its new key in the place of the one under its old one; `None` if it is gone.
fn moves(table: &StateTable, id: DelayedId, step: Step) -> Option<[StateChange; 2]> {
    let found = table.page(&StateQuery {
        prefix: id.key().to_vec(),
        entries_max: 1,
        ..StateQuery::default()
    });
    let entry = found.entries.into_iter().next()?;
    let there = DelayedId {
        due: step.moved(id.due),
        ..id
    };
    let change = |key: Arc<[u8]>, value| StateChange {
        key,
        value,
        ends_at: NEVER,
    };
    Some([
        change(Arc::clone(&entry.key), None),
        change(there.key().as_slice().into(), Some(entry.value)),
    ])
}
