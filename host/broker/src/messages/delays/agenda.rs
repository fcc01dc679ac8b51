//! Which partition to look at next, and when. Plain code. It may be early or repeat itself, but never late.

use std::collections::{BTreeSet, HashMap};

use millrace_model::{Timestamp, TopicName, TopicPartition};

/// For each partition with delayed messages, when the first of them is due.
#[derive(Debug, Default)]
pub(super) struct Agenda {
    partitions: HashMap<TopicPartition, (Timestamp, TopicName)>,
    order: BTreeSet<(Timestamp, TopicPartition)>,
}

impl Agenda {
    /// Schedules a look at the partition at this time or earlier. Returns whether this is now the first one.
    pub(super) fn note(
        &mut self,
        partition: TopicPartition,
        topic: &TopicName,
        due: Timestamp,
    ) -> bool {
        let before = self.partitions.get(&partition).map(|(due, _)| *due);
        if before.is_some_and(|before| before <= due) {
            return false;
        }
        if let Some(before) = before {
            self.order.remove(&(before, partition));
        }
        self.partitions.insert(partition, (due, topic.clone()));
        self.order.insert((due, partition));
        self.order.first() == Some(&(due, partition))
    }

    /// Takes up to this many due partitions, the earliest first.
    pub(super) fn take_due(
        &mut self,
        now: Timestamp,
        max: usize,
    ) -> Vec<(TopicPartition, TopicName)> {
        let mut taken = Vec::new();
        while taken.len() < max
            && let Some(&(due, partition)) = self.order.first()
            && due <= now
        {
            self.order.pop_first();
            let noted = self.partitions.remove(&partition);
            taken.extend(noted.map(|(_, topic)| (partition, topic)));
        }
        taken
    }

    /// When the next one is due.
    pub(super) fn next(&self) -> Option<Timestamp> {
        self.order.first().map(|(due, _)| *due)
    }
}

#[cfg(test)]
mod tests {
    use millrace_model::{PartitionId, TopicId};

    use super::*;

    fn partition(number: u32) -> TopicPartition {
        TopicPartition {
            topic: TopicId(1),
            partition: PartitionId(number),
        }
    }

    #[test]
    fn a_partition_is_looked_at_at_the_earliest_time_noted() {
        let mut agenda = Agenda::default();
        let topic = TopicName::parse("t").unwrap();
        let mut note = |number, due| agenda.note(partition(number), &topic, Timestamp(due));
        assert!(note(0, 10));
        assert!(!note(1, 20));
        assert!(!note(0, 15), "it is looked at before");
        assert!(note(1, 5));
        assert_eq!(agenda.next(), Some(Timestamp(5)));
        let taken = |agenda: &mut Agenda, now, max| -> Vec<u32> {
            let due = agenda.take_due(Timestamp(now), max);
            due.iter().map(|(at, _)| at.partition.0).collect()
        };
        assert_eq!(taken(&mut agenda, 4, 9), [0; 0]);
        assert_eq!(taken(&mut agenda, 10, 1), [1]);
        assert_eq!(taken(&mut agenda, 10, 9), [0]);
        assert_eq!(agenda.next(), None);
    }
}
