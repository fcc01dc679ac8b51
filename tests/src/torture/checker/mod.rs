//! The checker: judges by the history alone. It looks neither at the host nor at its files.
//!
//! | finding | what it means |
//! |---|---|
//! | lost | acknowledged or once read, and not there at the end; or a partition begins later than any trim asked for |
//! | phantom | there although it was never sent, or although its sender was told that nothing was written; or damaged |
//! | returned | a key of a compacted topic was removed, and an older value of it is there |
//! | divergent | two values at one offset, possibly in different lives of the host |
//! | reordered | messages of a producer, or outputs of a key, in another order than they were sent in |
//! | duplicated | there more often than it was sent; or there twice, or at a new place, though the host promised to take it once |
//! | torn | one part of a request is there, another is not |
//! | went-back | progress, a start or an end is smaller than it was before |
//! | missing | an input with neither output nor dead letter |
//! | twice | an input with more than one output or dead letter |
//! | miscounted | state that differs from the count of the outputs |
//! | early | shown before its time: a delayed message, or one that a schedule made |
//! | stuck | the host does not start, or accepted messages do not get processed |
//! | unexpected | a fault did not have the effect that it must have |
//!
//! When the power or the medium under the file system fails, a topic that is not durable may lose
//! its tail: whatever was acknowledged after the last durable request was sent, and nothing else.
//! Messages that the topic's rule removes ([`Ages`](super::history::Ages)) are not lost: those
//! below the partition's start, which never goes back; in a compacted topic those with a later
//! message of the same key, and messages that remove their key, once no older message of the key is
//! left.
//!
//! Delayed messages that waited at the same time stand in the order of their times. Each time of a
//! schedule belongs to exactly one message: the message made for it, or, if the host was down, a
//! later one that stands for the missed times. No time is missing, and none is there twice.

mod counts;
mod state;
mod times;
mod verdict;
mod whole;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};

use self::counts::Processor;
use self::state::{Known, Request, Topic};
use self::times::Times;
pub use self::verdict::{Finding, Kind, Tally, Verdict};
use super::history::{self, DELAYED, Event, Fault, Pipeline, Rules, Seen};
use super::value::{FOREIGN, Id};

/// Checks a history file.
pub fn check_file(path: &Path) -> Result<Verdict> {
    let mut checker = Checker::default();
    for (at, entry) in history::read(path)?.enumerate() {
        let entry = entry.with_context(|| format!("{} line {}", path.display(), at + 1))?;
        checker.observe(&entry.event);
    }
    Ok(checker.finish())
}

/// Reads a history event by event.
#[derive(Default)]
pub struct Checker {
    line: u64,
    rules: Option<Rules>,
    topics: BTreeMap<String, Topic>,
    requests: BTreeMap<(u32, u64), Request>,
    /// The last acknowledged offset of each producer in each partition of a topic.
    acknowledged: BTreeMap<(String, u32, u32), u64>,
    progress: BTreeMap<(String, u32), u64>,
    processors: BTreeMap<String, Processor>,
    times: Times,
    /// The line at which the latest durable request began that has since been acknowledged.
    synced_line: u64,
    /// Whether the power or the medium failed since the last start.
    forgot: bool,
    /// Whether everything was read at the end; without that the checker says nothing about what is
    /// there.
    read_to_the_end: bool,
    verdict: Verdict,
}

impl Checker {
    /// Adds the next event.
    pub fn observe(&mut self, event: &Event) {
        self.line += 1;
        match event {
            Event::Rules(rules) => self.begin(rules),
            Event::Invoke {
                producer,
                first,
                count,
                topic,
                once,
            } => self.invoked(*producer, *first, *count, topic, *once),
            Event::Ok {
                producer,
                first,
                placed,
            } => self.acknowledged(*producer, *first, placed),
            Event::Fail {
                producer, first, ..
            } => {
                self.verdict.tally.refused += 1;
                self.request(*producer, *first, |request| request.refused += 1);
            }
            Event::Info {
                producer, first, ..
            } => {
                self.verdict.tally.unanswered += 1;
                self.request(*producer, *first, |request| request.unanswered += 1);
            }
            Event::Read {
                topic,
                partition,
                messages,
                last,
            } => self.read(topic, *partition, messages, *last),
            Event::Ends {
                topic,
                partition,
                start,
                end,
                recovered,
            } => self.ends(topic, *partition, (*start, *end), *recovered),
            Event::Trim {
                topic,
                partition,
                before,
            } => self.with_partition(topic, *partition, |here| {
                here.asked_start = here.asked_start.max(*before);
            }),
            Event::Trimmed {
                topic,
                partition,
                start,
            } => self.begins(topic, *partition, *start),
            Event::Progress {
                host,
                processor,
                topic,
                partition,
                next,
            } => self.progressed((host, processor, topic), *partition, *next),
            Event::State {
                processor,
                partition,
                counts,
                last,
            } => self.counted(processor, *partition, counts, *last),
            Event::Standing { processor, letters } => self.stands(processor, letters),
            Event::Clock { now_ms } => self.times.is(*now_ms),
            Event::Due {
                producer,
                first,
                due_ms,
            } => self.times.is_due(Id::new(*producer, *first), due_ms),
            Event::Scheduled { every_ms, since_ms } => self.times.scheduled(*every_ms, *since_ms),
            Event::Ticks {
                asked_ms,
                ticks,
                last,
            } => self.ticked(*asked_ms, ticks, *last),
            other => self.happened(other),
        }
    }

    /// The verdict over the whole history.
    #[must_use]
    pub fn finish(mut self) -> Verdict {
        if self.read_to_the_end {
            self.check_whole();
        } else if self.verdict.findings.is_empty() {
            self.find(
                Kind::Unexpected,
                "the history ends before the last reading".to_owned(),
            );
        }
        self.verdict
    }

    fn find(&mut self, kind: Kind, text: String) {
        let line = self.line;
        self.verdict.add(Finding { kind, line, text });
    }

    fn begin(&mut self, rules: &Rules) {
        self.topics = rules
            .topics
            .iter()
            .map(|rule| (rule.name.clone(), Topic::new(rule)))
            .collect();
        self.times.several = rules.several;
        self.rules = Some(rules.clone());
    }

    fn happened(&mut self, event: &Event) {
        match event {
            Event::Fault { kind, forgets, .. } => {
                self.forgot |= forgets;
                self.times.hit();
                let tally = &mut self.verdict.tally;
                *tally.faults.entry(*kind).or_default() += 1;
                tally.mediums_broken += u64::from(*kind == Fault::Eio && *forgets);
            }
            Event::Met { kind, step } => {
                let met = self.verdict.tally.steps.entry((*step, *kind));
                *met.or_default() += 1;
            }
            Event::Backup { what, .. } => {
                *self.verdict.tally.backups.entry(*what).or_default() += 1;
            }
            Event::Trial { what } => *self.verdict.tally.trials.entry(*what).or_default() += 1,
            Event::Started { after_ms } => {
                self.forgot = false;
                self.times.started();
                let tally = &mut self.verdict.tally;
                tally.starts += 1;
                tally.start_ms.push(*after_ms);
            }
            Event::Drained { after_ms } => {
                let slowest = &mut self.verdict.tally.drained_ms_max;
                *slowest = (*slowest).max(*after_ms);
            }
            Event::NotStarted { why } => {
                self.find(Kind::Stuck, format!("the host does not start: {why}"));
            }
            Event::NotDrained { why } => self.find(Kind::Stuck, why.clone()),
            Event::Unexpected { what } => self.find(Kind::Unexpected, what.clone()),
            _ => {}
        }
    }

    fn request(&mut self, producer: u32, first: u64, change: impl FnOnce(&mut Request)) {
        match self.requests.get_mut(&(producer, first)) {
            Some(request) => change(request),
            None => self.find(
                Kind::Unexpected,
                format!("the history answers a send that did not begin: {producer}:{first}"),
            ),
        }
    }

    fn invoked(&mut self, producer: u32, first: u64, count: u32, topic: &str, once: bool) {
        let line = self.line;
        let request = self.requests.entry((producer, first));
        let request = request.or_insert_with(|| Request::new(topic, count, once));
        request.attempts += 1;
        request.invoked_line = line;
        if request.attempts == 1 {
            self.verdict.tally.sent += u64::from(count);
        } else {
            self.verdict.tally.sent_again += 1;
        }
    }

    fn acknowledged(&mut self, producer: u32, first: u64, placed: &[(u32, u64)]) {
        let (line, now_ms, mut request) = (self.line, self.times.now_ms, None);
        self.request(producer, first, |found| {
            found.taken_ms.get_or_insert(now_ms);
            found.acknowledged_line = Some(line);
            let before = std::mem::replace(&mut found.placed, placed.to_vec());
            let before = if found.once { before } else { Vec::new() };
            request = Some((found.topic.clone(), found.count, found.invoked_line, before));
        });
        let Some((topic, count, invoked_line, before)) = request else {
            return;
        };
        self.placed_once(&topic, Id::new(producer, first), &before, placed);
        self.verdict.tally.acknowledged += u64::from(count);
        if self.topics.get(&topic).is_some_and(|topic| topic.durable) {
            self.synced_line = self.synced_line.max(invoked_line);
        }
        if placed.len() != count as usize {
            let text = format!("{count} messages sent, {} placed", placed.len());
            self.find(Kind::Unexpected, text);
        }
        for (sequence, &(partition, offset)) in (first..).zip(placed) {
            if offset == DELAYED {
                continue;
            }
            let id = Id::new(producer, sequence);
            if !before.contains(&(partition, offset)) {
                self.in_order(&topic, id, partition, offset);
            }
            self.know(&topic, partition, offset, Known::acknowledged(id, line));
        }
    }

    /// A request that was acknowledged and is sent again must get the same places, unless a power
    /// failure took its messages.
    fn placed_once(
        &mut self,
        topic: &str,
        first: Id,
        before: &[(u32, u64)],
        placed: &[(u32, u64)],
    ) {
        let Some(found) = self.topics.get(topic) else {
            return;
        };
        let stands_at = |id: Id, (partition, offset): &(u32, u64)| {
            let here = found.partitions.get(partition);
            let known = here.and_then(|here| here.known.get(offset));
            known.is_some_and(|known| known.id == id)
        };
        let ids = (first.sequence..).map(|sequence| Id::new(first.producer, sequence));
        let mut places = ids.zip(before.iter().zip(placed));
        let moved = places.find(|(id, (old, new))| old != new && stands_at(*id, old));
        let moved = moved.map(|(_, places)| places);
        if let Some((old, new)) = moved {
            let text = format!(
                "{topic}: the request of {first} was placed at {old:?}, and when it was sent again at {new:?}"
            );
            self.find(Kind::Duplicated, text);
        }
    }

    fn with_partition(
        &mut self,
        topic: &str,
        partition: u32,
        change: impl FnOnce(&mut state::Partition),
    ) {
        if let Some(found) = self.topics.get_mut(topic) {
            change(found.at(partition));
        }
    }

    /// Notes where a partition begins: it must not be earlier than before, nor later than anything
    /// allows.
    fn begins(&mut self, topic: &str, partition: u32, start: u64) {
        let Some(found) = self.topics.get_mut(topic) else {
            return;
        };
        let here = found.at(partition);
        let before = here.start;
        here.start = before.max(start);
        let start_max = found
            .partitions
            .get(&partition)
            .map_or(0, |here| found.start_max(here));
        if start < before {
            let text = format!("{topic}/{partition}: the start was {before}, is {start}");
            self.find(Kind::WentBack, text);
        } else if start > start_max {
            let text = format!(
                "{topic}/{partition}: it begins at {start}, and at {start_max} at the latest would be right"
            );
            self.find(Kind::Lost, text);
        }
    }

    fn in_order(&mut self, topic: &str, id: Id, partition: u32, offset: u64) {
        let key = (topic.to_owned(), id.producer, partition);
        let before = self.acknowledged.insert(key, offset);
        if let Some(before) = before.filter(|before| *before >= offset) {
            let text = format!(
                "{topic}/{partition}: {id} was placed at {offset}, the one before it at {before}"
            );
            self.find(Kind::Reordered, text);
        }
    }

    fn read(&mut self, topic: &str, partition: u32, messages: &[Seen], last: bool) {
        self.verdict.tally.read += messages.len() as u64;
        self.read_to_the_end |= last;
        for seen in messages {
            let id = seen.id();
            if id.producer == FOREIGN {
                let text = format!(
                    "{topic}/{partition} at {}: a value that is not whole",
                    seen.0
                );
                self.find(Kind::Phantom, text);
                continue;
            }
            if let Some(early_ms) = self.times.early_ms(id) {
                let at = format!("{topic}/{partition} at {}", seen.0);
                self.find(Kind::Early, format!("{at}: {id}, by {early_ms} ms"));
            }
            self.know(topic, partition, seen.0, Known::read(id, seen.3, self.line));
            if last && let Some(topic) = self.topics.get_mut(topic) {
                topic.at(partition).last.insert(seen.0, id);
            }
        }
    }

    /// Notes which message stands at an offset; it must be the one that stood there before.
    fn know(&mut self, topic: &str, partition: u32, offset: u64, new: Known) {
        let Some(found) = self.topics.get_mut(topic) else {
            return;
        };
        let here = found.at(partition);
        here.end = here.end.max(offset + 1);
        let Some(old) = here.known.get_mut(&offset) else {
            here.known.insert(offset, new);
            return;
        };
        if old.agrees_with(&new) {
            old.learn(&new);
            return;
        }
        let text = format!(
            "{topic}/{partition} at {offset}: {} (line {}), and later {}",
            old.id, old.line, new.id
        );
        self.find(Kind::Divergent, text);
    }

    fn ends(&mut self, topic: &str, partition: u32, (start, end): (u64, u64), recovered: bool) {
        let Some(found) = self.topics.get_mut(topic) else {
            return;
        };
        let durable = found.durable;
        let here = found.at(partition);
        let before = (here.start, here.end);
        if end >= before.1 {
            here.end = end;
        } else if recovered && self.forgot && !durable {
            self.cut_tail(topic, partition, end);
        } else if recovered {
            let text = format!(
                "{topic}/{partition}: the end was {}, after a restart it is {end}",
                before.1
            );
            self.find(Kind::Lost, text);
        } else {
            let text = format!("{topic}/{partition}: the end was {}, is {end}", before.1);
            self.find(Kind::WentBack, text);
        }
        self.begins(topic, partition, start);
    }

    /// A relaxed topic is shorter after a power failure: the lost tail is forgotten, if all of it
    /// was recent enough to be lost.
    fn cut_tail(&mut self, topic: &str, partition: u32, end: u64) {
        let Some(found) = self.topics.get_mut(topic) else {
            return;
        };
        let here = found.at(partition);
        here.end = end;
        let tail = here.known.split_off(&end);
        let acknowledged = tail
            .values()
            .filter_map(|known| Some((known.id, known.acknowledged?)));
        let acknowledged: Vec<(Id, u64)> = acknowledged.collect();
        self.verdict.tally.tail_lost += acknowledged.len() as u64;
        for (id, line) in acknowledged {
            if line < self.synced_line {
                let text = format!(
                    "{topic}/{partition}: {id}, acknowledged in line {line}, is in the lost tail, but a durable send of line {} was acknowledged",
                    self.synced_line
                );
                self.find(Kind::Lost, text);
            }
        }
        self.acknowledged
            .retain(|(name, _, at), offset| name != topic || *at != partition || *offset < end);
    }

    fn progressed(&mut self, told: (&str, &str, &str), partition: u32, next: u64) {
        let (host, processor, topic) = told;
        let key = format!("{host} {processor} {topic}");
        let before = self.progress.insert((key, partition), next);
        if let Some(before) = before.filter(|before| *before > next) {
            let text =
                format!("{processor} in {topic}/{partition}: progress was {before}, is {next}");
            self.find(Kind::WentBack, text);
        }
    }
}
