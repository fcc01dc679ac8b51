//! State of groups as callers see it: pages, and writes that become part of a transaction.

use std::sync::Arc;

use millrace_engine::contract::{CommitError, Engine as _, ReadError, Transaction};
use millrace_engine::state::keeper::{KeepTable as _, Reading};
use millrace_engine::state::{Adds, StatePage, StateQuery};
use millrace_model::{GroupName, TopicPartition};
use tokio::task;

use super::LocalEngine;
use crate::decide::state::may_be_paged;

impl LocalEngine {
    /// Entries of a table, and the progress that they belong to.
    pub(super) async fn page_of_state(
        &self,
        group: &GroupName,
        partition: TopicPartition,
        query: &StateQuery,
    ) -> Result<StatePage, ReadError> {
        let (reading, progress, written) = {
            // While the lock is held nothing is applied, so entries and progress belong together.
            let state = self.commits.state.read();
            if !state.partitions.contains_key(&partition) {
                return Err(ReadError::UnknownPartition(partition));
            }
            let found = state.group(partition, group);
            let table = found.and_then(|group| group.state.as_ref());
            let reading = table.map(|table| table.reading(query));
            let progress = found.and_then(|group| group.progress.clone());
            (reading, progress, self.commits.pipeline.line().needed())
        };
        let page = match reading {
            None => StatePage::default(),
            Some(Reading::Page(page)) => page,
            // Commits continue while the page is read.
            Some(Reading::Picture(picture)) => {
                let query = query.clone();
                let read = task::spawn_blocking(move || picture.page(&query)).await;
                let failed = |_| ReadError::Io("the reading thread failed".into());
                read.map_err(failed)??
            }
        };
        self.commits.pipeline.shown(written).await;
        if let Some(poisoned) = self.commits.poisoned() {
            return Err(ReadError::Io(poisoned.to_string().into()));
        }
        let as_of = progress.map(|progress| progress.next).unwrap_or_default();
        Ok(StatePage { as_of, ..page })
    }

    /// Makes each write say how much it adds, because a paged table cannot look that up, and a
    /// table may become paged before the write. For writes that do not say it yet, this takes the
    /// table's turn.
    pub(super) async fn complete(&self, transaction: &mut Transaction) -> Result<(), CommitError> {
        let says_nothing = |place: &usize| {
            let write = &transaction.state[*place];
            write.writes.adds.is_none() && !write.writes.resets && may_be_paged(&write.group)
        };
        let places = (0..transaction.state.len()).filter(says_nothing);
        let mut places: Vec<usize> = places.collect();
        // Several turns are taken in order, to avoid a deadlock.
        places.sort_unstable_by_key(|&place| {
            let write = &transaction.state[place];
            (write.group.clone(), write.partition)
        });
        for place in places {
            let write = &mut transaction.state[place];
            let Ok(table) = self.state(&write.group, write.partition).await else {
                // The decision will refuse it.
                continue;
            };
            if write.writes.is_empty() {
                Arc::make_mut(&mut write.writes).adds = Some(Adds::default());
                continue;
            }
            if !transaction.turns.iter().any(|turn| turn.is_of(&table)) {
                transaction.turns.extend(table.turn().await.held());
            }
            let adds = table.adds_in_time(&write.writes).await?;
            Arc::make_mut(&mut write.writes).adds = Some(adds);
        }
        Ok(())
    }
}
