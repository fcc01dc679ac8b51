//! Values that tell who sent them and whether they are intact.

use std::fmt::Write;

use fastrand::Rng;

/// The sender of a value, and its number among the sender's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id {
    /// The producer.
    pub producer: u32,
    /// The number among this producer's values.
    pub sequence: u64,
}

/// Stands for the producer of values that no producer sent.
pub const FOREIGN: u32 = u32::MAX;

impl Id {
    /// The id of the producer's `sequence`-th value.
    #[must_use]
    pub fn new(producer: u32, sequence: u64) -> Self {
        Self { producer, sequence }
    }
}

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.producer == FOREIGN {
            return write!(f, "a value that nobody sent");
        }
        write!(f, "producer {} message {}", self.producer, self.sequence)
    }
}

/// A value: `producer:sequence:check:padding`; the check covers everything else.
#[must_use]
pub fn make(id: Id, padding_max: usize, random: &mut Rng) -> String {
    let length = random.usize(..=padding_max);
    let padding: String = std::iter::repeat_with(|| random.alphanumeric())
        .take(length)
        .collect();
    let check = check(id, &padding);
    let mut value = String::with_capacity(length + 40);
    let Id { producer, sequence } = id;
    // Writing to a string does not fail.
    let _ = write!(value, "{producer}:{sequence}:{check:016x}:{padding}");
    value
}

/// Who sent it; `None` if the value is damaged.
#[must_use]
pub fn parse(value: &str) -> Option<Id> {
    let mut parts = value.splitn(4, ':');
    let producer = parts.next()?.parse().ok()?;
    let sequence = parts.next()?.parse().ok()?;
    let found = u64::from_str_radix(parts.next()?, 16).ok()?;
    let id = Id { producer, sequence };
    (check(id, parts.next()?) == found).then_some(id)
}

/// FNV-1a, which suffices to distinguish values and is the same everywhere.
#[must_use]
pub fn hash(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

fn check(id: Id, padding: &str) -> u64 {
    hash(format!("{}:{}:{padding}", id.producer, id.sequence).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_says_who_sent_it_unless_a_byte_of_it_changed() {
        let mut random = Rng::with_seed(1);
        let id = Id::new(3, 77);
        let value = make(id, 100, &mut random);
        assert_eq!(parse(&value), Some(id));
        for at in 0..value.len() {
            let mut bytes = value.clone().into_bytes();
            bytes[at] ^= 1;
            let changed = String::from_utf8(bytes).unwrap_or_default();
            assert_eq!(parse(&changed), None, "{changed}");
        }
        assert_eq!(parse(&value[..value.len() - 1]), None);
    }
}
