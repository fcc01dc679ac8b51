//! Outputs of one commit, grouped by topic and partition.

use millrace_model::columns::NONE;
use millrace_model::{BatchBuilder, RecordBatch};

use crate::dispatch::answer::Outputs;

/// One batch in the making per topic and partition.
pub(super) struct Groups {
    groups: Vec<(u32, u32, BatchBuilder)>,
    /// For each topic and partition, its index in `groups`.
    places: Vec<Vec<u32>>,
    capacity: usize,
}

impl Groups {
    pub(super) fn new(outputs: &Outputs) -> Self {
        // A record has about 20 bytes of framing; this is a first guess that avoids large copies.
        let capacity = outputs.byte_count() + outputs.len() * 20;
        Self {
            groups: Vec::new(),
            places: Vec::new(),
            capacity,
        }
    }

    pub(super) fn of(&mut self, topic: u32, partition: u32) -> &mut BatchBuilder {
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

    pub(super) fn finish(self) -> Vec<(u32, u32, RecordBatch)> {
        let batch = |(topic, partition, builder): (u32, u32, BatchBuilder)| {
            builder.finish().map(|batch| (topic, partition, batch))
        };
        self.groups.into_iter().filter_map(batch).collect()
    }
}
