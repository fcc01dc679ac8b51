//! Producers and the numbering of their batches: Kafka's idempotent producer (KIP-98).
//!
//! A producer has a unique id, and an epoch that counts its restarts. In each partition it numbers its messages from 0; after
//! [`i32::MAX`] comes 0 again. So a repeated batch is distinguished from a new one, and an overtaking batch from the next one.

use serde::{Deserialize, Serialize};

/// A producer in one of its epochs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProducerId {
    /// Issued once, never reused; at least 0.
    pub id: i64,
    /// Counts its restarts; only the newest may write. At least 0.
    pub epoch: i16,
}

/// How a batch is numbered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbering {
    /// The producer.
    pub producer: ProducerId,
    /// The number of its first message.
    pub first: i32,
    /// The number of its last message.
    pub last: i32,
}

impl Numbering {
    /// The number of the message after the last one.
    #[must_use]
    pub fn next(&self) -> i32 {
        sequence_after(self.last, 1)
    }
}

/// The number that comes `count` after `sequence`.
#[must_use]
pub fn sequence_after(sequence: i32, count: u32) -> i32 {
    const NUMBERS: u64 = 1 << 31;
    let sum = (u64::from(sequence.unsigned_abs()) + u64::from(count)) % NUMBERS;
    sum as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_the_last_number_comes_zero() {
        assert_eq!(sequence_after(0, 1), 1);
        assert_eq!(sequence_after(i32::MAX, 1), 0);
        assert_eq!(sequence_after(i32::MAX - 2, 5), 2);
        assert_eq!(sequence_after(5, 0), 5);
        assert_eq!(sequence_after(i32::MAX, 1 << 31), i32::MAX);
    }
}
