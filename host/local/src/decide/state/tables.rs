//! The tables of groups' state, as part of the committed state.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use millrace_engine::contract::CommitError;
use millrace_engine::room::{Growth, Kept, Room, RoomFull};
use millrace_engine::state::keeper::{Footing, KeepTable as _, TableStep};
use millrace_engine::state::{StateTable, StateWrite, StateWrites};
use millrace_model::bounds::STATE_FILES_MAX;
use millrace_model::{GroupName, Timestamp, TopicPartition};

use super::{Changes, Contradiction, Group, State};

/// The fraction of the memory for state that one table may cost before it moves to files.
const TABLE_PART: usize = 8;
/// The fraction, as numerator and denominator, that all tables together may cost before the largest
/// ones move.
const ALL_PARTS: [usize; 2] = [3, 4];

/// Free disk space that paging a table requires, as a multiple of its memory cost: for its file,
/// and for the database's own journal of the deleted rows.
const PAGED_ROOM: u64 = 2;

/// Expired entries that one checkpoint removes from all state; the next one continues.
const SWEPT_ENTRIES_MAX: usize = 100_000;

/// Whether a group's tables may be paged: only those of processors.
pub(crate) fn may_be_paged(group: &GroupName) -> bool {
    Kept::of_group(group) == Kept::State
}

impl State {
    pub(super) fn apply_state(
        &mut self,
        partition: TopicPartition,
        name: GroupName,
        writes: &StateWrites,
    ) -> Result<(), Contradiction> {
        if !self.partitions.contains_key(&partition) {
            return Err("it writes state of an unknown partition");
        }
        self.table(partition, &name).apply(writes)?;
        self.note_table(partition, name);
        Ok(())
    }

    /// Checks that each table has room for its writes.
    pub(super) fn check_state(&self, writes: &[StateWrite]) -> Result<(), CommitError> {
        for write in writes {
            let group = self.group(write.partition, &write.group);
            let Some(table) = group.and_then(|group| group.state.as_ref()) else {
                continue;
            };
            if !table.can_apply(&write.writes) {
                let what = "what the writes say of it does not go with what it holds";
                return Err(CommitError::State(what.into()));
            }
            // Each file is one more to look into. A table that is emptied gets rid of all.
            let grows = write.writes.keep_values() && !write.writes.resets;
            if grows && table.part_count() >= STATE_FILES_MAX {
                let what = "it stands in too many files; merging them does not keep up, or the disk has no room for it";
                return Err(CommitError::State(what.into()));
            }
        }
        Ok(())
    }

    /// What the host will keep more with these writes, on top of what was decided before; whether it has room for that.
    pub(super) fn check_room(
        &self,
        decided: Growth,
        writes: &[StateWrite],
    ) -> Result<Growth, RoomFull> {
        if writes.is_empty() {
            return Ok(decided);
        }
        let decided = self.check_stored(decided, writes)?;
        let growing = || {
            let growing = writes.iter().filter(|write| write.writes.keep_values());
            growing.filter(|write| !may_be_paged(&write.group))
        };
        let mut most = decided;
        growing().for_each(|write| most.add(Kept::of_group(&write.group), write.writes.cost()));
        if most == decided || self.room.check(&most).is_ok() {
            return Ok(most);
        }
        // Near the bound the exact size is computed: an existing key takes the place that it has.
        let mut exact = decided;
        for write in growing() {
            let group = self.group(write.partition, &write.group);
            let growth = match group.and_then(|group| group.state.as_ref()) {
                Some(table) => table.growth(&write.writes),
                None => write.writes.cost(),
            };
            exact.add(Kept::of_group(&write.group), growth);
        }
        if exact != decided {
            self.room.check(&exact)?;
        }
        Ok(exact)
    }

    /// As much as concerns processors' state, which is bounded by the disk: what there will be of it is known exactly.
    fn check_stored(&self, decided: Growth, writes: &[StateWrite]) -> Result<Growth, RoomFull> {
        let (mut more, mut keeps_values) = (0, false);
        for write in writes.iter().filter(|write| may_be_paged(&write.group)) {
            let group = self.group(write.partition, &write.group);
            let table = group.and_then(|group| group.state.as_deref());
            more += match table {
                Some(table) => table.stores(&write.writes),
                None => StateTable::default().stores(&write.writes),
            };
            keeps_values |= write.writes.keep_values();
        }
        let mut growth = decided;
        growth.store(more);
        // Making state smaller is always allowed.
        if keeps_values && more > 0 {
            self.room.check(&growth)?;
        }
        Ok(growth)
    }

    /// Removes expired entries from tables that are not in use.
    pub(crate) fn sweep(&mut self, now: Timestamp) {
        let mut swept = Vec::new();
        let mut left = SWEPT_ENTRIES_MAX;
        for (partition, groups) in &self.groups {
            for (name, group) in groups {
                let Some(table) = group.state.as_ref().filter(|_| left > 0) else {
                    continue;
                };
                let count = table.sweep_idle(now, left);
                left = left.saturating_sub(count);
                if count > 0 {
                    swept.push((*partition, name.clone()));
                }
            }
        }
        for (partition, name) in swept {
            self.note_table(partition, name);
        }
    }

    /// The paged tables, in order.
    pub(crate) fn paged_tables(&self) -> Vec<(TopicPartition, GroupName, Arc<StateTable>)> {
        let groups = self.groups.iter();
        let groups = groups.flat_map(|(at, groups)| groups.iter().map(move |(n, g)| (at, n, g)));
        let paged = groups.filter_map(|(partition, name, group)| {
            let table = group.state.as_ref().filter(|table| table.is_paged())?;
            Some((*partition, name.clone(), Arc::clone(table)))
        });
        let mut paged: Vec<_> = paged.collect();
        paged.sort_unstable_by(|one, other| (one.0, &one.1).cmp(&(other.0, &other.1)));
        paged
    }

    /// Makes the next checkpoint look at the table, if it still exists, to record what is known
    /// about its places of expiry.
    pub(crate) fn note_places(&mut self, partition: TopicPartition, name: &GroupName) {
        let groups = self.groups.get(&partition);
        if groups.is_some_and(|groups| groups.contains_key(name)) {
            self.note_table(partition, name.clone());
        }
    }

    /// Makes the next checkpoint look at the table.
    fn note_table(&mut self, partition: TopicPartition, name: GroupName) {
        let groups = self.groups.entry(partition).or_default();
        let group = groups.entry(name.clone()).or_default();
        if !std::mem::replace(&mut group.state_changed, true) {
            self.changed.tables.push((partition, name));
        }
    }

    /// Adds a table from the checkpoint, of a group in an existing partition.
    pub(crate) fn insert_table(
        &mut self,
        partition: TopicPartition,
        name: &GroupName,
        table: StateTable,
    ) -> Arc<StateTable> {
        let table = Arc::new(table.into_room(&self.room, name));
        let groups = self.groups.entry(partition).or_default();
        let group = groups.entry(name.clone()).or_default();
        group.state = Some(Arc::clone(&table));
        table
    }

    /// The state of a group in an existing partition.
    pub(crate) fn table(&mut self, partition: TopicPartition, name: &GroupName) -> Arc<StateTable> {
        let groups = self.groups.entry(partition).or_default();
        let group = match groups.get_mut(name) {
            Some(group) => group,
            None => groups.entry(name.clone()).or_default(),
        };
        let made = || Arc::new(StateTable::in_room(&self.room, name));
        Arc::clone(group.state.get_or_insert_with(made))
    }

    /// The partitions in which a group's table has entries.
    pub(crate) fn tables_of(&self, name: &GroupName) -> Vec<TopicPartition> {
        let has_entries = |groups: &HashMap<GroupName, Group>| {
            let table = groups.get(name).and_then(|group| group.state.as_ref());
            table.is_some_and(|table| table.size().entries > 0)
        };
        let found = self.groups.iter().filter(|(_, groups)| has_entries(groups));
        let mut found: Vec<_> = found.map(|(partition, _)| *partition).collect();
        found.sort_unstable();
        found
    }

    /// What a checkpoint must write of these tables, and of tables that become paged now.
    pub(super) fn take_tables(
        &mut self,
        mut changed: Vec<(TopicPartition, GroupName)>,
    ) -> Vec<(TopicPartition, GroupName, TableStep)> {
        let large = self.to_be_paged();
        changed.extend(self.unwritten());
        let is_unnoted = |(partition, name): &&(TopicPartition, GroupName)| {
            let group = self.group(*partition, name);
            group.is_some_and(|group| !group.state_changed)
        };
        changed.extend(large.iter().filter(is_unnoted).cloned());
        // Sorted, so that the disk always sees the same work in the same order.
        changed.sort_unstable();
        let mut taken = Vec::with_capacity(changed.len());
        for at in changed {
            let found = self.groups.get_mut(&at.0);
            let Some(group) = found.and_then(|groups| groups.get_mut(&at.1)) else {
                continue;
            };
            group.state_changed = false;
            let step = group.state.as_ref();
            let step = step.and_then(|table| table.take_step(large.contains(&at)));
            taken.extend(step.map(|step| (at.0, at.1, step)));
        }
        taken
    }

    /// Tables without writes that still have something for a file: vacant places of expiry.
    fn unwritten(&self) -> Vec<(TopicPartition, GroupName)> {
        if self.room.unwritten() == 0 {
            return Vec::new();
        }
        let groups = self.groups.iter();
        let groups = groups.flat_map(|(at, groups)| groups.iter().map(move |(n, g)| (at, n, g)));
        let unwritten = groups.filter(|(_, _, group)| {
            let table = group.state.as_ref().filter(|_| !group.state_changed);
            table.is_some_and(|table| table.has_unwritten())
        });
        unwritten.map(|(at, name, _)| (*at, name.clone())).collect()
    }

    /// Tables that should no longer be completely in memory: each one that costs more than its
    /// fraction of the memory for state, and the largest ones while all together take too much. If
    /// that is not enough, filters and indexes of files are released.
    fn to_be_paged(&self) -> BTreeSet<(TopicPartition, GroupName)> {
        let of_one = self.room.bounds().state_bytes / TABLE_PART;
        let of_one = self.store.state_resident_bytes.unwrap_or(of_one);
        let of_all = of_all(&self.room);
        let mut large = BTreeSet::new();
        // A single table cannot cost more than all together.
        if self.room.held(Kept::State) <= of_one.min(of_all) {
            return large;
        }
        let (mut resident, mut paged) = (Vec::new(), Vec::new());
        for (partition, groups) in &self.groups {
            for (name, group) in groups.iter().filter(|(name, _)| may_be_paged(name)) {
                let Some(table) = &group.state else { continue };
                match table.footing() {
                    Footing::Resident(0) => {}
                    Footing::Resident(cost) => resident.push((cost, *partition, name)),
                    Footing::Paged(cost) => paged.push((cost, table)),
                }
            }
        }
        let of_resident: usize = resident.iter().map(|(cost, ..)| cost).sum();
        let mut stays = of_resident + paged.iter().map(|(cost, _)| cost).sum::<usize>();
        resident.sort_unstable();
        let mut free = self.store.free_bytes();
        for (cost, partition, name) in resident.into_iter().rev() {
            if cost > of_one || stays > of_all {
                // A checkpoint that cannot write the table makes nothing durable, and frees
                // nothing.
                let needs = cost as u64 * PAGED_ROOM;
                if needs > free {
                    tracing::warn!(%partition, group = %name, needs, free, "the disk has no space for a file of state: the state stays in memory. Free some space");
                    continue;
                }
                free -= needs;
                stays -= cost;
                large.insert((partition, name.clone()));
            }
        }
        paged.sort_unstable_by_key(|(cost, _)| std::cmp::Reverse(*cost));
        for (cost, table) in paged {
            if stays > of_all {
                stays -= cost;
                table.forget_cost();
            }
        }
        large
    }
}

/// The memory that all tables together may cost before the largest ones move to files.
pub(super) fn of_all(room: &Room) -> usize {
    let [parts, of_parts] = ALL_PARTS;
    room.state_budget() / of_parts * parts
}

impl Changes {
    /// Adds later steps of tables, and drops the parts of earlier ones that they replace.
    pub(super) fn merge_tables(&mut self, later: Vec<(TopicPartition, GroupName, TableStep)>) {
        let say_all = later.iter().filter(|(_, _, step)| step.says_all());
        let say_all: HashSet<_> = say_all.map(|(at, name, _)| (*at, name.clone())).collect();
        self.tables
            .retain(|(at, name, _)| !say_all.contains(&(*at, name.clone())));
        self.tables.extend(later);
    }
}
