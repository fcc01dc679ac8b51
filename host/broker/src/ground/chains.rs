//! Chains: processors that read what others write, including dead letters. A cycle would run forever unless a processor in it has
//! `hops_max`: it counts in a header how often a message passed such processors, and gives up messages that passed too often. If the
//! cycle includes that processor's dead letters, the message comes round once more, with a mark, and is dropped then, because its dead
//! letter already exists.
//!
//! This file has the rule for deployments and the count; the worker uses both. A message that never passed a counting processor has no
//! such header and costs nothing.

use std::collections::{BTreeMap, VecDeque};

use millrace_model::{ColumnBatch, ProcessorName, ProcessorSpec, TopicName};

use crate::ground::headers::{ENDED, HOPS};
use crate::ground::own_topics::{AUDIT_SUFFIX, DEAD_LETTERS_SUFFIX, own_name};

/// The class of dead letters of messages that ran out of hops.
pub(crate) const HOPS_CLASS: &str = "hops";

/// The hops of a batch's messages, and whether their outputs have one more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hops {
    /// The messages with hops, ascending, and their hops.
    counted: Vec<(usize, Trail)>,
    counts: bool,
}

/// A message's hops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Trail {
    pub(crate) hops: u32,
    /// Whether it was already given up for its hops.
    pub(crate) ended: bool,
}

impl Trail {
    /// As headers; `hops` is the number as text, which they borrow.
    pub(crate) fn headers(self, hops: &str) -> impl Iterator<Item = Header<'_>> + Clone {
        let ended = self.ended.then_some((ENDED.as_bytes(), Some(&b"true"[..])));
        std::iter::once((HOPS.as_bytes(), Some(hops.as_bytes()))).chain(ended)
    }
}

type Header<'a> = (&'a [u8], Option<&'a [u8]>);

/// Whether only the host writes this header.
pub(crate) fn is_trail(name: &[u8]) -> bool {
    name == HOPS.as_bytes() || name == ENDED.as_bytes()
}

impl Hops {
    /// Reads the hops from the headers.
    pub(crate) fn of(batch: &ColumnBatch, counts: bool) -> Self {
        let is_hops = |header: &[u32]| {
            header[1] as usize == HOPS.len() && {
                let start = header[0] as usize;
                &batch.data[start..start + HOPS.len()] == HOPS.as_bytes()
            }
        };
        let mut counted = Vec::new();
        if batch.headers.chunks_exact(4).any(is_hops) {
            let messages = 0..batch.len();
            counted = messages
                .filter_map(|message| Some((message, trail_of(batch, message)?)))
                .collect();
        }
        Self { counted, counts }
    }

    /// The hops of an output of the message, and of its dead letter.
    pub(crate) fn after(&self, message: usize) -> Option<Trail> {
        let found = self.counted.binary_search_by_key(&message, |(at, _)| *at);
        after(found.ok().map(|index| self.counted[index].1), self.counts)
    }

    /// The messages that have reached the maximum.
    fn spent(&self, hops_max: u32) -> Vec<usize> {
        let spent = self.counted.iter().filter(|(_, t)| t.hops >= hops_max);
        spent.map(|(message, _)| *message).collect()
    }
}

/// An output has its source's hops, plus one if this processor counts.
pub(crate) fn after(before: Option<Trail>, counts: bool) -> Option<Trail> {
    if !counts {
        return before;
    }
    let before = before.unwrap_or_default();
    Some(Trail {
        hops: before.hops.saturating_add(1),
        ..before
    })
}

/// A message's hops; `None` if it passed no counting processor.
pub(crate) fn trail_of(batch: &ColumnBatch, message: usize) -> Option<Trail> {
    let mut headers = batch.headers(message);
    let (_, value) = headers.find(|(name, _)| *name == HOPS.as_bytes())?;
    // A value that the host did not write counts as too many.
    let text = value.and_then(|value| str::from_utf8(value).ok());
    Some(Trail {
        hops: text.and_then(|text| text.parse().ok()).unwrap_or(u32::MAX),
        ended: batch
            .headers(message)
            .any(|(name, _)| name == ENDED.as_bytes()),
    })
}

/// The messages that have reached the maximum, if this processor counts.
pub(crate) fn spent(hops_max: Option<u32>, batch: &ColumnBatch) -> Vec<usize> {
    hops_max.map_or_else(Vec::new, |max| Hops::of(batch, true).spent(max))
}

/// Lengths of the runs of messages that are all out of hops, or all not.
pub(crate) fn runs(spent: &[usize], messages: usize) -> Vec<usize> {
    let mut is_spent = vec![false; messages];
    spent.iter().for_each(|&message| is_spent[message] = true);
    is_spent
        .chunk_by(|a, b| a == b)
        .map(<[bool]>::len)
        .collect()
}

/// The cycle that the processor would close without any counting processor: topics and processors in turn, from the processor back to
/// itself. `others` are the other running revisions, including a canary of its own.
pub(crate) fn endless_cycle(
    name: &ProcessorName,
    spec: &ProcessorSpec,
    others: &[(ProcessorName, ProcessorSpec)],
) -> Option<String> {
    if spec.hops_max.is_some() {
        return None;
    }
    // For each topic written on the way: who writes it, after reading which topic.
    let mut written: Written<'_> = BTreeMap::new();
    let mut next: VecDeque<_> = steps(name, spec, None).collect();
    while let Some((topic, writer, read)) = next.pop_front() {
        if written.contains_key(&topic) {
            continue;
        }
        written.insert(topic.clone(), (writer, read));
        if spec.topics.contains(&topic) {
            return Some(spelled_out(name, topic, &written));
        }
        for (reader, other) in others {
            if other.hops_max.is_none() && other.topics.contains(&topic) {
                next.extend(steps(reader, other, Some(&topic)));
            }
        }
    }
    None
}

type Written<'a> = BTreeMap<TopicName, (&'a ProcessorName, Option<TopicName>)>;

/// Where a processor's input can go: outputs, dead letters, and their audit trail.
fn steps<'a>(
    writer: &'a ProcessorName,
    spec: &ProcessorSpec,
    read: Option<&TopicName>,
) -> impl Iterator<Item = (TopicName, &'a ProcessorName, Option<TopicName>)> + use<'a> {
    let read = read.cloned();
    let outputs = spec.output.iter().chain(&spec.grants.topics).cloned();
    let own = spec.topics.iter().flat_map(|topic| {
        let own = [DEAD_LETTERS_SUFFIX, AUDIT_SUFFIX].map(|suffix| own_name(topic, writer, suffix));
        // A name that is too long is skipped: the deployment is refused for that elsewhere.
        own.into_iter().flatten()
    });
    let topics: Vec<TopicName> = outputs.chain(own).collect();
    topics
        .into_iter()
        .map(move |topic| (topic, writer, read.clone()))
}

/// The path from the processor to the topic, and from there back to the processor.
fn spelled_out(name: &ProcessorName, topic: TopicName, written: &Written<'_>) -> String {
    let mut path = vec![name.to_string()];
    let mut at = Some(topic);
    while let Some(topic) = at {
        let Some((writer, read)) = written.get(&topic) else {
            break;
        };
        path.extend([topic.to_string(), writer.to_string()]);
        at = read.clone();
    }
    path.reverse();
    path.join(" -> ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ground::columns::push;

    fn spec(topics: &[&str], outputs: &[&str], hops_max: Option<u32>) -> ProcessorSpec {
        let names = |names: &[&str]| -> Vec<TopicName> {
            let name = |name: &&str| TopicName::parse(name).unwrap();
            names.iter().map(name).collect()
        };
        let spec = serde_json::json!({
            "topics": names(topics), "module": "0".repeat(64), "grants": names(outputs), "hops_max": hops_max,
        });
        serde_json::from_value(spec).unwrap()
    }

    type Other<'a> = (&'a str, &'a [&'a str], &'a [&'a str], Option<u32>);

    fn others(specs: &[Other<'_>]) -> Vec<(ProcessorName, ProcessorSpec)> {
        let other = |(name, topics, outputs, hops_max): &Other<'_>| {
            let name = ProcessorName::parse(name).unwrap();
            (name, spec(topics, outputs, *hops_max))
        };
        specs.iter().map(other).collect()
    }

    #[test]
    fn a_cycle_in_which_nobody_counts_is_spelled_out() {
        let p = ProcessorName::parse("p").unwrap();
        let found = |spec: &ProcessorSpec, others: &[_]| endless_cycle(&p, spec, others);
        let none = [];
        let own = spec(&["a"], &["b", "a"], None);
        assert_eq!(found(&own, &none).as_deref(), Some("p -> a -> p"));
        assert_eq!(found(&spec(&["a"], &["b"], None), &none), None);
        assert_eq!(found(&spec(&["a"], &["a"], Some(3)), &none), None);

        let chain = spec(&["a"], &["b"], None);
        let back = others(&[
            ("q", &["b"], &["x", "c"], None),
            ("r", &["c"], &["b", "a"], None),
        ]);
        let cycle = "p -> b -> q -> c -> r -> a -> p";
        assert_eq!(found(&chain, &back).as_deref(), Some(cycle));
        let counted = others(&[
            ("q", &["b"], &["x", "c"], None),
            ("r", &["c"], &["b", "a"], Some(1)),
        ]);
        assert_eq!(found(&chain, &counted), None);
        let mends = others(&[("m", &["a.p.dlq"], &["a"], None)]);
        let cycle = "p -> a.p.dlq -> m -> a -> p";
        assert_eq!(found(&chain, &mends).as_deref(), Some(cycle));
        let watches = others(&[("m", &["a.p.audit"], &["a"], None)]);
        let cycle = "p -> a.p.audit -> m -> a -> p";
        assert_eq!(found(&chain, &watches).as_deref(), Some(cycle));
        let reports = others(&[("m", &["a.p.dlq"], &["reports"], None)]);
        assert_eq!(found(&chain, &reports), None);
        let of_letters = others(&[
            ("m", &["a.p.dlq"], &[], None),
            ("n", &["a.p.dlq.m.dlq"], &["a"], None),
        ]);
        let cycle = "p -> a.p.dlq -> m -> a.p.dlq.m.dlq -> n -> a -> p";
        assert_eq!(found(&chain, &of_letters).as_deref(), Some(cycle));
        let elsewhere = others(&[("q", &["b"], &["c"], None), ("r", &["c"], &["b"], None)]);
        assert_eq!(found(&chain, &elsewhere), None, "a cycle that it is not in");
    }

    fn batch(hops: &[Option<&str>]) -> ColumnBatch {
        let mut batch = ColumnBatch::default();
        for hops in hops {
            let mut headers = vec![(&b"other"[..], Some(&b"7"[..]))];
            headers.extend(hops.map(|hops| (HOPS.as_bytes(), Some(hops.as_bytes()))));
            push(&mut batch, 0, 0, 1, (None, None), headers.into_iter());
        }
        batch
    }

    #[test]
    fn hops_are_carried_on_and_counted_only_by_those_who_count() {
        let batch = batch(&[None, Some("2"), Some("nonsense")]);
        let after = |counts| {
            let hops = Hops::of(&batch, counts);
            [0, 1, 2].map(|message| hops.after(message).map(|trail| trail.hops))
        };
        assert_eq!(after(false), [None, Some(2), Some(u32::MAX)]);
        assert_eq!(after(true), [Some(1), Some(3), Some(u32::MAX)]);
        let hops = Hops::of(&batch, true);
        assert_eq!((hops.spent(3), hops.spent(2)), (vec![2], vec![1, 2]));
        assert_eq!(Hops::of(&self::batch(&[None]), false), Hops::default());
    }

    #[test]
    fn a_batch_is_cut_where_spent_messages_begin_and_end() {
        assert_eq!(runs(&[0, 1, 4], 6), [2, 2, 1, 1]);
        assert_eq!(runs(&[2], 3), [2, 1]);
        assert_eq!(runs(&[0], 1), [1]);
    }
}
