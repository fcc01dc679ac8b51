//! A block of a run: items in the order of their keys.
//!
//! ```text
//! items   then where each begins, u32 each   then how many there are, u32
//! item    0 flags u8 (1 has a value, 2 ends)   1 key's length u16   3 value's length u32   7 end u64   key   value
//! ```
//! Fields that an item does not have are left out. Each access checks exactly the bytes that it
//! uses.

use std::cmp::Ordering;

use super::{BLOCK_BYTES, KEY_BYTES_MAX, VALUE_BYTES_MAX, u16_at, u32_at, u64_at};

const HAS_VALUE: u8 = 1;
const ENDS: u8 = 2;
const PLACE_BYTES: usize = 4;

/// A key with its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item<'a> {
    /// The key.
    pub key: &'a [u8],
    /// Its value; `None` removes the key from older runs.
    pub value: Option<&'a [u8]>,
    /// When it expires; the largest number means never.
    pub ends_at: u64,
}

/// A block that is being filled.
#[derive(Default)]
pub(super) struct BlockBuilder {
    items: Vec<u8>,
    places: Vec<u32>,
    first_key: Vec<u8>,
}

impl BlockBuilder {
    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    pub(super) fn first_key(&self) -> &[u8] {
        &self.first_key
    }

    /// Whether there is room for the item.
    pub(super) fn has_room_for(&self, item: &Item<'_>) -> bool {
        let bytes = 15 + item.key.len() + item.value.map_or(0, <[u8]>::len) + PLACE_BYTES;
        let held = self.items.len() + (self.places.len() + 1) * PLACE_BYTES;
        self.is_empty() || held + bytes <= BLOCK_BYTES
    }

    pub(super) fn push(&mut self, item: &Item<'_>) {
        if self.is_empty() {
            self.first_key.clear();
            self.first_key.extend_from_slice(item.key);
        }
        self.places.push(self.items.len() as u32);
        let ends = item.ends_at != u64::MAX;
        let has_value = u8::from(item.value.is_some()) * HAS_VALUE;
        self.items.push(has_value | (u8::from(ends) * ENDS));
        self.items.extend((item.key.len() as u16).to_le_bytes());
        if let Some(value) = item.value {
            self.items.extend((value.len() as u32).to_le_bytes());
        }
        if ends {
            self.items.extend(item.ends_at.to_le_bytes());
        }
        self.items.extend_from_slice(item.key);
        self.items.extend_from_slice(item.value.unwrap_or_default());
    }

    /// Appends the block to `out` and begins the next one.
    pub(super) fn take(&mut self, out: &mut Vec<u8>) {
        out.clear();
        out.append(&mut self.items);
        let count = self.places.len() as u32;
        out.extend(self.places.drain(..).flat_map(u32::to_le_bytes));
        out.extend(count.to_le_bytes());
    }
}

/// The position of an item in a block, for a later access.
#[derive(Clone, Copy, Default)]
pub(super) struct Spot {
    key: (usize, usize),
    value: Option<(usize, usize)>,
    ends_at: u64,
}

impl Spot {
    /// The item, from the body of the block in which it was found.
    pub(super) fn item<'a>(&self, body: &'a [u8]) -> Option<Item<'a>> {
        let value = match self.value {
            Some((from, to)) => Some(body.get(from..to)?),
            None => None,
        };
        Some(Item {
            key: body.get(self.key.0..self.key.1)?,
            value,
            ends_at: self.ends_at,
        })
    }
}

/// The bytes of a block. Any access returns `None` if the block is malformed.
#[derive(Clone, Copy)]
pub(super) struct Block<'a> {
    items: &'a [u8],
    places: &'a [u8],
}

impl<'a> Block<'a> {
    pub(super) fn of(bytes: &'a [u8]) -> Option<Self> {
        let (rest, count) = bytes.split_last_chunk::<4>()?;
        let count = u32::from_le_bytes(*count) as usize;
        let items = rest.len().checked_sub(count.checked_mul(PLACE_BYTES)?)?;
        let (items, places) = rest.split_at(items);
        (count > 0).then_some(Self { items, places })
    }

    pub(super) fn count(&self) -> usize {
        self.places.len() / PLACE_BYTES
    }

    pub(super) fn item(&self, index: usize) -> Option<Item<'a>> {
        self.spot(index)?.item(self.items)
    }

    /// The position of an item, all of whose bytes exist.
    pub(super) fn spot(&self, index: usize) -> Option<Spot> {
        let at = u32_at(self.places, index * PLACE_BYTES)? as usize;
        let item = self.items.get(at..)?;
        let flags = *item.first()?;
        let key_bytes = usize::from(u16_at(item, 1)?);
        let mut next = 3;
        let mut value_bytes = 0;
        if flags & HAS_VALUE != 0 {
            value_bytes = u32_at(item, next)? as usize;
            next += 4;
        }
        let mut ends_at = u64::MAX;
        if flags & ENDS != 0 {
            ends_at = u64_at(item, next)?;
            next += 8;
        }
        if key_bytes > KEY_BYTES_MAX || value_bytes > VALUE_BYTES_MAX {
            return None;
        }
        let key = (at + next, at + next + key_bytes);
        let value = (key.1, key.1 + value_bytes);
        let is_there = value.1 <= self.items.len();
        is_there.then_some(Spot {
            key,
            value: (flags & HAS_VALUE != 0).then_some(value),
            ends_at,
        })
    }

    /// Whether all items can be read, and their keys ascend and come after `key`, if given.
    pub(super) fn ascends_after(&self, key: Option<&[u8]>) -> bool {
        let mut last = key;
        (0..self.count()).all(|index| {
            let item = self.item(index);
            item.is_some_and(|item| last.replace(item.key).is_none_or(|last| last < item.key))
        })
    }

    /// The index of the first item whose key is not before this one; the number of items if there
    /// is none.
    pub(super) fn seek(&self, key: &[u8]) -> Option<usize> {
        let (mut from, mut to) = (0, self.count());
        while from < to {
            let middle = from.midpoint(to);
            match self.item(middle)?.key.cmp(key) {
                Ordering::Less => from = middle + 1,
                Ordering::Equal => return Some(middle),
                Ordering::Greater => to = middle,
            }
        }
        Some(from)
    }
}
