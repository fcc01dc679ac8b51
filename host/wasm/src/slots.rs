//! How many instances the whole host may have, and how one more is found a place when all are taken.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use millrace_broker::handler::CallError;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::pool::Pool;

/// The places for instances. An idle instance keeps its place only as long as nobody else waits for one.
pub(crate) struct Slots {
    free: Arc<Semaphore>,
    waiting: AtomicUsize,
    pools: Mutex<Vec<Weak<Pool>>>,
}

impl Slots {
    pub(crate) fn new(instances_max: u32) -> Self {
        Self {
            free: Arc::new(Semaphore::new(instances_max as usize)),
            waiting: AtomicUsize::new(0),
            pools: Mutex::default(),
        }
    }

    /// From now on the pool's idle instances may have to make room.
    pub(crate) fn register(&self, pool: &Arc<Pool>) {
        let mut pools = self.pools.lock();
        pools.retain(|pool| pool.strong_count() > 0);
        pools.push(Arc::downgrade(pool));
    }

    /// A place for one more instance: a free one, else that of an idle instance, else the next one to come free.
    pub(crate) async fn take(&self) -> Result<OwnedSemaphorePermit, CallError> {
        if let Ok(slot) = Arc::clone(&self.free).try_acquire_owned() {
            return Ok(slot);
        }
        // Announced before looking for idle instances: one that becomes idle from here on sees it and makes room.
        let _waiting = Waiting::announce(&self.waiting);
        self.evict_idle();
        let free = Arc::clone(&self.free).acquire_owned();
        free.await
            .map_err(|error| CallError::Host(error.to_string()))
    }

    /// Whether somebody waits for a place.
    pub(crate) fn are_wanted(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    fn evict_idle(&self) {
        let pools: Vec<_> = self.pools.lock().iter().filter_map(Weak::upgrade).collect();
        let _evicted = pools.iter().find_map(|pool| pool.take_idle());
    }
}

struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn announce(waiting: &'a AtomicUsize) -> Self {
        waiting.fetch_add(1, Ordering::SeqCst);
        Self(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
