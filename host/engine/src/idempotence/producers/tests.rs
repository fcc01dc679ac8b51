//! Tests of a partition's answers to numbered batches, and of what it forgets.

use millrace_model::{PartitionId, TopicId};

use super::*;

const AT: TopicPartition = TopicPartition {
    topic: TopicId(1),
    partition: PartitionId(0),
};

fn numbering(id: i64, epoch: i16, first: i32, count: u32) -> Numbering {
    Numbering {
        producer: ProducerId { id, epoch },
        first,
        last: sequence_after(first, count - 1),
    }
}

/// A partition that assigns offsets.
struct Rig {
    producers: Producers,
    next: u64,
    now: Timestamp,
}

impl Rig {
    fn new() -> Self {
        let mut producers = Producers::default();
        producers.set_next_id(100);
        Self {
            producers,
            next: 0,
            now: Timestamp(1_000),
        }
    }

    /// `Ok(None)` if the batch is appended.
    fn send(&mut self, numbering: Numbering) -> Result<Option<Offset>, CommitError> {
        let state = self.producers.state(AT, numbering.producer.id);
        let judged = self.producers.judge(state, AT, numbering, self.now)?;
        if judged.is_none() {
            let base = Offset(self.next);
            self.next += 10;
            self.producers.apply(AT, numbering, base, self.now);
        }
        Ok(judged)
    }
}

#[test]
fn the_last_five_batches_are_known_again_and_a_gap_is_refused() {
    let mut rig = Rig::new();
    for number in 0..8 {
        assert_eq!(rig.send(numbering(1, 0, number * 2, 2)).unwrap(), None);
    }
    for number in 3..8 {
        let again = rig.send(numbering(1, 0, number * 2, 2)).unwrap();
        assert_eq!(again, Some(Offset(number as u64 * 10)));
    }
    // Too old, half of a batch, a gap.
    for first in [4, 13, 17] {
        let refused = rig.send(numbering(1, 0, first, 2));
        let Err(CommitError::OutOfOrderSequence {
            expected, found, ..
        }) = refused
        else {
            panic!("{refused:?}");
        };
        assert_eq!((expected, found), (16, first));
    }
    assert_eq!(rig.send(numbering(1, 0, 16, 1)).unwrap(), None);
}

#[test]
fn numbers_go_on_at_zero_after_the_largest() {
    let mut rig = Rig::new();
    let full = [0, i32::MAX / 2, i32::MAX - 2];
    let counts = [i32::MAX / 2, i32::MAX / 2 - 1, 5].map(|count| count as u32);
    for (first, count) in full.into_iter().zip(counts) {
        assert_eq!(rig.send(numbering(1, 0, first, count)).unwrap(), None);
    }
    let again = rig.send(numbering(1, 0, i32::MAX - 2, 5)).unwrap();
    assert_eq!(again, Some(Offset(20)));
    assert_eq!(rig.send(numbering(1, 0, 2, 1)).unwrap(), None);
}

#[test]
fn a_newer_epoch_begins_at_zero_and_fences_the_older_one() {
    let mut rig = Rig::new();
    rig.send(numbering(1, 0, 0, 3)).unwrap();
    let late = rig.send(numbering(1, 1, 3, 1));
    assert!(matches!(late, Err(CommitError::OutOfOrderSequence { .. })));
    assert_eq!(rig.send(numbering(1, 1, 0, 3)).unwrap(), None);
    let old = rig.send(numbering(1, 0, 3, 1));
    assert!(matches!(old, Err(CommitError::ProducerFenced { .. })));
    assert_eq!(rig.send(numbering(1, 1, 0, 3)).unwrap(), Some(Offset(10)));
}

#[test]
fn nobody_goes_on_whom_the_partition_does_not_know() {
    let mut rig = Rig::new();
    for unknown in [numbering(1, 0, 1, 1), numbering(100, 0, 0, 1)] {
        let refused = rig.send(unknown);
        assert!(matches!(refused, Err(CommitError::UnknownProducer(_))));
    }
    rig.send(numbering(1, 0, 0, 1)).unwrap();
    rig.now = Timestamp(rig.now.0 + PRODUCER_IDLE_MS);
    assert_eq!(rig.send(numbering(1, 0, 0, 1)).unwrap(), Some(Offset(0)));
    rig.now = Timestamp(rig.now.0 + 1);
    let expired = rig.send(numbering(1, 0, 1, 1));
    assert!(matches!(expired, Err(CommitError::UnknownProducer(1))));
    rig.send(numbering(2, 0, 0, 1)).unwrap();
    assert!(rig.producers.state(AT, 1).is_none());
}

#[test]
fn the_one_idle_for_longest_goes_at_the_bound() {
    for (per_partition, in_all) in [(3, 99), (99, 3)] {
        let mut rig = Rig::new();
        rig.producers.bounds.per_partition = per_partition;
        rig.producers.bounds.in_all = in_all;
        for id in [0, 1, 2] {
            rig.send(numbering(id, 0, 0, 1)).unwrap();
        }
        rig.send(numbering(0, 0, 1, 1)).unwrap();
        rig.send(numbering(3, 0, 0, 1)).unwrap();
        let known = (0..4).filter(|&id| rig.producers.state(AT, id).is_some());
        assert_eq!(known.collect::<Vec<_>>(), [0, 2, 3]);
        assert_eq!(rig.producers.count, 3);
        let changes = rig.producers.take_changes();
        let gone = changes.states.iter().filter(|(.., state)| state.is_none());
        assert!(gone.map(|(_, id, _)| *id).all(|id| id == 1));
        rig.producers.forget(AT);
        assert_eq!(rig.producers.count, 0);
    }
}

#[test]
fn a_name_keeps_its_id_and_fences_its_earlier_lives_everywhere() {
    let mut rig = Rig::new();
    let name: Arc<str> = "shop".into();
    let start = |rig: &mut Rig| {
        let given = rig.producers.decide(Some(&name)).unwrap();
        rig.producers.give(given, Some(Arc::clone(&name)), rig.now);
        given
    };
    let first = start(&mut rig);
    rig.now = Timestamp(rig.now.0 + 1);
    let second = start(&mut rig);
    assert_eq!((second.id, second.epoch), (first.id, first.epoch + 1));
    let zombie = rig.send(numbering(first.id, 0, 0, 1));
    assert!(matches!(zombie, Err(CommitError::ProducerFenced { .. })));
    let invented = rig.send(numbering(first.id, 2, 0, 1));
    assert!(matches!(invented, Err(CommitError::UnknownProducer(_))));
    assert_eq!(rig.send(numbering(first.id, 1, 0, 1)).unwrap(), None);
    assert_ne!(rig.producers.decide(None).unwrap().id, first.id);
    for bad in ["", &"x".repeat(PRODUCER_NAME_BYTES_MAX + 1)] {
        let refused = rig.producers.decide(Some(bad));
        assert!(matches!(refused, Err(CommitError::ProducerName { .. })));
    }
}

#[test]
fn names_are_bounded_and_ids_are_not_given_again() {
    let mut rig = Rig::new();
    rig.producers.bounds.names = 2;
    let mut given = BTreeSet::new();
    for round in 0..5 {
        rig.now = Timestamp(rig.now.0 + 1);
        let name: Arc<str> = format!("name {}", round % 3).into();
        let producer = rig.producers.decide(Some(&name)).unwrap();
        rig.producers.give(producer, Some(name), rig.now);
        assert!(given.insert(producer.id), "forgotten names get new ids");
        assert!(rig.producers.names.len() <= 2);
        assert_eq!(rig.producers.epochs.len(), rig.producers.names.len());
        assert_eq!(rig.producers.name_order.len(), rig.producers.names.len());
    }
}

#[test]
fn what_a_checkpoint_is_given_makes_the_same_state_again() {
    let mut rig = Rig::new();
    for number in 0..7 {
        rig.send(numbering(5, 3, number, 1)).unwrap();
    }
    rig.producers.give(
        ProducerId { id: 9, epoch: 4 },
        Some("shop".into()),
        Timestamp(8),
    );
    let changes = rig.producers.take_changes();
    let mut again = Rig::new();
    again.producers.set_next_id(changes.next_id);
    for (partition, id, state) in changes.states {
        let state = state.expect("known");
        let stored = ProducerState::stored(state.epoch, state.seen_at, state.sent());
        again
            .producers
            .insert(partition, id, stored.expect("sound"));
    }
    for (name, named) in changes.names {
        again.producers.insert_name(name, named.expect("known"));
    }
    for number in 2..7 {
        let judged = again.send(numbering(5, 3, number, 1)).unwrap();
        assert_eq!(judged, Some(Offset(number as u64 * 10)));
    }
    assert_eq!(again.producers.decide(Some("shop")).unwrap().epoch, 5);
    assert!(rig.producers.take_changes().states.is_empty());
}
