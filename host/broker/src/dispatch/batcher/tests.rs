//! Which parked messages are due, and when.

use millrace_model::Attempt;
use proptest::prelude::*;

use super::*;

fn parked(offset: u64, ordering: Option<u64>, due: Option<u64>) -> Parked {
    Parked {
        due: due.map(Timestamp),
        ..behind(Offset(offset), ordering)
    }
}

fn due_at(parked: &[Parked], now: u64, max: usize) -> Vec<u64> {
    let due = due(parked, Timestamp(now), max);
    due.offsets.iter().map(|offset| offset.0).collect()
}

#[test]
fn a_due_message_runs_with_those_behind_it_and_one_that_is_not_due_holds_its_key_back() {
    let waiting = [
        parked(1, Some(7), Some(50)),
        parked(2, Some(8), Some(10)),
        parked(3, Some(7), None),
        parked(4, Some(8), None),
        parked(5, None, Some(10)),
    ];
    assert_eq!(due_at(&waiting, 10, 100), [2, 4, 5]);
    assert_eq!(due_at(&waiting, 50, 100), [1, 2, 3, 4, 5]);
    assert_eq!(due_at(&waiting, 50, 2), [1, 2]);
    assert_eq!(due_at(&waiting, 9, 100), [0u64; 0]);
    assert_eq!(next_due(&waiting), Some(Timestamp(10)));
    assert_eq!(next_due(&[]), None);
}

#[test]
fn what_waits_behind_nobody_runs_at_once() {
    let waiting = [parked(3, Some(7), None)];
    assert_eq!(due_at(&waiting, 0, 1), [3]);
    assert_eq!(next_due(&waiting), Some(Timestamp(0)));
}

#[test]
fn a_message_that_took_its_batch_down_runs_alone() {
    let mut waiting = vec![
        parked(1, Some(7), Some(5)),
        parked(2, Some(8), Some(5)),
        parked(3, Some(7), None),
    ];
    let attempt = Attempt {
        at: Timestamp(1),
        revision: 1,
        class: "trap".to_owned(),
        reason: String::new(),
    };
    waiting[0].log.push(attempt.clone());
    let first = due(&waiting, Timestamp(9), 100);
    assert_eq!((first.offsets, first.alone), (vec![Offset(1)], true));
    waiting[0].log.clear();
    waiting[1].log.push(attempt);
    assert_eq!(due_at(&waiting, 9, 100), [1, 3]);
}

#[test]
fn nothing_new_is_read_while_the_partition_waits_or_is_full() {
    let one = [parked(1, Some(0), Some(5))];
    assert_eq!(new_messages_max(Order::Partition, &one), 0);
    assert!(new_messages_max(Order::Partition, &[]) > 0);
    assert_eq!(new_messages_max(Order::Key, &one), 0, "of any key");
    let keyed = [parked(1, Some(7), Some(5))];
    assert_eq!(
        new_messages_max(Order::Key, &keyed),
        PARKED_MESSAGES_MAX - 1
    );
    let full = vec![parked(1, None, None); PARKED_MESSAGES_MAX];
    assert_eq!(new_messages_max(Order::None, &full), 0);
}

#[test]
fn the_hash_that_is_stored_with_progress_never_changes() {
    assert_eq!(ordering(Order::Key, Some(b"")), Some(0xcbf2_9ce4_8422_2325));
    assert_eq!(
        ordering(Order::Key, Some(b"foobar")),
        Some(0x8594_4171_f739_67e8)
    );
    assert_eq!(ordering(Order::Key, None), None);
    assert_eq!(ordering(Order::None, Some(b"a")), None);
    assert_eq!(
        ordering(Order::Partition, None),
        ordering(Order::Partition, Some(b"a"))
    );
}

proptest! {
    #[test]
    fn nobody_overtakes_one_of_its_order(
        entries in proptest::collection::vec((0..4u64, proptest::option::of(0..20u64)), 0..40),
        now in 0..20u64,
        max in 1..10usize,
    ) {
        let waiting: Vec<Parked> = entries
            .iter()
            .enumerate()
            .map(|(offset, &(ordering, due))| {
                parked(offset as u64, (ordering > 0).then_some(ordering), due)
            })
            .collect();
        let runs: HashSet<u64> = due_at(&waiting, now, max).into_iter().collect();
        prop_assert!(runs.len() <= max);
        for (index, message) in waiting.iter().enumerate() {
            if !runs.contains(&message.offset.0) {
                continue;
            }
            prop_assert!(message.due.is_none_or(|due| due.0 <= now));
            let ahead = waiting[..index]
                .iter()
                .filter(|other| other.ordering.is_some() && other.ordering == message.ordering);
            for other in ahead {
                prop_assert!(runs.contains(&other.offset.0));
            }
        }
        if runs.is_empty() {
            prop_assert!(next_due(&waiting).is_none_or(|next| next.0 > now));
        }
    }
}
