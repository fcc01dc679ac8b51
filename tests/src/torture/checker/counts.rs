//! Processors that count in state, and dead letters that are redriven.

use std::collections::{BTreeMap, HashMap};

use super::super::history::{Pipeline, Seen};
use super::{Checker, Id, Kind, Topic};

/// A count of each key.
pub(super) type Counts = BTreeMap<String, i64>;

/// What is known of one processor besides its topics.
#[derive(Default)]
pub(super) struct Processor {
    /// Its state as last read, by partition.
    state: BTreeMap<u32, Counts>,
    /// Whether its state was read in the last reading.
    read_to_the_end: bool,
    /// Dead letters that had not been sent again at the end.
    pub(super) standing: Option<HashMap<Id, u32>>,
}

impl Checker {
    /// State counts what succeeded, so that no count may fall.
    pub(super) fn counted(&mut self, processor: &str, partition: u32, counts: &Counts, last: bool) {
        let known = self.processors.entry(processor.to_owned()).or_default();
        known.read_to_the_end |= last;
        let before = known.state.insert(partition, counts.clone());
        let fell = before
            .unwrap_or_default()
            .into_iter()
            .find_map(|(key, before)| {
                let now = counts.get(&key).copied().unwrap_or(0);
                (now < before)
                    .then(|| format!("key {key} was counted {before} times, is {now} times"))
            });
        if let Some(fell) = fell {
            let text = format!("{processor}, state of partition {partition}: {fell}");
            self.find(Kind::WentBack, text);
        }
    }

    pub(super) fn stands(&mut self, processor: &str, letters: &[Seen]) {
        let mut standing = HashMap::new();
        for letter in letters {
            *standing.entry(letter.id()).or_default() += 1;
        }
        let known = self.processors.entry(processor.to_owned()).or_default();
        known.standing = Some(standing);
    }

    /// Checks that the state holds, for each key, the number of outputs, in the partition of their
    /// inputs.
    pub(super) fn check_state(&mut self, pipeline: &Pipeline) {
        let known = self.processors.get(&pipeline.processor);
        let Some(known) = known.filter(|known| known.read_to_the_end) else {
            let text = format!("{}: nobody looked at its state", pipeline.processor);
            return self.find(Kind::Unexpected, text);
        };
        let inputs = self.topics.get(&pipeline.input);
        let outputs = self.topics.get(&pipeline.output);
        let expected = counts_of(pipeline, inputs, outputs);
        let of = |counts: &BTreeMap<u32, Counts>, partition: u32, key: &String| {
            let here = counts.get(&partition);
            here.and_then(|here| here.get(key)).copied().unwrap_or(0)
        };
        let all = expected.iter().chain(&known.state);
        let mut places: Vec<(u32, String)> = all
            .flat_map(|(at, counts)| counts.keys().map(|key| (*at, key.clone())))
            .collect();
        places.sort_unstable();
        places.dedup();
        let mut findings = Vec::new();
        for (partition, key) in places {
            let (out, counted) = (
                of(&expected, partition, &key),
                of(&known.state, partition, &key),
            );
            if out != counted {
                findings.push(format!(
                    "{}, state of partition {partition}: key {key} has {out} outputs and is counted {counted} times",
                    pipeline.processor
                ));
            }
        }
        for text in findings {
            self.find(Kind::Miscounted, text);
        }
    }
}

fn counts_of(
    pipeline: &Pipeline,
    inputs: Option<&Topic>,
    outputs: Option<&Topic>,
) -> BTreeMap<u32, Counts> {
    let all = |topic: Option<&'_ Topic>| -> Vec<(u32, Id)> {
        let partitions = topic.into_iter().flat_map(|topic| &topic.partitions);
        let ids = partitions.flat_map(|(at, here)| here.last.values().map(|id| (*at, *id)));
        ids.collect()
    };
    let stood_in: HashMap<Id, u32> = all(inputs).into_iter().map(|(at, id)| (id, at)).collect();
    let mut counts: BTreeMap<u32, Counts> = BTreeMap::new();
    for (_, id) in all(outputs) {
        // An output without an input is found elsewhere.
        let Some(partition) = stood_in.get(&id) else {
            continue;
        };
        let key = format!("{}/{}", id.producer, id.sequence % pipeline.keys.max(1));
        *counts
            .entry(*partition)
            .or_default()
            .entry(key)
            .or_default() += 1;
    }
    counts
}
