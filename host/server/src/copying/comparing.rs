//! Compares what both sides have: messages by counts and digests, progress, state and entries by their content.

use millrace_engine::{Ends, Engine, ReadError};
use millrace_model::{Digest, Offset, RecordBatch, Timestamp, Topic, TopicPartition};
use sha2::{Digest as _, Sha256};

use super::catalogue::KINDS;
use super::groups::{Chain, Pages, chains};
use super::{Copy, CopyError, READ_BYTES, Side, keys, shown};

/// The head of a batch is not part of the digest: its offset, which is there by itself, length, stamp and format.
const PLACED_BYTES: usize = 17;

/// What both sides have.
#[derive(Debug, Default)]
pub(crate) struct Compared {
    /// By topic and partition.
    pub(crate) partitions: Vec<(Topic, PartitionDigest)>,
    /// Groups in partitions, with progress or state.
    pub(crate) groups: usize,
    /// Entries of their state.
    pub(crate) state_entries: u64,
    /// Entries of the catalogue.
    pub(crate) entries: usize,
    /// What is not the same, a line each.
    pub(crate) differences: Vec<String>,
}

/// The messages of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PartitionDigest {
    pub(crate) partition: TopicPartition,
    pub(crate) ends: Ends,
    pub(crate) messages: u64,
    /// Of all offsets and messages.
    pub(crate) sha256: Digest,
}

impl Copy<'_> {
    pub(super) async fn compare(&self, topics: &[Topic]) -> Result<Compared, CopyError> {
        self.watcher.begins("comparing", self.offsets(topics));
        let mut compared = Compared::default();
        let both = self.in_partitions(topics, |partition| async move {
            let (source, target) = tokio::join!(
                self.digest(Side::Source, partition),
                self.digest(Side::Target, partition),
            );
            Ok((
                source.map_err(CopyError::Source)?,
                target.map_err(CopyError::Target)?,
            ))
        });
        for (source, target) in both.await? {
            let of = topics
                .iter()
                .find(|topic| topic.id == source.partition.topic);
            compared
                .partitions
                .extend(of.map(|topic| (topic.clone(), source)));
            if source != target {
                let place = shown(topics, source.partition);
                compared.differences.push(format!(
                    "{place}: {} in the source, {} in the target",
                    told(&source),
                    told(&target)
                ));
            }
        }
        self.compare_groups(topics, &mut compared).await?;
        Ok(compared)
    }

    async fn digest(
        &self,
        side: Side,
        partition: TopicPartition,
    ) -> Result<PartitionDigest, ReadError> {
        let engine = match side {
            Side::Source => self.source,
            Side::Target => self.target,
        };
        let ends = engine.ends(partition)?;
        let mut sha256 = Sha256::new();
        let mut messages = 0;
        let mut from = ends.start;
        while from < ends.end {
            let batches = match engine.read(partition, from, READ_BYTES).await {
                Ok(batches) => batches,
                // Those who copied it know that it is damaged.
                Err(ReadError::Damaged { to, .. }) if to > from && side == Side::Source => {
                    from = to;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let to = batches.last().map_or(ends.end, RecordBatch::end_offset);
            for batch in batches.iter().filter(|batch| !batch.is_control()) {
                messages += batch.messages_within(ends.start, Offset::MAX);
                sha256.update(batch.base_offset().0.to_be_bytes());
                sha256.update(&batch.bytes()[PLACED_BYTES..]);
            }
            if side == Side::Source {
                self.watcher.advances(to.0.saturating_sub(from.0));
            }
            from = to;
        }
        Ok(PartitionDigest {
            partition,
            ends,
            messages,
            sha256: Digest(sha256.finalize().into()),
        })
    }

    async fn compare_groups(
        &self,
        topics: &[Topic],
        compared: &mut Compared,
    ) -> Result<(), CopyError> {
        let mut all = chains(self.source, topics)
            .await
            .map_err(CopyError::Source)?;
        all.extend(
            chains(self.target, topics)
                .await
                .map_err(CopyError::Target)?,
        );
        compared.groups = all.len();
        self.watcher.begins("comparing state", all.len() as u64);
        for chain in all {
            let source = content(self.source, &chain, self.began_at).await;
            let source = source.map_err(CopyError::Source)?;
            let target = content(self.target, &chain, self.began_at).await;
            compared.state_entries += source.1;
            if source != target.map_err(CopyError::Target)? {
                let place = shown(topics, chain.0);
                let line = format!("{place}: progress or state of {}", chain.1);
                compared.differences.push(line);
            }
            self.watcher.advances(1);
        }
        Ok(())
    }

    pub(super) fn compare_entries(&self, compared: &mut Compared) {
        for kind in KINDS {
            for key in keys([self.source, self.target], kind) {
                let value = |engine: &dyn Engine| engine.entry(kind, &key).map(|e| e.value);
                compared.entries += 1;
                if value(self.source) != value(self.target) {
                    let line = format!("{} {key}", kind.as_str());
                    compared.differences.push(line);
                }
            }
        }
    }
}

fn told(digest: &PartitionDigest) -> String {
    let PartitionDigest {
        ends,
        messages,
        sha256,
        ..
    } = digest;
    let (start, end) = (ends.start, ends.end);
    let sha256 = sha256.short();
    format!("{messages} messages at {start} to {end} with digest {sha256}")
}

/// A group's progress and state in a partition: its digest, and the number of entries of state.
async fn content(
    engine: &dyn Engine,
    chain: &Chain,
    began_at: Timestamp,
) -> Result<(Digest, u64), ReadError> {
    let (partition, group) = chain;
    let mut sha256 = Sha256::new();
    let progress = engine.progress(group, *partition).await?;
    let progress = progress.map(|progress| progress.encode());
    let mut add = |bytes: &[u8]| {
        sha256.update((bytes.len() as u64).to_be_bytes());
        sha256.update(bytes);
    };
    add(&progress.unwrap_or_default());
    let mut pages = Pages::of(engine, *partition, group, began_at);
    let mut count = 0;
    while let Some(entries) = pages.next().await? {
        for entry in entries {
            add(&entry.key);
            add(entry.value.as_bytes());
            add(&entry.ends_at.0.to_be_bytes());
            count += 1;
        }
    }
    Ok((Digest(sha256.finalize().into()), count))
}
