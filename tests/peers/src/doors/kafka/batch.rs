//! Kafka's record batch, version 2.

use anyhow::{Context, Result, ensure};

use super::wire::{Fields, Writer};

/// The position of the length. Offset, length and epoch at the front are not covered by the
/// checksum.
const LENGTH_AT: usize = 8;
const MAGIC: i8 = 2;
/// Bytes from the start of the batch to its first record.
const HEAD_BYTES: usize = 61;
/// Bit of the attributes: the batch marks a transaction's end.
const CONTROL: i16 = 0x20;
/// Bits of the attributes: the codec, 0 for none.
const CODEC: i16 = 0x07;

pub(super) struct Record<'a> {
    pub(super) key: Option<&'a str>,
    pub(super) value: &'a str,
}

/// A batch as a consumer receives it.
pub(super) struct Batch<'a> {
    pub(super) first: i64,
    /// The offset after its last record.
    pub(super) next: i64,
    pub(super) count: u64,
    /// Whether it marks the end of a transaction instead of holding messages.
    pub(super) is_control: bool,
    records: &'a [u8],
}

/// An uncompressed batch from a producer without a transaction.
pub(super) fn record_batch(records: &[Record<'_>]) -> Vec<u8> {
    let mut covered = Writer::default();
    covered.i16(0); // attributes
    covered.i32(records.len() as i32 - 1); // last offset, counted from the first
    covered.i64(0); // first timestamp
    covered.i64(0); // largest timestamp
    covered.i64(-1); // producer
    covered.i16(-1); // its epoch
    covered.i32(-1); // its sequence
    covered.i32(records.len() as i32);
    for (number, record) in records.iter().enumerate() {
        let mut body = Writer::default();
        body.i8(0); // attributes
        body.varint(0); // timestamp, counted from the first
        body.varint(number as i64);
        match record.key {
            None => body.varint(-1),
            Some(key) => {
                body.varint(key.len() as i64);
                body.raw(key.as_bytes());
            }
        }
        body.varint(record.value.len() as i64);
        body.raw(record.value.as_bytes());
        body.varint(0); // headers
        covered.varint(body.written().len() as i64);
        covered.raw(body.written());
    }
    let mut batch = Writer::default();
    batch.i64(0); // the broker gives the offset
    batch.i32(covered.written().len() as i32 + 9);
    batch.i32(-1); // epoch of the leader
    batch.i8(MAGIC);
    batch.i32(crc32c::crc32c(covered.written()) as i32);
    batch.raw(covered.written());
    batch.written().to_vec()
}

/// The complete batches at the front; a broker cuts the last one off where the fetch is full.
pub(super) fn batches(mut bytes: &[u8]) -> impl Iterator<Item = Result<Batch<'_>>> {
    std::iter::from_fn(move || {
        let length = bytes.get(LENGTH_AT..)?.first_chunk()?;
        let whole = LENGTH_AT + 4 + i32::from_be_bytes(*length) as usize;
        let (batch, rest) = bytes.split_at_checked(whole)?;
        bytes = rest;
        Some(read(batch))
    })
}

fn read(bytes: &[u8]) -> Result<Batch<'_>> {
    let records = bytes.get(HEAD_BYTES..).context("a batch is cut off")?;
    let mut fields = Fields::new(bytes);
    let first = fields.i64()?;
    fields.skip(8)?; // length, epoch of the leader
    let magic = fields.i8()?;
    ensure!(magic == MAGIC, "a batch of version {magic}");
    fields.skip(4)?; // checksum
    let attributes = fields.i16()?;
    ensure!(attributes & CODEC == 0, "a compressed batch");
    let last = fields.i32()?;
    fields.skip(8 + 8 + 8 + 2 + 4)?; // timestamps, producer
    let count = fields.i32()?;
    Ok(Batch {
        first,
        next: first + i64::from(last) + 1,
        count: u64::try_from(count)?,
        is_control: attributes & CONTROL != 0,
        records,
    })
}

impl Batch<'_> {
    pub(super) fn values(&self, each: &mut dyn FnMut(&[u8])) -> Result<()> {
        let mut fields = Fields::new(self.records);
        for _ in 0..self.count {
            let length = fields.varint()?;
            let mut record = Fields::new(fields.skip(usize::try_from(length)?)?);
            record.i8()?;
            record.varint()?;
            record.varint()?;
            let key = record.varint()?;
            record.skip(usize::try_from(key).unwrap_or(0))?;
            let value = record.varint()?;
            each(record.skip(usize::try_from(value).unwrap_or(0))?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_that_the_fetch_cuts_is_left_for_the_next_one() {
        let record = Record {
            key: Some("k"),
            value: "value",
        };
        let batch = record_batch(&[record]);
        let twice = batch.repeat(2);
        let cut = &twice[..twice.len() - 1];
        let read: Vec<Batch<'_>> = batches(cut).collect::<Result<_>>().unwrap();
        assert_eq!(read.len(), 1);
        assert_eq!((read[0].first, read[0].next, read[0].count), (0, 1, 1));
        assert!(!read[0].is_control);
        let mut values = Vec::new();
        read[0]
            .values(&mut |value| values.push(value.to_vec()))
            .unwrap();
        assert_eq!(values, [b"value"]);
    }
}
