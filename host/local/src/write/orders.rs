//! What the flusher is asked to do, by whoever finds that it is time for it.

#[cfg(test)]
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// What the flusher is asked to do.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Orders {
    pub(crate) flush: bool,
    pub(crate) checkpoint: bool,
    /// The checkpoint that was under way is over.
    pub(crate) saved: bool,
    /// End the segments that have come to their age.
    pub(crate) roll: bool,
    pub(crate) stop: Option<Stop>,
}

/// How to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// With a last checkpoint, so that the next start has nothing to replay.
    InOrder,
    /// At once; the journal has everything.
    AtOnce,
}

/// Where orders are left.
#[derive(Default)]
pub(crate) struct OrderBook {
    orders: Mutex<Orders>,
    changed: Condvar,
    /// Whether the flusher has nothing to do. Changed under the lock of the orders.
    #[cfg(test)]
    idle: std::sync::atomic::AtomicBool,
}

impl OrderBook {
    /// Adds to what is asked for.
    pub(crate) fn ask(&self, change: impl FnOnce(&mut Orders)) {
        change(&mut self.orders.lock());
        self.changed.notify_one();
    }

    /// Whether the flusher is to stop.
    pub(crate) fn has_stop(&self) -> bool {
        self.orders.lock().stop.is_some()
    }

    /// Whether everything asked for was done, and nothing will be done before more is asked for.
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

    /// Waits for orders, at most so long; takes them.
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
