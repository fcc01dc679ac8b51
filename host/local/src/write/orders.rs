//! Orders for the flusher, from any thread that finds that something is due.

#[cfg(test)]
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// The orders for the flusher.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Orders {
    pub(crate) flush: bool,
    pub(crate) checkpoint: bool,
    /// The running checkpoint has ended.
    pub(crate) saved: bool,
    /// End segments that have reached their age.
    pub(crate) roll: bool,
    pub(crate) stop: Option<Stop>,
}

/// How to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// After a last checkpoint, so that the next start has nothing to replay.
    InOrder,
    /// At once; the journal has everything.
    AtOnce,
}

/// The queue of orders.
#[derive(Default)]
pub(crate) struct OrderBook {
    orders: Mutex<Orders>,
    changed: Condvar,
    /// Whether the flusher has nothing to do. Changed under the lock of the orders.
    #[cfg(test)]
    idle: std::sync::atomic::AtomicBool,
}

impl OrderBook {
    /// Adds orders.
    pub(crate) fn ask(&self, change: impl FnOnce(&mut Orders)) {
        change(&mut self.orders.lock());
        self.changed.notify_one();
    }

    /// Whether the flusher must stop.
    pub(crate) fn has_stop(&self) -> bool {
        self.orders.lock().stop.is_some()
    }

    /// Whether all orders are done, and nothing happens until there are new ones.
    #[cfg(test)]
    pub(crate) fn are_done(&self) -> bool {
        let orders = self.orders.lock();
        let asked = orders.flush
            || orders.checkpoint
            || orders.saved
            || orders.roll
            || orders.stop.is_some();
        !asked && self.idle.load(Ordering::Relaxed)
    }

    /// Waits for orders, at most this long, and takes them.
    pub(crate) fn take(
        &self,
        patience: Duration,
        #[cfg_attr(not(test), expect(unused_variables, reason = "only tests ask"))] is_saving: bool,
    ) -> Orders {
        let mut orders = self.orders.lock();
        let asked = orders.flush || orders.checkpoint || orders.saved || orders.roll;
        let asked = asked || orders.stop.is_some();
        if !asked {
            #[cfg(test)]
            self.idle.store(!is_saving, Ordering::Relaxed);
            self.changed.wait_for(&mut orders, patience);
        }
        #[cfg(test)]
        self.idle.store(false, Ordering::Relaxed);
        let stop = orders.stop;
        let taken = std::mem::take(&mut *orders);
        orders.stop = stop;
        taken
    }
}
