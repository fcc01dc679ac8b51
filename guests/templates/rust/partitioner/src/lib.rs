//! Keeps the messages of one customer together: the customer is the part of the key before the first colon.

use millrace_guest::{Message, partitioner};

partitioner!(choose);

fn choose(message: &Message, partitions: u32) -> u32 {
    let key = message.key().unwrap_or_default();
    let customer = key.split(|&byte| byte == b':').next().unwrap_or_default();
    hash(customer) % partitions
}

/// FNV-1a: simple, and the same in every build.
fn hash(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, &byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn customers_are_spread_over_the_partitions() {
        let chosen: std::collections::BTreeSet<u32> = (0..100)
            .map(|n| hash(format!("c{n}").as_bytes()) % 4)
            .collect();
        assert_eq!(chosen.len(), 4);
    }
}
