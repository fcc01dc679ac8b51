//! Who may read as a consumer, and how a commit changes its positions. Plain code: the stored entry comes in, the entry to store comes
//! out.

use std::time::Duration;

use millrace_engine::Ends;
use millrace_model::{Consumer, LeaseId, Offset, PartitionId, ReadLease};

use crate::groups::error::{ConsumerError, somebody};
use crate::groups::shapes::ConsumerCommit;

/// Whether a reader may read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Hold {
    /// It is the current reader.
    Renewed(ReadLease),
    /// There is no reader: a new lease may be given.
    Free,
    /// Another reader has the lease.
    Busy {
        /// Its name, as it claims.
        by: String,
    },
    /// It was the reader and has lost the lease.
    Lost {
        /// What happened to the lease.
        why: String,
    },
}

/// What a commit did.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Taken {
    /// Whether any position changed.
    pub(super) moved: bool,
    pub(super) gave_back: bool,
}

/// Why a commit changes nothing.
#[derive(Debug)]
pub(super) enum Refused {
    Lost {
        /// What happened to the lease.
        why: String,
    },
    Position(ConsumerError),
}

/// Whether a reader with this lease, or without one, may read; the newest lease keeps others out for the time `left`.
pub(super) fn hold(consumer: &Consumer, given: Option<LeaseId>, left: Duration) -> Hold {
    let Some(given) = given else {
        return match &consumer.lease {
            Some(lease) if !left.is_zero() => Hold::Busy {
                by: lease.by.clone(),
            },
            _ => Hold::Free,
        };
    };
    match newest(consumer, given) {
        Ok(lease) if lease.length_ms > 0 => Hold::Renewed(lease.clone()),
        Ok(_) => Hold::Lost {
            why: "it was released".to_owned(),
        },
        Err(why) => Hold::Lost { why },
    }
}

/// An expired lease is still valid while nobody has taken over: nothing was read by others meanwhile.
fn newest(consumer: &Consumer, given: LeaseId) -> Result<&ReadLease, String> {
    match &consumer.lease {
        Some(lease) if lease.id == given => Ok(lease),
        Some(lease) => Err(format!("{} has taken over since then", somebody(&lease.by))),
        None => Err(match &consumer.reset {
            Some(reset) => format!(
                "{} has reset the positions since then, or the host was restarted",
                somebody(&reset.by)
            ),
            None => "the host was restarted since then, or never issued it".to_owned(),
        }),
    }
}

/// Takes the positions over if all of them move forward within their partitions. Repeating a commit is allowed: its answer may have
/// been lost.
pub(super) fn commit(
    consumer: &mut Consumer,
    commit: &ConsumerCommit,
    ends: impl Fn(PartitionId) -> Option<Ends>,
) -> Result<Taken, Refused> {
    let lease = newest(consumer, commit.lease).map_err(|why| Refused::Lost { why })?;
    let was_given_back = lease.length_ms == 0;
    let mut moved = false;
    for (&partition, &position) in &commit.positions {
        let committed = consumer.position(partition);
        let end = ends(partition).unwrap_or_default().end;
        if position < committed {
            return Err(Refused::Position(ConsumerError::Backwards {
                partition,
                position,
                committed,
            }));
        }
        if position > end.max(committed) {
            return Err(Refused::Position(ConsumerError::PastEnd {
                partition,
                position,
                end,
            }));
        }
        moved |= position > committed;
    }
    if was_given_back && moved {
        return Err(Refused::Lost {
            why: "it was released".to_owned(),
        });
    }
    for (&partition, &position) in &commit.positions {
        consumer.move_to(partition, position);
    }
    let gave_back = commit.release && !was_given_back;
    if let Some(lease) = consumer.lease.as_mut().filter(|_| gave_back) {
        lease.length_ms = 0;
    }
    Ok(Taken { moved, gave_back })
}

/// Adjusts a consumer at a start of the host. Recovery may have cut off messages that a reader had read, and new messages get their
/// offsets. So positions past the end move back to it, and a reader that may hold lost messages loses its lease. Returns each moved
/// position with the end.
pub(super) fn after_recovery(
    consumer: &mut Consumer,
    keeps_all: bool,
    ends: impl Fn(PartitionId) -> Option<Ends>,
) -> Vec<(PartitionId, Offset, Offset)> {
    let mut moved = Vec::new();
    for (number, position) in consumer.positions.iter_mut().enumerate() {
        let partition = PartitionId(number as u32);
        if let Some(Ends { end, .. }) = ends(partition)
            && *position > end
        {
            moved.push((partition, *position, end));
            *position = end;
        }
    }
    let is_held = |lease: &ReadLease| lease.length_ms > 0;
    if !moved.is_empty() || !keeps_all && consumer.lease.as_ref().is_some_and(is_held) {
        consumer.lease = None;
    }
    moved
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use millrace_model::{Noted, Timestamp};

    use super::*;

    const LEFT: Duration = Duration::from_secs(1);

    fn consumer(lease: Option<(u64, u32)>, positions: &[u64]) -> Consumer {
        Consumer {
            lease: lease.map(|(id, length_ms)| ReadLease {
                id: LeaseId(id),
                length_ms,
                by: "ada".to_owned(),
            }),
            positions: positions.iter().copied().map(Offset).collect(),
            ..Consumer::default()
        }
    }

    fn positions(of: &[(u32, u64)], lease: u64, release: bool) -> ConsumerCommit {
        let positions = of.iter().map(|&(p, o)| (PartitionId(p), Offset(o)));
        ConsumerCommit {
            lease: LeaseId(lease),
            positions: positions.collect::<BTreeMap<_, _>>(),
            release,
        }
    }

    fn ends(_: PartitionId) -> Option<Ends> {
        Some(Ends {
            start: Offset(0),
            end: Offset(100),
        })
    }

    #[test]
    fn a_second_reader_is_kept_out_for_as_long_as_the_lease_holds() {
        let held = consumer(Some((7, 1_000)), &[]);
        let by = "ada".to_owned();
        assert_eq!(hold(&held, None, LEFT), Hold::Busy { by });
        assert_eq!(hold(&held, None, Duration::ZERO), Hold::Free);
        assert_eq!(hold(&consumer(None, &[]), None, LEFT), Hold::Free);
    }

    #[test]
    fn the_reader_goes_on_even_if_its_time_has_passed_unless_somebody_came() {
        let held = consumer(Some((7, 1_000)), &[]);
        for left in [LEFT, Duration::ZERO] {
            let renewed = hold(&held, Some(LeaseId(7)), left);
            assert!(matches!(renewed, Hold::Renewed(lease) if lease.id == LeaseId(7)));
            let lost = hold(&held, Some(LeaseId(6)), left);
            assert!(matches!(lost, Hold::Lost { why } if why.contains("ada")));
        }
        let back = hold(&consumer(Some((7, 0)), &[]), Some(LeaseId(7)), LEFT);
        assert!(matches!(back, Hold::Lost { why } if why.contains("released")));
        let mut reset = consumer(None, &[]);
        reset.reset = Some(Noted {
            at: Timestamp(1),
            by: "eve".to_owned(),
        });
        let lost = hold(&reset, Some(LeaseId(7)), LEFT);
        assert!(matches!(lost, Hold::Lost { why } if why.contains("eve has reset")));
    }

    #[test]
    fn a_commit_moves_all_its_partitions_or_none() {
        let mut held = consumer(Some((7, 1_000)), &[10, 20, 30]);
        let before = held.clone();
        for wrong in [
            positions(&[(0, 11), (1, 19)], 7, false),
            positions(&[(0, 11), (1, 101)], 7, true),
            positions(&[(0, 11)], 8, false),
        ] {
            assert!(commit(&mut held, &wrong, ends).is_err());
            assert_eq!(held, before);
        }
        let right = positions(&[(0, 11), (2, 100), (3, 5)], 7, false);
        let taken = commit(&mut held, &right, ends).expect("taken");
        assert!(taken.moved && !taken.gave_back);
        let all = [11, 20, 100, 5].map(Offset);
        assert_eq!(held.positions, all);
    }

    #[test]
    fn the_same_commit_again_changes_nothing_even_after_the_lease_was_given_back() {
        let mut held = consumer(Some((7, 1_000)), &[10]);
        let last = positions(&[(0, 50)], 7, true);
        let first = commit(&mut held, &last, ends).expect("taken");
        assert!(first.moved && first.gave_back);
        let after = held.clone();
        let again = commit(&mut held, &last, ends).expect("taken");
        assert!(!again.moved && !again.gave_back);
        assert_eq!(held, after);
        let more = commit(&mut held, &positions(&[(0, 51)], 7, false), ends);
        assert!(matches!(more, Err(Refused::Lost { .. })), "{more:?}");
    }

    #[test]
    fn after_a_start_a_position_past_the_end_is_drawn_to_it_and_its_reader_begins_anew() {
        let mut cut = consumer(Some((7, 1_000)), &[99, 100, 101]);
        let moved = after_recovery(&mut cut, true, ends);
        assert_eq!(moved, [(PartitionId(2), Offset(101), Offset(100))]);
        assert_eq!(cut.positions, [99, 100, 100].map(Offset));
        assert_eq!(cut.lease, None);
    }

    #[test]
    fn after_a_start_a_reader_goes_on_only_where_nothing_can_have_been_lost() {
        let before = consumer(Some((7, 1_000)), &[10, 20]);
        for (keeps_all, goes_on) in [(true, true), (false, false)] {
            let mut after = before.clone();
            assert_eq!(after_recovery(&mut after, keeps_all, ends), []);
            assert_eq!(after.positions, before.positions);
            assert_eq!(after.lease.is_some(), goes_on);
        }
        // After a release, a repeat of the last commit must succeed.
        let mut back = consumer(Some((7, 0)), &[10, 20]);
        after_recovery(&mut back, false, ends);
        assert!(back.lease.is_some());
    }
}
