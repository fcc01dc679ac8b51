//! What a script does, and what must be there after each of its steps: plain maps, and nothing of the engine's own code.

use std::collections::BTreeMap;

use millrace_model::TopicId;

use super::super::*;
use crate::EntryKind;
use crate::local::recovery::Recovered;

/// Groups that scripts may claim for; all are looked for after a recovery.
pub(super) const GROUPS: [&str; 2] = ["billing", "audit"];
/// Modules that scripts may put.
pub(super) const MODULES: std::ops::Range<u8> = 0..4;

/// One step of a script. To add one: a variant here, its meaning in [`Dump::after`], its doing in `Run::step`.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Create(&'static str, u32, Durability),
    Delete(&'static str),
    /// Appends one message of so many bytes to each, in one transaction.
    Append(Vec<(&'static str, u32)>, usize),
    Claim(&'static str, &'static str, u32),
    /// Progress of the group in the first, an output to the second, an entry: in one transaction, under the last claim.
    Work(&'static str, (&'static str, u32), (&'static str, u32)),
    Entry(EntryKind, &'static str, Option<usize>),
    PutModule(u8),
    DeleteModule(u8),
    Flush,
    Checkpoint,
    /// The process is killed and started again; the machine runs on.
    Restart,
    /// The engine is closed in order and opened again.
    Reopen,
}

/// Everything that an engine holds, as far as scripts can tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Dump {
    topics: BTreeMap<String, Topic>,
    logs: BTreeMap<TopicPartition, Log>,
    /// Epoch and progress.
    groups: BTreeMap<(TopicPartition, &'static str), (u64, Option<u64>)>,
    entries: BTreeMap<(EntryKind, String), usize>,
}

/// The first offset that is kept, and each message's offset, number and length.
type Log = (Offset, Vec<(Offset, u64, usize)>);
pub(super) type Modules = BTreeMap<u8, Bytes>;

/// A message that says which step it is of.
pub(super) fn value(number: u64, bytes: usize) -> String {
    format!("{number} {}", "x".repeat(bytes))
}

pub(super) fn module(number: u8) -> Bytes {
    vec![number; 700].into()
}

pub(super) fn digest(number: u8) -> Digest {
    digest_of(&module(number))
}

impl Dump {
    pub(super) fn topic(&self, name: &str) -> &Topic {
        &self.topics[name]
    }

    pub(super) fn at(&self, (name, partition): (&str, u32)) -> TopicPartition {
        at(&self.topics[name], partition)
    }

    pub(super) fn epoch(&self, group: &'static str, partition: TopicPartition) -> u64 {
        self.groups.get(&(partition, group)).map_or(0, |g| g.0)
    }

    /// Whether the step, once acknowledged, must survive everything, and all before it. Modules are beside the journal.
    pub(super) fn is_durable(&self, step: &Step) -> bool {
        let durable = |topic: &str| self.topics[topic].spec.durability == Durability::Durable;
        match step {
            Step::Append(to, _) => to.iter().any(|(topic, _)| durable(topic)),
            Step::Work(_, _, (output, _)) => durable(output),
            Step::Entry(..) => true,
            Step::Flush | Step::PutModule(_) | Step::DeleteModule(_) => false,
            _ => true,
        }
    }

    /// What is there after the `number`-th step.
    pub(super) fn after(&self, number: u64, step: &Step, next_topic: &mut u64) -> Self {
        let mut after = self.clone();
        match step {
            Step::Create(name, partitions, durability) => {
                let spec = spec(name, *partitions, *durability);
                let topic = Topic {
                    id: TopicId(*next_topic),
                    spec,
                };
                *next_topic += 1;
                for partition in topic.partitions() {
                    after.logs.insert(partition, Default::default());
                }
                after.topics.insert((*name).to_owned(), topic);
            }
            Step::Delete(name) => {
                let topic = after.topics.remove(*name).expect("a script's topic");
                after.logs.retain(|at, _| at.topic != topic.id);
                after.groups.retain(|(at, _), _| at.topic != topic.id);
            }
            Step::Append(to, bytes) => {
                for to in to {
                    after.append(self.at(*to), number, *bytes);
                }
            }
            Step::Claim(group, topic, partition) => {
                let at = (self.at((topic, *partition)), *group);
                after.groups.entry(at).or_default().0 += 1;
            }
            Step::Work(group, input, output) => {
                let at = (self.at(*input), *group);
                after.groups.entry(at).or_default().1 = Some(number);
                after.append(self.at(*output), number, 20);
                after
                    .entries
                    .insert((EntryKind::Redriven, "work".into()), number as usize);
            }
            Step::Entry(kind, key, Some(bytes)) => {
                after.entries.insert((*kind, (*key).to_owned()), *bytes);
            }
            Step::Entry(kind, key, None) => {
                after.entries.remove(&(*kind, (*key).to_owned()));
            }
            Step::PutModule(_) | Step::DeleteModule(_) => {}
            Step::Flush | Step::Checkpoint | Step::Restart | Step::Reopen => {}
        }
        after
    }

    fn append(&mut self, at: TopicPartition, number: u64, bytes: usize) {
        let (start, log) = self.logs.get_mut(&at).expect("a script's partition");
        let next = log.last().map_or(*start, |last| Offset(last.0.0 + 1));
        log.push((next, number, value(number, bytes).len()));
    }

    /// All but one topic.
    pub(super) fn without(mut self, name: &TopicName) -> Self {
        if let Some(topic) = self.topics.remove(&name.to_string()) {
            self.logs.retain(|at, _| at.topic != topic.id);
        }
        self
    }

    /// What a recovery found, by the engine's own readers.
    pub(super) fn of(recovered: &Recovered) -> Self {
        let state = &recovered.state;
        let mut dump = Self::default();
        for topic in state.topics() {
            for at in topic.partitions() {
                let partition = &state.partitions[&at];
                let ends = partition.ends();
                let (mut from, mut log) = (ends.start, Vec::new());
                while from < ends.end {
                    let batches = partition
                        .read_files(from, 3_000)
                        .expect("nothing is damaged");
                    for batch in batches {
                        assert_eq!(batch.base_offset(), from, "no hole in {at}");
                        from = batch.end_offset();
                        let [value] = &values_of(&batch)[..] else {
                            panic!("one message each")
                        };
                        let number = value.split(' ').next().and_then(|n| n.parse().ok());
                        let number = number.expect("a message of the script");
                        log.push((batch.base_offset(), number, value.len()));
                    }
                }
                dump.logs.insert(at, (ends.start, log));
                for group in GROUPS {
                    if let Some(found) = state.group(at, group) {
                        let progress = found.progress.as_ref();
                        let progress = progress.map(|p| millrace_model::Progress::decode(p));
                        let next = progress.map(|p| p.expect("sound progress").next.0);
                        dump.groups.insert((at, group), (found.epoch, next));
                    }
                }
            }
            dump.topics.insert(topic.spec.name.to_string(), topic);
        }
        for kind in EntryKind::ALL {
            for (key, value) in state.entries(kind) {
                dump.entries.insert((kind, key.clone()), value.len());
            }
        }
        dump
    }
}

pub(super) fn modules_of(recovered: &Recovered) -> Modules {
    let read = |number| Some((number, recovered.modules.read(digest(number)).unwrap()?));
    MODULES.filter_map(read).collect()
}
