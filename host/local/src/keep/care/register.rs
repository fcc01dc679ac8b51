//! The known damage of messages, modules and files of state, in memory. Records that are not
//! committed yet are `dirty`.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use bytes::Bytes;
use millrace_engine::contract::{EntryKind, EntryWrite};
use millrace_engine::damage::{DamageKind, DamagedRange, DamagedState, FoundBy};
use millrace_log::partition::verify::Damage;
use millrace_model::{Digest, Offset, Timestamp, TopicPartition};
use parking_lot::Mutex;

/// Maximum number of recorded ranges: if a disk lost everything, the first ones say enough.
const RANGES_MAX: usize = 10_000;

/// Damage as a reader met it.
pub(crate) struct Met {
    pub(super) partition: TopicPartition,
    pub(super) from: Offset,
    pub(super) to: Offset,
    pub(super) kind: DamageKind,
    pub(super) file: String,
    pub(super) found_at: Timestamp,
    pub(super) found_by: FoundBy,
}

/// All known damage.
#[derive(Default)]
pub(crate) struct Register(Mutex<Known>);

#[derive(Default)]
struct Known {
    /// By partition and first offset.
    ranges: BTreeMap<(TopicPartition, Offset), DamagedRange>,
    modules: BTreeSet<Digest>,
    /// By file. Not stored: the next search finds them again, because there are few and it reads
    /// them all.
    state: BTreeMap<String, DamagedState>,
    /// Places where a reader met damage whose extent is not known yet.
    suspects: BTreeSet<(TopicPartition, Offset)>,
    /// Keys of entries to write, or to remove if the range no longer exists.
    dirty: BTreeSet<(TopicPartition, Offset)>,
}

impl Register {
    /// The stored records. Entries that cannot be read are left alone.
    pub(super) fn of<'a>(stored: impl Iterator<Item = &'a Bytes>) -> Self {
        let read = |value: &Bytes| serde_json::from_slice::<DamagedRange>(value).ok();
        let ranges = stored.filter_map(read);
        let known = Known {
            ranges: ranges.map(|r| ((r.partition, r.from), r)).collect(),
            ..Known::default()
        };
        known.measure();
        Self(Mutex::new(known))
    }

    pub(super) fn ranges(&self) -> Vec<DamagedRange> {
        self.0.lock().ranges.values().cloned().collect()
    }

    pub(super) fn modules(&self) -> Vec<Digest> {
        self.0.lock().modules.iter().copied().collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.lock().ranges.is_empty()
    }

    /// Records damage that a reader met; true if it was unknown.
    pub(super) fn suspect(&self, met: Met) -> bool {
        let mut known = self.0.lock();
        let mut meeting = known.meeting(met.partition, met.from..met.to);
        if meeting.any(|r| r.from <= met.from && met.to <= r.to) {
            return false;
        }
        drop(meeting);
        known.suspects.insert((met.partition, met.from));
        known.add(met, None);
        known.measure();
        true
    }

    pub(super) fn take_suspects(&self) -> BTreeSet<(TopicPartition, Offset)> {
        std::mem::take(&mut self.0.lock().suspects)
    }

    /// Replaces the records of a segment with these offsets, which was read completely, by the
    /// damage that was found.
    pub(super) fn replace(
        &self,
        partition: TopicPartition,
        offsets: &Range<Offset>,
        found: Vec<Damage>,
        met: impl Fn(&Damage) -> Met,
    ) {
        let mut known = self.0.lock();
        let old = known.meeting(partition, offsets.clone());
        let old: Vec<DamagedRange> = old.cloned().collect();
        for range in &old {
            let again = |d: &Damage| range.meets(d.offsets.start, d.offsets.end);
            if !found.iter().any(again) {
                tracing::info!(%partition, from = %range.from, to = %range.to, file = range.file, "damaged messages can be read again");
                known.remove((partition, range.from));
            }
        }
        for damage in found {
            known.add(met(&damage), Some(damage.bytes));
        }
        known.measure();
    }

    /// Records whether a module is damaged, and logs a change once.
    pub(super) fn note_module(&self, digest: Digest, damaged: bool) {
        let mut known = self.0.lock();
        let changed = match damaged {
            true => known.modules.insert(digest),
            false => known.modules.remove(&digest),
        };
        if changed && damaged {
            tracing::error!(%digest, "a module's bytes differ from those that were uploaded; it will not be loaded. Upload it again");
        } else if changed {
            tracing::info!(%digest, "a module is no longer damaged");
        }
        known.measure();
    }

    /// Records whether a completely read file of state is damaged, and logs a change once.
    pub(super) fn note_state(&self, file: String, damaged: Option<DamagedState>) {
        let mut known = self.0.lock();
        match (known.state.get(&file), damaged) {
            (None, Some(damaged)) => {
                tracing::error!(group = %damaged.group, partition = %damaged.partition, file, reason = damaged.reason, "a file of state is damaged; it stays where it is, and who needs what cannot be read in it waits");
                known.state.insert(file, damaged);
            }
            (Some(_), None) => {
                tracing::info!(file, "a file of state is no longer damaged");
                known.state.remove(&file);
            }
            (None, None) | (Some(_), Some(_)) => {}
        }
        known.measure();
    }

    pub(super) fn state(&self) -> Vec<DamagedState> {
        self.0.lock().state.values().cloned().collect()
    }

    /// Forgets files of state that no longer exist.
    pub(super) fn keep_state_only(&self, files: &BTreeSet<String>) {
        let mut known = self.0.lock();
        known.state.retain(|file, _| files.contains(file));
        known.measure();
    }

    /// Forgets ranges that are no longer of interest.
    pub(super) fn keep_only(&self, mut wanted: impl FnMut(&DamagedRange) -> bool) {
        let mut known = self.0.lock();
        let gone = known.ranges.iter().filter(|(_, range)| !wanted(range));
        let gone: Vec<_> = gone.map(|(key, _)| *key).collect();
        for key in &gone {
            known.remove(*key);
        }
        if !gone.is_empty() {
            known.measure();
        }
    }

    /// Accepts the loss of the ranges within the offsets, and returns them.
    pub(crate) fn accept(
        &self,
        partition: TopicPartition,
        offsets: Range<Offset>,
        now: Timestamp,
    ) -> Vec<DamagedRange> {
        let known = &mut *self.0.lock();
        let mut accepted = Vec::new();
        for range in known.of_partition_mut(partition) {
            if offsets.start <= range.from && range.to <= offsets.end {
                range.accepted_at.get_or_insert(now);
                accepted.push(range.clone());
            }
        }
        let keys = accepted.iter().map(|range| (range.partition, range.from));
        known.dirty.extend(keys);
        accepted
    }

    /// Takes an acceptance back that could not be made durable.
    pub(crate) fn reject(&self, ranges: &[DamagedRange], accepted_at: Timestamp) {
        let mut known = self.0.lock();
        for range in ranges {
            let key = (range.partition, range.from);
            if let Some(kept) = known.ranges.get_mut(&key) {
                kept.accepted_at.take_if(|at| *at == accepted_at);
                known.dirty.insert(key);
            }
        }
    }

    /// The records to write now; confirm them with [`Register::written`].
    pub(super) fn dirty(&self) -> Vec<EntryWrite> {
        let known = self.0.lock();
        let entry = |key: &(TopicPartition, Offset)| entry(*key, known.ranges.get(key));
        known.dirty.iter().map(entry).collect()
    }

    pub(super) fn written(&self, writes: &[EntryWrite]) {
        let mut known = self.0.lock();
        let now: BTreeMap<String, Option<Bytes>> = known
            .dirty
            .iter()
            .map(|key| entry(*key, known.ranges.get(key)))
            .map(|write| (write.key, write.value))
            .collect();
        // Records that changed meanwhile stay dirty.
        let same = |write: &&EntryWrite| now.get(&write.key) == Some(&write.value);
        let done: BTreeSet<&str> = writes.iter().filter(same).map(|w| &*w.key).collect();
        known.dirty.retain(|key| !done.contains(&*key_text(*key)));
    }
}

impl Known {
    fn of_partition_mut(
        &mut self,
        partition: TopicPartition,
    ) -> impl Iterator<Item = &mut DamagedRange> {
        let all = (partition, Offset(0))..=(partition, Offset::MAX);
        self.ranges.range_mut(all).map(|(_, range)| range)
    }

    fn meeting(
        &self,
        partition: TopicPartition,
        offsets: Range<Offset>,
    ) -> impl Iterator<Item = &DamagedRange> {
        let all = self
            .ranges
            .range((partition, Offset(0))..=(partition, Offset::MAX));
        all.map(|(_, range)| range)
            .filter(move |range| range.meets(offsets.start, offsets.end))
    }

    /// Adds a range and merges it with ranges that it touches. A new one is logged once.
    fn add(&mut self, met: Met, bytes: Option<Range<u64>>) {
        let met_before = self.meeting(met.partition, met.from..met.to);
        let old: Vec<DamagedRange> = met_before.cloned().collect();
        if old.is_empty() && self.ranges.len() >= RANGES_MAX {
            return;
        }
        let exact = bytes.is_some();
        let mut range = DamagedRange {
            partition: met.partition,
            from: met.from,
            to: met.to,
            file: met.file,
            bytes,
            kind: met.kind,
            found_at: met.found_at,
            found_by: met.found_by,
            accepted_at: None,
        };
        for old in &old {
            range.found_at = old.found_at;
            range.found_by = old.found_by;
            if !exact {
                range.from = range.from.min(old.from);
                range.to = range.to.max(old.to);
            }
        }
        // An accepted range stays accepted if nothing is added to it.
        let covers = |old: &&DamagedRange| old.from <= range.from && range.to <= old.to;
        range.accepted_at = old.iter().find(covers).and_then(|old| old.accepted_at);
        if old.is_empty() {
            tracing::error!(partition = %range.partition, from = %range.from, to = %range.to, file = range.file, kind = ?range.kind, "stored messages are damaged; they stay where they are, and reads of them fail. `millrace damage list` shows all");
        }
        if old == [range.clone()] {
            return;
        }
        for old in old {
            self.remove((old.partition, old.from));
        }
        let key = (range.partition, range.from);
        self.ranges.insert(key, range);
        self.dirty.insert(key);
    }

    fn remove(&mut self, key: (TopicPartition, Offset)) {
        self.ranges.remove(&key);
        self.dirty.insert(key);
    }

    fn measure(&self) {
        let messages: u64 = self.ranges.values().map(DamagedRange::message_count).sum();
        metrics::gauge!("millrace_quarantined_ranges").set(self.ranges.len() as f64);
        metrics::gauge!("millrace_quarantined_messages").set(messages as f64);
        metrics::gauge!("millrace_damaged_modules").set(self.modules.len() as f64);
        metrics::gauge!("millrace_damaged_state_files").set(self.state.len() as f64);
    }
}

fn key_text((partition, from): (TopicPartition, Offset)) -> String {
    format!("{partition}/{from}")
}

fn entry(key: (TopicPartition, Offset), range: Option<&DamagedRange>) -> EntryWrite {
    EntryWrite {
        kind: EntryKind::Damage,
        key: key_text(key),
        // Plain data: it always serialises.
        value: range.map(|range| serde_json::to_vec(range).unwrap_or_default().into()),
    }
}

/// The entry of a range.
pub(crate) fn entry_of(range: &DamagedRange) -> EntryWrite {
    entry((range.partition, range.from), Some(range))
}

#[cfg(test)]
mod tests {
    use millrace_model::{PartitionId, TopicId};

    use super::*;

    const PARTITION: TopicPartition = TopicPartition {
        topic: TopicId(1),
        partition: PartitionId(0),
    };

    fn met(offsets: Range<u64>, at: u64) -> Met {
        Met {
            partition: PARTITION,
            from: Offset(offsets.start),
            to: Offset(offsets.end),
            kind: DamageKind::Changed,
            file: "a".to_owned(),
            found_at: Timestamp(at),
            found_by: FoundBy::Read,
        }
    }

    fn shown(register: &Register) -> Vec<(u64, u64, bool)> {
        let ranges = register.ranges().into_iter();
        ranges
            .map(|r| (r.from.0, r.to.0, r.accepted_at.is_some()))
            .collect()
    }

    #[test]
    fn damage_that_is_met_twice_is_noted_once_and_what_meets_grows_together() {
        let register = Register::default();
        assert!(register.suspect(met(10..20, 1)));
        assert!(!register.suspect(met(12..20, 2)));
        assert!(register.suspect(met(15..25, 3)));
        assert!(register.suspect(met(30..40, 4)));
        assert_eq!(shown(&register), [(10, 25, false), (30, 40, false)]);
        assert_eq!(register.ranges()[0].found_at, Timestamp(1));
    }

    #[test]
    fn what_is_written_is_no_longer_dirty_unless_it_changed_meanwhile() {
        let register = Register::default();
        register.suspect(met(10..20, 1));
        register.suspect(met(30..40, 1));
        let writes = register.dirty();
        assert_eq!(writes.len(), 2);
        register.suspect(met(35..50, 2));
        register.written(&writes);
        let left: Vec<String> = register.dirty().into_iter().map(|w| w.key).collect();
        assert_eq!(left, ["1/0/30"]);
        let entries: BTreeMap<String, Bytes> = writes
            .into_iter()
            .filter_map(|write| Some((write.key, write.value?)))
            .collect();
        assert_eq!(
            shown(&Register::of(entries.values())),
            [(10, 20, false), (30, 40, false)]
        );
    }

    #[test]
    fn a_loss_stays_accepted_as_long_as_nothing_is_added_to_it() {
        let register = Register::default();
        register.suspect(met(10..20, 1));
        let all = Offset(0)..Offset(100);
        register.accept(PARTITION, all.clone(), Timestamp(9));
        assert_eq!(shown(&register), [(10, 20, true)]);
        let exact = |offsets: Range<u64>| Damage {
            offsets: Offset(offsets.start)..Offset(offsets.end),
            bytes: 5..6,
            kind: DamageKind::Changed,
        };
        let found_again = |damage: &Damage| met(damage.offsets.start.0..damage.offsets.end.0, 10);
        register.replace(PARTITION, &all, vec![exact(12..20)], found_again);
        assert_eq!(shown(&register), [(12, 20, true)]);
        assert_eq!(register.ranges()[0].bytes, Some(5..6));
        register.replace(PARTITION, &all, vec![exact(12..30)], found_again);
        assert_eq!(shown(&register), [(12, 30, false)]);
        register.replace(PARTITION, &all, vec![], found_again);
        assert_eq!(shown(&register), []);
    }
}
