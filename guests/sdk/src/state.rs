//! State: keys and values of the processor in the partition that its batch comes from. Writes are
//! committed together with the batch's outputs, and only if their message succeeds. Name the
//! message of each write; otherwise one failure repeats the whole batch.
//!
//! The cost is in the number of calls to the host, not of keys: [`Sums`], [`get_many`] and
//! [`Writes`] add, read and write for a whole batch at once, or for 10,000 keys at once if there are
//! more. If a later one of several such calls finds no room, what earlier ones wrote stays, each for
//! its message: retry or reject the messages, and their writes are discarded. Without WASM the state
//! is a map in the thread's memory, for tests: [`testing`](crate::testing) gives a handler its own
//! state and shows the changes.

#[cfg(not(target_arch = "wasm32"))]
pub(crate) mod memory;

use std::fmt;

use crate::batch::Batch;
use crate::columns::{NONE, span};
use crate::message::Message;
#[cfg(not(target_arch = "wasm32"))]
use memory as host;

/// Keys that one call to the host accepts.
const CALL_KEYS_MAX: usize = 10_000;
/// Bytes that [`Writes`] passes to one call: half of the maximum, so that there is room for a last
/// large value.
const CALL_BYTES: usize = 4 << 20;

/// There is no room for more state; nothing was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Full {
    /// Says which bound was reached.
    pub reason: String,
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Full {}

/// The value of a key.
#[must_use]
pub fn get(key: &[u8]) -> Option<Vec<u8>> {
    let (data, values) = host::get(key, &[0, key.len() as u32]);
    span(&data, &values, 0).map(<[u8]>::to_vec)
}

/// The values of these keys, in the same order.
#[must_use]
pub fn get_many(keys: &[&[u8]]) -> Vec<Option<Vec<u8>>> {
    let mut found = Vec::with_capacity(keys.len());
    for keys in keys.chunks(CALL_KEYS_MAX) {
        let mut data = Vec::new();
        let spans: Vec<u32> = keys.iter().flat_map(|key| append(&mut data, key)).collect();
        let (data, values) = host::get(&data, &spans);
        found.extend((0..keys.len()).map(|index| span(&data, &values, index).map(<[u8]>::to_vec)));
    }
    found
}

/// Sets a key on behalf of this message.
///
/// # Errors
/// [`Full`].
pub fn set(message: &Message, key: &[u8], value: &[u8]) -> Result<(), Full> {
    write(message, key, Some(value), None)
}

/// Sets a key, for this message, to a value that expires after this many milliseconds.
///
/// # Errors
/// [`Full`].
pub fn set_for(message: &Message, key: &[u8], value: &[u8], ttl_ms: u64) -> Result<(), Full> {
    write(message, key, Some(value), Some(ttl_ms))
}

/// Removes a key on behalf of this message.
pub fn delete(message: &Message, key: &[u8]) {
    // Removing never fails for lack of room.
    let _ = write(message, key, None, None);
}

fn write(
    message: &Message,
    key: &[u8],
    value: Option<&[u8]>,
    ttl_ms: Option<u64>,
) -> Result<(), Full> {
    let mut data = Vec::with_capacity(key.len() + value.map_or(0, <[u8]>::len));
    let keys = append(&mut data, key);
    let values = value.map_or([0, NONE], |value| append(&mut data, value));
    let ttl_ms: Vec<u64> = ttl_ms.into_iter().collect();
    host::set(&data, &keys, &values, &ttl_ms, &[message.index() as u32])
}

/// Adds to the number of a key, for this message; returns the sum. An absent key counts as 0; a
/// value of [`set`] that does not have eight bytes is a trap.
///
/// # Errors
/// [`Full`].
pub fn add(message: &Message, key: &[u8], delta: i64) -> Result<i64, Full> {
    let spans = [0, key.len() as u32];
    let sums = host::add(key, &spans, &[delta], &[], &[message.index() as u32])?;
    Ok(sums.first().copied().unwrap_or_default())
}

/// Keys that begin with `prefix` and come after `after`, in order, with their values: at most
/// `max`. An empty answer is the end.
#[must_use]
pub fn scan(prefix: &[u8], after: Option<&[u8]>, max: u32) -> Vec<(Vec<u8>, Vec<u8>)> {
    let (data, keys, values) = host::scan(prefix, after, max);
    let bytes = |spans: &[u32], index| span(&data, spans, index).unwrap_or_default().to_vec();
    let pair = |index| (bytes(&keys, index), bytes(&values, index));
    (0..keys.len() / 2).map(pair).collect()
}

fn append(data: &mut Vec<u8>, bytes: &[u8]) -> [u32; 2] {
    let start = data.len() as u32;
    data.extend_from_slice(bytes);
    [start, bytes.len() as u32]
}

/// Keys to set and to delete, each for its message, in as few calls to the host as possible.
#[derive(Debug, Default)]
pub struct Writes {
    calls: Vec<Call>,
}

#[derive(Debug, Default)]
struct Call {
    data: Vec<u8>,
    keys: Vec<u32>,
    values: Vec<u32>,
    messages: Vec<u32>,
}

impl Writes {
    /// Sets a key on behalf of this message.
    pub fn set(&mut self, message: &Message, key: &[u8], value: &[u8]) {
        self.add(message, key, Some(value));
    }

    /// Removes a key on behalf of this message.
    pub fn delete(&mut self, message: &Message, key: &[u8]) {
        self.add(message, key, None);
    }

    fn add(&mut self, message: &Message, key: &[u8], value: Option<&[u8]>) {
        let has_room =
            |call: &Call| call.messages.len() < CALL_KEYS_MAX && call.data.len() < CALL_BYTES;
        if !self.calls.last().is_some_and(has_room) {
            self.calls.push(Call::default());
        }
        let Some(call) = self.calls.last_mut() else {
            return;
        };
        call.keys.extend(append(&mut call.data, key));
        let value = value.map_or([0, NONE], |value| append(&mut call.data, value));
        call.values.extend(value);
        call.messages.push(message.index() as u32);
    }

    /// Writes everything, in the order in which it was added.
    ///
    /// # Errors
    /// [`Full`]; writes of earlier calls to the host are kept for their messages.
    pub fn write(self) -> Result<(), Full> {
        self.calls.iter().try_for_each(|call| {
            let Call {
                data,
                keys,
                values,
                messages,
            } = call;
            host::set(data, keys, values, &[], messages)
        })
    }
}

/// Sums for a whole batch, in one call to the host: each message adds to its own key, 1 by default.
pub struct Sums<'a> {
    batch: &'a Batch,
    deltas: Vec<i64>,
    ttl_ms: Vec<u64>,
}

impl<'a> Sums<'a> {
    /// Each message adds 1 to its key, or to the empty key if it has none.
    #[must_use]
    pub fn of_keys(batch: &'a Batch) -> Self {
        Self {
            batch,
            deltas: Vec::new(),
            ttl_ms: Vec::new(),
        }
    }

    /// Sets how much each message adds.
    #[must_use]
    pub fn deltas(mut self, delta: impl Fn(&Message) -> i64) -> Self {
        self.deltas = self
            .batch
            .messages()
            .map(|message| delta(&message))
            .collect();
        self
    }

    /// Sets after how many milliseconds the sum expires, counted from this message. For a message
    /// with `None` it never expires, even if it had an expiry before. Without this call a sum keeps
    /// its expiry.
    #[must_use]
    pub fn ttl_ms(mut self, ttl_ms: impl Fn(&Message) -> Option<u64>) -> Self {
        let ttl = |message: Message| ttl_ms(&message).unwrap_or(u64::MAX);
        self.ttl_ms = self.batch.messages().map(ttl).collect();
        self
    }

    /// Adds; returns the sum after each message.
    ///
    /// # Errors
    /// [`Full`].
    pub fn add(self) -> Result<Vec<i64>, Full> {
        let columns = &self.batch.scratch.input;
        let mut sums = Vec::new();
        let mut keys = columns.keys.clone();
        for key in keys.as_chunks_mut::<2>().0 {
            if key[1] == NONE {
                *key = [0, 0];
            }
        }
        let messages: Vec<u32> = (0..self.batch.len() as u32).collect();
        for start in (0..self.batch.len()).step_by(CALL_KEYS_MAX) {
            let range = start..self.batch.len().min(start + CALL_KEYS_MAX);
            let deltas = self.deltas.get(range.clone()).unwrap_or_default();
            let ttl_ms = self.ttl_ms.get(range.clone()).unwrap_or_default();
            let keys = &keys[range.start * 2..range.end * 2];
            let added = host::add(&columns.data, keys, deltas, ttl_ms, &messages[range])?;
            match sums.is_empty() {
                true => sums = added,
                false => sums.extend(added),
            }
        }
        Ok(sums)
    }
}

#[cfg(target_arch = "wasm32")]
mod host {
    use super::Full;
    use crate::bindings::state as host;

    fn full(error: host::StateError) -> Full {
        let host::StateError::Full(reason) = error;
        Full { reason }
    }

    fn how(ttl_ms: &[u64], messages: &[u32]) -> host::Writes {
        host::Writes {
            ttl_ms: ttl_ms.to_vec(),
            messages: messages.to_vec(),
        }
    }

    pub(super) fn get(data: &[u8], keys: &[u32]) -> (Vec<u8>, Vec<u32>) {
        let found = host::get(data, keys);
        (found.data, found.values)
    }

    pub(super) fn set(
        data: &[u8],
        keys: &[u32],
        values: &[u32],
        ttl_ms: &[u64],
        messages: &[u32],
    ) -> Result<(), Full> {
        host::set(data, keys, values, &how(ttl_ms, messages)).map_err(full)
    }

    pub(super) fn add(
        data: &[u8],
        keys: &[u32],
        deltas: &[i64],
        ttl_ms: &[u64],
        messages: &[u32],
    ) -> Result<Vec<i64>, Full> {
        host::add(data, keys, deltas, &how(ttl_ms, messages)).map_err(full)
    }

    pub(super) fn scan(
        prefix: &[u8],
        after: Option<&[u8]>,
        max: u32,
    ) -> (Vec<u8>, Vec<u32>, Vec<u32>) {
        let found = host::scan(prefix, after, max);
        (found.data, found.keys, found.values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Sample;

    #[test]
    fn what_a_message_says_of_its_end_does_not_depend_on_its_neighbours() {
        let ttl_ms = |message: &Message| message.key().filter(|key| *key == b"ends").map(|_| 5);
        let of = |keys: &[&str]| {
            let samples = keys.iter();
            let sample = samples.fold(Sample::new("in"), |sample, key| sample.message(key, ""));
            let batch = Batch::new(sample.columns());
            Sums::of_keys(&batch).ttl_ms(ttl_ms).ttl_ms
        };
        assert_eq!(of(&["stays", "ends"]), [u64::MAX, 5]);
        assert_eq!(of(&["stays"]), [u64::MAX]);
    }
}
