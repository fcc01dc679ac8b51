//! When the wall clock is set, messages with a relative delay move with it, so that each waits for its full delay. Messages with an
//! absolute time stay: they mean what the clock shows.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use millrace_engine::state::{NEVER, StateChange, StateTable, StateWrites};
use millrace_engine::{CommitError, Transaction};
use millrace_model::{Clock, SteadyClock, Step, TopicPartition};
use parking_lot::Mutex;

use crate::ground::backoff::Backoff;
use crate::messages::delays::delayed::Delays;
use crate::messages::delays::stored;
use crate::messages::delays::stored::{DelayedId, GROUP, exactly, write};

/// Delayed messages moved to other times per transaction.
const MOVED_AT_ONCE_MAX: usize = 500;
/// Bytes of delayed messages moved per transaction, except for one larger message.
const MOVED_BYTES_AT_ONCE_MAX: usize = 1 << 20;
/// Interval at which a partition that could not be moved is tried again.
const SHARE_LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// Clock steps that wait to be followed. When there are this many, the clock is not checked; the next check sees all further steps as
/// one.
const STEPS_WAITING_MAX: usize = 16;

/// The clock steps that are not followed yet.
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
    /// Checks the clock before a message arrives: messages from before a step are moved, later ones are not.
    pub(super) fn notice_steps(&self) {
        let mut known = self.steps.0.lock();
        if known.waiting.len() < STEPS_WAITING_MAX
            && let Some(step) = known.time.follow(&*self.clock)
        {
            let arrival = self.next_arrival.load(Ordering::Relaxed);
            known.waiting.push((arrival, step));
            self.earlier.notify_one();
        }
    }

    /// Moves the messages that arrived before the noticed steps.
    pub(super) async fn follow_steps(&self) {
        self.notice_steps();
        for (before, step) in self.steps.take() {
            let mut moved = 0;
            let partitions = self.engine.state_partitions(&GROUP).await;
            let partitions = partitions.unwrap_or_else(|error| {
                tracing::warn!(%error, by_ms = step.ms(), "delayed messages could not be moved with the clock and keep their times");
                Vec::new()
            });
            for partition in partitions {
                match self.move_spans(partition, before, step).await {
                    Ok(count) => moved += count,
                    Err(error) => {
                        tracing::warn!(partition = %partition, %error, by_ms = step.ms(), "delayed messages could not be moved with the clock and keep their times");
                    }
                }
            }
            if moved > 0 {
                tracing::info!(
                    messages = moved,
                    by_ms = step.ms(),
                    "the wall clock was set; messages with a relative delay keep it"
                );
                self.look().await;
            }
        }
    }

    async fn move_spans(
        &self,
        partition: TopicPartition,
        before: u64,
        step: Step,
    ) -> Result<usize, CommitError> {
        let share = loop {
            if self.holdings.elsewhere(partition).is_some() {
                // The host that delivers there moves them, by its own clock.
                return Ok(0);
            }
            match self.share_of(partition).await {
                Ok(Some(share)) => break share,
                Err(CommitError::UnknownPartition(_)) => return Ok(0),
                Err(error) if !error.is_retriable() => return Err(error),
                // Another host has it for a moment, or the store is unreachable.
                _ => tokio::time::sleep(SHARE_LOOK_INTERVAL).await,
            }
        };
        let Ok(table) = self.engine.state(&GROUP, partition).await else {
            // Deleted with its topic.
            return Ok(0);
        };
        let mut ids = Vec::new();
        stored::each_key(&table, |key| {
            let id = DelayedId::of_key(partition.partition, key);
            ids.extend(id.filter(|id| id.is_span() && id.arrival < before));
        });
        if ids.is_empty() {
            return Ok(0);
        }
        self.moved_in.lock().insert(partition);
        let (mut rest, mut moved) = (&ids[..], 0);
        let mut backoff = Backoff::default();
        while !rest.is_empty() {
            // Nothing is delivered or cancelled meanwhile.
            let turn = table.turn().await;
            let (changes, looked_at) = moves(&table, rest, step);
            let count = changes.len() / 2;
            let writes = StateWrites {
                resets: false,
                changes,
                adds: None,
            };
            let transaction = Transaction {
                state: vec![write(partition, Some(&share), writes)],
                turns: turn.held().into_iter().collect(),
                ..Transaction::default()
            };
            match share.commit(transaction).await {
                Ok(_) => {
                    moved += count;
                    rest = &rest[looked_at..];
                }
                // Space may become available later.
                Err(CommitError::DiskFull | CommitError::RoomFull(_)) => {
                    drop(turn);
                    tokio::time::sleep(backoff.next(&mut fastrand::Rng::new())).await;
                }
                Err(CommitError::UnknownPartition(_)) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(moved)
    }
}

/// Replaces the entries by ones under their new keys, and returns how many ids were processed: some are gone, and what exceeds one
/// transaction is left for the next.
fn moves(table: &StateTable, ids: &[DelayedId], step: Step) -> (Vec<StateChange>, usize) {
    let mut changes = Vec::new();
    let (mut looked_at, mut bytes) = (0, 0);
    for id in ids.iter().take(MOVED_AT_ONCE_MAX) {
        let Some(entry) = exactly(table, *id) else {
            looked_at += 1;
            continue;
        };
        bytes += entry.value.as_bytes().len();
        if bytes > MOVED_BYTES_AT_ONCE_MAX && !changes.is_empty() {
            break;
        }
        let there = id.moved_by(step);
        let change = |key: Arc<[u8]>, value| StateChange {
            key,
            value,
            ends_at: NEVER,
        };
        changes.push(change(Arc::clone(&entry.key), None));
        changes.push(change(there.key().as_slice().into(), Some(entry.value)));
        looked_at += 1;
    }
    (changes, looked_at)
}
