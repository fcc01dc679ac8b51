//! A value of state: short ones are stored inline, so that counters allocate nothing.

use std::sync::Arc;

/// Maximum length of an inline value: the whole value then has 24 bytes.
const SHORT_BYTES_MAX: usize = 22;

/// A value.
#[derive(Clone)]
pub struct StateValue(Form);

#[derive(Clone)]
enum Form {
    Short(u8, [u8; SHORT_BYTES_MAX]),
    /// Shared by the table, the writes and the checkpoint, so it is in memory once.
    Long(Arc<[u8]>),
}

impl StateValue {
    /// Takes a copy of the bytes.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        if bytes.len() > SHORT_BYTES_MAX {
            return Self(Form::Long(bytes.into()));
        }
        let mut short = [0; SHORT_BYTES_MAX];
        short[..bytes.len()].copy_from_slice(bytes);
        Self(Form::Short(bytes.len() as u8, short))
    }

    /// A number in the form of `add`: eight bytes, little-endian.
    #[must_use]
    pub fn of_number(number: i64) -> Self {
        Self::new(&number.to_le_bytes())
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Form::Short(length, bytes) => &bytes[..usize::from(*length)],
            Form::Long(bytes) => bytes,
        }
    }

    /// The number, if it is one.
    #[must_use]
    pub fn as_number(&self) -> Option<i64> {
        self.as_bytes().try_into().ok().map(i64::from_le_bytes)
    }
}

impl PartialEq for StateValue {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for StateValue {}

impl std::fmt::Debug for StateValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.as_bytes().escape_ascii().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_every_length_are_what_they_were_made_of() {
        for length in 0..100 {
            let bytes: Vec<u8> = (0..length).collect();
            assert_eq!(StateValue::new(&bytes).as_bytes(), bytes);
        }
        assert_eq!(size_of::<StateValue>(), 24);
    }

    #[test]
    fn only_eight_bytes_are_a_number() {
        assert_eq!(StateValue::of_number(-5).as_number(), Some(-5));
        assert_eq!(StateValue::new(b"1234567").as_number(), None);
        assert_eq!(StateValue::new(b"").as_number(), None);
    }
}
