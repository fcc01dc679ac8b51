//! Hosts on one store, and how one of them gets exclusive work.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use tokio::sync::watch;

use super::lease::Lease;

/// A host for the life of its process: a restarted one is a different host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostId(pub u64);

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A living host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostInfo {
    /// Its id.
    pub id: HostId,
    /// The address for other hosts and clients; empty if it gave none.
    pub address: Arc<str>,
    /// Its number among the living hosts: the lowest that was free when it joined. No two have the same. Work is spread by it, so that a
    /// host that restarts works where it did before.
    pub seat: u32,
}

/// Seats beyond are not kept: what is stored may be anything.
const SEAT_MAX: u32 = 255;

impl HostInfo {
    /// The living hosts, in order of their ids, from what each says of itself: id, address, and its seat if it knows that already. Of several
    /// that say the same seat, one keeps it. The others, and those without one, get the lowest that are free. Whoever reads
    /// the same sees the same, and each host then says the seat that it sees.
    #[must_use]
    pub fn seated(living: impl IntoIterator<Item = (HostId, Arc<str>, Option<u32>)>) -> Vec<Self> {
        let mut living: Vec<_> = living.into_iter().collect();
        living.sort_by_key(|(id, ..)| *id);
        let mut taken = BTreeSet::new();
        for (.., said) in &mut living {
            *said = said.filter(|&seat| seat <= SEAT_MAX && taken.insert(seat));
        }
        let mut free = (0..).filter(|seat| !taken.contains(seat));
        let mut seated = |(id, address, said): (HostId, Arc<str>, Option<u32>)| Self {
            id,
            address,
            seat: said.or_else(|| free.next()).unwrap_or_default(),
        };
        living.into_iter().map(&mut seated).collect()
    }

    /// What people call it: its address, or its id if it gave none.
    #[must_use]
    pub fn name(&self) -> String {
        match self.address.is_empty() {
            true => self.id.to_string(),
            false => self.address.to_string(),
        }
    }
}

/// A group's work in a partition: exclusive to this host until it releases it, is considered dead, or the work is claimed.
#[derive(Clone, Debug)]
pub struct Hold {
    /// The lease to commit with.
    pub lease: Lease,
    /// Whether the previous holder ended without releasing it, perhaps in the middle of a call. On release, the holder sets whether
    /// this should be reported again.
    pub left: bool,
    lost: watch::Receiver<bool>,
}

impl Hold {
    /// A hold; `lost` turns true, or is closed, when it is lost.
    #[must_use]
    pub fn new(lease: Lease, left: bool, lost: watch::Receiver<bool>) -> Self {
        Self { lease, left, lost }
    }

    /// Whether it is known to be lost. Commits under it then fail with [`CommitError::Fenced`](super::CommitError::Fenced), and even
    /// before that is known.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        *self.lost.borrow() || self.lost.has_changed().is_err()
    }

    /// Waits until it is lost.
    pub async fn lost(&mut self) {
        // A closed sender means the same.
        let _ = self.lost.wait_for(|lost| *lost).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seats(said: &[(u64, Option<u32>)]) -> Vec<(u64, u32)> {
        let said = said.iter().map(|&(id, seat)| (HostId(id), "".into(), seat));
        let seated = HostInfo::seated(said);
        seated.iter().map(|host| (host.id.0, host.seat)).collect()
    }

    #[test]
    fn each_host_has_a_seat_of_its_own_and_keeps_it() {
        assert_eq!(seats(&[(7, Some(0))]), [(7, 0)]);
        assert_eq!(seats(&[(7, Some(0)), (3, None)]), [(3, 1), (7, 0)]);
        assert_eq!(
            seats(&[(9, None), (7, Some(2)), (3, None)]),
            [(3, 0), (7, 2), (9, 1)]
        );
        assert_eq!(
            seats(&[(1, Some(1)), (2, Some(1)), (3, Some(2))]),
            [(1, 1), (2, 0), (3, 2)]
        );
        // Saying what was seen changes nothing.
        for said in [
            vec![(5, None), (4, None), (6, Some(1))],
            vec![(1, Some(1)), (2, Some(1))],
        ] {
            let seen = seats(&said);
            let then: Vec<_> = seen.iter().map(|&(id, seat)| (id, Some(seat))).collect();
            assert_eq!(seats(&then), seen);
        }
        assert_eq!(
            seats(&[(1, Some(u32::MAX)), (2, Some(0))]),
            [(1, 1), (2, 0)]
        );
    }
}
