//! How cells and deltas are written: numbers of variable length and byte strings, one after the other. Nothing here panics on what it
//! reads.

use std::sync::Arc;

use millrace_engine::state::{StateChange, StateValue, StateWrites};
use millrace_model::Timestamp;

#[derive(Default)]
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    pub(crate) fn number(&mut self, mut number: u64) -> &mut Self {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
        self
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.number(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
        self
    }

    /// `None` is a zero, and some bytes are a one before them.
    pub(crate) fn maybe(&mut self, bytes: Option<&[u8]>) -> &mut Self {
        match bytes {
            Some(bytes) => self.number(1).bytes(bytes),
            None => self.number(0),
        }
    }

    pub(crate) fn done(self) -> Vec<u8> {
        self.0
    }
}

pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn number(&mut self) -> Option<u64> {
        let mut number = 0u64;
        for place in 0..10 {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            number |= u64::from(byte & 0x7f).checked_shl(place * 7)?;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    pub(crate) fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.number()?).ok()?;
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    pub(crate) fn maybe(&mut self) -> Option<Option<&'a [u8]>> {
        match self.number()? {
            0 => Some(None),
            _ => self.bytes().map(Some),
        }
    }

    pub(crate) fn flag(&mut self) -> Option<bool> {
        self.number().map(|number| number != 0)
    }
}

/// The changes of one table.
pub(crate) fn encode_writes(writes: &StateWrites) -> Vec<u8> {
    let mut out = Writer::default();
    out.number(u64::from(writes.resets));
    out.number(writes.changes.len() as u64);
    for change in &writes.changes {
        out.bytes(&change.key);
        out.maybe(change.value.as_ref().map(StateValue::as_bytes));
        out.number(change.ends_at.0);
    }
    out.done()
}

pub(crate) fn decode_writes(bytes: &[u8]) -> Option<StateWrites> {
    let mut read = Reader(bytes);
    let resets = read.flag()?;
    let count = read.number()?;
    let mut changes = Vec::new();
    for _ in 0..count {
        changes.push(StateChange {
            key: Arc::from(read.bytes()?),
            value: read.maybe()?.map(StateValue::new),
            ends_at: Timestamp(read.number()?),
        });
    }
    Some(StateWrites {
        resets,
        changes,
        adds: None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_was_written_is_read(numbers: Vec<u64>, bytes: Vec<Option<Vec<u8>>>) {
            let mut out = Writer::default();
            for number in &numbers {
                out.number(*number);
            }
            for bytes in &bytes {
                out.maybe(bytes.as_deref());
            }
            let out = out.done();
            let mut read = Reader(&out);
            for number in numbers {
                prop_assert_eq!(read.number(), Some(number));
            }
            for bytes in bytes {
                prop_assert_eq!(read.maybe(), Some(bytes.as_deref()));
            }
            prop_assert_eq!(read.number(), None);
        }

        #[test]
        fn changes_are_read_as_they_were_written(resets: bool, changes: Vec<(Vec<u8>, Option<Vec<u8>>, u64)>) {
            let changes = changes.into_iter().map(|(key, value, ends_at)| StateChange {
                key: key.into(),
                value: value.map(|value| StateValue::new(&value)),
                ends_at: Timestamp(ends_at),
            });
            let writes = StateWrites { resets, changes: changes.collect(), adds: None };
            prop_assert_eq!(decode_writes(&encode_writes(&writes)), Some(writes));
        }

        #[test]
        fn nothing_that_is_read_panics(bytes: Vec<u8>) {
            let _ = decode_writes(&bytes);
        }
    }
}
