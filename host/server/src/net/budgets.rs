//! Memory for data that passes through the doors: one budget for incoming and one for outgoing
//! data, however many doors there are.
//!
//! Room is taken before the bytes exist, and returned when the last of them is dropped: it belongs
//! to the bytes themselves, so bytes in a connection's buffer count too.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// The memory that all doors may use together. Each door has a clone.
#[derive(Clone)]
pub(crate) struct Budgets {
    /// For incoming data.
    pub(crate) received: Budget,
    /// For answers that carry messages.
    pub(crate) sent: Budget,
}

impl Budgets {
    pub(crate) fn new(received_bytes: usize, sent_bytes: usize) -> Self {
        Self {
            received: Budget::new(received_bytes),
            sent: Budget::new(sent_bytes),
        }
    }
}

/// A number of bytes that all holders share, counted in KiB.
#[derive(Clone)]
pub(crate) struct Budget {
    kib: Arc<Semaphore>,
    kib_max: usize,
}

impl Budget {
    fn new(bytes: usize) -> Self {
        let kib_max = bytes >> 10;
        Self {
            kib: Arc::new(Semaphore::new(kib_max)),
            kib_max,
        }
    }

    /// All bytes of the budget.
    pub(crate) fn bytes_max(&self) -> usize {
        self.kib_max << 10
    }

    /// An empty share.
    pub(crate) fn nothing(&self) -> Room {
        Room {
            budget: self.clone(),
            permit: None,
        }
    }

    /// A share of this many bytes; `None` if it is not available within `wait`.
    pub(crate) async fn take(&self, bytes: usize, wait: Duration) -> Option<Room> {
        let mut room = self.nothing();
        room.grow_within(bytes, wait).await.then_some(room)
    }

    /// Nothing takes more than the whole budget.
    fn kib(&self, bytes: usize) -> usize {
        bytes.div_ceil(1 << 10).min(self.kib_max)
    }
}

/// A share of a budget; returned when it is dropped.
pub(crate) struct Room {
    budget: Budget,
    /// `None` for an empty share.
    permit: Option<OwnedSemaphorePermit>,
}

impl Room {
    fn kib(&self) -> usize {
        self.permit
            .as_ref()
            .map_or(0, OwnedSemaphorePermit::num_permits)
    }

    fn missing(&self, bytes: usize) -> u32 {
        let missing = self.budget.kib(bytes).saturating_sub(self.kib());
        u32::try_from(missing).unwrap_or(u32::MAX)
    }

    fn hold(&mut self, more: OwnedSemaphorePermit) {
        match &mut self.permit {
            Some(permit) => permit.merge(more),
            None => self.permit = Some(more),
        }
    }

    /// Grows to `bytes` in total, if that is available at once. A holder must not wait for more
    /// room, because others may do the same and all would wait forever.
    pub(crate) fn grow(&mut self, bytes: usize) -> bool {
        let missing = self.missing(bytes);
        if missing == 0 {
            return true;
        }
        let more = self.budget.kib.clone().try_acquire_many_owned(missing);
        more.map(|more| self.hold(more)).is_ok()
    }

    /// Grows to `bytes` in total, as soon as that is available; false if it takes longer than
    /// `wait`.
    pub(crate) async fn grow_within(&mut self, bytes: usize, wait: Duration) -> bool {
        let missing = self.missing(bytes);
        if missing == 0 {
            return true;
        }
        let more = self.budget.kib.clone().acquire_many_owned(missing);
        let Ok(Ok(more)) = timeout(wait, more).await else {
            return false;
        };
        self.hold(more);
        true
    }

    /// The size of the share.
    pub(crate) fn byte_count(&self) -> usize {
        self.kib() << 10
    }

    /// The bytes, which keep the room that they need until the last of them is dropped.
    pub(crate) fn keep(mut self, bytes: Vec<u8>) -> Bytes {
        let spare = self.kib().saturating_sub(self.budget.kib(bytes.len()));
        if let Some(permit) = &mut self.permit {
            drop(permit.split(spare));
        }
        Bytes::from_owner(Kept { bytes, _room: self })
    }
}

struct Kept {
    bytes: Vec<u8>,
    _room: Room,
}

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(budget: &Budget, bytes: usize) -> Room {
        let mut room = budget.nothing();
        assert!(room.grow(bytes), "room");
        room
    }

    #[test]
    fn bytes_keep_the_room_that_they_need_until_the_last_one_is_gone() {
        let budget = Budget::new(100 << 10);
        let left = || budget.kib.available_permits();
        let mut held = room(&budget, 10 << 10);
        assert!(held.grow(90 << 10));
        let other = room(&budget, 5 << 10);
        assert!(!held.grow(96 << 10));
        drop(other);
        assert_eq!(left(), 10);
        let mut bytes = held.keep(vec![1; 3 << 10]);
        assert_eq!(left(), 97);
        let rest = bytes.split_off(1);
        drop(bytes);
        assert_eq!(left(), 97);
        drop(rest);
        assert_eq!(left(), 100);
    }

    #[tokio::test]
    async fn who_wants_more_than_there_is_gets_all_and_others_wait_in_vain() {
        let budget = Budget::new(100 << 10);
        let wait = Duration::from_millis(10);
        let all = budget.take(usize::MAX, wait).await.expect("room");
        assert_eq!(all.byte_count(), budget.bytes_max());
        assert!(budget.take(1, wait).await.is_none());
        drop(all);
        assert!(budget.take(1, wait).await.is_some());
    }
}
