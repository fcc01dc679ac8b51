//! Tests of the record batch: messages can be read as they were written, and malformed bytes are
//! refused.

use super::*;
use proptest::prelude::*;

fn any_bytes() -> impl Strategy<Value = Bytes> {
    proptest::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from)
}

fn any_message() -> impl Strategy<Value = Message> {
    let header = (any_bytes(), proptest::option::of(any_bytes()))
        .prop_map(|(name, value)| Header { name, value });
    (
        proptest::option::of(any_bytes()),
        proptest::option::of(any_bytes()),
        proptest::collection::vec(header, 0..4),
        0..u64::from(u32::MAX),
    )
        .prop_map(|(key, value, headers, at)| Message {
            key,
            value,
            headers,
            timestamp: Timestamp(at),
        })
}

fn batch_of(messages: &[Message]) -> RecordBatch {
    let mut builder = BatchBuilder::with_capacity(0);
    messages.iter().for_each(|message| builder.push(message));
    builder.finish().expect("not empty")
}

fn messages_of(batch: &RecordBatch) -> Vec<Message> {
    let records = batch.records().expect("uncompressed");
    records
        .map(|record| record.unwrap().to_message(batch.bytes()).unwrap())
        .collect()
}

proptest! {
    #[test]
    fn what_is_written_is_read_back_at_its_offsets(
        messages in proptest::collection::vec(any_message(), 1..20),
        base in 0u64..1 << 40,
    ) {
        let batch = batch_of(&messages).at_offset(Offset(base));
        let again = RecordBatch::decode(batch.bytes()).expect("sound");
        prop_assert_eq!(&messages_of(&again), &messages);
        let offsets: Vec<u64> = again.records().unwrap().map(|r| r.unwrap().offset.0).collect();
        prop_assert_eq!(offsets, (base..base + messages.len() as u64).collect::<Vec<_>>());
        prop_assert_eq!(again.end_offset(), Offset(base).plus(messages.len() as u64));
    }

    #[test]
    fn every_flipped_bit_under_the_checksum_is_noticed(
        messages in proptest::collection::vec(any_message(), 1..5),
        place: proptest::sample::Index,
        bit in 0u8..8,
    ) {
        let batch = batch_of(&messages);
        let mut bytes = batch.bytes().to_vec();
        let at = CRC_START + place.index(bytes.len() - CRC_START);
        bytes[at] ^= 1 << bit;
        let decoded = RecordBatch::decode(&bytes.into());
        prop_assert!(matches!(decoded, Err(BatchError::Checksum { .. })), "{:?}", decoded);
    }

    #[test]
    fn every_prefix_is_incomplete_and_asks_for_more(
        messages in proptest::collection::vec(any_message(), 1..5),
        place: proptest::sample::Index,
    ) {
        let whole = batch_of(&messages).bytes().clone();
        let cut = whole.slice(..place.index(whole.len()));
        let decoded = RecordBatch::decode(&cut);
        prop_assert!(matches!(decoded, Err(BatchError::Incomplete { .. })), "{:?}", decoded);
    }

    #[test]
    fn hostile_records_under_a_good_checksum_are_errors_not_panics(
        records in proptest::collection::vec(any::<u8>(), 0..200),
        count in 1u32..50,
    ) {
        let mut builder = BatchBuilder::with_capacity(0);
        builder.bytes.extend_from_slice(&records);
        builder.count = count;
        let batch = builder.finish().unwrap();
        let batch = RecordBatch::decode(batch.bytes()).expect("the frame is sound");
        for record in batch.records().unwrap().flatten() {
            let _ = record.to_message(batch.bytes());
        }
    }
}

#[test]
fn a_batch_by_another_writer_of_the_format_is_read() {
    // key "k", value "v", one header h=x, timestamp 1000, base offset 7: laid out by hand from the format's text.
    let records = [24u8, 0, 0, 0, 2, b'k', 2, b'v', 2, 2, b'h', 2, b'x'];
    let mut bytes = Vec::new();
    bytes.extend(7i64.to_be_bytes());
    bytes.extend(((HEADER_BYTES - LENGTH_END + records.len()) as i32).to_be_bytes());
    bytes.extend(0i32.to_be_bytes());
    bytes.extend([2, 0, 0, 0, 0]);
    bytes.extend(0i16.to_be_bytes());
    bytes.extend(0i32.to_be_bytes());
    bytes.extend(1000i64.to_be_bytes());
    bytes.extend(1000i64.to_be_bytes());
    bytes.extend((-1i64).to_be_bytes());
    bytes.extend((-1i16).to_be_bytes());
    bytes.extend((-1i32).to_be_bytes());
    bytes.extend(1i32.to_be_bytes());
    bytes.extend(records);
    let crc = crc32c::crc32c(&bytes[CRC_COVERS_FROM..]);
    bytes[CRC_START..CRC_COVERS_FROM].copy_from_slice(&crc.to_be_bytes());
    let batch = RecordBatch::decode(&bytes.into()).unwrap();
    assert_eq!(batch.base_offset(), Offset(7));
    let message = &messages_of(&batch)[0];
    assert_eq!(message.key.as_deref(), Some(&b"k"[..]));
    assert_eq!(message.value.as_deref(), Some(&b"v"[..]));
    assert_eq!(message.headers[0].name, "h");
    assert_eq!(message.timestamp, Timestamp(1000));
}

#[test]
fn a_claimed_length_over_the_bound_is_refused_from_the_header() {
    let mut header = [0u8; HEADER_BYTES];
    header[16] = 2;
    header[8..12].copy_from_slice(&i32::MAX.to_be_bytes());
    let refused = RecordBatch::framed_length(&header);
    assert!(matches!(refused, Err(BatchError::TooLarge { .. })));
}

#[test]
fn an_empty_builder_makes_no_batch() {
    assert!(BatchBuilder::with_capacity(10).finish().is_none());
}

#[test]
fn a_batch_says_how_its_producer_numbered_it() {
    let numbered = |id, epoch, first, count: usize| {
        let producer = ProducerId { id, epoch };
        let mut builder = BatchBuilder::with_capacity(0).numbered(producer, first);
        (0..count).for_each(|_| builder.push(&Message::default()));
        builder.finish().expect("not empty")
    };
    let batch = numbered(1 << 40, 7, i32::MAX - 1, 5);
    let decoded = RecordBatch::decode(batch.bytes()).expect("sound");
    let numbering = decoded.numbering().expect("numbered");
    assert_eq!(numbering.producer.id, 1 << 40);
    assert_eq!(numbering.producer.epoch, 7);
    assert_eq!(
        (numbering.first, numbering.last, numbering.next()),
        (i32::MAX - 1, 2, 3)
    );
    assert_eq!(batch_of(&[Message::default()]).numbering(), None);
    for half in [numbered(5, -1, 0, 1), numbered(5, 0, -1, 1)] {
        let refused = RecordBatch::decode(half.bytes());
        assert!(matches!(refused, Err(BatchError::Malformed(_))));
    }
    // The number is under the checksum.
    let mut changed = batch.bytes().to_vec();
    changed[53] ^= 1;
    let refused = RecordBatch::decode(&changed.into());
    assert!(matches!(refused, Err(BatchError::Checksum { .. })));
}

fn any_codec() -> impl Strategy<Value = Compression> {
    proptest::sample::select(&Compression::ALL[..])
}

/// A compressed batch whose header says `count` messages, holding these bytes.
fn compressed(codec: Compression, records: &[u8], count: u32) -> RecordBatch {
    let mut builder = BatchBuilder::with_capacity(0);
    codec.deflate(records, &mut builder.bytes).unwrap();
    builder.count = count;
    let mut bytes = builder.finish().unwrap().bytes().to_vec();
    bytes[ATTRIBUTES_AT + 1] = codec.code() as u8;
    let crc = crc32c::crc32c(&bytes[CRC_COVERS_FROM..]);
    bytes[CRC_START..CRC_COVERS_FROM].copy_from_slice(&crc.to_be_bytes());
    RecordBatch::decode(&bytes.into()).expect("the frame is sound")
}

proptest! {
    #[test]
    fn what_is_written_with_any_codec_is_read_back_at_its_offsets(
        messages in proptest::collection::vec(any_message(), 1..20),
        codec in any_codec(),
        base in 0u64..1 << 40,
    ) {
        let plain = batch_of(&messages);
        let stored = plain.deflated(codec).at_offset(Offset(base));
        prop_assert!(stored.byte_count() <= plain.byte_count());
        let again = RecordBatch::decode(stored.bytes()).expect("sound");
        let read = again.inflated().unwrap();
        prop_assert_eq!(&read, &plain.at_offset(Offset(base)), "the very batch, moved");
        prop_assert_eq!(messages_of(&read), messages);
        prop_assert_eq!(stored.end_offset(), read.end_offset());
        prop_assert_eq!(stored.max_timestamp(), read.max_timestamp());
    }

    #[test]
    fn any_bytes_as_compressed_records_are_errors_not_panics(
        records in proptest::collection::vec(any::<u8>(), 0..300),
        codec in any_codec(),
        count in 1u32..50,
    ) {
        let batch = compressed(Compression::None, &records, count);
        let mut bytes = batch.bytes().to_vec();
        bytes[ATTRIBUTES_AT + 1] = codec.code() as u8;
        let raw = RecordBatch { bytes: bytes.into() };
        for batch in [raw, compressed(codec, &records, count)] {
            if let Ok(plain) = batch.inflated() {
                let _ = plain.records().unwrap().flatten().count();
            }
        }
    }
}

#[test]
fn a_compressed_batch_must_hold_what_its_header_says() {
    let plain = batch_of(&[Message::default(), Message::default()]);
    let records = &plain.bytes()[HEADER_BYTES..];
    for codec in &Compression::ALL[1..] {
        assert!(compressed(*codec, records, 2).inflated().is_ok());
        for count in [1, 3] {
            let refused = compressed(*codec, records, count).inflated();
            assert!(
                matches!(refused, Err(BatchError::Malformed(_))),
                "{codec}: {refused:?}"
            );
        }
        let refused = compressed(*codec, &[records, &[0]].concat(), 2).inflated();
        assert!(
            matches!(refused, Err(BatchError::Malformed(_))),
            "{codec}: {refused:?}"
        );
    }
}

#[test]
fn a_decompression_bomb_is_an_error_that_names_the_bound() {
    let bomb = vec![0; crate::bounds::BATCH_INFLATED_BYTES_MAX + 1];
    for codec in [Compression::Gzip, Compression::Zstd] {
        let batch = compressed(codec, &bomb, 1);
        assert!(batch.byte_count() < 1 << 20);
        let refused = batch.inflated().unwrap_err();
        let error = InflateError::TooLarge {
            max: crate::bounds::BATCH_INFLATED_BYTES_MAX,
        };
        assert_eq!(refused, BatchError::Inflate { codec, error });
        assert!(refused.to_string().contains("67108864 bytes"), "{refused}");
    }
}

#[test]
fn a_codec_that_nobody_knows_is_named() {
    let mut bytes = batch_of(&[Message::default()]).bytes().to_vec();
    bytes[ATTRIBUTES_AT + 1] = 6;
    let batch = RecordBatch {
        bytes: bytes.into(),
    };
    assert_eq!(batch.inflated(), Err(BatchError::Codec { number: 6 }));
    assert_eq!(
        batch.records().err(),
        Some(BatchError::Compressed { codec: 6 })
    );
}

#[test]
fn what_compressing_does_not_shrink_stays_plain() {
    let small = batch_of(&[Message::default()]);
    for codec in Compression::ALL {
        assert_eq!(small.deflated(codec), small);
    }
}
