//! Checks that are possible only at the end, when everything was read once more.

use std::collections::{BTreeMap, HashMap};

use super::super::history::{Ages, removes_key};
use super::state::Partition;
use super::{Checker, Id, Kind, Pipeline, Topic};

/// How often each message is in a topic.
type Counts = HashMap<Id, u32>;

impl Checker {
    pub(super) fn check_whole(&mut self) {
        let counts: BTreeMap<String, Counts> = self
            .topics
            .iter()
            .map(|(name, topic)| (name.clone(), count(topic)))
            .collect();
        self.check_kept();
        self.check_senders(&counts);
        self.check_requests(&counts);
        self.check_sent_order();
        self.check_times();
        let pipelines = self.rules.as_ref().map(|rules| rules.pipelines.clone());
        for pipeline in pipelines.unwrap_or_default() {
            self.check_pipeline(&pipeline, &counts);
            if pipeline.counts {
                self.check_state(&pipeline);
            }
            self.check_output_order(&pipeline, &counts);
        }
    }

    /// Checks that what was acknowledged or read is still there.
    fn check_kept(&mut self) {
        let mut findings = Vec::new();
        for (name, topic) in &self.topics {
            for (number, partition) in &topic.partitions {
                self.verdict.tally.removed +=
                    partition.known.range(..partition.start).count() as u64;
                let kept = Kept::of(topic.ages, partition);
                for (offset, known) in partition.known.range(partition.start..) {
                    // Another value at that offset was already found divergent when it was read.
                    if partition.last.contains_key(offset) {
                        continue;
                    }
                    let how = match known.acknowledged {
                        Some(line) => format!("acknowledged in line {line}"),
                        None => format!("read in line {}", known.line),
                    };
                    let what = format!("{name}/{number} at {offset}: {}, {how}", known.id);
                    match kept.verdict(*offset, known.id) {
                        Missing::Superseded => self.verdict.tally.removed += 1,
                        Missing::Behind(older) => {
                            let text = format!("{what}, removed its key, which is at {older}");
                            findings.push((Kind::Returned, text));
                        }
                        Missing::Lost if self.may_be_removed(name, topic.ages, known.id) => {
                            self.verdict.tally.removed += 1;
                        }
                        Missing::Lost => findings.push((Kind::Lost, what)),
                    }
                }
            }
        }
        for (kind, text) in findings {
            self.find(kind, text);
        }
    }

    /// Whether an unacknowledged message may have removed the key after this one, and be gone as
    /// well.
    fn may_be_removed(&self, topic: &str, ages: Ages, id: Id) -> bool {
        let Ages::ByCompaction {
            keys,
            removes_every,
        } = ages
        else {
            return false;
        };
        let later = self.requests.range((id.producer, 0)..);
        let later = later.take_while(|((producer, _), _)| *producer == id.producer);
        let unknown = later.filter(|(_, r)| r.topic == topic && r.unanswered > 0);
        let mut sent = unknown.flat_map(|((_, first), r)| *first..first + u64::from(r.count));
        sent.any(|sequence| {
            let later = Id::new(id.producer, sequence);
            sequence > id.sequence
                && key(later, keys) == key(id, keys)
                && removes_key(sequence, keys, removes_every)
        })
    }

    /// Checks that every message was sent, and that its sender was not told that it was refused.
    fn check_senders(&mut self, counts: &BTreeMap<String, Counts>) {
        let mut findings = Vec::new();
        for (name, counts) in counts {
            if !self.topics.get(name).is_some_and(|topic| topic.produced) {
                continue;
            }
            for id in counts.keys() {
                match self.sent_in(*id) {
                    None => findings.push(format!("{name}: {id} was never sent")),
                    Some(request) if request.topic != *name => {
                        findings.push(format!("{name}: {id} was sent to {}", request.topic));
                    }
                    Some(request) if request.copies_max() == 0 => {
                        findings.push(format!("{name}: {id} was refused every time"));
                    }
                    Some(_) => {}
                }
            }
        }
        for text in findings {
            self.find(Kind::Phantom, text);
        }
    }

    fn sent_in(&self, id: Id) -> Option<&super::Request> {
        let key = (id.producer, id.sequence);
        let ((producer, first), request) = self.requests.range(..=key).next_back()?;
        let inside = *producer == id.producer && id.sequence < first + u64::from(request.count);
        inside.then_some(request)
    }

    /// Checks that each request is there as a whole, and not more often than it was sent.
    fn check_requests(&mut self, counts: &BTreeMap<String, Counts>) {
        let mut findings = Vec::new();
        for ((producer, first), request) in &self.requests {
            let Some(counts) = counts.get(&request.topic) else {
                continue;
            };
            let ids = (0..u64::from(request.count)).map(|at| Id::new(*producer, first + at));
            let copies: Vec<u32> = ids
                .map(|id| counts.get(&id).copied().unwrap_or(0))
                .collect();
            let most = copies.iter().copied().max().unwrap_or(0);
            let what = format!(
                "{}: producer {producer} messages {first} to {} (exclusive), sent {} times, {} refused, {} unanswered, acknowledged in line {:?}",
                request.topic,
                first + u64::from(request.count),
                request.attempts,
                request.refused,
                request.unanswered,
                request.acknowledged_line,
            );
            // Where messages may be removed, parts of a request may be; those that must stay are
            // looked up by their offsets.
            let goes = |topic: &Topic| topic.ages != Ages::Never;
            let goes = self.topics.get(&request.topic).is_some_and(goes);
            if !goes && copies.iter().any(|copies| *copies != most) {
                findings.push((Kind::Torn, format!("{what}: copies {copies:?}")));
            }
            if most > request.copies_max().max(1) || request.once && most > 1 {
                findings.push((Kind::Duplicated, format!("{what}: {most} copies")));
            }
            self.verdict.tally.duplicates += u64::from(most.saturating_sub(1));
        }
        for (kind, text) in findings {
            self.find(kind, text);
        }
    }

    /// Checks that a producer's messages stand in the order in which it sent them. Unanswered
    /// requests are exempt: they may have arrived after the producer gave up on them.
    fn check_sent_order(&mut self) {
        let mut findings = Vec::new();
        let in_order = |(_, topic): &(&String, &Topic)| topic.produced && !topic.delays;
        for (name, topic) in self.topics.iter().filter(in_order) {
            for (number, partition) in &topic.partitions {
                let mut latest: HashMap<u32, u64> = HashMap::new();
                for (offset, id) in &partition.last {
                    if self
                        .sent_in(*id)
                        .is_none_or(|request| request.unanswered > 0)
                    {
                        continue;
                    }
                    let before = latest.insert(id.producer, id.sequence);
                    if before.is_some_and(|before| before >= id.sequence) {
                        findings.push(format!(
                            "{name}/{number} at {offset}: {id} after {before:?}"
                        ));
                    }
                }
            }
        }
        for text in findings {
            self.find(Kind::Reordered, text);
        }
    }

    /// Checks that each input is exactly once in either the outputs or the dead letters.
    fn check_pipeline(&mut self, pipeline: &Pipeline, counts: &BTreeMap<String, Counts>) {
        let none = Counts::new();
        let of = |name: &str| counts.get(name).unwrap_or(&none);
        let (inputs, outputs) = (of(&pipeline.input), of(&pipeline.output));
        let dead = of(&pipeline.dead_letters);
        let sum = |counts: &Counts| counts.values().map(|n| u64::from(*n)).sum::<u64>();
        self.verdict.tally.dead_letters += sum(dead);
        let processor = &pipeline.processor;
        // A letter that was sent again does not count as the end of its input.
        let standing = match self.standing(pipeline) {
            Ok(standing) => standing,
            Err(text) => return self.find(Kind::Unexpected, text),
        };
        let all_dead = dead;
        let dead = standing.as_ref().unwrap_or(dead);
        self.verdict.tally.redriven += sum(all_dead).saturating_sub(sum(dead));
        for (id, copies) in inputs {
            let there = |counts: &Counts| counts.get(id).copied().unwrap_or(0);
            let (out, dead) = (there(outputs), there(dead));
            let text = || {
                format!(
                    "{processor}: {id} is {copies} times in, {out} times out, {dead} times dead"
                )
            };
            if out + dead < *copies {
                self.find(Kind::Missing, text());
            } else if out + dead > *copies {
                self.find(Kind::Twice, text());
            }
        }
        let strangers = outputs.keys().chain(all_dead.keys());
        for id in strangers.filter(|id| !inputs.contains_key(id)) {
            self.find(
                Kind::Phantom,
                format!("{processor}: {id} is out and not in"),
            );
        }
    }

    /// The dead letters that have not been sent again; `None` if all count.
    fn standing(&self, pipeline: &Pipeline) -> Result<Option<Counts>, String> {
        if !pipeline.redrives {
            return Ok(None);
        }
        let known = self.processors.get(&pipeline.processor);
        let standing = known.and_then(|known| known.standing.clone());
        let unknown = || {
            let processor = &pipeline.processor;
            format!("{processor}: nobody looked which dead letters were sent again")
        };
        standing.map(Some).ok_or_else(unknown)
    }

    /// Checks that the outputs of a key stand in the order of its inputs, except for those that
    /// were dead letters in between.
    fn check_output_order(&mut self, pipeline: &Pipeline, counts: &BTreeMap<String, Counts>) {
        let (Some(inputs), Some(outputs)) = (
            self.topics.get(&pipeline.input),
            self.topics.get(&pipeline.output),
        ) else {
            return;
        };
        let counts_of_dead = counts.get(&pipeline.dead_letters);
        let once = |id: &Id| {
            let counts = counts.get(&pipeline.input);
            let was_dead = counts_of_dead.is_some_and(|counts| counts.contains_key(id));
            counts.and_then(|counts| counts.get(id)) == Some(&1) && !was_dead
        };
        let offsets: HashMap<Id, u64> = inputs
            .partitions
            .values()
            .flat_map(|partition| partition.last.iter().map(|(offset, id)| (*id, *offset)))
            .filter(|(id, _)| once(id))
            .collect();
        let mut findings = Vec::new();
        for (number, partition) in &outputs.partitions {
            let mut latest: HashMap<(u32, u64), u64> = HashMap::new();
            for (at, id) in &partition.last {
                let Some(&offset) = offsets.get(id) else {
                    continue;
                };
                let key = (id.producer, id.sequence % pipeline.keys.max(1));
                let before = latest.insert(key, offset);
                if before.is_some_and(|before| before >= offset) {
                    findings.push(format!(
                        "{}/{number} at {at}: {id}, input {offset}, after input {before:?} of the same key",
                        pipeline.output
                    ));
                }
            }
        }
        for text in findings {
            self.find(Kind::Reordered, text);
        }
    }
}

/// The key of a message in a compacted topic.
fn key(id: Id, keys: u64) -> (u32, u64) {
    (id.producer, id.sequence % keys.max(1))
}

/// What a compacted topic holds of each key; empty for other topics.
struct Kept {
    ages: Ages,
    /// The offset of the latest message that is there.
    latest: HashMap<(u32, u64), u64>,
    /// The offset of the latest message that removed the key.
    removed: HashMap<(u32, u64), u64>,
}

/// Why a message is absent.
enum Missing {
    /// A later message of the key replaced it, or it removed its key and nothing older of the key
    /// is left.
    Superseded,
    /// It removed its key, and the older message at this offset is there.
    Behind(u64),
    Lost,
}

impl Kept {
    fn of(ages: Ages, partition: &Partition) -> Self {
        let mut kept = Self {
            ages,
            latest: HashMap::new(),
            removed: HashMap::new(),
        };
        if let Ages::ByCompaction {
            keys,
            removes_every,
        } = ages
        {
            // Offsets ascend, so the last one remains in the map.
            let there = partition.last.iter();
            let latest = there.map(|(offset, id)| (key(*id, keys), *offset));
            kept.latest = latest.collect();
            let known = partition
                .known
                .iter()
                .map(|(offset, known)| (offset, known.id));
            let removing = known.filter(|(_, id)| removes_key(id.sequence, keys, removes_every));
            let removed = removing.map(|(offset, id)| (key(id, keys), *offset));
            kept.removed = removed.collect();
        }
        kept
    }

    fn verdict(&self, offset: u64, id: Id) -> Missing {
        let Ages::ByCompaction { keys, .. } = self.ages else {
            return Missing::Lost;
        };
        let key = key(id, keys);
        let latest = self.latest.get(&key).copied();
        let removed = self.removed.get(&key).copied();
        match latest {
            _ if latest > Some(offset) || removed > Some(offset) => Missing::Superseded,
            Some(older) if removed == Some(offset) => Missing::Behind(older),
            None if removed == Some(offset) => Missing::Superseded,
            _ => Missing::Lost,
        }
    }
}

fn count(topic: &Topic) -> Counts {
    let mut counts = Counts::new();
    for id in topic
        .partitions
        .values()
        .flat_map(|partition| partition.last.values())
    {
        *counts.entry(*id).or_default() += 1;
    }
    counts
}
