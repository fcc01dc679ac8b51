//! Removes expired entries of paged tables that are not in use, with ordinary commits. (For tables
//! in use, their worker removes expired entries with its own commits.) The
//! [cleaner](crate::keep::cleaner) calls this periodically.

use std::sync::Arc;
use std::time::Duration;

use millrace_engine::contract::Transaction;
use millrace_engine::state::{HeldTurn, StateTable, StateWrite, StateWrites};
use millrace_log::Journal;
use millrace_model::{Durability, GroupName, Timestamp, TopicPartition};

use crate::decide::codec::BODY_OVERHEAD_BYTES;
use crate::decide::requests::commit_own;
use crate::keep::cleaner::Cleaner;

/// Entries that one commit removes.
const ENTRIES_AT_ONCE: usize = 1_000;
/// Journal bytes of one commit, except for one larger entry.
const BYTES_AT_ONCE: usize = 64 << 10;
/// Commits that remove expired entries of one table before the next table's turn; the rest is removed the next time.
const COMMITS_MAX: usize = 100;
/// How long it waits before a second try if a table is in use.
const BUSY_PAUSE: Duration = Duration::from_millis(1);

/// The result of a try.
enum Tried {
    /// There may be more to remove.
    Again,
    Busy,
    Over,
}

impl Cleaner {
    /// Removes expired entries from all paged tables.
    pub(crate) fn remove_ended(&self) {
        let tables = self.commits.state.read().paged_tables();
        for (partition, group, table) in tables {
            let mut was_busy = false;
            for _ in 0..COMMITS_MAX {
                let now = self.commits.clock.wall();
                if self.pause.is_ended() || !table.may_have_ended(now) {
                    break;
                }
                match self.remove_some(partition, &group, &table, now) {
                    Tried::Again => was_busy = false,
                    // A caller that just got its answer keeps the turn a moment longer. A worker
                    // that keeps it for long removes expired entries itself.
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
        let journal_bytes = Journal::body_bytes_max(self.commits.options.journal_file_bytes);
        let queue_bytes = (self.commits.options.queue_kib_max() as usize) << 10;
        let bytes_max = (journal_bytes - BODY_OVERHEAD_BYTES).min(queue_bytes) / 2;
        let bytes_max = BYTES_AT_ONCE.min(bytes_max);
        match table.find_ended(now, ENTRIES_AT_ONCE, bytes_max) {
            Ok(ended) if ended.is_empty() => {
                // What was learned about places is written with the next run.
                self.commits.state.write().note_places(partition, group);
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
            // A removal that a crash undoes is simply repeated.
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
