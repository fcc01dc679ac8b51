//! The tables of groups' state among what is committed.

use std::collections::HashMap;
use std::sync::Arc;

use millrace_model::{Timestamp, TopicPartition};

use super::{Contradiction, Group, State};
use crate::room::{Growth, Kept, RoomFull};
use crate::state::{StateTable, StateWrite, StateWrites, TableChanges};

/// Ended entries that a checkpoint removes, of all state together; the next one goes on.
const SWEPT_ENTRIES_MAX: usize = 100_000;

impl State {
    pub(super) fn apply_state(
        &mut self,
        partition: TopicPartition,
        name: Arc<str>,
        writes: &StateWrites,
    ) -> Result<(), Contradiction> {
        if !self.partitions.contains_key(&partition) {
            return Err("it writes state of an unknown partition");
        }
        self.table(partition, &name).apply(writes);
        self.note_table(partition, name);
        Ok(())
    }

    /// What the host will keep more with these writes, on top of what was decided before; whether it has room for that.
    pub(super) fn check_room(
        &self,
        decided: Growth,
        writes: &[StateWrite],
    ) -> Result<Growth, RoomFull> {
        let growing = || writes.iter().filter(|write| write.writes.keep_values());
        let mut most = decided;
        growing().for_each(|write| most.add(Kept::of_group(&write.group), write.writes.cost()));
        if most == decided || self.room.check(&most).is_ok() {
            return Ok(most);
        }
        // Near the bound it is looked at closely: a key that is there takes the place that it has.
        let mut exact = Growth::default();
        for write in growing() {
            let group = self.group(write.partition, &write.group);
            let growth = match group.and_then(|group| group.state.as_ref()) {
                Some(table) => table.growth(&write.writes),
                None => write.writes.cost(),
            };
            exact.add(Kept::of_group(&write.group), growth);
        }
        if exact != Growth::default() {
            self.room.check(&decided.with(exact))?;
        }
        Ok(decided.with(exact))
    }

    /// Removes entries that have ended, where nobody is at work with them.
    pub(in crate::local) fn sweep(&mut self, now: Timestamp) {
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
                    swept.push((*partition, Arc::clone(name)));
                }
            }
        }
        for (partition, name) in swept {
            self.note_table(partition, name);
        }
    }

    /// What the next checkpoint has to look at.
    fn note_table(&mut self, partition: TopicPartition, name: Arc<str>) {
        let groups = self.groups.entry(partition).or_default();
        let group = groups.entry(Arc::clone(&name)).or_default();
        if !std::mem::replace(&mut group.state_changed, true) {
            self.changed.tables.push((partition, name));
        }
    }

    /// A table of the checkpoint, of a group in a partition that is there.
    pub(in crate::local) fn insert_table(
        &mut self,
        partition: TopicPartition,
        name: &str,
        table: StateTable,
    ) {
        let table = table.into_room(&self.room, name);
        let groups = self.groups.entry(partition).or_default();
        let group = groups.entry(name.into()).or_default();
        group.state = Some(Arc::new(table));
    }

    /// The state of a group in a partition that is there.
    pub(in crate::local) fn table(
        &mut self,
        partition: TopicPartition,
        name: &str,
    ) -> Arc<StateTable> {
        let groups = self.groups.entry(partition).or_default();
        let group = match groups.get_mut(name) {
            Some(group) => group,
            None => groups.entry(name.into()).or_default(),
        };
        let made = || Arc::new(StateTable::in_room(&self.room, name));
        Arc::clone(group.state.get_or_insert_with(made))
    }

    /// The partitions in which a group's table has entries.
    pub(in crate::local) fn tables_of(&self, name: &str) -> Vec<TopicPartition> {
        let has_entries = |groups: &HashMap<Arc<str>, Group>| {
            let table = groups.get(name).and_then(|group| group.state.as_ref());
            table.is_some_and(|table| table.size().entries > 0)
        };
        let found = self.groups.iter().filter(|(_, groups)| has_entries(groups));
        let mut found: Vec<_> = found.map(|(partition, _)| *partition).collect();
        found.sort_unstable();
        found
    }

    /// What a checkpoint has to write of these.
    pub(super) fn take_tables(
        &mut self,
        changed: Vec<(TopicPartition, Arc<str>)>,
    ) -> Vec<(TopicPartition, Arc<str>, TableChanges)> {
        let mut taken = Vec::with_capacity(changed.len());
        for (partition, name) in changed {
            let found = self.groups.get_mut(&partition);
            let Some(group) = found.and_then(|groups| groups.get_mut(&name)) else {
                continue;
            };
            group.state_changed = false;
            let changes = group.state.as_ref().map(|table| table.take_changes());
            taken.extend(changes.map(|changes| (partition, name, changes)));
        }
        taken
    }
}
