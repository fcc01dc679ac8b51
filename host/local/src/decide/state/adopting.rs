//! Takes over what another store has. The journal knows nothing of it: a batch that is taken over is an append at the offset that is next.

use millrace_engine::contract::{AdoptError, Adoption, end_after};
use millrace_model::{Durability, ProducerId, RecordBatch, Stamp, TopicPartition};

use super::{Pending, State};
use crate::decide::codec::Operation;

impl State {
    /// Decides it. Must be alone in its group.
    pub(crate) fn decide_adoption(
        &self,
        pending: &mut Pending,
        adoption: Adoption,
    ) -> Result<(), AdoptError> {
        match adoption {
            Adoption::Topic(topic) => self.decide_adopted_topic(pending, topic),
            Adoption::Messages { partition, batches } => {
                self.decide_adopted_messages(pending, partition, batches)
            }
            Adoption::ProducerIds { next } => {
                let producer = ProducerId {
                    id: next.saturating_sub(1),
                    epoch: 0,
                };
                pending.durable = true;
                self.write_moment(pending);
                let name = None;
                let give = Operation::Producer { producer, name };
                pending.operations.push(give);
                Ok(())
            }
        }
    }

    fn decide_adopted_messages(
        &self,
        pending: &mut Pending,
        partition: TopicPartition,
        batches: Vec<RecordBatch>,
    ) -> Result<(), AdoptError> {
        let durability = self.existing(partition)?.durability();
        end_after(partition, self.next_offset(pending, partition), &batches)?;
        pending.durable |= durability == Durability::Durable;
        if batches.iter().any(|batch| batch.numbering().is_some()) {
            self.write_moment(pending);
        }
        let stamp = Stamp::of(partition);
        let appends = batches.into_iter().map(|batch| Operation::Append {
            partition,
            batch: batch.stamped(stamp),
        });
        pending.operations.extend(appends);
        Ok(())
    }
}
