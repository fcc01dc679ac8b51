//! Tests of the codecs: the same bytes come back, never more than the bound, and nothing may follow
//! them.

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;

const CODECS: [Compression; 4] = [
    Compression::Gzip,
    Compression::Snappy,
    Compression::Lz4,
    Compression::Zstd,
];

fn deflated(codec: Compression, plain: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    codec.deflate(plain, &mut out).expect("memory is enough");
    out
}

fn inflated(codec: Compression, compressed: &[u8], max: usize) -> Result<Vec<u8>, InflateError> {
    let mut out = b"head".to_vec();
    codec.inflate(compressed, &mut out, max)?;
    assert!(
        out.capacity() <= 4 + max + 1 || out.capacity() <= 4096,
        "{}",
        out.capacity()
    );
    Ok(out.split_off(4))
}

proptest! {
    #[test]
    fn what_is_deflated_is_inflated_again_and_fits_exactly(
        seed in vec(any::<u8>(), 1..60),
        length in 0usize..200_000,
    ) {
        let plain: Vec<u8> = seed.iter().copied().cycle().take(length).collect();
        for codec in CODECS {
            let compressed = deflated(codec, &plain);
            prop_assert_eq!(&inflated(codec, &compressed, length).unwrap(), &plain);
            if length > 0 {
                let refused = inflated(codec, &compressed, length - 1);
                prop_assert_eq!(refused, Err(InflateError::TooLarge { max: length - 1 }));
            }
        }
    }

    #[test]
    fn any_bytes_are_refused_or_inflated_within_the_bound(
        bytes in vec(any::<u8>(), 0..300),
        place: proptest::sample::Index,
        flip in 1u8..,
    ) {
        for codec in CODECS {
            let _ = inflated(codec, &bytes, 1000);
            // The beginning is right, the rest is not.
            let mut damaged = deflated(codec, &[7; 5000]);
            let at = place.index(damaged.len());
            damaged[at] ^= flip;
            if let Ok(plain) = inflated(codec, &damaged, 6000) {
                prop_assert!(plain.len() <= 6000);
            }
            damaged.truncate(at);
            damaged.extend(&bytes);
            let _ = inflated(codec, &damaged, 6000);
        }
    }
}

#[test]
fn what_is_cut_short_or_goes_on_is_refused() {
    let plain: Vec<u8> = (0..100_000u32)
        .flat_map(|n| (n / 7).to_le_bytes())
        .collect();
    for codec in CODECS {
        let whole = deflated(codec, &plain);
        for cut in [1, whole.len() / 2, whole.len() - 1] {
            let read = inflated(codec, &whole[..cut], plain.len());
            assert!(read.is_err(), "{codec}: {cut} of {} bytes", whole.len());
        }
        let longer = [&whole[..], b"and so on"].concat();
        let read = inflated(codec, &longer, plain.len());
        assert!(
            matches!(read, Err(InflateError::Broken(_) | InflateError::Trailing)),
            "{codec}: {read:?}"
        );
    }
}

#[test]
fn a_bomb_stops_at_the_bound() {
    let plain = vec![0; 8 << 20];
    for codec in CODECS {
        let compressed = deflated(codec, &plain);
        let refused = inflated(codec, &compressed, 1 << 20);
        assert_eq!(
            refused,
            Err(InflateError::TooLarge { max: 1 << 20 }),
            "{codec}"
        );
    }
    // A few bytes that claim 2 GiB, and some that claim what fits and cannot be.
    let claims = [0xff, 0xff, 0xff, 0xff, 0x07, 0];
    let refused = inflated(Compression::Snappy, &claims, 1 << 20);
    assert_eq!(refused, Err(InflateError::TooLarge { max: 1 << 20 }));
    let refused = inflated(Compression::Snappy, &[0xff, 0xff, 0x03, 0], 1 << 20);
    assert!(
        matches!(refused, Err(InflateError::Broken(_))),
        "{refused:?}"
    );
}

#[test]
fn snappy_blocks_without_framing_are_read_too() {
    let plain = b"again and again and again and again".repeat(50);
    let block = snap::raw::Encoder::new().compress_vec(&plain).unwrap();
    assert_eq!(
        inflated(Compression::Snappy, &block, plain.len()).unwrap(),
        plain
    );
}

#[test]
fn every_codec_has_its_number_and_name() {
    for (number, codec) in Compression::ALL.into_iter().enumerate() {
        assert_eq!(Compression::from_code(number as i16), Some(codec));
        assert_eq!(serde_json::to_value(codec).unwrap(), codec.name());
    }
    assert_eq!(Compression::from_code(5), None);
}
