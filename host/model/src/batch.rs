//! The record batch: the currency of the data path. Kafka's record-batch format, magic 2, byte for byte: the same bytes travel socket →
//! journal → segment → socket, and are decoded only to read their content.
//!
//! Format: Apache Kafka, "Record Batch" in the protocol's implementation notes (KIP-98). All integers big-endian:
//! ```text
//!  0 base offset i64      8 length i32 (of what follows)   12 leader epoch i32   16 magic i8 = 2   17 crc u32
//! 21 attributes i16      23 last offset delta i32          27 base timestamp i64  35 max timestamp i64
//! 43 producer id i64     51 producer epoch i16             53 base sequence i32   57 record count i32   61 records
//! ```
//! The CRC-32C covers everything from the attributes on. The base offset is outside it, so a
//! partition assigns offsets by writing eight bytes. So is the leader epoch, which here says where
//! a batch belongs ([`Stamp`]).

use std::ops::Range;

use bytes::Bytes;

use crate::bounds::{BATCH_BYTES_MAX, BATCH_MESSAGES_MAX, RECORD_HEADERS_MAX};
use crate::clock::Timestamp;
use crate::compression::{Compression, InflateError};
use crate::message::{Header, Message};
use crate::offset::Offset;
use crate::producer::{Numbering, ProducerId, sequence_after};
use crate::varint;

/// Bytes before the first record.
pub const HEADER_BYTES: usize = 61;
/// Bytes up to and including the length field; the length counts what comes after.
const LENGTH_END: usize = 12;
const CRC_START: usize = 17;
const CRC_COVERS_FROM: usize = 21;
const LENGTH_AT: usize = 8;
const STAMP_AT: usize = LENGTH_END;
const STAMP_END: usize = 16;
const ATTRIBUTES_AT: usize = 21;
const BASE_TIMESTAMP_AT: usize = 27;
const MAX_TIMESTAMP_AT: usize = 35;
const CODEC_MASK: i16 = 0b111;
const CONTROL_FLAG: i16 = 0b10_0000;
/// Kafka's values for a producer that does not number its batches.
const NOT_NUMBERED: (ProducerId, i32) = (ProducerId { id: -1, epoch: -1 }, -1);

/// Why bytes are not a supported record batch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// The bytes end before the batch does. More bytes may complete it.
    #[error("the batch needs {needed} bytes but has {present}")]
    Incomplete {
        /// Size of the batch, as far as known.
        needed: usize,
        /// Number of bytes given.
        present: usize,
    },
    /// Not magic 2: an older format, or no batch at all.
    #[error("record-batch magic {found}; only magic 2 (Kafka 0.11 and later) is supported")]
    Magic {
        /// The byte found.
        found: u8,
    },
    /// A bound of [`crate::bounds`] is exceeded.
    #[error("the batch's {what} is {found}; the maximum is {max}: send smaller batches")]
    TooLarge {
        /// The bound's name.
        what: &'static str,
        /// The batch's value.
        found: usize,
        /// The bound.
        max: usize,
    },
    /// The bytes were changed after they were written.
    #[error(
        "the checksum is {found:#010x}, but the bytes have {computed:#010x}: the batch is damaged"
    )]
    Checksum {
        /// As stored.
        found: u32,
        /// As computed.
        computed: u32,
    },
    /// The records are compressed and must be decompressed first.
    #[error("the records are compressed with codec {codec}; decompress the batch first")]
    Compressed {
        /// Kafka's number of the codec.
        codec: i16,
    },
    /// An unknown compression codec.
    #[error("compression codec {number} does not exist; use gzip, snappy, lz4 or zstd (1 to 4)")]
    Codec {
        /// The number found.
        number: i16,
    },
    /// Compressed records that cannot be decompressed.
    #[error("its records, compressed with {codec}, cannot be read: {error}")]
    Inflate {
        /// The codec that the batch names.
        codec: Compression,
        /// What is wrong.
        error: InflateError,
    },
    /// The records are encrypted: a stored batch in the form it has in its file.
    #[error("the records are encrypted; give the key to read them")]
    Encrypted,
    /// The structure is inconsistent.
    #[error("malformed batch: {0}")]
    Malformed(&'static str),
}

/// One checked record batch. Cheap to clone: the bytes are shared. Two batches are equal if they have the same content at the same
/// offsets, whatever their stamps.
#[derive(Clone, Debug, Eq)]
pub struct RecordBatch {
    bytes: Bytes,
}

impl PartialEq for RecordBatch {
    fn eq(&self, other: &Self) -> bool {
        let (own, others) = (&self.bytes[..], &other.bytes[..]);
        own[..STAMP_AT] == others[..STAMP_AT] && own[STAMP_END..] == others[STAMP_END..]
    }
}

impl RecordBatch {
    /// Takes the batch at the beginning of `bytes`; the caller keeps the rest, and knows the batch's length from
    /// [`RecordBatch::byte_count`].
    ///
    /// # Errors
    /// [`BatchError`] if the bytes are not a complete, valid batch of at least one record.
    pub fn decode(bytes: &Bytes) -> Result<Self, BatchError> {
        let batch = Self::decode_any(bytes)?;
        match batch.is_encrypted() {
            true => Err(BatchError::Encrypted),
            false => Ok(batch),
        }
    }

    fn decode_any(bytes: &Bytes) -> Result<Self, BatchError> {
        let end = Self::framed_length(bytes)?;
        if bytes.len() < end {
            return Err(BatchError::Incomplete {
                needed: end,
                present: bytes.len(),
            });
        }
        let batch = Self {
            bytes: bytes.slice(..end),
        };
        let found = u32::from_be_bytes(batch.field(CRC_START));
        let computed = crc32c::crc32c(&batch.bytes[CRC_COVERS_FROM..]);
        if found != computed {
            return Err(BatchError::Checksum { found, computed });
        }
        batch.check_counts()?;
        Ok(batch)
    }

    /// The size of the batch at the start of `bytes`, from its header alone.
    ///
    /// # Errors
    /// [`BatchError`] if the header is incomplete, of another format, or claims more than the bound.
    pub fn framed_length(bytes: &[u8]) -> Result<usize, BatchError> {
        if bytes.len() < HEADER_BYTES {
            return Err(BatchError::Incomplete {
                needed: HEADER_BYTES,
                present: bytes.len(),
            });
        }
        if bytes[16] != 2 {
            return Err(BatchError::Magic { found: bytes[16] });
        }
        let claimed = i32::from_be_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
        let claimed =
            usize::try_from(claimed).map_err(|_| BatchError::Malformed("negative length"))?;
        let end = claimed + LENGTH_END;
        if end < HEADER_BYTES {
            return Err(BatchError::Malformed("length shorter than the header"));
        }
        let marked = i16::from_be_bytes([bytes[ATTRIBUTES_AT], bytes[ATTRIBUTES_AT + 1]]);
        let max = match marked & encrypted::ENCRYPTED_FLAG {
            0 => BATCH_BYTES_MAX,
            _ => BATCH_BYTES_MAX + encrypted::ENCRYPTION_BYTES_MAX,
        };
        if end > max {
            let found = end;
            return Err(BatchError::TooLarge {
                what: "size in bytes",
                found,
                max,
            });
        }
        Ok(end)
    }

    fn check_counts(&self) -> Result<(), BatchError> {
        let count = i32::from_be_bytes(self.field(57));
        let last_delta = i32::from_be_bytes(self.field(23));
        if count < 1 {
            return Err(BatchError::Malformed("a batch holds at least one record"));
        }
        if count as usize > BATCH_MESSAGES_MAX {
            let (found, max) = (count as usize, BATCH_MESSAGES_MAX);
            return Err(BatchError::TooLarge {
                what: "record count",
                found,
                max,
            });
        }
        // Compaction leaves gaps, so the last delta may exceed the count, but is never below it.
        if last_delta < count - 1 {
            return Err(BatchError::Malformed(
                "last offset delta is smaller than the count",
            ));
        }
        if i64::from_be_bytes(self.field(0)) < 0 {
            return Err(BatchError::Malformed("negative base offset"));
        }
        let numbering = self.numbering();
        let sound = |n: Numbering| n.producer.epoch >= 0 && n.first >= 0;
        if !numbering.is_none_or(sound) && !self.is_control() {
            return Err(BatchError::Malformed(
                "a batch with a producer id has an epoch and a sequence of at least 0",
            ));
        }
        Ok(())
    }

    fn attributes(&self) -> i16 {
        i16::from_be_bytes(self.field(ATTRIBUTES_AT))
    }

    fn field<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut field = [0; N];
        field.copy_from_slice(&self.bytes[at..at + N]);
        field
    }

    /// The whole batch, as it is stored and sent.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Bytes of the whole batch.
    #[must_use]
    pub fn byte_count(&self) -> usize {
        self.bytes.len()
    }

    /// The offset of the first record.
    #[must_use]
    pub fn base_offset(&self) -> Offset {
        Offset(u64::from_be_bytes(self.field(0)))
    }

    /// The offset after the last record.
    #[must_use]
    pub fn end_offset(&self) -> Offset {
        let last_delta = u32::from_be_bytes(self.field(23));
        self.base_offset().plus(u64::from(last_delta) + 1)
    }

    /// The number of its records.
    #[must_use]
    pub fn message_count(&self) -> usize {
        u32::from_be_bytes(self.field(57)) as usize
    }

    /// The latest timestamp in it.
    #[must_use]
    pub fn max_timestamp(&self) -> Timestamp {
        Timestamp(u64::from_be_bytes(self.field(MAX_TIMESTAMP_AT)))
    }

    /// Kafka's number of the compression codec; 0 is none.
    #[must_use]
    pub fn codec(&self) -> i16 {
        i16::from_be_bytes(self.field(21)) & CODEC_MASK
    }

    /// Whether it is a control batch, which carries no messages.
    #[must_use]
    pub fn is_control(&self) -> bool {
        i16::from_be_bytes(self.field(21)) & CONTROL_FLAG != 0
    }

    /// The producer's numbering; `None` for a producer that does not number its batches.
    #[must_use]
    pub fn numbering(&self) -> Option<Numbering> {
        let id = i64::from_be_bytes(self.field(43));
        if id < 0 {
            return None;
        }
        let epoch = i16::from_be_bytes(self.field(51));
        let first = i32::from_be_bytes(self.field(53));
        Some(Numbering {
            producer: ProducerId { id, epoch },
            first,
            last: sequence_after(first, u32::from_be_bytes(self.field(23))),
        })
    }

    /// The same batch at the base offset `base`. The checksum stays valid, because it does not cover the base offset.
    #[must_use]
    pub fn at_offset(&self, base: Offset) -> Self {
        self.clone().with_place(base, self.stamp())
    }

    /// The records, decoded one by one without copying.
    ///
    /// # Errors
    /// [`BatchError::Compressed`] if the records are compressed: use [`RecordBatch::inflated`]. An item is an error if its record is
    /// malformed; the iterator ends after that.
    pub fn records(&self) -> Result<Records<'_>, BatchError> {
        match self.codec() {
            _ if self.is_encrypted() => Err(BatchError::Encrypted),
            0 => Ok(Records {
                batch: self,
                at: HEADER_BYTES,
                left: self.message_count(),
            }),
            codec => Err(BatchError::Compressed { codec }),
        }
    }
}

/// A record in place: ranges into [`RecordBatch::bytes`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordView {
    /// Its offset in the partition.
    pub offset: Offset,
    /// When it happened.
    pub timestamp: Timestamp,
    /// The range of the key.
    pub key: Option<Range<usize>>,
    /// The range of the value.
    pub value: Option<Range<usize>>,
    /// The start of the headers, and their number.
    headers_at: usize,
    header_count: usize,
}

impl RecordView {
    /// How many headers the record has.
    #[must_use]
    pub fn header_count(&self) -> usize {
        self.header_count
    }

    /// The headers: the ranges of each name and value in the batch's bytes. `None` if one is malformed.
    pub fn headers<'a>(
        &self,
        bytes: &'a [u8],
    ) -> impl Iterator<Item = Option<(Range<usize>, Option<Range<usize>>)>> + use<'a> {
        let mut at = self.headers_at;
        (0..self.header_count).map(move |_| {
            let name = take_range(bytes, &mut at)??;
            let value = take_range(bytes, &mut at)?;
            Some((name, value))
        })
    }

    /// The record as a message that shares the batch's bytes.
    ///
    /// # Errors
    /// [`BatchError::Malformed`] if a header is malformed.
    pub fn to_message(&self, bytes: &Bytes) -> Result<Message, BatchError> {
        let share = |range: &Range<usize>| bytes.slice(range.clone());
        let headers = self
            .headers(bytes)
            .map(|header| {
                let (name, value) = header.ok_or(BatchError::Malformed("header"))?;
                Ok(Header {
                    name: share(&name),
                    value: value.as_ref().map(share),
                })
            })
            .collect::<Result<_, BatchError>>()?;
        Ok(Message {
            key: self.key.as_ref().map(share),
            value: self.value.as_ref().map(share),
            headers,
            timestamp: self.timestamp,
        })
    }
}

/// `Some(None)` is Kafka's null (length -1); `None` is malformed.
fn take_range(bytes: &[u8], at: &mut usize) -> Option<Option<Range<usize>>> {
    let length = varint::take(bytes, at)?;
    if length == -1 {
        return Some(None);
    }
    let start = *at;
    let end = start.checked_add(usize::try_from(length).ok()?)?;
    if end > bytes.len() {
        return None;
    }
    *at = end;
    Some(Some(start..end))
}

/// The records of one batch, in offset order.
#[derive(Debug)]
pub struct Records<'a> {
    batch: &'a RecordBatch,
    at: usize,
    left: usize,
}

impl Records<'_> {
    fn take(&mut self) -> Option<RecordView> {
        let whole: &[u8] = &self.batch.bytes;
        let length = usize::try_from(varint::take(whole, &mut self.at)?).ok()?;
        let end = self
            .at
            .checked_add(length)
            .filter(|&end| end <= whole.len())?;
        let bytes = &whole[..end];
        let mut at = self.at + 1; // one byte of attributes, unused by Kafka
        let timestamp_delta = varint::take(bytes, &mut at)?;
        let offset_delta = u32::try_from(varint::take(bytes, &mut at)?).ok()?;
        let key = take_range(bytes, &mut at)?;
        let value = take_range(bytes, &mut at)?;
        let header_count = usize::try_from(varint::take(bytes, &mut at)?).ok()?;
        let offset = self.batch.base_offset().plus(u64::from(offset_delta));
        if header_count > RECORD_HEADERS_MAX || offset >= self.batch.end_offset() {
            return None;
        }
        let timestamp = match self.batch.attributes() & produced::APPEND_TIME_FLAG {
            0 => {
                let base = i64::from_be_bytes(self.batch.field(BASE_TIMESTAMP_AT));
                base.checked_add(timestamp_delta)?
            }
            _ => i64::from_be_bytes(self.batch.field(MAX_TIMESTAMP_AT)),
        };
        let timestamp = timestamp.max(0);
        let view = RecordView {
            offset,
            timestamp: Timestamp(timestamp as u64),
            key,
            value,
            headers_at: at,
            header_count,
        };
        // Headers must fill the record exactly: checked here, so that no reader gets a partly valid record.
        for _ in 0..header_count {
            take_range(bytes, &mut at)??;
            take_range(bytes, &mut at)?;
        }
        if at != end {
            return None;
        }
        self.at = end;
        Some(view)
    }
}

impl Iterator for Records<'_> {
    type Item = Result<RecordView, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        let view = self.take().ok_or(BatchError::Malformed("record"));
        if view.is_err() {
            self.left = 0;
        }
        Some(view)
    }
}

/// Writes one record batch, message by message, without holding the messages.
#[derive(Debug)]
pub struct BatchBuilder {
    bytes: Vec<u8>,
    scratch: Vec<u8>,
    count: u32,
    base_timestamp: u64,
    max_timestamp: u64,
    /// The producer, and the number of the first message.
    numbered: Option<(ProducerId, i32)>,
}

impl BatchBuilder {
    /// An empty batch with room for about `capacity` bytes of records.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + capacity);
        bytes.resize(HEADER_BYTES, 0);
        Self {
            bytes,
            scratch: Vec::new(),
            count: 0,
            base_timestamp: 0,
            max_timestamp: 0,
            numbered: None,
        }
    }

    /// Numbers the messages: the first one gets `sequence`, which is at least 0. The engine issued the producer's id.
    #[must_use]
    pub fn numbered(mut self, producer: ProducerId, sequence: i32) -> Self {
        self.numbered = Some((producer, sequence));
        self
    }

    /// Messages so far.
    #[must_use]
    pub fn message_count(&self) -> usize {
        self.count as usize
    }

    /// Bytes so far, header included.
    #[must_use]
    pub fn byte_count(&self) -> usize {
        self.bytes.len()
    }

    /// Adds a message.
    pub fn push(&mut self, message: &Message) {
        let headers = message
            .headers
            .iter()
            .map(|h| (&h.name[..], h.value.as_deref()));
        let (key, value) = (message.key.as_deref(), message.value.as_deref());
        self.push_parts(
            message.timestamp,
            key,
            value,
            message.headers.len(),
            headers,
        );
    }

    /// Adds a message from borrowed parts; `header_count` is the number of items in `headers`.
    ///
    /// # Panics
    /// If `headers` has another number of items: the record would not be readable.
    pub fn push_parts<'a>(
        &mut self,
        timestamp: Timestamp,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        header_count: usize,
        headers: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)>,
    ) {
        if self.count == 0 {
            self.base_timestamp = timestamp.0;
        }
        self.max_timestamp = self.max_timestamp.max(timestamp.0);
        let record = &mut self.scratch;
        record.clear();
        record.push(0);
        varint::put(record, timestamp.0.wrapping_sub(self.base_timestamp) as i64);
        varint::put(record, i64::from(self.count));
        put_bytes(record, key);
        let value_size = value.map_or(0, <[u8]>::len);
        // The value is written directly to its place; only the small parts around it are built separately.
        varint::put(record, value.map_or(-1, |value| value.len() as i64));
        let before_value = record.len();
        varint::put(record, header_count as i64);
        let mut given = 0;
        for (name, value) in headers {
            put_bytes(record, Some(name));
            put_bytes(record, value);
            given += 1;
        }
        assert_eq!(given, header_count, "as many headers as announced");
        varint::put(&mut self.bytes, (record.len() + value_size) as i64);
        self.bytes.extend_from_slice(&record[..before_value]);
        self.bytes.extend_from_slice(value.unwrap_or_default());
        self.bytes.extend_from_slice(&record[before_value..]);
        self.count += 1;
    }

    /// The finished batch, at offset 0 until a partition places it; `None` if nothing was added.
    #[must_use]
    pub fn finish(mut self) -> Option<RecordBatch> {
        if self.count == 0 {
            return None;
        }
        let length = (self.bytes.len() - LENGTH_END) as u32;
        let mut put = |at: usize, field: &[u8]| {
            self.bytes[at..at + field.len()].copy_from_slice(field);
        };
        put(8, &length.to_be_bytes());
        put(12, &(-1i32).to_be_bytes());
        put(16, &[2]);
        put(23, &(self.count - 1).to_be_bytes());
        put(27, &self.base_timestamp.to_be_bytes());
        put(35, &self.max_timestamp.to_be_bytes());
        let (producer, sequence) = self.numbered.unwrap_or(NOT_NUMBERED);
        put(43, &producer.id.to_be_bytes());
        put(51, &producer.epoch.to_be_bytes());
        put(53, &sequence.to_be_bytes());
        put(57, &self.count.to_be_bytes());
        let crc = crc32c::crc32c(&self.bytes[CRC_COVERS_FROM..]);
        self.bytes[CRC_START..CRC_COVERS_FROM].copy_from_slice(&crc.to_be_bytes());
        Some(RecordBatch {
            bytes: self.bytes.into(),
        })
    }
}

/// A batch of these bytes, whose header is complete except for the attributes, the length and the checksum.
fn framed(mut bytes: Vec<u8>, attributes: i16) -> RecordBatch {
    let length = (bytes.len() - LENGTH_END) as u32;
    bytes[LENGTH_AT..LENGTH_END].copy_from_slice(&length.to_be_bytes());
    bytes[ATTRIBUTES_AT..ATTRIBUTES_AT + 2].copy_from_slice(&attributes.to_be_bytes());
    let crc = crc32c::crc32c(&bytes[CRC_COVERS_FROM..]);
    bytes[CRC_START..CRC_COVERS_FROM].copy_from_slice(&crc.to_be_bytes());
    RecordBatch {
        bytes: bytes.into(),
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    match bytes {
        None => varint::put(out, -1),
        Some(bytes) => {
            varint::put(out, bytes.len() as i64);
            out.extend_from_slice(bytes);
        }
    }
}

mod encrypted;
mod inflating;
mod produced;
mod stamp;
mod thinning;

pub use stamp::Stamp;
pub use thinning::Thinned;

#[cfg(test)]
mod tests;
