//! How much a host keeps in memory for others: delayed messages and processors' state, counted in bytes as their tables cost, and
//! their bounds: one for each, and one for both together. The same for every engine.
//!
//! An engine decides each transaction against it ([`Room::check`]), so the bounds hold however many write at once. A table moves what
//! it costs whenever it changes, and gives all of it back when it is dropped: what counts is what is in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use millrace_model::bounds::{
    HOST_DELAYED_BYTES_MAX, HOST_KEPT_BYTES_MAX, HOST_PARTITIONS_MAX, HOST_STATE_BYTES_MAX,
    REQUESTS_BYTES_MAX,
};

use crate::contract::TopicError;

/// The group whose state delayed messages are; no processor's name.
pub const DELAYS_GROUP: &str = "~delays";

/// The group whose state consumers of topics are; no processor's name.
pub const CONSUMERS_GROUP: &str = "~consumers";

/// What is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Messages that wait for their time.
    Delayed,
    /// State of processors.
    State,
}

impl Kept {
    const COUNT: usize = 2;

    /// What the state of a group is.
    #[must_use]
    pub fn of_group(group: &str) -> Self {
        match group {
            DELAYS_GROUP => Self::Delayed,
            _ => Self::State,
        }
    }
}

/// The bounds of a host, whatever the bounds of one partition say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostBounds {
    /// Bytes of delayed messages.
    pub delayed_bytes: usize,
    /// Bytes of processors' state.
    pub state_bytes: usize,
    /// Bytes of both together.
    pub kept_bytes: usize,
    /// Bytes of idempotency keys; the oldest go.
    pub requests_bytes: usize,
    /// Partitions of all topics together, those of processors included.
    pub partitions: usize,
}

impl Default for HostBounds {
    fn default() -> Self {
        Self {
            delayed_bytes: HOST_DELAYED_BYTES_MAX,
            state_bytes: HOST_STATE_BYTES_MAX,
            kept_bytes: HOST_KEPT_BYTES_MAX,
            requests_bytes: REQUESTS_BYTES_MAX,
            partitions: HOST_PARTITIONS_MAX,
        }
    }
}

/// No room in the host; nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the host keeps {held} bytes of {} in memory, at most {max} are kept ({}): {}",
    self.what(), self.setting(), self.remedy()
)]
pub struct RoomFull {
    /// What was to be kept.
    pub kept: Kept,
    /// Whether the bound of both together is meant, not that of its kind.
    pub together: bool,
    /// Bytes that are kept.
    pub held: usize,
    /// The bound.
    pub max: usize,
}

impl RoomFull {
    fn what(&self) -> &'static str {
        match (self.together, self.kept) {
            (true, _) => "delayed messages and state",
            (false, Kept::Delayed) => "delayed messages",
            (false, Kept::State) => "state",
        }
    }

    /// The bound's name, as it is set.
    #[must_use]
    pub fn setting(&self) -> &'static str {
        match (self.together, self.kept) {
            (true, _) => "kept_bytes_max",
            (false, Kept::Delayed) => "delayed_bytes_max",
            (false, Kept::State) => "state_bytes_max",
        }
    }

    fn remedy(&self) -> &'static str {
        match self.kept {
            Kept::Delayed => "wait until some messages are delivered, or cancel some",
            Kept::State => "delete some entries, or give them a time to live",
        }
    }
}

/// How much is kept. Cheap to ask.
#[derive(Debug, Default)]
pub struct Room {
    bounds: HostBounds,
    held: [AtomicUsize; Kept::COUNT],
}

/// Bytes to be kept more, of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Growth([usize; Kept::COUNT]);

impl Growth {
    /// So many bytes more.
    pub fn add(&mut self, kept: Kept, bytes: usize) {
        self.0[kept as usize] = self.0[kept as usize].saturating_add(bytes);
    }

    fn of(&self, kept: Kept) -> usize {
        self.0[kept as usize]
    }

    /// This and that.
    #[must_use]
    pub fn with(mut self, more: Self) -> Self {
        self.add(Kept::Delayed, more.of(Kept::Delayed));
        self.add(Kept::State, more.of(Kept::State));
        self
    }
}

impl Room {
    /// Nothing is kept yet.
    #[must_use]
    pub fn new(bounds: HostBounds) -> Arc<Self> {
        Arc::new(Self {
            bounds,
            ..Self::default()
        })
    }

    /// The bounds.
    #[must_use]
    pub fn bounds(&self) -> &HostBounds {
        &self.bounds
    }

    /// Bytes that are kept.
    #[must_use]
    pub fn held(&self, kept: Kept) -> usize {
        self.held[kept as usize].load(Ordering::Relaxed)
    }

    /// Whether there is room for more.
    ///
    /// # Errors
    /// [`RoomFull`] names the bound that is met first.
    pub fn check(&self, growth: &Growth) -> Result<(), RoomFull> {
        for (kept, max) in [
            (Kept::Delayed, self.bounds.delayed_bytes),
            (Kept::State, self.bounds.state_bytes),
        ] {
            let more = growth.of(kept);
            if more == 0 {
                continue;
            }
            let (held, together) = (self.held(kept), self.held_together());
            if held.saturating_add(more) > max {
                return Err(RoomFull {
                    kept,
                    together: false,
                    held,
                    max,
                });
            }
            let all = growth.0.iter().sum::<usize>();
            if together.saturating_add(all) > self.bounds.kept_bytes {
                return Err(RoomFull {
                    kept,
                    together: true,
                    held: together,
                    max: self.bounds.kept_bytes,
                });
            }
        }
        Ok(())
    }

    /// Whether the host may have so many partitions more.
    pub(crate) fn check_partitions(&self, have: usize, asked: u32) -> Result<(), TopicError> {
        let max = self.bounds.partitions;
        if have.saturating_add(asked as usize) > max {
            return Err(TopicError::HostPartitions { have, asked, max });
        }
        Ok(())
    }

    fn held_together(&self) -> usize {
        self.held(Kept::Delayed)
            .saturating_add(self.held(Kept::State))
    }
}

/// What one table takes of the room; nothing where it belongs to no host.
#[derive(Debug, Default)]
pub(crate) struct Share(Option<(Arc<Room>, Kept)>);

impl Share {
    pub(crate) fn of(room: &Arc<Room>, group: &str) -> Self {
        Self(Some((Arc::clone(room), Kept::of_group(group))))
    }

    /// The table costs so much now.
    pub(crate) fn moved(&self, before: usize, after: usize) {
        let Some((room, kept)) = self.0.as_ref().filter(|_| before != after) else {
            return;
        };
        let held = &room.held[*kept as usize];
        match after.checked_sub(before) {
            Some(more) => held.fetch_add(more, Ordering::Relaxed),
            None => held.fetch_sub(before - after, Ordering::Relaxed),
        };
    }

    /// Whether the host has room for more of this.
    pub(crate) fn check(&self, more: usize) -> Result<(), RoomFull> {
        let Some((room, kept)) = &self.0 else {
            return Ok(());
        };
        let mut growth = Growth::default();
        growth.add(*kept, more);
        room.check(&growth)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn growth(delayed: usize, state: usize) -> Growth {
        let mut growth = Growth::default();
        growth.add(Kept::Delayed, delayed);
        growth.add(Kept::State, state);
        growth
    }

    #[test]
    fn each_kind_has_its_bound_and_both_together_have_one() {
        let room = Room::new(HostBounds {
            delayed_bytes: 100,
            state_bytes: 200,
            kept_bytes: 250,
            ..HostBounds::default()
        });
        let (delayed, state) = (Share::of(&room, DELAYS_GROUP), Share::of(&room, "p"));
        delayed.moved(0, 90);
        assert_eq!(room.check(&growth(10, 0)), Ok(()));
        let full = room.check(&growth(11, 0)).unwrap_err();
        assert_eq!((full.setting(), full.held), ("delayed_bytes_max", 90));
        assert_eq!(state.check(160), Ok(()));
        assert_eq!(state.check(161).unwrap_err().setting(), "kept_bytes_max");
        state.moved(0, 160);
        assert_eq!(delayed.check(1).unwrap_err().setting(), "kept_bytes_max");
        assert_eq!(room.check(&growth(0, 0)), Ok(()));
        delayed.moved(90, 0);
        assert_eq!(state.check(41).unwrap_err().setting(), "state_bytes_max");
        state.moved(160, 10);
        assert_eq!((room.held(Kept::Delayed), room.held(Kept::State)), (0, 10));
    }
}
