//! Removes what has ended in tables of state that stand in files and that nobody is at work with, by commits like everybody's: a
//! worker removes what has ended with what it commits itself. Done by the [cleaner](super::cleaner) when it looks around.

use std::sync::Arc;
use std::time::Duration;

use millrace_log::Journal;
use millrace_model::{Durability, GroupName, Timestamp, TopicPartition};

use super::cleaner::Cleaner;
use super::codec::BODY_OVERHEAD_BYTES;
use super::submission::commit_own;
use crate::contract::Transaction;
use crate::state::{HeldTurn, StateTable, StateWrite, StateWrites};

/// Entries that one commit removes.
const ENTRIES_AT_ONCE: usize = 1_000;
/// What that takes in the journal, but for one larger.
const BYTES_AT_ONCE: usize = 64 << 10;
/// Commits for one table before it is the next one's turn; the rest comes with the next look around.
const COMMITS_MAX: usize = 100;
/// How long it waits for a table that somebody is at work with, before it tries once more.
const BUSY_PAUSE: Duration = Duration::from_millis(1);

/// What came of a try.
enum Tried {
    /// There may be more to remove.
    Again,
    Busy,
    Over,
}

impl Cleaner {
    /// Removes what has ended in all tables that stand in files.
    pub(super) fn remove_ended(&self) {
        let tables = self.shared.state.read().paged_tables();
        for (partition, group, table) in tables {
            let mut was_busy = false;
            for _ in 0..COMMITS_MAX {
                let now = self.shared.clock.wall();
                if self.pause.is_ended() || !table.may_have_ended(now) {
                    break;
                }
                match self.remove_some(partition, &group, &table, now) {
                    Tried::Again => was_busy = false,
                    // Whoever gets an answer has the turn for a moment longer; whoever has it longer removes what has ended himself.
                    Tried::Busy if !was_busy => was_busy = self.pause.wait(BUSY_PAUSE),
                    Tried::Busy | Tried::Over => break,
                }
            }
        }
    }

    fn remove_some(
        &self,
        partition: TopicPartition,
        group: &GroupName,
        table: &StateTable,
        now: Timestamp,
    ) -> Tried {
        let Some(turn) = table.try_turn() else {
            return Tried::Busy;
        };
        let journal_bytes = Journal::body_bytes_max(self.shared.options.journal_file_bytes);
        let queue_bytes = (self.shared.options.queue_kib_max() as usize) << 10;
        let bytes_max = (journal_bytes - BODY_OVERHEAD_BYTES).min(queue_bytes) / 2;
        let bytes_max = BYTES_AT_ONCE.min(bytes_max);
        match table.find_ended(now, ENTRIES_AT_ONCE, bytes_max) {
            Ok(ended) if ended.is_empty() => {
                // What was found out about places is for the next run.
                self.shared.state.write().note_places(partition, group);
                Tried::Again
            }
            Ok(ended) => {
                tracing::debug!(%partition, %group, entries = ended.len(), "what has ended of the state is removed");
                self.commit(partition, group, ended.into_writes(), turn)
            }
            Err(error) => {
                tracing::warn!(%partition, %group, %error, "expired state could not be looked for and stays for now");
                Tried::Over
            }
        }
    }

    fn commit(
        &self,
        partition: TopicPartition,
        group: &GroupName,
        writes: StateWrites,
        turn: HeldTurn,
    ) -> Tried {
        let transaction = Transaction {
            state: vec![StateWrite {
                group: group.clone(),
                partition,
                lease: None,
                writes: Arc::new(writes),
            }],
            turns: vec![turn],
            // What a crash undoes is done again.
            durability: Some(Durability::None),
            ..Transaction::default()
        };
        let Some(queue) = self.queue.upgrade() else {
            return Tried::Over;
        };
        match commit_own(&queue, &self.room, transaction) {
            Some(Ok(_)) => Tried::Again,
            Some(Err(error)) => {
                tracing::debug!(%partition, %group, %error, "what has ended of the state could not be removed; it stays for now");
                Tried::Over
            }
            None => Tried::Over,
        }
    }
}
