//! One call's view of the state: its own writes over the committed table. Keys and values come in columns, as guests pass them; every
//! span, number and size is checked here, and no memory is reserved because of a guest's claim.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use millrace_model::Timestamp;
use millrace_model::bounds::{
    STATE_ATTEMPT_BYTES_MAX, STATE_CALL_BYTES_MAX, STATE_CALL_KEYS_MAX, STATE_KEY_BYTES_MAX,
    STATE_VALUE_BYTES_MAX,
};
use millrace_model::columns::NONE;
use millrace_model::order::head;
use parking_lot::MappedRwLockReadGuard;

use super::ending::Ended;
use super::lookup::{Held, Seen, StateFetch, View, Wanted};
use super::picture::Picture;
use super::resident::{Entries, weight};
use super::{
    Adds, ENTRY_OVERHEAD_BYTES, NEVER, StateChange, StateSize, StateTable, StateValue, StateWrites,
};

/// Why a call on state has no effect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// The table has no room; the call had no effect.
    #[error("the state is full: {0}")]
    Full(String),
    /// The caller made an error. The attempt's writes must be discarded.
    #[error("state: {0}")]
    Misuse(String),
    /// The stored state could not be read; the call had no effect. It is nobody's error: try again later.
    #[error(
        "the state cannot be read ({0}); `millrace damage list` shows the damage: restore the file from a backup, or empty the state of the \
         partition"
    )]
    Unreadable(Arc<str>),
}

impl StateError {
    /// The values of a call are too large.
    pub(super) fn too_many_bytes() -> Self {
        Self::Misuse(format!(
            "the values have more than {STATE_CALL_BYTES_MAX} bytes together; request fewer at once"
        ))
    }
}

/// Keys of a call: spans of its bytes, two numbers each.
#[derive(Clone, Copy, Debug)]
pub struct KeyColumns<'a> {
    /// The bytes.
    pub data: &'a [u8],
    /// Start and length of each key.
    pub spans: &'a [u32],
}

/// Options of each written key; an empty list means the same for all.
#[derive(Clone, Copy, Debug)]
pub struct WriteColumns<'a> {
    /// Milliseconds to live. Empty, or the largest number: forever.
    pub ttl_ms: &'a [u64],
    /// The index in the batch of the message that writes. Empty: the batch as a whole.
    pub messages: &'a [u32],
}

/// Values in columns: spans of their own bytes; a length of [`NONE`] is no value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ValueColumns {
    /// The bytes, including those of keys in a listing.
    pub data: Vec<u8>,
    /// Start and length of each key; empty if the caller knows them.
    pub keys: Vec<u32>,
    /// Start and length of each value.
    pub values: Vec<u32>,
}

/// The writes of one call over a table.
#[derive(Debug)]
pub struct StateAttempt {
    pub(super) table: Arc<StateTable>,
    /// The moment of a paged table that it reads, unless that is always the latest commit.
    pub(super) picture: Option<Picture>,
    /// What was already read of a paged table.
    seen: Seen,
    pub(super) now: Timestamp,
    pub(super) writes: HashMap<Arc<[u8]>, Written>,
    /// The keys of `writes` in order, from the first listing on.
    pub(super) ordered: Option<BTreeSet<Arc<[u8]>>>,
    /// Bytes of all writes, counted as often as they were made.
    written_bytes: usize,
    /// What the writes add to the table.
    growth: Growth,
    /// Expired entries to remove, unless they are written.
    ended: Ended,
    /// Which messages wrote.
    wrote: Vec<bool>,
    wrote_for_all: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Written {
    pub(super) value: Option<StateValue>,
    pub(super) ends_at: Timestamp,
}

#[derive(Clone, Copy, Debug, Default)]
struct Growth {
    entries: isize,
    bytes: isize,
}

impl Written {
    fn weight(&self, key: &[u8]) -> Option<usize> {
        self.value.as_ref().map(|value| weight(key, value))
    }
}

impl StateAttempt {
    /// Nothing written yet, for a batch of this many messages; time stands still at `now`.
    #[must_use]
    pub fn new(table: Arc<StateTable>, now: Timestamp, messages: usize) -> Self {
        Self {
            table,
            picture: None,
            seen: Seen::default(),
            now,
            writes: HashMap::new(),
            ordered: None,
            written_bytes: 0,
            growth: Growth::default(),
            ended: Ended::default(),
            wrote: vec![false; messages],
            wrote_for_all: false,
        }
    }

    /// Without the table's turn, a paged table is read as of now, whatever is committed meanwhile.
    #[must_use]
    pub fn at_one_moment(mut self) -> Self {
        self.picture = self.table.picture();
        self
    }

    /// The values of the keys.
    ///
    /// # Errors
    /// [`StateError::Misuse`], [`StateError::Unreadable`].
    pub fn get(&mut self, keys: &KeyColumns<'_>) -> Result<ValueColumns, StateError> {
        self.with_view(keys, Wanted::Values, |attempt, view| {
            attempt.get_in(view, keys)
        })
    }

    /// Prepares a call on these keys so that it does not wait for the disk: keys in memory, including the page cache, are looked up at
    /// once. The rest must be read ([`StateFetch::read`]) and passed to [`StateAttempt::take_in`] before the call; `None` if there is
    /// no rest. `gets`: the call reads values.
    ///
    /// # Errors
    /// [`StateError`], including those of the call.
    pub fn prepare(
        &mut self,
        keys: &KeyColumns<'_>,
        gets: bool,
    ) -> Result<Option<StateFetch>, StateError> {
        if self.picture.is_none() && !self.table.is_paged() {
            return Ok(None);
        }
        let wanted = match gets {
            true => Wanted::Values,
            false => Wanted::Lengths,
        };
        let Some(mut fetch) = self.fetch(keys, wanted)? else {
            return Ok(None);
        };
        fetch.read_cached()?;
        if fetch.is_done() {
            self.take_in(fetch);
            return Ok(None);
        }
        Ok(Some(fetch))
    }

    /// Whether a listing may wait for the disk.
    #[must_use]
    pub fn lists_from_disk(&self) -> bool {
        self.picture.is_some() || self.table.is_paged()
    }

    /// The lookup of the keys that must be read from stored data; `None` if there are none.
    fn fetch(
        &mut self,
        keys: &KeyColumns<'_>,
        wanted: Wanted,
    ) -> Result<Option<StateFetch>, StateError> {
        let mut asked = self.unknown(keys, wanted)?;
        if !asked.is_empty() && self.seen.bound() {
            asked = self.unknown(keys, wanted)?;
        }
        asked.sort_unstable_by(|one, other| (head(one), one).cmp(&(head(other), other)));
        asked.dedup();
        let picture = self.picture.as_ref();
        Ok(self.table.ask(picture, &asked, wanted, &mut self.seen))
    }

    /// The keys that are not known yet.
    fn unknown<'k>(
        &self,
        keys: &KeyColumns<'k>,
        wanted: Wanted,
    ) -> Result<Vec<&'k [u8]>, StateError> {
        let mut unknown = Vec::new();
        for index in 0..keys.count()? {
            let key = keys.key(index)?;
            if !self.writes.contains_key(key) && !self.seen.knows(key, wanted) {
                unknown.push(key);
            }
        }
        Ok(unknown)
    }

    /// Adds the entries that were read.
    pub fn take_in(&mut self, fetch: StateFetch) {
        self.seen.take_in(fetch);
    }

    /// Runs something on the committed table: keys of a paged table are found first, and no lock is held.
    fn with_view<T>(
        &mut self,
        keys: &KeyColumns<'_>,
        wanted: Wanted,
        work: impl FnOnce(&mut Self, &View<'_>) -> Result<T, StateError>,
    ) -> Result<T, StateError> {
        let table = Arc::clone(&self.table);
        if let Some(entries) = self.resident(&table) {
            return work(self, &View::Resident(&entries));
        }
        if let Some(mut fetch) = self.fetch(keys, wanted)? {
            fetch.read()?;
            self.take_in(fetch);
        }
        let seen = std::mem::take(&mut self.seen);
        let done = work(self, &View::Seen(&seen));
        self.seen = seen;
        done
    }

    /// The entries of a table that is in memory.
    pub(super) fn resident<'t>(
        &self,
        table: &'t StateTable,
    ) -> Option<MappedRwLockReadGuard<'t, Entries>> {
        match self.picture {
            Some(_) => None,
            None => table.resident(),
        }
    }

    fn get_in(&self, view: &View<'_>, keys: &KeyColumns<'_>) -> Result<ValueColumns, StateError> {
        let count = keys.count()?;
        let mut found = ValueColumns::default();
        found.values.reserve(count * 2);
        for index in 0..count {
            let key = keys.key(index)?;
            let value = match self.writes.get(key) {
                Some(written) => written.value.as_ref(),
                None => {
                    let held = view.held(key);
                    held.filter(|h| h.ends_at > self.now).and_then(|h| h.value)
                }
            };
            found.push_value(value)?;
        }
        Ok(found)
    }

    /// Sets the keys to the values; a value length of [`NONE`] removes the key.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn put(
        &mut self,
        keys: &KeyColumns<'_>,
        values: &[u32],
        how: &WriteColumns<'_>,
    ) -> Result<(), StateError> {
        let count = keys.count()?;
        if values.len() != count * 2 {
            let numbers = values.len();
            return misuse(format!(
                "{numbers} numbers for the values of {count} keys; pass two for each"
            ));
        }
        how.check(count, self.wrote.len())?;
        self.with_view(keys, Wanted::Lengths, |attempt, view| {
            attempt.check_room(keys, view, |index| match values[index * 2 + 1] {
                NONE => None,
                length => Some(length as usize),
            })?;
            for index in 0..count {
                let key = keys.key(index)?;
                let value = span(keys.data, values, index, STATE_VALUE_BYTES_MAX, "value")?;
                let ends_at = how.ends_at(index, attempt.now).unwrap_or(NEVER);
                let value = value.map(StateValue::new);
                attempt.write(view, key, Written { value, ends_at })?;
            }
            attempt.note(how.messages);
            Ok(())
        })
    }

    /// Adds to the numbers of the keys, in order; an absent key counts as 0, and a sum out of range is clamped. Returns the new
    /// numbers. Without a time to live an entry keeps its expiry.
    ///
    /// # Errors
    /// [`StateError`]; adding to a value that is not a number is misuse.
    pub fn add(
        &mut self,
        keys: &KeyColumns<'_>,
        deltas: &[i64],
        how: &WriteColumns<'_>,
    ) -> Result<Vec<i64>, StateError> {
        let count = keys.count()?;
        if !deltas.is_empty() && deltas.len() != count {
            let numbers = deltas.len();
            return misuse(format!(
                "{numbers} numbers to add to {count} keys; pass one for each, or none to add 1"
            ));
        }
        how.check(count, self.wrote.len())?;
        self.with_view(keys, Wanted::Lengths, |attempt, view| {
            attempt.check_room(keys, view, |_| Some(size_of::<i64>()))?;
            if attempt.writes.is_empty() {
                attempt.writes.reserve(count);
            }
            let mut sums = Vec::with_capacity(count);
            for index in 0..count {
                let key = keys.key(index)?;
                let delta = if deltas.is_empty() { 1 } else { deltas[index] };
                let ends_at = how.ends_at(index, attempt.now);
                let sum = attempt.add_one(view, key, delta, ends_at)?;
                sums.push(sum);
            }
            attempt.note(how.messages);
            Ok(sums)
        })
    }

    fn add_one(
        &mut self,
        view: &View<'_>,
        key: &[u8],
        delta: i64,
        ends_at: Option<Timestamp>,
    ) -> Result<i64, StateError> {
        let sum_of = |number: Option<Result<i64, usize>>| match number {
            None => Ok(delta),
            Some(Ok(before)) => Ok(before.saturating_add(delta)),
            Some(Err(value_bytes)) => Err(not_a_number(key, value_bytes)),
        };
        let number_of = |value: &StateValue| value.as_number().ok_or(value.as_bytes().len());
        if let Some(place) = self.writes.get_mut(key) {
            let sum = sum_of(place.value.as_ref().map(number_of))?;
            let written = Written {
                value: Some(StateValue::of_number(sum)),
                ends_at: ends_at.unwrap_or(place.ends_at),
            };
            let before = std::mem::replace(place, written).weight(key);
            self.grow(before, Some(weight(key, &StateValue::of_number(sum))))?;
            return Ok(sum);
        }
        let held = view.held(key);
        let entry = held.as_ref().filter(|held| held.ends_at > self.now);
        // A value that is longer than a number is not needed to say so.
        let number = entry.map(|held| held.value.map_or(Err(held.value_bytes), number_of));
        let sum = sum_of(number)?;
        let ends_before = entry.map_or(NEVER, |held| held.ends_at);
        let written = Written {
            value: Some(StateValue::of_number(sum)),
            ends_at: ends_at.unwrap_or(ends_before),
        };
        self.write_first(held, key, written)?;
        Ok(sum)
    }

    fn write(&mut self, view: &View<'_>, key: &[u8], written: Written) -> Result<(), StateError> {
        let Some(place) = self.writes.get_mut(key) else {
            return self.write_first(view.held(key), key, written);
        };
        let after = written.weight(key);
        let before = std::mem::replace(place, written).weight(key);
        self.grow(before, after)
    }

    /// Writes a key for the first time, under the table's copy of it if there is one.
    fn write_first(
        &mut self,
        held: Option<Held<'_>>,
        key: &[u8],
        written: Written,
    ) -> Result<(), StateError> {
        let before = held.as_ref().map(Held::weight);
        let after = written.weight(key);
        let key = held.map_or_else(|| Arc::from(key), |held| Arc::clone(held.key));
        if let Some(ordered) = &mut self.ordered {
            ordered.insert(Arc::clone(&key));
        }
        self.writes.insert(key, written);
        self.grow(before, after)
    }

    fn grow(&mut self, before: Option<usize>, after: Option<usize>) -> Result<(), StateError> {
        self.written_bytes += after.unwrap_or(ENTRY_OVERHEAD_BYTES);
        self.growth.bytes += after.unwrap_or(0) as isize - before.unwrap_or(0) as isize;
        self.growth.entries += isize::from(after.is_some()) - isize::from(before.is_some());
        if self.written_bytes > STATE_ATTEMPT_BYTES_MAX {
            return misuse(format!(
                "more than {STATE_ATTEMPT_BYTES_MAX} bytes were written in one call of the component; write less, or use smaller batches"
            ));
        }
        Ok(())
    }

    /// Whether the table has room for values of these lengths; removing needs none.
    fn check_room(
        &self,
        keys: &KeyColumns<'_>,
        view: &View<'_>,
        value_bytes: impl Fn(usize) -> Option<usize>,
    ) -> Result<(), StateError> {
        let count = keys.count()?;
        let base = weight(b"", &StateValue::new(b""));
        let bytes_of = |index| {
            let length = keys.spans[index * 2 + 1] as usize;
            Some(base + length.min(STATE_KEY_BYTES_MAX) + value_bytes(index)?)
        };
        let mut all_new = Growth::default();
        for bytes in (0..count).filter_map(bytes_of) {
            all_new.entries += 1;
            all_new.bytes += bytes as isize;
        }
        if self.fits(view.size(), all_new).is_ok() {
            return Ok(());
        }
        // Near the bound the exact size is computed, because an existing key is replaced, not
        // added.
        let (mut growth, mut seen) = (Growth::default(), HashSet::new());
        for index in 0..count {
            let Some(bytes) = bytes_of(index) else {
                continue;
            };
            let key = keys.key(index)?;
            let before = match self.writes.get(key) {
                Some(written) => written.value.as_ref().map(|value| weight(key, value)),
                None => view.held(key).map(|held| held.weight()),
            };
            let before = before.unwrap_or(0) as isize;
            let is_new = before == 0 && seen.insert(key);
            growth.entries += isize::from(is_new);
            growth.bytes += (bytes as isize - before).max(0);
        }
        self.fits(view.size(), growth).map_err(StateError::Full)
    }

    fn fits(&self, size: StateSize, more: Growth) -> Result<(), String> {
        let entries = size.entries as isize + self.growth.entries + more.entries;
        let bytes = size.bytes as isize + self.growth.bytes + more.bytes;
        let max = self.table.bounds();
        if more.entries > 0 && entries > max.entries.cast_signed() {
            return Err(format!(
                "it would have {entries} entries; the maximum for one partition is {}: delete some, or give them a time to live",
                max.entries
            ));
        }
        if more.bytes > 0 && bytes > max.bytes.cast_signed() {
            return Err(format!(
                "it would have {bytes} bytes; the maximum for one partition is {}: delete some, or give them a time to live",
                max.bytes
            ));
        }
        if more.bytes > 0 || more.entries > 0 {
            let room = self.table.check_room(Adds {
                entries: (self.growth.entries + more.entries) as i64,
                bytes: (self.growth.bytes + more.bytes) as i64,
            });
            room.map_err(|full| full.to_string())?;
        }
        Ok(())
    }

    fn note(&mut self, messages: &[u32]) {
        self.wrote_for_all |= messages.is_empty();
        for &message in messages {
            self.wrote[message as usize] = true;
        }
    }

    /// Whether anything was written for this message, or for all.
    #[must_use]
    pub fn wrote(&self, message: usize) -> bool {
        self.wrote_for_all && !self.writes.is_empty()
            || self.wrote.get(message).copied().unwrap_or(false)
    }

    /// Also removes expired entries. They belong to no message, and count for no bound of a call.
    pub fn remove_ended(&mut self, ended: Ended) {
        self.ended = ended;
    }

    /// Whether any expired entries are removed, too.
    #[must_use]
    pub fn removes_ended(&self) -> bool {
        !self.ended.is_empty()
    }

    /// The writes to commit.
    #[must_use]
    pub fn into_writes(self) -> StateWrites {
        let change = |(key, written): (_, Written)| StateChange {
            key,
            value: written.value,
            ends_at: written.ends_at,
        };
        let mut writes = StateWrites {
            resets: false,
            changes: Vec::with_capacity(self.writes.len() + self.ended.len()),
            adds: Some(Adds {
                entries: self.growth.entries as i64,
                bytes: self.growth.bytes as i64,
            }),
        };
        let written = &self.writes;
        self.ended
            .add_to(&mut writes, |key| !written.contains_key(key));
        writes.changes.extend(self.writes.into_iter().map(change));
        writes
    }
}

impl<'a> KeyColumns<'a> {
    /// How many keys.
    fn count(&self) -> Result<usize, StateError> {
        let (count, rest) = (self.spans.len() / 2, self.spans.len() % 2);
        if rest != 0 {
            return misuse("pass two numbers for each key, start and length".to_owned());
        }
        if count > STATE_CALL_KEYS_MAX {
            return misuse(format!(
                "{count} keys in one call; the maximum is {STATE_CALL_KEYS_MAX}"
            ));
        }
        Ok(count)
    }

    fn key(&self, index: usize) -> Result<&'a [u8], StateError> {
        let key = span(self.data, self.spans, index, STATE_KEY_BYTES_MAX, "key")?;
        key.ok_or_else(|| {
            StateError::Misuse(format!("key {index} is missing; a key must have bytes"))
        })
    }
}

impl WriteColumns<'_> {
    fn check(&self, keys: usize, messages: usize) -> Result<(), StateError> {
        for (what, count) in [
            ("times to live", self.ttl_ms.len()),
            ("messages", self.messages.len()),
        ] {
            if count != 0 && count != keys {
                return misuse(format!(
                    "{count} {what} for {keys} keys; pass one for each, or none"
                ));
            }
        }
        let beyond = |message: &&u32| **message as usize >= messages;
        match self.messages.iter().find(beyond) {
            Some(place) => misuse(format!("message {place} of a batch of {messages} writes")),
            None => Ok(()),
        }
    }

    /// When the written entry expires; `None` if not given.
    fn ends_at(&self, index: usize, now: Timestamp) -> Option<Timestamp> {
        if self.ttl_ms.is_empty() {
            return None;
        }
        Some(Timestamp(now.0.saturating_add(self.ttl_ms[index])))
    }
}

impl ValueColumns {
    pub(super) fn push_value(&mut self, value: Option<&StateValue>) -> Result<(), StateError> {
        let Some(value) = value else {
            self.values.extend([0, NONE]);
            return Ok(());
        };
        let bytes = value.as_bytes();
        if self.data.len() + bytes.len() > STATE_CALL_BYTES_MAX {
            return Err(StateError::too_many_bytes());
        }
        self.values
            .extend([self.data.len() as u32, bytes.len() as u32]);
        self.data.extend_from_slice(bytes);
        Ok(())
    }
}

pub(super) fn misuse<T>(what: String) -> Result<T, StateError> {
    Err(StateError::Misuse(what))
}

fn not_a_number(key: &[u8], bytes: usize) -> StateError {
    let key = key[..key.len().min(64)].escape_ascii();
    StateError::Misuse(format!(
        "the value of key {key} has {bytes} bytes; only numbers of 8 bytes can be added to"
    ))
}

/// The `index`th span's bytes; `None` for a null span.
fn span<'a>(
    data: &'a [u8],
    spans: &[u32],
    index: usize,
    bytes_max: usize,
    what: &str,
) -> Result<Option<&'a [u8]>, StateError> {
    let (start, length) = (spans[index * 2], spans[index * 2 + 1]);
    if length == NONE {
        return Ok(None);
    }
    if length as usize > bytes_max {
        return misuse(format!(
            "{what} {index} has {length} bytes; the maximum is {bytes_max}"
        ));
    }
    let bytes = data.get(start as usize..start as usize + length as usize);
    match bytes {
        Some(bytes) => Ok(Some(bytes)),
        None => misuse(format!(
            "{what} {index} is {length} bytes from {start}, beyond the {} given",
            data.len()
        )),
    }
}
