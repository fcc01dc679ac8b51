//! Changes of state as bytes, for the journal and, entry by entry, for the checkpoint. The length
//! of a key has 16 bits, that of a value 32.

use std::sync::Arc;

use bytes::{Buf, Bytes};
use millrace_engine::state::{Adds, NEVER, StateChange, StateEntry, StateValue, StateWrites};
use millrace_model::Timestamp;

/// Keys change.
const FORM_CHANGES: u8 = 0;
/// The table is emptied, then keys change.
const FORM_RESET: u8 = 1;
/// Like the first two, with the added entries and bytes before the keys.
const FORM_CHANGES_ADDING: u8 = 2;
const FORM_RESET_ADDING: u8 = 3;

const HAS_VALUE: u8 = 1;
const ENDS: u8 = 2;

pub(super) fn put(out: &mut Vec<u8>, writes: &StateWrites) {
    out.push(match (writes.resets, writes.adds) {
        (false, None) => FORM_CHANGES,
        (true, None) => FORM_RESET,
        (false, Some(_)) => FORM_CHANGES_ADDING,
        (true, Some(_)) => FORM_RESET_ADDING,
    });
    out.extend((writes.changes.len() as u32).to_le_bytes());
    if let Some(adds) = writes.adds {
        out.extend(adds.entries.to_le_bytes());
        out.extend(adds.bytes.to_le_bytes());
    }
    out.reserve(writes.byte_count());
    for change in &writes.changes {
        put_change(out, &change.key, change.value.as_ref(), change.ends_at);
    }
}

/// An entry as bytes for the checkpoint.
pub(crate) fn entry_bytes(entry: &StateEntry) -> Vec<u8> {
    let mut out = Vec::with_capacity(entry.key.len() + entry.value.as_bytes().len() + 16);
    put_change(&mut out, &entry.key, Some(&entry.value), entry.ends_at);
    out
}

/// An entry from the checkpoint's bytes.
pub(crate) fn entry_of(mut bytes: Bytes) -> Option<StateEntry> {
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
    let (resets, says_adds) = match body.try_get_u8().ok()? {
        FORM_CHANGES => (false, false),
        FORM_RESET => (true, false),
        FORM_CHANGES_ADDING => (false, true),
        FORM_RESET_ADDING => (true, true),
        _ => return None,
    };
    let count = body.try_get_u32_le().ok()?;
    let adds = match says_adds {
        false => None,
        true => Some(Adds {
            entries: body.try_get_i64_le().ok()?,
            bytes: body.try_get_i64_le().ok()?,
        }),
    };
    let changes = (0..count).map(|_| take_change(body));
    Some(StateWrites {
        resets,
        changes: changes.collect::<Option<_>>()?,
        adds,
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

    /// In each form.
    pub(crate) fn all_writes() -> Vec<StateWrites> {
        let adds = Adds {
            entries: -1,
            bytes: i64::MAX,
        };
        let forms = [None, Some(adds)].map(|adds| [(false, adds), (true, adds)]);
        let forms = forms.into_iter().flatten();
        let writes = |(resets, adds)| StateWrites {
            resets,
            adds,
            ..writes()
        };
        forms.map(writes).collect()
    }

    fn writes() -> StateWrites {
        StateWrites {
            resets: true,
            adds: None,
            changes: vec![
                change("", Some(b""), NEVER),
                change("gone", None, NEVER),
                change("ends", Some(&[7; 300]), Timestamp(5)),
            ],
        }
    }

    #[test]
    fn what_older_versions_wrote_is_read_and_says_nothing_of_what_it_adds() {
        let key = [
            &b"\x03\x01\x00k\x02\x00\x00\x00va"[..],
            &9_u64.to_le_bytes(),
        ]
        .concat();
        for (form, resets) in [(0, false), (1, true)] {
            let mut body = Bytes::from([&[form, 2, 0, 0, 0], &key[..], b"\x00\x01\x00g"].concat());
            let changes = vec![
                change("k", Some(b"va"), Timestamp(9)),
                change("g", None, NEVER),
            ];
            let expected = StateWrites {
                resets,
                changes,
                adds: None,
            };
            let mut written = Vec::new();
            put(&mut written, &expected);
            assert_eq!(written, body);
            assert_eq!(take(&mut body), Some(expected));
            assert!(body.is_empty());
        }
        assert_eq!(take(&mut Bytes::from_static(&[4, 0, 0, 0, 0])), None);
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
