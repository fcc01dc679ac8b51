//! The places for instances on the whole host, and how a new one gets a place when all are taken.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use millrace_broker::handler::CallError;
use parking_lot::Mutex;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

use crate::pool::Pool;

/// Permits count memory in MiB.
const MIB: u64 = 1 << 20;

/// Approximate maximum memory of an instance besides its linear memory: tables, stack, the host's records. In MiB.
const BESIDE_MIB: u32 = 2;

/// A place for one instance, with its maximum memory.
pub(crate) struct Slot {
    _place: OwnedSemaphorePermit,
    _memory: OwnedSemaphorePermit,
}

/// The places for instances, and the memory for all of them. An idle instance keeps its place only while nothing else waits for one.
pub(crate) struct Slots {
    free: Arc<Semaphore>,
    /// The memory for all instances, in MiB.
    memory: Arc<Semaphore>,
    memory_mib: u32,
    waiting: AtomicUsize,
    pools: Mutex<Vec<Weak<Pool>>>,
}

impl Slots {
    pub(crate) fn new(instances_max: u32, memory_bytes_max: u64) -> Self {
        let memory_mib = u32::try_from(memory_bytes_max / MIB).unwrap_or(u32::MAX);
        // A semaphore cannot count more.
        let memory_mib = memory_mib.clamp(1, 1 << 28);
        Self {
            free: Arc::new(Semaphore::new(instances_max as usize)),
            memory: Arc::new(Semaphore::new(memory_mib as usize)),
            memory_mib,
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

    /// A place for another instance with this much memory: a free one, or that of idle instances, or the next one that becomes free.
    pub(crate) async fn take(&self, memory_bytes_max: u64) -> Result<Slot, CallError> {
        // An instance that may have more than all memory gets all of it, and is alone then.
        let mib = u32::try_from(memory_bytes_max.div_ceil(MIB)).unwrap_or(u32::MAX);
        let mib = mib.saturating_add(BESIDE_MIB).clamp(1, self.memory_mib);
        if let Some(slot) = self.try_take(mib) {
            return Ok(slot);
        }
        // Announced before looking for idle instances: one that becomes idle from here on sees it and makes room.
        let _waiting = Waiting::announce(&self.waiting);
        while self.evict_idle() {
            if let Some(slot) = self.try_take(mib) {
                return Ok(slot);
            }
        }
        // All callers take them in this order, so that no waiting caller holds what another one
        // waits for.
        let failed = |error: AcquireError| CallError::Host(error.to_string());
        let memory = Arc::clone(&self.memory).acquire_many_owned(mib);
        let memory = memory.await.map_err(failed)?;
        let place = Arc::clone(&self.free).acquire_owned();
        let place = place.await.map_err(failed)?;
        Ok(Slot {
            _place: place,
            _memory: memory,
        })
    }

    fn try_take(&self, mib: u32) -> Option<Slot> {
        let memory = Arc::clone(&self.memory).try_acquire_many_owned(mib).ok()?;
        let place = Arc::clone(&self.free).try_acquire_owned().ok()?;
        Some(Slot {
            _place: place,
            _memory: memory,
        })
    }

    /// Whether something waits for a place.
    pub(crate) fn are_wanted(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    /// Whether there was one.
    fn evict_idle(&self) -> bool {
        let pools: Vec<_> = self.pools.lock().iter().filter_map(Weak::upgrade).collect();
        let evicted = pools.iter().find_map(|pool| pool.take_idle());
        evicted.is_some()
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
