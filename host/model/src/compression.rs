//! How the records of a batch may be compressed, as Kafka's batch attributes number it.

use serde::{Deserialize, Serialize};

/// A codec of record batches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// As they are.
    #[default]
    None,
    /// RFC 1952.
    Gzip,
    /// Snappy, in the framing of Kafka's clients.
    Snappy,
    /// LZ4 frames.
    Lz4,
    /// RFC 8878.
    Zstd,
}

impl Compression {
    /// The codec's number in a batch's attributes.
    #[must_use]
    pub fn code(self) -> i16 {
        self as i16
    }

    /// The codec with that number; `None` if there is none.
    #[must_use]
    pub fn from_code(code: i16) -> Option<Self> {
        [Self::None, Self::Gzip, Self::Snappy, Self::Lz4, Self::Zstd]
            .into_iter()
            .find(|codec| codec.code() == code)
    }
}
