//! State without WASM: a map in the thread's memory, for tests of a handler. Nothing expires there.
//! The writers are remembered, so that [`testing`](crate::testing) can undo discarded writes.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use super::Full;
use crate::columns::{NONE, span};

/// The entries, and the writers since the store was installed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Store {
    pub(crate) entries: BTreeMap<Vec<u8>, Entry>,
    /// The messages that wrote, by their index in the batch.
    pub(crate) writers: BTreeSet<u32>,
    /// Whether there was a write without a message, which belongs to the whole batch.
    pub(crate) by_all: bool,
}

/// The value of a key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) value: Vec<u8>,
    /// Its time to live in milliseconds; `None` is forever.
    pub(crate) ttl_ms: Option<u64>,
}

thread_local! {
    static STATE: RefCell<Store> = RefCell::default();
}

/// Swaps the thread's store with this one.
pub(crate) fn swap(store: &mut Store) {
    STATE.with_borrow_mut(|state| std::mem::swap(state, store));
}

impl Store {
    fn note(&mut self, messages: &[u32]) {
        self.writers.extend(messages);
        self.by_all |= messages.is_empty();
    }
}

fn key<'a>(data: &'a [u8], keys: &[u32], index: usize) -> &'a [u8] {
    span(data, keys, index).expect("a key is some bytes")
}

/// A key's time to live in the column; `u64::MAX` is forever.
fn ttl(ttl_ms: &[u64], index: usize) -> Option<u64> {
    ttl_ms.get(index).copied().filter(|ms| *ms != u64::MAX)
}

pub(super) fn get(data: &[u8], keys: &[u32]) -> (Vec<u8>, Vec<u32>) {
    let (mut found, mut spans) = (Vec::new(), Vec::new());
    STATE.with_borrow(|state| {
        for index in 0..keys.len() / 2 {
            match state.entries.get(key(data, keys, index)) {
                Some(entry) => spans.extend(super::append(&mut found, &entry.value)),
                None => spans.extend([0, NONE]),
            }
        }
    });
    (found, spans)
}

pub(super) fn set(
    data: &[u8],
    keys: &[u32],
    values: &[u32],
    ttl_ms: &[u64],
    messages: &[u32],
) -> Result<(), Full> {
    STATE.with_borrow_mut(|state| {
        state.note(messages);
        for index in 0..keys.len() / 2 {
            let key = key(data, keys, index);
            match span(data, values, index) {
                Some(value) => {
                    let entry = Entry {
                        value: value.to_vec(),
                        ttl_ms: ttl(ttl_ms, index),
                    };
                    drop(state.entries.insert(key.to_vec(), entry));
                }
                None => drop(state.entries.remove(key)),
            }
        }
    });
    Ok(())
}

pub(super) fn add(
    data: &[u8],
    keys: &[u32],
    deltas: &[i64],
    ttl_ms: &[u64],
    messages: &[u32],
) -> Result<Vec<i64>, Full> {
    let sum = |state: &mut Store, index: usize| {
        let entry = state
            .entries
            .entry(key(data, keys, index).to_vec())
            .or_default();
        let before = match entry.value.is_empty() {
            true => 0,
            false => {
                let value = entry.value[..].try_into();
                i64::from_le_bytes(value.expect("a number has eight bytes"))
            }
        };
        let sum = before.saturating_add(deltas.get(index).copied().unwrap_or(1));
        entry.value = sum.to_le_bytes().to_vec();
        if !ttl_ms.is_empty() {
            entry.ttl_ms = ttl(ttl_ms, index);
        }
        sum
    };
    let count = keys.len() / 2;
    Ok(STATE.with_borrow_mut(|state| {
        state.note(messages);
        (0..count).map(|index| sum(state, index)).collect()
    }))
}

pub(super) fn scan(prefix: &[u8], after: Option<&[u8]>, max: u32) -> (Vec<u8>, Vec<u32>, Vec<u32>) {
    let (mut data, mut keys, mut values) = (Vec::new(), Vec::new(), Vec::new());
    STATE.with_borrow(|state| {
        let after = |key: &&Vec<u8>| after.is_none_or(|after| key.as_slice() > after);
        let listed = state
            .entries
            .iter()
            .filter(|(key, _)| key.starts_with(prefix) && after(key));
        for (key, entry) in listed.take(max as usize) {
            keys.extend(super::append(&mut data, key));
            values.extend(super::append(&mut data, &entry.value));
        }
    });
    (data, keys, values)
}
