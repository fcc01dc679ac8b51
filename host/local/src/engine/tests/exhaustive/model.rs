//! The steps of scripts, and the content that must exist after each step: plain maps, without the
//! engine's own code.

use std::collections::BTreeMap;

use millrace_engine::{EntryKind, TopicChange};
use millrace_model::bounds::{PRODUCER_BATCHES_KEPT_MAX, REQUEST_AGE_MS_MAX};
use millrace_model::{ProducerId, TopicId};

use super::super::*;
use super::stateful::{Table, Writes};

/// Groups that scripts may claim for; all are checked after a recovery.
pub(super) const GROUPS: [&str; 2] = ["billing", "audit"];
/// Modules that scripts may store.
pub(super) const MODULES: std::ops::Range<u8> = 0..4;
/// Producer names for which scripts may request identities.
pub(super) const PRODUCERS: [&str; 2] = ["mill", "race"];
/// Idempotency keys of scripts.
pub(super) const REQUESTS: std::ops::Range<u8> = 0..8;
/// The time at which scripts begin.
pub(super) const BEGINNING: Timestamp = Timestamp(1_700_000_000_000);
/// Maximum size of a message in a segment besides its value.
const MESSAGE_OVERHEAD_BYTES: u64 = 120;

pub(super) type Place = (&'static str, u32);
/// A producer's epoch, and the sequences and offsets of its last batches.
type Sent = (i16, Vec<(i32, Offset)>);

/// One step of a script. To add one, add a variant here, its effect in [`Dump::after`], and its
/// execution in `Runner::work`.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Create(&'static str, u32, Durability),
    Delete(&'static str),
    /// Appends one message of this many bytes to each partition, in one transaction.
    Append(Vec<Place>, usize),
    /// Appends one batch: messages with these keys, and values of these sizes or none.
    Keyed(Place, Vec<(u8, Option<usize>)>),
    /// Like [`Step::Append`], with an idempotency key: takes effect once within its window.
    Request(Vec<Place>, u8, usize),
    /// Assigns an identity to a producer.
    Producer(Option<&'static str>),
    /// Sends a producer's next batch of one message, or repeats its last one.
    Send(&'static str, Place, bool),
    Change(&'static str, TopicChange),
    /// Removes this many offsets from the start.
    Trim(Place, u64),
    /// Cleans a partition like the cleaner: retention and compaction.
    Clean(Place),
    /// Removes expired entries of paged state, like the cleaner.
    Sweep,
    /// Lets this many milliseconds pass.
    Wait(u64),
    Claim(&'static str, &'static str, u32),
    /// Writes progress of the group in the first partition, an output to the second, and an entry,
    /// in one transaction under the last claim.
    Work(&'static str, Place, Place),
    /// Like [`Step::Work`], with state of the group in the fourth argument's partition, all in one
    /// transaction.
    Count(&'static str, Place, Place, Place, Writes),
    /// Writes state of the group there, like an operator.
    Write(&'static str, Place, Writes),
    /// Writes an entry and empties the state of the group in all partitions of the topic, in one
    /// transaction.
    Renew(&'static str, &'static str),
    Entry(EntryKind, &'static str, Option<usize>),
    PutModule(u8),
    DeleteModule(u8),
    Flush,
    Checkpoint,
    /// Kills and restarts the process; the machine keeps running.
    Restart,
    /// Closes the engine cleanly and opens it again.
    Reopen,
}

/// The content of an engine, as far as scripts affect it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Dump {
    pub(super) topics: BTreeMap<String, Topic>,
    pub(super) logs: BTreeMap<TopicPartition, Log>,
    /// Epoch and progress.
    pub(super) groups: BTreeMap<(TopicPartition, &'static str), (u64, Option<u64>)>,
    pub(super) entries: BTreeMap<(EntryKind, String), usize>,
    /// Tables that are not empty.
    pub(super) state: BTreeMap<(TopicPartition, &'static str), Table>,
    /// The answers to requests, by topic and key.
    pub(super) requests: BTreeMap<(TopicId, u8), Answered>,
    /// The remembered producers: epoch, and the last batches' sequences and offsets.
    pub(super) sent: BTreeMap<(TopicPartition, i64), Sent>,
    /// The named producers.
    pub(super) named: BTreeMap<&'static str, ProducerId>,
    pub(super) next_producer: i64,
    /// The latest written time.
    pub(super) moment: Timestamp,
    /// The current time; only in the model.
    pub(super) now: Timestamp,
}

/// One partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Log {
    pub(super) start: Offset,
    /// The latest possible start, if a cleaner ran.
    pub(super) start_max: Offset,
    pub(super) end: Offset,
    pub(super) messages: Vec<Kept>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) offset: Offset,
    /// The step that wrote it.
    pub(super) number: u64,
    pub(super) key: Option<u8>,
    /// The value's size; `None` for a tombstone.
    pub(super) bytes: Option<usize>,
    pub(super) at: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answered {
    pub(super) number: u64,
    pub(super) at: Timestamp,
    pub(super) offsets: Vec<Offset>,
}

/// A producer's next batch.
pub(super) struct Sending {
    pub(super) producer: ProducerId,
    pub(super) sequence: i32,
    /// Its offset, if it is a repeat.
    pub(super) stands_at: Option<Offset>,
}

pub(super) type Modules = BTreeMap<u8, Bytes>;

/// A value that contains the number of its step.
pub(super) fn value(number: u64, bytes: usize) -> String {
    format!("{number} {}", "x".repeat(bytes))
}

pub(super) fn module(number: u8) -> Bytes {
    vec![number; 700].into()
}

pub(super) fn digest(number: u8) -> Digest {
    digest_of(&module(number))
}

impl Default for Dump {
    fn default() -> Self {
        Self {
            topics: BTreeMap::new(),
            logs: BTreeMap::new(),
            groups: BTreeMap::new(),
            entries: BTreeMap::new(),
            state: BTreeMap::new(),
            requests: BTreeMap::new(),
            sent: BTreeMap::new(),
            named: BTreeMap::new(),
            next_producer: 0,
            moment: Timestamp::default(),
            now: BEGINNING,
        }
    }
}

impl Dump {
    pub(super) fn topic(&self, name: &str) -> &Topic {
        &self.topics[name]
    }

    pub(super) fn at(&self, (name, partition): Place) -> TopicPartition {
        at(&self.topics[name], partition)
    }

    pub(super) fn epoch(&self, group: &'static str, partition: TopicPartition) -> u64 {
        self.groups.get(&(partition, group)).map_or(0, |g| g.0)
    }

    /// The partition's start once its first `count` offsets are removed.
    pub(super) fn trimmed(&self, place: Place, count: u64) -> Offset {
        let log = &self.logs[&self.at(place)];
        Offset((log.start.0 + count).min(log.end.0))
    }

    /// The answer to the request, if it is remembered.
    pub(super) fn answered(&self, to: &[Place], key: u8) -> Option<&Answered> {
        let topic = self.topics[to[0].0].id;
        let found = self.requests.get(&(topic, key));
        found.filter(|found| !self.is_old(found))
    }

    pub(super) fn is_old(&self, answered: &Answered) -> bool {
        let now = self.now.max(self.moment);
        now.0 - answered.at.0 > REQUEST_AGE_MS_MAX
    }

    pub(super) fn sending(&self, name: &'static str, to: Place, again: bool) -> Sending {
        let producer = self.named[name];
        let known = self.sent.get(&(self.at(to), producer.id));
        let known = known.filter(|(epoch, _)| *epoch == producer.epoch);
        let last = known.and_then(|(_, sent)| sent.last().copied());
        Sending {
            producer,
            sequence: last.map_or(0, |(sequence, _)| sequence + i32::from(!again)),
            stands_at: last.filter(|_| again).map(|(_, offset)| offset),
        }
    }

    /// Whether the step, once acknowledged, must survive everything, together with all earlier
    /// steps. Modules are not in the journal.
    pub(super) fn is_durable(&self, step: &Step, after: &Self) -> bool {
        let durable = |topic: &str| self.topics[topic].spec.durability == Durability::Durable;
        match step {
            Step::Append(to, _) | Step::Request(to, ..) => to.iter().any(|(t, _)| durable(t)),
            Step::Keyed((to, _), _) | Step::Send(_, (to, _), _) => durable(to),
            Step::Work(_, _, (output, _)) | Step::Count(_, _, (output, _), ..) => durable(output),
            Step::Entry(..) | Step::Write(..) | Step::Renew(..) => true,
            Step::Flush | Step::PutModule(_) | Step::DeleteModule(_) => false,
            Step::Wait(_) | Step::Sweep => false,
            Step::Trim(..) | Step::Clean(_) => {
                let starts = |dump: &Self| dump.logs.values().map(|l| l.start).collect::<Vec<_>>();
                starts(self) != starts(after)
            }
            Step::Change(..) => self.topics != after.topics,
            _ => true,
        }
    }

    /// The content after the `number`-th step.
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
                after.forget(topic.id);
            }
            Step::Append(to, bytes) => {
                for to in to {
                    after.append(self.at(*to), number, *bytes);
                }
            }
            Step::Keyed(to, messages) => {
                for (key, bytes) in messages {
                    let bytes = bytes.map(|bytes| value(number, bytes).len());
                    after.push(self.at(*to), number, Some(*key), bytes);
                }
            }
            Step::Request(to, key, bytes) => after.request(number, to, *key, *bytes),
            Step::Producer(name) => {
                after.moment = self.now.max(self.moment);
                let next = after.next_id(*name);
                after.next_producer = after.next_producer.max(next.id + 1);
                name.map(|name| after.named.insert(name, next));
            }
            Step::Send(name, to, again) => after.send(number, name, *to, *again),
            Step::Change(name, change) => {
                let changed = change.clone().of(self.topic(name));
                for partition in changed.partitions() {
                    after.logs.entry(partition).or_default();
                }
                after.topics.insert((*name).to_owned(), changed);
            }
            Step::Trim(place, count) => {
                let start = self.trimmed(*place, *count);
                after.begin_at(self.at(*place), start);
            }
            Step::Clean(place) => {
                let at = self.at(*place);
                let start_max = self.start_max(*place);
                let log = after.logs.get_mut(&at).expect("a script's partition");
                log.start_max = start_max.max(log.start);
            }
            Step::Wait(ms) => after.now.0 += ms,
            Step::Claim(group, topic, partition) => {
                let at = (self.at((topic, *partition)), *group);
                after.groups.entry(at).or_default().0 += 1;
            }
            Step::Work(group, input, output) => after.work(number, group, *input, *output),
            Step::Count(group, input, output, place, writes) => {
                after.work(number, group, *input, *output);
                after.write_state(number, group, *place, writes);
            }
            Step::Write(group, place, writes) => after.write_state(number, group, *place, writes),
            Step::Renew(group, topic) => {
                after.empty_state(group, topic);
                let entry = (EntryKind::Processor, "p".into());
                after.entries.insert(entry, number as usize);
            }
            Step::Entry(kind, key, Some(bytes)) => {
                after.entries.insert((*kind, (*key).to_owned()), *bytes);
            }
            Step::Entry(kind, key, None) => {
                after.entries.remove(&(*kind, (*key).to_owned()));
            }
            Step::PutModule(_) | Step::DeleteModule(_) | Step::Sweep => {}
            Step::Flush | Step::Checkpoint | Step::Restart | Step::Reopen => {}
        }
        after
    }

    fn forget(&mut self, topic: TopicId) {
        self.logs.retain(|at, _| at.topic != topic);
        self.groups.retain(|(at, _), _| at.topic != topic);
        self.state.retain(|(at, _), _| at.topic != topic);
        self.requests.retain(|(of, _), _| *of != topic);
        self.sent.retain(|(at, _), _| at.topic != topic);
    }

    fn work(&mut self, number: u64, group: &'static str, input: Place, output: Place) {
        let at = (self.at(input), group);
        self.groups.entry(at).or_default().1 = Some(number);
        self.append(self.at(output), number, 20);
        let entry = (EntryKind::Redriven, "work".into());
        self.entries.insert(entry, number as usize);
    }

    fn append(&mut self, at: TopicPartition, number: u64, bytes: usize) -> Offset {
        self.push(at, number, None, Some(value(number, bytes).len()))
    }

    fn push(
        &mut self,
        at: TopicPartition,
        number: u64,
        key: Option<u8>,
        bytes: Option<usize>,
    ) -> Offset {
        let log = self.logs.get_mut(&at).expect("a script's partition");
        let offset = log.end;
        log.end = Offset(offset.0 + 1);
        log.messages.push(Kept {
            offset,
            number,
            key,
            bytes,
            at: self.now,
        });
        offset
    }

    fn request(&mut self, number: u64, to: &[Place], key: u8, bytes: usize) {
        let is_known = self.answered(to, key).is_some();
        self.moment = self.now.max(self.moment);
        if is_known {
            return;
        }
        let mut offsets = Vec::new();
        for to in to {
            let at = self.at(*to);
            offsets.push(self.append(at, number, bytes));
        }
        let topic = self.topics[to[0].0].id;
        let answered = Answered {
            number,
            at: self.moment,
            offsets,
        };
        self.requests.insert((topic, key), answered);
        let old: Vec<_> = { self.requests.iter() }
            .filter(|((of, _), answered)| *of == topic && self.is_old(answered))
            .map(|(key, _)| *key)
            .collect();
        old.iter().for_each(|key| drop(self.requests.remove(key)));
    }

    fn next_id(&self, name: Option<&'static str>) -> ProducerId {
        let fresh = ProducerId {
            id: self.next_producer,
            epoch: 0,
        };
        let before = name.and_then(|name| self.named.get(name));
        before.map_or(fresh, |&ProducerId { id, epoch }| ProducerId {
            id,
            epoch: epoch + 1,
        })
    }

    fn send(&mut self, number: u64, name: &'static str, to: Place, again: bool) {
        let sending = self.sending(name, to, again);
        self.moment = self.now.max(self.moment);
        if sending.stands_at.is_some() {
            return;
        }
        let at = self.at(to);
        let offset = self.append(at, number, 30);
        let known = self.sent.entry((at, sending.producer.id)).or_default();
        if known.0 != sending.producer.epoch {
            *known = (sending.producer.epoch, Vec::new());
        }
        known.1.push((sending.sequence, offset));
        let excess = known.1.len().saturating_sub(PRODUCER_BATCHES_KEPT_MAX);
        known.1.drain(..excess);
    }

    /// The latest start that retention may give the partition: messages that must be kept are kept,
    /// however segments are cut.
    fn start_max(&self, place: Place) -> Offset {
        let settings = &self.topic(place.0).spec.settings;
        let log = &self.logs[&self.at(place)];
        let now = self.now;
        let is_old = |message: &&Kept| {
            let max = settings.retention_ms;
            max.is_some_and(|max| now.0.saturating_sub(message.at.0) > max)
        };
        let by_age = log.messages.iter().take_while(is_old).last();
        let bytes = |message: &Kept| message.bytes.unwrap_or(0) as u64 + MESSAGE_OVERHEAD_BYTES;
        // One byte too many removes a whole segment.
        let largest = log.messages.iter().map(bytes).max().unwrap_or(0);
        let segment = super::run::options().segment_bytes + largest;
        let kept = settings.retention_bytes;
        let kept = kept.map(|max| max.saturating_sub(segment));
        let mut left: u64 = log.messages.iter().map(bytes).sum();
        let may_go = |message: &&Kept| {
            left -= bytes(message);
            kept.is_some_and(|kept| left >= kept)
        };
        let by_size = log.messages.iter().take_while(may_go).last();
        let after = |message: Option<&Kept>| message.map_or(log.start, |m| Offset(m.offset.0 + 1));
        if settings.retention_ms.is_some() && settings.retention_bytes.is_some() {
            // Segments are removed for either reason, in any order.
            return log.end;
        }
        after(by_age).max(after(by_size))
    }

    /// Records the observed start of a partition.
    pub(super) fn begin_at(&mut self, at: TopicPartition, start: Offset) {
        let log = self.logs.get_mut(&at).expect("a script's partition");
        log.start = start;
        log.start_max = start;
        log.messages.retain(|message| message.offset >= start);
    }

    /// All but one topic.
    pub(super) fn without(mut self, name: &TopicName) -> Self {
        if let Some(topic) = self.topics.remove(&name.to_string()) {
            self.forget(topic.id);
        }
        self
    }
}
