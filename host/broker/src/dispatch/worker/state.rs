//! The place of a worker's state, and the right to write it during a round.

use std::sync::Arc;

use millrace_engine::state::{Ended, StateAttempt, StateTable, Turn};
use millrace_model::{Timestamp, TopicPartition};
use tokio::sync::OwnedSemaphorePermit;

use super::{Trouble, Worker};
use crate::dispatch::batcher::Batch;
use crate::dispatch::live::Live;

/// Maximum number of expired entries that one batch removes.
const SWEPT_ENTRIES_MAX: usize = 1_000;
/// Maximum journal space for removing them, where removal is journaled.
const SWEPT_BYTES_MAX: usize = 64 << 10;

/// The place of a worker's state.
#[derive(Clone)]
pub(super) struct Home {
    pub(super) table: Arc<StateTable>,
    /// The worker's partition, or the original one if the messages are redriven.
    partition: TopicPartition,
}

/// What a round holds while its call may write to state.
#[derive(Default)]
pub(super) struct Writing {
    /// The permit to hold the call's writes in memory.
    room: Option<OwnedSemaphorePermit>,
    /// The right to write, exclusive from the batch's first read to its commit.
    pub(super) turn: Option<Turn>,
}

impl Writing {
    /// Lets others write while the round waits. The call's own writes are dropped; returns whether
    /// it could have any.
    pub(super) fn pause(&mut self) -> bool {
        if let Some(turn) = &mut self.turn {
            turn.pause();
        }
        self.room.take().is_some()
    }

    /// Whether the state that the batch read is unchanged.
    pub(super) async fn resume(&mut self) -> bool {
        match &mut self.turn {
            Some(turn) => turn.resume().await,
            None => true,
        }
    }
}

impl Worker {
    /// The place of the state; `None` if the revision uses none.
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
        let (engine, partition) = (&self.context.engine, self.hold.origin);
        let table = engine.state(&self.hold.lease.group, partition).await?;
        Ok(Home { table, partition })
    }

    /// The place of the state, with the turn to write there; `None` if the revision uses none.
    pub(super) async fn take_turn(
        &mut self,
        live: &Live,
        writing: &mut Writing,
    ) -> Result<Option<Home>, Trouble> {
        let home = self.home(live).await?;
        if let Some(home) = &home {
            // Taken before the turn, so that no holder of a turn waits for another one.
            let attempts = Arc::clone(&self.context.attempts);
            writing.room = attempts.acquire_owned().await.ok();
            writing.turn = Some(home.table.turn().await);
        }
        Ok(home)
    }

    /// The state for the call of a batch.
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

    /// Expired entries of a table that is partly in files. Entries that are not found here are
    /// absent for the component all the same, so an error does not fail the batch.
    async fn ended(&self, home: &Home, now: Timestamp) -> Ended {
        let table = Arc::clone(&home.table);
        let find = move || table.find_ended(now, SWEPT_ENTRIES_MAX, SWEPT_BYTES_MAX);
        let reason = match tokio::task::spawn_blocking(find).await {
            Ok(Ok(ended)) => return ended,
            Ok(Err(error)) => error.to_string(),
            Err(failed) => failed.to_string(),
        };
        tracing::warn!(processor = %self.hold.lease.group, partition = %home.partition, reason, "expired state could not be looked for and stays for now");
        Ended::default()
    }

    pub(super) fn show_state(&mut self) {
        if let Some(home) = &self.home
            && !self.input.is_redriven()
        {
            self.meters.state(home.table.size());
        }
    }
}
