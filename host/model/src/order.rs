//! The order of keys, as far as a number can represent it.

/// The first eight bytes of a key, as a number that sorts like the keys.
#[must_use]
pub fn head(key: &[u8]) -> u64 {
    match key.first_chunk() {
        Some(head) => u64::from_be_bytes(*head),
        None => {
            let mut head = [0; 8];
            head[..key.len()].copy_from_slice(key);
            u64::from_be_bytes(head)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_in_order_as_far_as_they_say_anything() {
        let keys: [&[u8]; 6] = [b"", b"\0", b"a", b"aaaaaaaa", b"aaaaaaab", b"b"];
        for pair in keys.windows(2) {
            assert!(head(pair[0]) <= head(pair[1]), "{pair:?}");
        }
        assert!(head(b"a") < head(b"b"));
        assert_eq!(
            head(b"12345678"),
            head(b"123456789"),
            "the rest is not seen"
        );
    }
}
