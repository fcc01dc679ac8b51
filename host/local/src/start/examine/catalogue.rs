//! The expected content of the directory: from the checkpoint, and then from the journal after it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;

use millrace_engine::contract::EntryKind;
use millrace_engine::state::StateSize;
use millrace_log::Mark;
use millrace_log::inspect::ReadOnlyDisk;
use millrace_log::partition::Listing;
use millrace_model::{Offset, PartitionId, TopicId, TopicPartition};

use crate::decide::codec::Operation;
use crate::keep::checkpoint::{Checkpoint, StoredRun};

/// Topics, the ends of their partitions, and modules.
#[derive(Default)]
pub(super) struct Catalogue {
    pub(super) topics: BTreeMap<TopicId, Known>,
    /// Deleted topics whose files may still exist.
    pub(super) removed: BTreeSet<TopicId>,
    /// The ends of the files.
    pub(super) marks: BTreeMap<TopicPartition, Mark>,
    /// The ends of files and journal together.
    ends: BTreeMap<TopicPartition, Offset>,
    /// Digests of known modules, as text; `None` if they are unknown.
    pub(super) modules: Option<BTreeSet<String>>,
    /// Paged tables of state in the checkpoint.
    pub(super) tables: Vec<Table>,
    /// Whether marks are known.
    pub(super) is_guessed: bool,
}

/// A paged table of state.
pub(super) struct Table {
    pub(super) partition: TopicPartition,
    pub(super) group: String,
    /// The oldest first.
    pub(super) runs: Vec<StoredRun>,
    /// The size of their content.
    pub(super) size: StateSize,
}

/// A topic.
pub(super) struct Known {
    pub(super) name: String,
    pub(super) partitions: u32,
}

impl Catalogue {
    pub(super) fn of(checkpoint: Checkpoint) -> Self {
        let topics = checkpoint.topics.iter();
        let topics = topics.map(|topic| (topic.id, Known::of(topic))).collect();
        let modules = checkpoint.entries.into_iter();
        let modules = modules
            .filter(|(kind, ..)| *kind == EntryKind::Module)
            .map(|(_, digest, _)| digest);
        let tables = checkpoint.paged.into_iter();
        let tables = tables.map(|((partition, group), table)| Table {
            partition,
            group,
            runs: table.runs,
            size: table.size,
        });
        Self {
            topics,
            tables: tables.collect(),
            removed: checkpoint.removed_topics.into_iter().collect(),
            ends: checkpoint
                .marks
                .iter()
                .map(|(id, m)| (*id, m.end))
                .collect(),
            marks: checkpoint.marks.into_iter().collect(),
            modules: Some(modules.collect()),
            is_guessed: false,
        }
    }

    /// Without a checkpoint, guesses the topics from the directories.
    pub(super) fn guessed(dir: &Path) -> io::Result<Self> {
        let mut topics = BTreeMap::new();
        for topic in numbers_in(&dir.join("topics"))? {
            let listing = Listing::read(&ReadOnlyDisk, &dir.join(format!("topics/{topic}")))?;
            let highest = listing.partitions().last().copied().unwrap_or(0);
            let known = Known {
                name: format!("number {topic}"),
                partitions: highest.saturating_add(1),
            };
            topics.insert(TopicId(topic), known);
        }
        Ok(Self {
            topics,
            is_guessed: true,
            ..Self::default()
        })
    }

    /// Applies a replayed change. The error is the reason for which a start would refuse it.
    pub(super) fn apply(&mut self, operation: &Operation) -> Result<(), String> {
        match operation {
            Operation::Append { partition, batch } => {
                let expected = self.end(*partition)?;
                if batch.base_offset() != expected {
                    return Err(format!(
                        "it appends to {} at offset {} where {expected} is next",
                        self.name(*partition),
                        batch.base_offset()
                    ));
                }
                self.ends.insert(*partition, batch.end_offset());
            }
            Operation::CreateTopic(topic) => {
                self.topics.insert(topic.id, Known::of(topic));
            }
            Operation::DeleteTopic(id) => {
                self.topics.remove(id);
                self.removed.insert(*id);
            }
            Operation::Entry { kind, key, value } if *kind == EntryKind::Module => {
                let modules = self.modules.get_or_insert_default();
                match value {
                    Some(_) => modules.insert(key.clone()),
                    None => modules.remove(key),
                };
            }
            Operation::Trim { partition, start } => {
                if *start > self.end(*partition)? {
                    let name = self.name(*partition);
                    return Err(format!("it trims {name} beyond its end, to {start}"));
                }
            }
            Operation::ChangeTopic(topic) => {
                let known = self.topics.get_mut(&topic.id);
                let known = known
                    .ok_or_else(|| format!("it changes topic {}, which is not known", topic.id))?;
                if known.partitions > topic.spec.partitions {
                    return Err(format!("it takes partitions from topic {}", topic.id));
                }
                *known = Known::of(topic);
            }
            Operation::Entry { .. }
            | Operation::Progress { .. }
            | Operation::Claim { .. }
            | Operation::Moment(_)
            | Operation::Producer { .. }
            | Operation::Request { .. } => {}
            Operation::State { partition, .. } => {
                self.end(*partition)?;
            }
        }
        Ok(())
    }

    /// The partition's end, including the journal.
    pub(super) fn end(&self, id: TopicPartition) -> Result<Offset, String> {
        let topic = self.topics.get(&id.topic);
        if topic.is_none_or(|topic| id.partition.0 >= topic.partitions) {
            return Err(format!("it writes to partition {id}, which is not known"));
        }
        Ok(self.ends.get(&id).copied().unwrap_or_default())
    }

    /// Topic and partition, for people.
    pub(super) fn name(&self, id: TopicPartition) -> String {
        format!("{}/{}", self.topic_name(id.topic), id.partition)
    }

    pub(super) fn topic_name(&self, id: TopicId) -> String {
        let known = self.topics.get(&id);
        known.map_or_else(|| format!("number {id}"), |known| known.name.clone())
    }

    pub(super) fn partitions(&self, topic: TopicId) -> impl Iterator<Item = TopicPartition> {
        let partitions = self.topics.get(&topic).map_or(0, |known| known.partitions);
        (0..partitions).map(move |number| TopicPartition {
            topic,
            partition: PartitionId(number),
        })
    }

    /// The number of a topic's messages that are only in the journal.
    pub(super) fn in_journal(&self, topic: TopicId) -> u64 {
        let only = |id: TopicPartition| {
            let filed = self.marks.get(&id).map_or(0, |mark| mark.end.0);
            let end = self.ends.get(&id).map_or(0, |end| end.0);
            end.saturating_sub(filed)
        };
        self.partitions(topic).map(only).sum()
    }

    /// The mark that the partition's files must match; `None` if there is none to compare with.
    pub(super) fn mark(&self, id: TopicPartition) -> Option<Mark> {
        (!self.is_guessed).then(|| self.marks.get(&id).copied().unwrap_or_default())
    }
}

impl Known {
    fn of(topic: &millrace_model::Topic) -> Self {
        Self {
            name: topic.spec.name.to_string(),
            partitions: topic.spec.partitions,
        }
    }
}

/// The names in a directory that are numbers; none if there is no such directory.
fn numbers_in(dir: &Path) -> io::Result<Vec<u64>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.parse().ok();
    Ok(entries.flatten().filter_map(number).collect())
}
