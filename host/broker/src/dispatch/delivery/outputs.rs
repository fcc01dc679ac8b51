//! Groups the outputs of one commit by topic and partition. Each delayed output stays by
//! itself.

use millrace_model::columns::NONE;
use millrace_model::{BatchBuilder, RecordBatch, Timestamp};

use super::Settler;
use crate::dispatch::answer::Outputs;

/// A delayed output.
#[derive(Debug)]
pub(crate) struct Delayed {
    /// Output topic, as an index.
    pub(crate) topic: u32,
    pub(crate) partition: u32,
    pub(crate) due: Timestamp,
    /// The message.
    pub(crate) message: RecordBatch,
}

impl Settler<'_> {
    /// Copies outputs directly from the answer into one batch per topic and partition.
    pub(super) fn outputs(&mut self) {
        let settling = self.settling;
        let outputs = &settling.verdict.outputs;
        let mut groups = Groups::new(outputs);
        for (output, &partition) in settling.places.iter().enumerate() {
            let source = outputs.source(output);
            if self.discarded.get(source).copied().unwrap_or(false) {
                continue;
            }
            let topic = outputs.topic(output);
            match outputs.deliver_at(output).filter(|due| *due > settling.now) {
                None => {
                    let builder = groups.of(topic, partition);
                    outputs.write(output, &settling.batch.columns, builder);
                }
                Some(due) => self.delay(output, topic, partition, due),
            }
        }
        self.effects.outputs = groups.finish();
    }

    fn delay(&mut self, output: usize, topic: u32, partition: u32, due: Timestamp) {
        let mut builder = BatchBuilder::with_capacity(0);
        let outputs = &self.settling.verdict.outputs;
        outputs.write(output, &self.settling.batch.columns, &mut builder);
        self.effects
            .delayed
            .extend(builder.finish().map(|message| Delayed {
                topic,
                partition,
                due,
                message,
            }));
    }
}

/// The batches being built, one per topic and partition.
struct Groups {
    groups: Vec<(u32, u32, BatchBuilder)>,
    /// For each topic and partition, the index in `groups`.
    places: Vec<Vec<u32>>,
    capacity: usize,
}

impl Groups {
    fn new(outputs: &Outputs) -> Self {
        // A record has about 20 bytes of framing. A good first guess avoids large copies.
        let capacity = outputs.byte_count() + outputs.len() * 20;
        Self {
            groups: Vec::new(),
            places: Vec::new(),
            capacity,
        }
    }

    fn of(&mut self, topic: u32, partition: u32) -> &mut BatchBuilder {
        let (t, p) = (topic as usize, partition as usize);
        if self.places.len() <= t {
            self.places.resize(t + 1, Vec::new());
        }
        let places = &mut self.places[t];
        if places.len() <= p {
            places.resize(p + 1, NONE);
        }
        if places[p] == NONE {
            places[p] = self.groups.len() as u32;
            // The first group may take everything; each further one makes large groups less likely.
            let capacity = self.capacity / (self.groups.len() + 1);
            self.groups
                .push((topic, partition, BatchBuilder::with_capacity(capacity)));
        }
        &mut self.groups[places[p] as usize].2
    }

    fn finish(self) -> Vec<(u32, u32, RecordBatch)> {
        let batch = |(topic, partition, builder): (u32, u32, BatchBuilder)| {
            builder.finish().map(|batch| (topic, partition, batch))
        };
        self.groups.into_iter().filter_map(batch).collect()
    }
}
