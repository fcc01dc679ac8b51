//! A hash that is the same on every machine and in every version, because it is stored and compared between hosts.

/// FNV-1a, 64 bits (G. Fowler, L. C. Noll and K.-P. Vo). Its result is stored with progress, so it must never change. Its last bytes are
/// badly spread, and anyone can choose keys that collide.
#[must_use]
pub fn fnv1a(bytes: impl IntoIterator<Item = u8>) -> u64 {
    let bytes = bytes.into_iter();
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The test vectors published by its authors.
    #[test]
    fn it_is_fnv_1a() {
        let of = |text: &str| fnv1a(text.bytes());
        assert_eq!(of(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(of("a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(of("foobar"), 0x8594_4171_f739_67e8);
    }
}
