//! Zig-zag variable-length integers, as Kafka's records (and Protocol Buffers' `sint64`) write them.

/// Appends `value`.
pub fn put(out: &mut Vec<u8>, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    while rest >= 0x80 {
        out.push((rest as u8 & 0x7f) | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// Bytes that [`put`] writes for `value`.
#[must_use]
pub fn size(value: i64) -> usize {
    let zigzag = ((value << 1) ^ (value >> 63)) as u64;
    let bits = (64 - zigzag.leading_zeros()).max(1) as usize;
    bits.div_ceil(7)
}

/// Reads a value at `*at` and moves `*at` past it; `None` if the bytes end first or hold more than 64 bits.
pub fn take(bytes: &[u8], at: &mut usize) -> Option<i64> {
    let mut zigzag = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.get(*at)?;
        *at += 1;
        if shift == 63 && byte > 1 {
            return None;
        }
        zigzag |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((zigzag >> 1) as i64 ^ -((zigzag & 1) as i64));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_put_is_taken_back_and_has_the_size_foretold(value: i64) {
            let mut bytes = Vec::new();
            put(&mut bytes, value);
            prop_assert_eq!(bytes.len(), size(value));
            let mut at = 0;
            prop_assert_eq!(take(&bytes, &mut at), Some(value));
            prop_assert_eq!(at, bytes.len());
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            let mut at = 0;
            let _ = take(&bytes, &mut at);
            prop_assert!(at <= bytes.len());
        }
    }

    #[test]
    fn eleven_byte_and_overflowing_values_are_refused() {
        assert_eq!(take(&[0xff; 11], &mut 0), None);
        assert_eq!(
            take(
                &[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x02],
                &mut 0
            ),
            None
        );
    }
}
