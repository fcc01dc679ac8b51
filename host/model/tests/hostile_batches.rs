//! Batches from a hostile peer: decoding returns for any bytes, and a batch that it accepts can be
//! read to the end.

use bytes::Bytes;
use millrace_model::batch::HEADER_BYTES;
use millrace_model::bounds::{BATCH_MESSAGES_MAX, RECORD_HEADERS_MAX};
use millrace_model::{BatchBuilder, BatchError, Message, Offset, RecordBatch, Timestamp, varint};
use proptest::collection::vec;
use proptest::prelude::*;

const CRC_START: usize = 17;
const CRC_COVERS_FROM: usize = 21;

fn text(text: &'static str) -> Option<Bytes> {
    Some(Bytes::from_static(text.as_bytes()))
}

fn sound_batch() -> RecordBatch {
    let mut builder = BatchBuilder::with_capacity(0);
    for (key, value) in [("a", "first"), ("b", ""), ("a", "third")] {
        builder.push(&Message {
            key: text(key),
            value: text(value),
            headers: Vec::new(),
            timestamp: Timestamp(1_000),
        });
    }
    builder.finish().expect("three messages")
}

/// Gives bytes the right length and checksum of a batch, so that the rest of them is decoded.
fn sealed(mut bytes: Vec<u8>) -> Bytes {
    let length = (bytes.len() - 12) as i32;
    bytes[8..12].copy_from_slice(&length.to_be_bytes());
    bytes[16] = 2;
    let crc = crc32c::crc32c(&bytes[CRC_COVERS_FROM..]);
    bytes[CRC_START..CRC_COVERS_FROM].copy_from_slice(&crc.to_be_bytes());
    bytes.into()
}

/// Calls every reader of a batch; returns how many records were intact.
fn read_everything(batch: &RecordBatch) -> usize {
    assert!(batch.end_offset() > batch.base_offset() || batch.end_offset() == Offset::MAX);
    let moved = batch.at_offset(Offset(7));
    let decoded = RecordBatch::decode(moved.bytes());
    assert_eq!(decoded.expect("still sound"), moved);
    let _ = (batch.max_timestamp(), batch.is_control());
    let Ok(batch) = batch.inflated() else {
        assert_ne!(batch.codec(), 0, "only compressed records are not given");
        return 0;
    };
    let records = batch.records().expect("inflated");
    let sound = records.flatten().filter_map(|record| {
        assert!(record.header_count() <= RECORD_HEADERS_MAX);
        assert!(record.offset >= batch.base_offset() && record.offset < batch.end_offset());
        record.to_message(batch.bytes()).ok()
    });
    sound.count()
}

proptest! {
    #[test]
    fn any_bytes_are_decoded_without_panic(bytes in vec(any::<u8>(), 0..200)) {
        if let Ok(batch) = RecordBatch::decode(&bytes.into()) {
            read_everything(&batch);
        }
    }

    #[test]
    fn any_records_and_counts_under_a_good_checksum_are_read_without_panic(
        attributes in any::<i16>(),
        last_delta in prop_oneof![-2i32..60, Just(i32::MAX)],
        timestamp in any::<i64>(),
        count in prop_oneof![-2i32..60, Just(i32::MAX)],
        base in prop_oneof![Just(0i64), any::<i64>(), Just(i64::MAX)],
        records in vec(prop_oneof![0u8..12, any::<u8>()], 0..200),
    ) {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&base.to_be_bytes());
        bytes[21..23].copy_from_slice(&attributes.to_be_bytes());
        bytes[23..27].copy_from_slice(&last_delta.to_be_bytes());
        bytes[27..35].copy_from_slice(&timestamp.to_be_bytes());
        bytes[35..43].copy_from_slice(&timestamp.to_be_bytes());
        bytes[57..61].copy_from_slice(&count.to_be_bytes());
        bytes.extend(records);
        let contradicts = count < 1 || last_delta < count.saturating_sub(1) || base < 0;
        match RecordBatch::decode(&sealed(bytes)) {
            Ok(batch) => {
                prop_assert!(!contradicts && count as usize <= BATCH_MESSAGES_MAX);
                read_everything(&batch);
            }
            Err(BatchError::TooLarge { .. }) => prop_assert_eq!(count, i32::MAX),
            Err(BatchError::Encrypted) => prop_assert_ne!(attributes & 0x4000, 0),
            Err(error) => prop_assert!(contradicts, "{error}"),
        }
    }

    #[test]
    fn one_damaged_byte_before_the_checksum_is_an_error_or_does_not_touch_the_messages(
        at in 0..CRC_START,
        byte: u8,
    ) {
        let mut bytes = sound_batch().bytes().to_vec();
        bytes[at] = byte;
        if let Ok(batch) = RecordBatch::decode(&bytes.into()) {
            prop_assert_eq!(read_everything(&batch), 3);
        }
    }
}

#[test]
fn a_record_that_claims_more_than_its_batch_holds_is_malformed() {
    // Each has one wrong length: of the record, the key, the value, the headers, or a header's
    // name.
    for lie in [
        &[i64::MAX][..],
        &[20, 0, 0, 0, i64::MAX],
        &[20, 0, 0, 0, 0, i64::MAX],
        &[20, 0, 0, 0, 0, 0, i64::MAX],
        &[20, 0, 0, 0, 0, 0, 1, i64::MAX],
        &[20, 0, 0, 0, -2],
        &[-1],
    ] {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes[57..61].copy_from_slice(&1i32.to_be_bytes());
        for number in lie {
            varint::put(&mut bytes, *number);
        }
        bytes.resize(bytes.len() + 40, 0);
        let batch = RecordBatch::decode(&sealed(bytes)).expect("the frame is sound");
        let first = batch.records().expect("uncompressed").next();
        assert_eq!(first, Some(Err(BatchError::Malformed("record"))), "{lie:?}");
    }
}
