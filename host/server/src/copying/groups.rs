//! Copies the progress and the state of groups: processors, delayed messages, consumers.

use std::collections::BTreeSet;
use std::sync::Arc;

use millrace_engine::room::{CONSUMERS_GROUP, DELAYS_GROUP};
use millrace_engine::state::{StateChange, StateEntry, StateQuery, StateWrite, StateWrites};
use millrace_engine::{Engine, EntryKind, Hold, ProgressWrite, ReadError, Transaction};
use millrace_model::{Durability, GroupName, Progress, Timestamp, Topic, TopicPartition};

use super::{Copy, CopyError};

/// Entries of state, and their bytes, that are read and written at once.
const PAGE_ENTRIES: usize = 10_000;
const PAGE_BYTES: usize = 1 << 20;

/// A group in a partition.
pub(super) type Chain = (TopicPartition, GroupName);

impl Copy<'_> {
    pub(super) async fn copy_groups(&self, topics: &[Topic]) -> Result<(), CopyError> {
        let chains = chains(self.source, topics).await;
        let mut chains = chains.map_err(CopyError::Source)?;
        // What an earlier try has written, and the source has removed since, is reset.
        let known = chains_with_state(self.target, topics).await;
        chains.extend(known.map_err(CopyError::Target)?);
        self.watcher
            .begins("progress and state", chains.len() as u64);
        for (partition, group) in &chains {
            self.copy_group(*partition, group).await?;
            self.watcher.advances(1);
        }
        Ok(())
    }

    async fn copy_group(
        &self,
        partition: TopicPartition,
        group: &GroupName,
    ) -> Result<(), CopyError> {
        let progress = self.source.progress(group, partition).await;
        let progress = progress.map_err(CopyError::Source)?;
        let mut hold = self.target.claim(group, partition).await?;
        self.copy_state(&hold, partition, group).await?;
        if let Some(progress) = progress {
            // Whoever works here next learns that a call may have been under way.
            hold.left = progress.first_call.is_some();
            self.copy_progress(&hold, partition, progress).await?;
        }
        Ok(self.target.release(hold).await?)
    }

    async fn copy_progress(
        &self,
        hold: &Hold,
        partition: TopicPartition,
        progress: Progress,
    ) -> Result<(), CopyError> {
        let write = ProgressWrite {
            lease: hold.lease.clone(),
            partition,
            progress: progress.into(),
        };
        let transaction = Transaction {
            progress: vec![write],
            durability: Some(Durability::Durable),
            ..Transaction::default()
        };
        self.target.commit(transaction).await?;
        Ok(())
    }

    async fn copy_state(
        &self,
        hold: &Hold,
        partition: TopicPartition,
        group: &GroupName,
    ) -> Result<(), CopyError> {
        let mut pages = Pages::of(self.source, partition, group, self.began_at);
        let mut resets = true;
        while let Some(entries) = pages.next().await.map_err(CopyError::Source)? {
            let change = |entry: StateEntry| StateChange {
                key: entry.key,
                value: Some(entry.value),
                ends_at: entry.ends_at,
            };
            let writes = StateWrites {
                resets,
                changes: entries.into_iter().map(change).collect(),
                adds: None,
            };
            if resets && writes.changes.is_empty() && !self.has_state(partition, group).await? {
                return Ok(());
            }
            let transaction = Transaction {
                state: vec![StateWrite {
                    group: group.clone(),
                    partition,
                    lease: Some(hold.lease.clone()),
                    writes: Arc::new(writes),
                }],
                durability: Some(Durability::Durable),
                ..Transaction::default()
            };
            self.target.commit(transaction).await?;
            resets = false;
        }
        Ok(())
    }

    async fn has_state(
        &self,
        partition: TopicPartition,
        group: &GroupName,
    ) -> Result<bool, CopyError> {
        let mut pages = Pages::of(self.target, partition, group, self.began_at);
        let first = pages.next().await.map_err(CopyError::Target)?;
        Ok(first.is_some_and(|entries| !entries.is_empty()))
    }
}

/// Reads a table of state, page by page.
pub(super) struct Pages<'a> {
    engine: &'a dyn Engine,
    partition: TopicPartition,
    group: &'a GroupName,
    began_at: Timestamp,
    after: Option<Vec<u8>>,
    is_done: bool,
}

impl<'a> Pages<'a> {
    pub(super) fn of(
        engine: &'a dyn Engine,
        partition: TopicPartition,
        group: &'a GroupName,
        began_at: Timestamp,
    ) -> Self {
        Self {
            engine,
            partition,
            group,
            began_at,
            after: None,
            is_done: false,
        }
    }

    /// The next entries; the first page of an empty table has none.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<StateEntry>>, ReadError> {
        if self.is_done {
            return Ok(None);
        }
        let query = StateQuery {
            prefix: Vec::new(),
            after: self.after.take(),
            entries_max: PAGE_ENTRIES,
            bytes_max: PAGE_BYTES,
            now: self.began_at,
        };
        let page = self
            .engine
            .read_state(self.group, self.partition, &query)
            .await?;
        self.after = page.entries.last().map(|entry| entry.key.to_vec());
        self.is_done = !page.has_more || self.after.is_none();
        Ok(Some(page.entries))
    }
}

/// The groups with progress or state, and where.
pub(super) async fn chains(
    engine: &dyn Engine,
    topics: &[Topic],
) -> Result<BTreeSet<Chain>, ReadError> {
    let mut chains = chains_with_state(engine, topics).await?;
    for partition in topics.iter().flat_map(Topic::partitions) {
        let groups = engine.groups(partition).await?.into_iter();
        chains.extend(groups.map(|group| (partition, group)));
    }
    Ok(chains)
}

async fn chains_with_state(
    engine: &dyn Engine,
    topics: &[Topic],
) -> Result<BTreeSet<Chain>, ReadError> {
    let services = [DELAYS_GROUP.clone(), CONSUMERS_GROUP.clone()];
    let processors = engine.entries(EntryKind::Processor).into_iter();
    let processors = processors.map(|(name, _)| GroupName::stored(&name));
    let mut groups: BTreeSet<GroupName> = processors.chain(services).collect();
    for partition in topics.iter().flat_map(Topic::partitions) {
        groups.extend(engine.groups(partition).await?);
    }
    let mut chains = BTreeSet::new();
    for group in groups {
        let partitions = engine.state_partitions(&group).await?.into_iter();
        chains.extend(partitions.map(|partition| (partition, group.clone())));
    }
    Ok(chains)
}
