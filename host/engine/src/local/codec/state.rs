//! Changes of state as bytes, for the journal and, an entry at a time, for the checkpoint: a key's length has 16 bits, a value's 32.

use std::sync::Arc;

use bytes::{Buf, Bytes};
use millrace_model::Timestamp;

use crate::state::{NEVER, StateChange, StateEntry, StateValue, StateWrites};

/// Keys change.
const FORM_CHANGES: u8 = 0;
/// The table is emptied, then keys change.
const FORM_RESET: u8 = 1;

const HAS_VALUE: u8 = 1;
const ENDS: u8 = 2;

pub(super) fn put(out: &mut Vec<u8>, writes: &StateWrites) {
    out.push(if writes.resets {
        FORM_RESET
    } else {
        FORM_CHANGES
    });
    out.extend((writes.changes.len() as u32).to_le_bytes());
    out.reserve(writes.byte_count());
    for change in &writes.changes {
        put_change(out, &change.key, change.value.as_ref(), change.ends_at);
    }
}

/// An entry, as the checkpoint has it.
pub(in crate::local) fn entry_bytes(entry: &StateEntry) -> Vec<u8> {
    let mut out = Vec::with_capacity(entry.key.len() + entry.value.as_bytes().len() + 16);
    put_change(&mut out, &entry.key, Some(&entry.value), entry.ends_at);
    out
}

/// An entry of the checkpoint.
pub(in crate::local) fn entry_of(mut bytes: Bytes) -> Option<StateEntry> {
    let change = take_change(&mut bytes)?;
    let value = change.value.filter(|_| bytes.is_empty())?;
    Some(StateEntry {
        key: change.key,
        value,
        ends_at: change.ends_at,
    })
}

fn put_change(out: &mut Vec<u8>, key: &[u8], value: Option<&StateValue>, ends_at: Timestamp) {
    let ends = value.is_some() && ends_at != NEVER;
    let has_value = u8::from(value.is_some()) * HAS_VALUE;
    out.push(has_value | (u8::from(ends) * ENDS));
    out.extend((key.len() as u16).to_le_bytes());
    out.extend_from_slice(key);
    if let Some(value) = value {
        let bytes = value.as_bytes();
        out.extend((bytes.len() as u32).to_le_bytes());
        out.extend_from_slice(bytes);
    }
    if ends {
        out.extend(ends_at.0.to_le_bytes());
    }
}

pub(super) fn take(body: &mut Bytes) -> Option<StateWrites> {
    let resets = match body.try_get_u8().ok()? {
        FORM_CHANGES => false,
        FORM_RESET => true,
        _ => return None,
    };
    let count = body.try_get_u32_le().ok()?;
    let changes = (0..count).map(|_| take_change(body));
    Some(StateWrites {
        resets,
        changes: changes.collect::<Option<_>>()?,
    })
}

fn take_change(body: &mut Bytes) -> Option<StateChange> {
    let flags = body.try_get_u8().ok()?;
    if flags & !(HAS_VALUE | ENDS) != 0 {
        return None;
    }
    let length = body.try_get_u16_le().ok()?;
    let key: Arc<[u8]> = take_slice(body, length as usize)?.as_ref().into();
    let value = match flags & HAS_VALUE {
        0 => None,
        _ => {
            let length = body.try_get_u32_le().ok()?;
            Some(StateValue::new(&take_slice(body, length as usize)?))
        }
    };
    let ends_at = match flags & ENDS {
        0 => NEVER,
        _ => Timestamp(body.try_get_u64_le().ok()?),
    };
    Some(StateChange {
        key,
        value,
        ends_at,
    })
}

fn take_slice(body: &mut Bytes, length: usize) -> Option<Bytes> {
    (length <= body.len()).then(|| body.split_to(length))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn change(key: &str, value: Option<&[u8]>, ends_at: Timestamp) -> StateChange {
        StateChange {
            key: key.as_bytes().into(),
            value: value.map(StateValue::new),
            ends_at,
        }
    }

    pub(in crate::local) fn writes() -> StateWrites {
        StateWrites {
            resets: true,
            changes: vec![
                change("", Some(b""), NEVER),
                change("gone", None, NEVER),
                change("ends", Some(&[7; 300]), Timestamp(5)),
            ],
        }
    }

    #[test]
    fn an_entry_of_the_checkpoint_is_read_as_written_and_nothing_else_is() {
        let entry = StateEntry {
            key: b"key"[..].into(),
            value: StateValue::of_number(7),
            ends_at: Timestamp(9),
        };
        let bytes = entry_bytes(&entry);
        assert_eq!(entry_of(bytes.clone().into()), Some(entry));
        for length in 0..bytes.len() {
            assert_eq!(entry_of(bytes[..length].to_vec().into()), None);
        }
        let longer: Vec<u8> = bytes.iter().chain(&[0]).copied().collect();
        assert_eq!(entry_of(longer.into()), None);
    }
}
