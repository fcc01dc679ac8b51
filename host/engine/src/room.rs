//! The memory that a host uses for delayed messages and processors' state, in bytes as their tables cost, and its bounds: one for each,
//! and one for both. The same for every engine, with one exception: if state can be in files ([`Room::with_files`]), memory is no
//! reason to refuse it, and its size on disk is bounded instead.
//!
//! An engine checks each transaction against it ([`Room::check`]), so the bounds hold however many write at once. A table reports its
//! cost whenever it changes, and returns all of it when it is dropped.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};

use millrace_model::bounds::{
    HOST_DELAYED_BYTES_MAX, HOST_KEPT_BYTES_MAX, HOST_PARTITIONS_MAX, HOST_STATE_BYTES_MAX,
    REQUESTS_BYTES_MAX, STATE_BYTES_MAX, STATE_ENTRIES_MAX,
};
use millrace_model::{Advice, Advised, Code, GroupName};

use crate::state::{Adds, StateSize};

/// The group of delayed messages.
pub static DELAYS_GROUP: LazyLock<GroupName> = LazyLock::new(|| GroupName::service("delays"));

/// The group of consumers.
pub static CONSUMERS_GROUP: LazyLock<GroupName> = LazyLock::new(|| GroupName::service("consumers"));

/// The kinds of data that take room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Delayed messages.
    Delayed,
    /// Consumers of topics: always in memory.
    Consumers,
    /// State of processors.
    State,
}

impl Kept {
    const COUNT: usize = 3;

    /// The kind of a group's state.
    #[must_use]
    pub fn of_group(group: &GroupName) -> Self {
        match group {
            group if *group == *DELAYS_GROUP => Self::Delayed,
            group if *group == *CONSUMERS_GROUP => Self::Consumers,
            _ => Self::State,
        }
    }
}

/// The bounds of a host, and those of one processor's state in one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostBounds {
    /// Bytes of delayed messages.
    pub delayed_bytes: usize,
    /// Bytes of memory for processors' state.
    pub state_bytes: usize,
    /// Bytes of both together.
    pub kept_bytes: usize,
    /// Bytes of processors' state in files; `None` is half of the disk.
    pub state_disk_bytes: Option<usize>,
    /// Maximum state of one processor in one partition.
    pub table: StateSize,
    /// Bytes of idempotency keys; the oldest are forgotten.
    pub requests_bytes: usize,
    /// Partitions of all topics, including those of processors.
    pub partitions: usize,
}

impl Default for HostBounds {
    fn default() -> Self {
        Self {
            delayed_bytes: HOST_DELAYED_BYTES_MAX,
            state_bytes: HOST_STATE_BYTES_MAX,
            kept_bytes: HOST_KEPT_BYTES_MAX,
            state_disk_bytes: None,
            table: TABLE_MAX,
            requests_bytes: REQUESTS_BYTES_MAX,
            partitions: HOST_PARTITIONS_MAX,
        }
    }
}

/// Default maximum of one processor's state in one partition.
pub const TABLE_MAX: StateSize = StateSize {
    entries: STATE_ENTRIES_MAX,
    bytes: STATE_BYTES_MAX,
};

/// The bound of a host that was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostBound {
    /// That of delayed messages in memory.
    Delayed,
    /// That of state in memory.
    State,
    /// That of both together.
    Together,
    /// That of state on the disk.
    StateDisk,
}

/// The host has no room; nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the host has {held} bytes of {}, and the maximum is {max} ({}): {}",
    self.what(), self.setting(), self.remedy()
)]
pub struct RoomFull {
    /// What needed room.
    pub kept: Kept,
    /// The bound.
    pub bound: HostBound,
    /// Bytes in use.
    pub held: usize,
    /// The bound.
    pub max: usize,
}

impl Advised for RoomFull {
    /// The host's bound is answered like a partition's; the text says which one it is.
    fn advice(&self) -> Advice {
        match self.kept {
            Kept::Delayed => Code::DelaysFull.advice(),
            Kept::Consumers | Kept::State => Code::StateBound.advice(),
        }
    }
}

impl RoomFull {
    fn what(&self) -> &'static str {
        match self.bound {
            HostBound::Together => "delayed messages and state in memory",
            HostBound::Delayed => "delayed messages in memory",
            HostBound::State => "state in memory",
            HostBound::StateDisk => "state on the disk",
        }
    }

    /// The bound's setting.
    #[must_use]
    pub fn setting(&self) -> &'static str {
        match self.bound {
            HostBound::Together => "kept_bytes_max",
            HostBound::Delayed => "delayed_bytes_max",
            HostBound::State => "state_bytes_max",
            HostBound::StateDisk => "state_disk_bytes_max",
        }
    }

    fn remedy(&self) -> &'static str {
        match self.kept {
            Kept::Delayed => "wait until some messages are delivered, or cancel some",
            Kept::Consumers => "delete consumers that are no longer used",
            Kept::State if self.bound == HostBound::StateDisk => {
                "delete some entries, give them a time to live, reset what is no longer used, or raise the bound if the disk has space"
            }
            Kept::State => "delete some entries, or give them a time to live",
        }
    }
}

/// The use of room. Cheap to read.
#[derive(Debug, Default)]
pub struct Room {
    bounds: HostBounds,
    /// Maximum bytes of state on the disk; `None` if all of it is in memory.
    disk_bytes_max: Option<usize>,
    held: [AtomicUsize; Kept::COUNT],
    /// Bytes of processors' state, in memory and in files.
    stored: AtomicUsize,
    /// Memory of changes to tables in files that are not in a file yet.
    unwritten: AtomicUsize,
}

/// Additional room: bytes of memory of each kind, and the change of processors' state on the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Growth {
    memory: [usize; Kept::COUNT],
    stored: i64,
}

impl Growth {
    /// This many more bytes of memory.
    pub fn add(&mut self, kept: Kept, bytes: usize) {
        let memory = &mut self.memory[kept as usize];
        *memory = memory.saturating_add(bytes);
    }

    /// This many more bytes of processors' state.
    pub fn store(&mut self, bytes: i64) {
        self.stored = self.stored.saturating_add(bytes);
    }

    fn of(&self, kept: Kept) -> usize {
        self.memory[kept as usize]
    }

    /// The sum of both.
    #[must_use]
    pub fn with(mut self, more: Self) -> Self {
        for (memory, more) in self.memory.iter_mut().zip(more.memory) {
            *memory = memory.saturating_add(more);
        }
        self.store(more.stored);
        self
    }
}

impl Room {
    /// Empty, with everything in memory.
    #[must_use]
    pub fn new(bounds: HostBounds) -> Arc<Self> {
        Arc::new(Self {
            bounds,
            ..Self::default()
        })
    }

    /// The same with processors' state in files, on a disk with this many bytes for it unless the bounds say otherwise.
    #[must_use]
    pub fn with_files(bounds: HostBounds, disk_bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            bounds,
            disk_bytes_max: Some(bounds.state_disk_bytes.unwrap_or(disk_bytes)),
            ..Self::default()
        })
    }

    /// The bounds.
    #[must_use]
    pub fn bounds(&self) -> &HostBounds {
        &self.bounds
    }

    /// Bytes of memory in use.
    #[must_use]
    pub fn held(&self, kept: Kept) -> usize {
        self.held[kept as usize].load(Relaxed)
    }

    /// Bytes of processors' state, in memory and in files.
    #[must_use]
    pub fn stored(&self) -> usize {
        self.stored.load(Relaxed)
    }

    /// Memory of changes to tables in files that are not in a file yet.
    #[must_use]
    pub fn unwritten(&self) -> usize {
        self.unwritten.load(Relaxed)
    }

    /// Memory that processors' state may use: the part of its share that others leave.
    #[must_use]
    pub fn state_budget(&self) -> usize {
        let (delayed, consumers) = (self.held(Kept::Delayed), self.held(Kept::Consumers));
        let left = self.bounds.kept_bytes.saturating_sub(delayed);
        self.bounds.state_bytes.min(left).saturating_sub(consumers)
    }

    /// Whether there is room for this.
    ///
    /// # Errors
    /// [`RoomFull`] names the first bound reached.
    pub fn check(&self, growth: &Growth) -> Result<(), RoomFull> {
        self.check_stored(growth)?;
        let of_state = |kept| match self.disk_bytes_max {
            // State moves to files to make room for them.
            Some(_) => self.held(kept),
            None => self.held(Kept::Consumers) + self.held(Kept::State),
        };
        for kept in [Kept::Delayed, Kept::Consumers, Kept::State] {
            let more = growth.of(kept);
            if more == 0 || kept == Kept::State && self.disk_bytes_max.is_some() {
                continue;
            }
            let (held, max, bound) = match kept {
                Kept::Delayed => (
                    self.held(kept),
                    self.bounds.delayed_bytes,
                    HostBound::Delayed,
                ),
                _ => (of_state(kept), self.bounds.state_bytes, HostBound::State),
            };
            self.check_bound(kept, bound, held, more, max)?;
            let all = growth.memory.iter().sum::<usize>();
            let (held, max) = (self.held_together(), self.bounds.kept_bytes);
            self.check_bound(kept, HostBound::Together, held, all, max)?;
        }
        Ok(())
    }

    fn check_stored(&self, growth: &Growth) -> Result<(), RoomFull> {
        let (Some(max), Ok(more)) = (self.disk_bytes_max, usize::try_from(growth.stored)) else {
            return Ok(());
        };
        match more {
            0 => Ok(()),
            more => self.check_bound(Kept::State, HostBound::StateDisk, self.stored(), more, max),
        }
    }

    fn check_bound(
        &self,
        kept: Kept,
        bound: HostBound,
        held: usize,
        more: usize,
        max: usize,
    ) -> Result<(), RoomFull> {
        match held.saturating_add(more) > max {
            true => Err(RoomFull {
                kept,
                bound,
                held,
                max,
            }),
            false => Ok(()),
        }
    }

    fn held_together(&self) -> usize {
        let held = self.held.iter().map(|held| held.load(Relaxed));
        held.fold(0, usize::saturating_add)
    }
}

/// The room that a table takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counted {
    /// Bytes of memory.
    pub(crate) cost: usize,
    /// Bytes of its entries, in memory and in files.
    pub(crate) stored: usize,
    /// Memory of changes that are not in a file yet.
    pub(crate) unwritten: usize,
}

/// One table's use of room; none if it belongs to no host.
#[derive(Debug, Default)]
pub(crate) struct Share(Option<(Arc<Room>, Kept)>);

impl Share {
    pub(crate) fn of(room: &Arc<Room>, group: &GroupName) -> Self {
        Self(Some((Arc::clone(room), Kept::of_group(group))))
    }

    /// Updates what the table counts for.
    pub(crate) fn moved(&self, before: Counted, after: Counted) {
        let Some((room, kept)) = self.0.as_ref().filter(|_| before != after) else {
            return;
        };
        let moved =
            |counter: &AtomicUsize, before: usize, after: usize| match after.checked_sub(before) {
                Some(more) => counter.fetch_add(more, Relaxed),
                None => counter.fetch_sub(before - after, Relaxed),
            };
        moved(&room.held[*kept as usize], before.cost, after.cost);
        if *kept == Kept::State {
            moved(&room.stored, before.stored, after.stored);
            moved(&room.unwritten, before.unwritten, after.unwritten);
        }
    }

    /// The table's own maximum, regardless of the host's.
    pub(crate) fn bounds(&self) -> StateSize {
        let room = self.0.as_ref();
        room.map_or(TABLE_MAX, |(room, _)| room.bounds.table)
    }

    /// Whether the host has room for more of this.
    pub(crate) fn check(&self, more: Adds) -> Result<(), RoomFull> {
        let Some((room, kept)) = &self.0 else {
            return Ok(());
        };
        let mut growth = Growth::default();
        growth.add(*kept, more.cost());
        if *kept == Kept::State {
            growth.store(more.bytes);
        }
        room.check(&growth)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::named;
    use crate::state::ENTRY_COST_BYTES;

    const BOUNDS: HostBounds = HostBounds {
        delayed_bytes: 100,
        state_bytes: 200,
        kept_bytes: 250,
        state_disk_bytes: Some(1_000),
        table: TABLE_MAX,
        requests_bytes: 0,
        partitions: 0,
    };

    fn growth(kept: Kept, bytes: usize) -> Growth {
        let mut growth = Growth::default();
        growth.add(kept, bytes);
        growth
    }

    fn cost(cost: usize) -> Counted {
        Counted {
            cost,
            ..Counted::default()
        }
    }

    fn bytes(bytes: i64) -> Adds {
        Adds { entries: 0, bytes }
    }

    #[test]
    fn each_kind_has_its_bound_and_both_together_have_one() {
        let room = Room::new(BOUNDS);
        let (delayed, state) = (
            Share::of(&room, &DELAYS_GROUP),
            Share::of(&room, &named("p")),
        );
        delayed.moved(cost(0), cost(90));
        assert_eq!(room.check(&growth(Kept::Delayed, 10)), Ok(()));
        let full = room.check(&growth(Kept::Delayed, 11)).unwrap_err();
        assert_eq!((full.setting(), full.held), ("delayed_bytes_max", 90));
        assert_eq!(state.check(bytes(160)), Ok(()));
        let setting = |share: &Share, more| share.check(bytes(more)).unwrap_err().setting();
        assert_eq!(setting(&state, 161), "kept_bytes_max");
        state.moved(cost(0), cost(160));
        assert_eq!(setting(&delayed, 1), "kept_bytes_max");
        assert_eq!(room.check(&Growth::default()), Ok(()));
        delayed.moved(cost(90), cost(0));
        assert_eq!(setting(&state, 41), "state_bytes_max");
        assert_eq!(
            setting(&Share::of(&room, &CONSUMERS_GROUP), 41),
            "state_bytes_max"
        );
        state.moved(cost(160), cost(10));
        assert_eq!((room.held(Kept::Delayed), room.held(Kept::State)), (0, 10));
    }

    #[test]
    fn state_that_may_stand_in_files_is_bounded_by_the_disk_and_makes_room_in_memory() {
        let room = Room::with_files(BOUNDS, 7);
        let (delayed, state) = (
            Share::of(&room, &DELAYS_GROUP),
            Share::of(&room, &named("p")),
        );
        let consumers = Share::of(&room, &CONSUMERS_GROUP);
        let stored = |stored| Counted {
            cost: 220,
            stored,
            unwritten: 30,
        };
        state.moved(Counted::default(), stored(900));
        assert_eq!((room.stored(), room.unwritten()), (900, 30));
        assert_eq!(state.check(bytes(100)), Ok(()), "more than memory has");
        let full = state.check(bytes(101)).unwrap_err();
        assert_eq!((full.held, full.max), (900, 1_000));
        assert!(full.to_string().contains("(state_disk_bytes_max): delete"));
        let smaller = Adds {
            entries: -1,
            bytes: 101,
        };
        assert!(101 < ENTRY_COST_BYTES as i64, "it costs less memory");
        assert!(state.check(smaller).is_err(), "and more of the disk");
        // Consumers are always in memory; state limits them only through the bound of both
        // together.
        assert_eq!(consumers.check(bytes(30)), Ok(()));
        consumers.moved(cost(0), cost(150));
        state.moved(stored(900), stored(0));
        let full = consumers.check(bytes(51)).unwrap_err();
        assert_eq!((full.setting(), full.held), ("state_bytes_max", 150));
        assert_eq!(room.state_budget(), 50);
        delayed.moved(cost(0), cost(80));
        assert_eq!(room.state_budget(), 20);
        assert_eq!(state.check(bytes(1_000)), Ok(()));
        assert!(state.check(bytes(-1)).is_ok() && state.check(bytes(0)).is_ok());
    }
}
