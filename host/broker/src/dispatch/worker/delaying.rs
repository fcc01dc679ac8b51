//! Delayed outputs: they get their ids, if there is room for them.

use millrace_model::PartitionId;

use super::Worker;
use crate::dispatch::delivery::Effects;
use crate::dispatch::live::Live;
use crate::messages::delays::delayed::DelaysFull;
use crate::messages::delays::stored::Additions;

impl Worker {
    /// The batch's delayed outputs, for its commit. If there is no room they wait, and the partition with them.
    pub(super) async fn delay(
        &self,
        live: &Live,
        effects: &mut Effects,
    ) -> Result<Additions, DelaysFull> {
        let mut additions = Additions::default();
        for delayed in effects.delayed.drain(..) {
            let topic = &live.outputs.topics[delayed.topic as usize].topic;
            let delays = &self.context.delays;
            let id = delays.next_id(PartitionId(delayed.partition), delayed.due.into());
            additions.add(topic, id, &delayed.message);
        }
        self.context.delays.check_room(&additions).await?;
        self.context.delays.expect(&additions).await;
        Ok(additions)
    }
}
