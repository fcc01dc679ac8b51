//! Which seat should work on which partition of a topic: as evenly as possible, and so that little moves when hosts join or leave.
//!
//! Each living host has a seat, the lowest that was free when it joined. Each further seat takes its share from the fullest of the seats below it, so a
//! host that joins moves its own share and nothing else. The partitions of a free seat are dealt out to the emptiest of the others, and free
//! seats are emptied from the highest to the lowest: so what the lowest free seat gave comes back, alone, when it is taken again, as it is
//! by a host that restarts. No spread that is this even can always do the same for each host that leaves: if several are away, the partitions
//! of free seats may move between the others as well.

/// Partitions of each seat, by its number.
struct Shares {
    seed: u64,
    of: Vec<Vec<u32>>,
}

/// What a weight is for: each decision has weights of its own.
#[derive(Clone, Copy)]
enum Choice {
    /// Whether a seat takes one partition of those that cannot be divided evenly.
    TakesMore,
    /// Which of several full seats gives one.
    Gives,
    /// Which partitions a seat takes.
    Takes,
    /// In which order the partitions of a free seat are dealt out.
    Dealt,
    /// Which of several empty seats gets one.
    Gets,
}

/// The seat for each of so many partitions. `seats` are those that are taken, in order; without any, nobody can do the work.
pub(crate) fn spread(seed: u64, partitions: u32, seats: &[u32]) -> Vec<u32> {
    let Some(&last) = seats.last() else {
        return Vec::new();
    };
    let mut shares = Shares {
        seed,
        of: vec![(0..partitions).collect()],
    };
    for seat in 1..=last {
        shares.fill(seat);
    }
    let mut filled: Vec<u32> = (0..=last).collect();
    for free in (0..=last).rev() {
        if seats.binary_search(&free).is_err() {
            filled.retain(|seat| *seat != free);
            shares.empty(free, &filled);
        }
    }
    let mut spread = vec![last; partitions as usize];
    for (seat, share) in (0..).zip(&shares.of) {
        for &partition in share {
            spread[partition as usize] = seat;
        }
    }
    spread
}

impl Shares {
    /// Gives the next seat its share.
    fn fill(&mut self, seat: u32) {
        let partitions: usize = self.of.iter().map(Vec::len).sum();
        let count = seat as usize + 1;
        let over = (partitions % count) as u64;
        // So that a topic of few partitions, too, is as likely at one seat as at another.
        let takes_more = self.weight(Choice::TakesMore, seat, 0) % (count as u64) < over;
        let share = partitions / count + usize::from(takes_more);
        let mut left: Vec<(usize, u64)> = (0..seat)
            .zip(&self.of)
            .map(|(giver, of)| (of.len(), self.weight(Choice::Gives, seat, giver)))
            .collect();
        for _ in 0..share {
            if let Some((fullest, _)) = left.iter_mut().max() {
                *fullest -= 1;
            }
        }
        let mut taken = Vec::with_capacity(share);
        for (giver, (left, _)) in left.into_iter().enumerate() {
            let mut of = std::mem::take(&mut self.of[giver]);
            if of.len() > left {
                of.sort_by_cached_key(|&p| (self.weight(Choice::Takes, seat, p), p));
                taken.extend(of.drain(left..));
            }
            self.of[giver] = of;
        }
        self.of.push(taken);
    }

    /// Deals the partitions of a seat out to these.
    fn empty(&mut self, free: u32, to: &[u32]) {
        let mut left = std::mem::take(&mut self.of[free as usize]);
        left.sort_by_cached_key(|&p| (self.weight(Choice::Dealt, free, p), p));
        for partition in left {
            let count = |seat: u32| self.of[seat as usize].len();
            let least = to.iter().map(|&seat| count(seat)).min();
            let emptiest = to.iter().filter(|&&seat| Some(count(seat)) == least);
            let gets = emptiest.max_by_key(|&&seat| self.weight(Choice::Gets, seat, partition));
            if let Some(&gets) = gets {
                self.of[gets as usize].push(partition);
            }
        }
    }

    /// The same on every host, whatever its version: the finalizer of splitmix64 (G. Steele, D. Lea and C. Flood, 2014) over each part.
    fn weight(&self, choice: Choice, seat: u32, other: u32) -> u64 {
        let parts = [choice as u64, u64::from(seat), u64::from(other)];
        parts.into_iter().fold(self.seed, |hash, part| {
            let mixed = hash.wrapping_add(0x9e37_79b9_7f4a_7c15) ^ part;
            let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^ (mixed >> 31)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Partitions of which the seat differs.
    fn moved(before: &[u32], after: &[u32]) -> Vec<usize> {
        let pairs = before.iter().zip(after).enumerate();
        let moved = pairs.filter(|(_, (before, after))| before != after);
        moved.map(|(partition, _)| partition).collect()
    }

    fn lowest_free(seats: &[u32]) -> u32 {
        (0..).find(|seat| !seats.contains(seat)).unwrap_or(0)
    }

    fn with(seats: &[u32], seat: u32) -> Vec<u32> {
        let mut seats = [seats, &[seat]].concat();
        seats.sort_unstable();
        seats
    }

    fn without(seats: &[u32], seat: u32) -> Vec<u32> {
        seats.iter().copied().filter(|s| *s != seat).collect()
    }

    fn assert_even(spread: &[u32], seats: &[u32]) {
        let (partitions, count) = (spread.len(), seats.len());
        for seat in seats {
            let share = spread.iter().filter(|s| *s == seat).count();
            let even = partitions / count..=partitions.div_ceil(count);
            assert!(
                even.contains(&share),
                "seat {seat}: {share} of {partitions}"
            );
        }
        assert!(spread.iter().all(|seat| seats.contains(seat)));
    }

    /// Up to eight hosts and 256 partitions, all of them.
    #[test]
    fn a_host_that_joins_takes_its_share_and_nothing_else_moves() {
        for partitions in 0..=256 {
            let seed = u64::from(partitions) * 77;
            let mut before = spread(seed, partitions, &[0]);
            for count in 2..=8 {
                let seats: Vec<u32> = (0..count).collect();
                let after = spread(seed, partitions, &seats);
                assert_even(&after, &seats);
                let moved = moved(&before, &after);
                assert!(moved.len() <= partitions.div_ceil(count) as usize);
                assert!(moved.iter().all(|p| after[*p] == count - 1));
                before = after;
            }
        }
    }

    proptest! {
        /// Hosts come and go in any order.
        #[test]
        fn the_spread_is_even_and_little_moves(
            seed: u64,
            partitions in 1..=256u32,
            events in proptest::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 1..40),
        ) {
            let mut seats = vec![0];
            let mut before = spread(seed, partitions, &seats);
            for (joins, which) in events {
                if seats.len() == 1 || joins && seats.len() < 8 {
                    let seat = lowest_free(&seats);
                    seats = with(&seats, seat);
                    let after = spread(seed, partitions, &seats);
                    let moved = moved(&before, &after);
                    prop_assert!(moved.len() <= partitions.div_ceil(seats.len() as u32) as usize);
                    prop_assert!(moved.iter().all(|p| after[*p] == seat), "only to the one that joins");
                    before = after;
                } else {
                    let seat = *which.get(&seats);
                    let rest = without(&seats, seat);
                    let after = spread(seed, partitions, &rest);
                    let full: Vec<u32> = (0..=seats[seats.len() - 1]).collect();
                    let of_all = spread(seed, partitions, &full);
                    for p in moved(&before, &after) {
                        // Else it is one that was dealt out before.
                        let was_dealt = !seats.contains(&of_all[p]);
                        prop_assert!(before[p] == seat || was_dealt && lowest_free(&seats) < seat);
                    }
                    (seats, before) = (rest, after);
                }
                assert_even(&before, &seats);
            }
        }
    }

    #[test]
    fn a_host_that_restarts_gets_back_what_it_had() {
        for partitions in [1, 5, 64, 100] {
            let all: Vec<u32> = (0..5).collect();
            let before = spread(7, partitions, &all);
            for seat in 0..5 {
                let rest = without(&all, seat);
                let meanwhile = spread(7, partitions, &rest);
                let moved = moved(&before, &meanwhile);
                assert!(moved.iter().all(|p| before[*p] == seat), "only its own");
                assert_eq!(lowest_free(&rest), seat);
                assert_eq!(spread(7, partitions, &with(&rest, seat)), before);
            }
        }
    }

    /// Processors of the same topic should not all be at the same host.
    #[test]
    fn a_topic_of_one_partition_is_as_likely_at_one_seat_as_at_another() {
        for seats in [vec![0, 1, 2, 3], vec![1, 2, 4, 6]] {
            let places: Vec<u32> = (0..4_000).map(|seed| spread(seed, 1, &seats)[0]).collect();
            for seat in seats {
                let count = places.iter().filter(|s| **s == seat).count();
                assert!((850..=1_150).contains(&count), "{seat}: {count} of 4000");
            }
        }
    }

    #[test]
    fn without_hosts_there_is_no_spread() {
        assert!(spread(1, 4, &[]).is_empty());
        assert_eq!(spread(1, 3, &[9]), [9, 9, 9]);
    }
}
