//! Holds with a single host: every hold is its own, and what the previous process held counts as
//! left.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use millrace_engine::contract::{Hold, HostId, HostInfo, Lease};
use millrace_model::{GroupName, TopicId, TopicPartition};
use parking_lot::Mutex;
use tokio::sync::watch;

/// What is held, or was held since the engine was opened.
pub(crate) struct Holds {
    hosts: watch::Sender<Arc<[HostInfo]>>,
    taken: Mutex<HashMap<(TopicPartition, GroupName), Taken>>,
    /// Changes by other hosts: there are none.
    others: watch::Sender<u64>,
}

/// The newest lease of a group in a partition.
struct Taken {
    epoch: u64,
    /// Tells the holder when the hold is lost; `None` if it is not held.
    held: Option<watch::Sender<bool>>,
    /// Whether the next holder must learn that it was left: no worker has held it since the engine
    /// was opened, or the last one released it without having worked.
    left: bool,
}

impl Default for Holds {
    fn default() -> Self {
        // Random: a restarted process is a different host.
        let id = HostId(RandomState::new().hash_one(0));
        let address = Arc::from("");
        Self {
            hosts: watch::Sender::new(HostInfo::seated([(id, address, None)]).into()),
            taken: Mutex::default(),
            others: watch::Sender::default(),
        }
    }
}

impl Holds {
    pub(crate) fn host(&self) -> HostId {
        self.hosts.borrow()[0].id
    }

    pub(crate) fn hosts(&self) -> watch::Receiver<Arc<[HostInfo]>> {
        self.hosts.subscribe()
    }

    pub(crate) fn hold(&self, lease: Lease) -> Hold {
        self.take(lease, true)
    }

    /// Does not report whether the work was left; the next holder learns that.
    pub(crate) fn claim(&self, lease: Lease) -> Hold {
        let mut hold = self.take(lease, false);
        hold.left = false;
        hold
    }

    /// If two are taken concurrently, the older one is lost at once, in whichever order they
    /// arrive.
    fn take(&self, lease: Lease, to_work: bool) -> Hold {
        let (held, lost) = watch::channel(false);
        let mut all = self.taken.lock();
        let taken = all.entry(key(&lease)).or_insert(Taken {
            epoch: 0,
            held: None,
            left: true,
        });
        let left = taken.left;
        taken.left &= !to_work;
        if taken.epoch < lease.epoch {
            (taken.epoch, taken.held) = (lease.epoch, Some(held));
        }
        Hold::new(lease, left, lost)
    }

    pub(crate) fn others(&self) -> watch::Receiver<u64> {
        self.others.subscribe()
    }

    pub(crate) fn release(&self, hold: &Hold) {
        let mut all = self.taken.lock();
        let newest = all.get_mut(&key(&hold.lease));
        if let Some(taken) = newest.filter(|taken| taken.epoch == hold.lease.epoch) {
            taken.held = None;
            taken.left |= hold.left;
        }
    }

    pub(crate) fn forget_topic(&self, topic: TopicId) {
        self.taken.lock().retain(|(at, _), _| at.topic != topic);
    }
}

fn key(lease: &Lease) -> (TopicPartition, GroupName) {
    (lease.partition, lease.group.clone())
}
