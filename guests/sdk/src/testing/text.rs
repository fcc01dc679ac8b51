//! Bytes that are usually text, compared and shown as text.

use std::fmt;

/// Bytes of a key, a value or a header. They equal a text of the same bytes, and are shown as text
/// if they are valid UTF-8.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Text(Vec<u8>);

impl Text {
    /// The bytes as they are.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes as text. Panics if they are not UTF-8.
    #[must_use]
    #[track_caller]
    pub fn text(&self) -> &str {
        match str::from_utf8(&self.0) {
            Ok(text) => text,
            Err(_) => panic!("{self:?} is no text; look at its bytes()"),
        }
    }

    /// The bytes as a number in the format of [`state::add`](crate::state::add). Panics unless
    /// there are eight.
    #[must_use]
    #[track_caller]
    pub fn number(&self) -> i64 {
        match <[u8; 8]>::try_from(self.bytes()) {
            Ok(bytes) => i64::from_le_bytes(bytes),
            Err(_) => panic!("{self:?} is no number: that has eight bytes"),
        }
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_plain = |text: &&str| !text.chars().any(|c| c == '\0' || c == '\u{fffd}');
        match str::from_utf8(&self.0).ok().filter(is_plain) {
            Some(text) => fmt::Debug::fmt(text, f),
            None => write!(f, "b\"{}\"", self.0.escape_ascii()),
        }
    }
}

impl From<&[u8]> for Text {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }
}

impl AsRef<[u8]> for Text {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl PartialEq<str> for Text {
    fn eq(&self, other: &str) -> bool {
        self.0 == other.as_bytes()
    }
}

impl PartialEq<&str> for Text {
    fn eq(&self, other: &&str) -> bool {
        self == *other
    }
}

impl PartialEq<[u8]> for Text {
    fn eq(&self, other: &[u8]) -> bool {
        self.0 == other
    }
}
