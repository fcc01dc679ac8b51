//! The parts of a decision for the transaction: outputs, compressed as their topics require, and dead letters.

use millrace_engine::Append;
use millrace_model::{Compression, PartitionId, RecordBatch, Topic, TopicPartition};

use super::Worker;
use crate::dispatch::delivery::Effects;
use crate::dispatch::live::{Live, OutputTopic};
use crate::ground::packing;

impl Worker {
    /// Compresses outputs as their topics now require. Dead letters stay uncompressed: they are few, and people read them.
    pub(super) async fn pack(&self, live: &Live, effects: &mut Effects) {
        let compression = |output: &OutputTopic| {
            let topic = self.context.engine.topic(&output.topic.spec.name);
            topic.map_or(Compression::None, |topic| topic.spec.settings.compression)
        };
        let codecs: Vec<Compression> = live.outputs.topics.iter().map(compression).collect();
        let batches = effects.outputs.iter().map(|output| output.2.clone());
        let codec = |output: usize| codecs[effects.outputs[output].0 as usize];
        let packed = packing::packed(batches.collect(), codec).await;
        for (output, batch) in effects.outputs.iter_mut().zip(packed) {
            output.2 = batch;
        }
    }

    pub(super) fn appends(&self, live: &Live, effects: &mut Effects) -> Vec<Append> {
        let topics = &live.outputs.topics;
        let outputs = effects.outputs.drain(..).map(|(topic, partition, batch)| {
            append(&topics[topic as usize].topic, PartitionId(partition), batch)
        });
        let letters = effects
            .dead_letters
            .drain(..)
            .map(|batch| append(&self.input.dead_letters, self.input.partition, batch));
        outputs.chain(letters).collect()
    }
}

/// Outputs for a missing partition make the commit fail: only the engine knows the present partitions, since some may have been added
/// after the revision was loaded.
fn append(topic: &Topic, partition: PartitionId, batch: RecordBatch) -> Append {
    let partition = TopicPartition {
        topic: topic.id,
        partition,
    };
    Append { partition, batch }
}
