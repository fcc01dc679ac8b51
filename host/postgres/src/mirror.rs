//! What this host has heard of the catalogue and of the ends of partitions, for the calls that must not wait.

use std::collections::{BTreeMap, HashMap, HashSet};

use millrace_engine::entries::Entries;
use millrace_engine::{Ends, Entry, EntryKind, ReadError, Version, Watch};
use millrace_model::{Durability, Offset, PartitionId, Topic, TopicId, TopicName, TopicPartition};
use parking_lot::RwLock;
use tokio::sync::watch;

use crate::memory::Lost;

#[derive(Default)]
pub(crate) struct Mirror {
    heard: RwLock<Heard>,
    catalogue: watch::Sender<u64>,
}

#[derive(Default)]
struct Heard {
    topics: BTreeMap<TopicName, Topic>,
    /// The version of the topics.
    topics_version: u64,
    /// Whether the topics are durable.
    durable: HashMap<TopicId, bool>,
    /// The topics of which only the latest message of each key is kept.
    compacted: HashSet<TopicId>,
    entries: Entries,
    partitions: HashMap<TopicPartition, Known>,
}

struct Known {
    start: Offset,
    end: watch::Sender<Offset>,
}

/// A partition's ends as the database has them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stored {
    pub(crate) partition: TopicPartition,
    pub(crate) start: Offset,
    pub(crate) next: Offset,
}

/// A write of an entry that this host has not heard of.
pub(crate) struct EntryNews {
    pub(crate) kind: EntryKind,
    pub(crate) key: String,
    pub(crate) value: Option<bytes::Bytes>,
    pub(crate) version: Version,
}

/// Everything that is new in the catalogue.
#[derive(Default)]
pub(crate) struct CatalogueNews {
    /// All topics and their version, if they changed.
    pub(crate) topics: Option<(Vec<Topic>, u64)>,
    /// The partitions of all topics, if they changed.
    pub(crate) partitions: Vec<Stored>,
    /// By version.
    pub(crate) entries: Vec<EntryNews>,
}

impl Mirror {
    pub(crate) fn topics(&self) -> Vec<Topic> {
        self.heard.read().topics.values().cloned().collect()
    }

    pub(crate) fn topic(&self, name: &TopicName) -> Option<Topic> {
        self.heard.read().topics.get(name).cloned()
    }

    pub(crate) fn entries(&self, kind: EntryKind) -> Vec<(String, Entry)> {
        let heard = self.heard.read();
        let owned = |(key, entry): (&String, &Entry)| (key.clone(), entry.clone());
        heard.entries.of(kind).iter().map(owned).collect()
    }

    pub(crate) fn entry(&self, kind: EntryKind, key: &str) -> Option<Entry> {
        self.heard.read().entries.get(kind, key).cloned()
    }

    pub(crate) fn version(&self, kind: EntryKind) -> Version {
        self.heard.read().entries.version(kind)
    }

    pub(crate) fn topics_version(&self) -> u64 {
        self.heard.read().topics_version
    }

    pub(crate) fn watch_catalogue(&self) -> watch::Receiver<u64> {
        self.catalogue.subscribe()
    }

    /// Whether appends to the topic are durable when they are acknowledged; true if it is unknown.
    pub(crate) fn is_durable(&self, topic: TopicId) -> bool {
        let heard = self.heard.read();
        heard.durable.get(&topic).copied().unwrap_or(true)
    }

    /// Whether earlier messages of a key go, as far as this host has heard.
    pub(crate) fn is_compacted(&self, topic: TopicId) -> bool {
        self.heard.read().compacted.contains(&topic)
    }

    pub(crate) fn ends(&self, partition: TopicPartition) -> Result<Ends, ReadError> {
        let heard = self.heard.read();
        let known = heard.partition(partition)?;
        Ok(Ends {
            start: known.start,
            end: *known.end.borrow(),
        })
    }

    pub(crate) fn watch(&self, partition: TopicPartition) -> Result<Watch, ReadError> {
        let heard = self.heard.read();
        Ok(Watch::new(heard.partition(partition)?.end.subscribe()))
    }

    /// Ends never go back: news may arrive in any order. Those of a commit change at once for whoever reads, so that nobody sees a part of it.
    pub(crate) fn hear_ends(&self, ends: impl IntoIterator<Item = (TopicPartition, Offset)>) {
        let heard = self.heard.write();
        for (partition, next) in ends {
            if let Some(known) = heard.partitions.get(&partition) {
                known.reach(next);
            }
        }
    }

    /// Starts and ends as stored. Returns the ends that are news.
    pub(crate) fn hear_partitions(&self, stored: &[Stored]) -> Vec<(TopicPartition, Offset)> {
        let mut heard = self.heard.write();
        let mut news = Vec::new();
        for stored in stored {
            if let Some(known) = heard.partitions.get_mut(&stored.partition) {
                known.start = known.start.max(stored.start);
                // What was removed was there, whether or not this host has heard of it.
                let end = stored.next.max(stored.start);
                if known.reach(end) {
                    news.push((stored.partition, end));
                }
            }
        }
        news
    }

    /// What changed in the catalogue.
    pub(crate) fn hear_catalogue(&self, news: CatalogueNews) {
        let mut heard = self.heard.write();
        let mut changes = false;
        if let Some((topics, version)) = news.topics
            && version > heard.topics_version
        {
            changes = true;
            heard.topics_are(topics, version);
            let mut before = std::mem::take(&mut heard.partitions);
            for stored in &news.partitions {
                let known = before.remove(&stored.partition);
                let known = known.unwrap_or_else(|| Known::new(stored));
                known.reach(stored.next);
                heard.partitions.insert(stored.partition, known);
            }
        }
        for EntryNews {
            kind,
            key,
            value,
            version,
        } in news.entries
        {
            changes |= heard.entries.hear(kind, key, value, version);
        }
        drop(heard);
        if changes {
            self.catalogue.send_modify(|count| *count += 1);
        }
    }
}

impl Mirror {
    /// Takes over everything as it is in another life of the database, at whose begin partitions had these ends. Returns what is lost of
    /// what this host knew.
    pub(crate) fn begin_again(
        &self,
        everything: CatalogueNews,
        ends: &HashMap<TopicPartition, Offset>,
    ) -> Vec<Lost> {
        let mut heard = self.heard.write();
        let mut before = std::mem::take(&mut *heard);
        if let Some((topics, version)) = everything.topics {
            heard.topics_are(topics, version);
        }
        let is_there = |topic: &Topic| {
            // An id whose topic is lost may be given again.
            let now = heard.topics.get(&topic.spec.name);
            now.is_some_and(|now| {
                now.id == topic.id && now.spec.created_at == topic.spec.created_at
            })
        };
        let mut lost = Vec::new();
        for topic in before.topics.values() {
            let is_gone = !is_there(topic);
            let mut messages = 0;
            for number in 0..topic.spec.partitions {
                let Some(at) = topic.partition(PartitionId(number)) else {
                    continue;
                };
                if let Some(known) = before.partitions.get(&at) {
                    let left = ends.get(&at).copied().unwrap_or_default();
                    messages += known.end.borrow().0.saturating_sub(left.0);
                }
                if is_gone {
                    before.partitions.remove(&at);
                }
            }
            if is_gone || messages > 0 {
                lost.push(Lost {
                    topic: topic.spec.name.clone(),
                    messages,
                    is_gone,
                });
            }
        }
        for stored in &everything.partitions {
            let known = before.partitions.remove(&stored.partition);
            let mut known = known.unwrap_or_else(|| Known::new(stored));
            known.is_now(stored);
            heard.partitions.insert(stored.partition, known);
        }
        for news in everything.entries {
            let EntryNews {
                kind,
                key,
                value,
                version,
            } = news;
            heard.entries.hear(kind, key, value, version);
        }
        drop(heard);
        self.catalogue.send_modify(|count| *count += 1);
        lost
    }
}

impl Heard {
    fn topics_are(&mut self, topics: Vec<Topic>, version: u64) {
        self.topics_version = version;
        let durable = |topic: &Topic| {
            let durability = topic.spec.durability;
            (topic.id, durability == Durability::Durable)
        };
        self.durable = topics.iter().map(durable).collect();
        let compacted = topics.iter().filter(|topic| topic.spec.settings.compact);
        self.compacted = compacted.map(|topic| topic.id).collect();
        self.topics = topics
            .into_iter()
            .map(|topic| (topic.spec.name.clone(), topic))
            .collect();
    }

    fn partition(&self, partition: TopicPartition) -> Result<&Known, ReadError> {
        let unknown = ReadError::UnknownPartition(partition);
        self.partitions.get(&partition).ok_or(unknown)
    }
}

impl Known {
    fn new(stored: &Stored) -> Self {
        Self {
            start: stored.start,
            end: watch::Sender::new(stored.next),
        }
    }

    /// In another life of the database, ends may be lower.
    fn is_now(&mut self, stored: &Stored) {
        self.start = stored.start;
        self.end.send_if_modified(|end| {
            let moves = *end != stored.next;
            *end = stored.next;
            moves
        });
    }

    /// Returns whether this is news.
    fn reach(&self, next: Offset) -> bool {
        self.end.send_if_modified(|end| {
            let moves = *end < next;
            *end = next.max(*end);
            moves
        })
    }
}
