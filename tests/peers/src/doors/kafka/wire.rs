//! The fields of Kafka's requests and answers, in the versions before tagged fields.

use anyhow::{Context, Result};

/// Builds the body of a request, or a part of it.
#[derive(Default)]
pub(super) struct Writer(Vec<u8>);

impl Writer {
    pub(super) fn written(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn i8(&mut self, value: i8) {
        self.0.extend(value.to_be_bytes());
    }

    pub(super) fn i16(&mut self, value: i16) {
        self.0.extend(value.to_be_bytes());
    }

    pub(super) fn i32(&mut self, value: i32) {
        self.0.extend(value.to_be_bytes());
    }

    pub(super) fn i64(&mut self, value: i64) {
        self.0.extend(value.to_be_bytes());
    }

    pub(super) fn text(&mut self, text: &str) {
        self.i16(text.len() as i16);
        self.0.extend(text.as_bytes());
    }

    pub(super) fn null_text(&mut self) {
        self.i16(-1);
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.i32(bytes.len() as i32);
        self.raw(bytes);
    }

    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
    }

    /// Writes one topic with one partition, up to the partition's number.
    pub(super) fn one_partition(&mut self, topic: &str, partition: u32) {
        self.i32(1);
        self.text(topic);
        self.i32(1);
        self.i32(partition as i32);
    }

    /// Writes a number in bytes of seven bits each, as in records.
    pub(super) fn varint(&mut self, value: i64) {
        let mut rest = ((value << 1) ^ (value >> 63)) as u64;
        while rest >= 0x80 {
            self.0.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        self.0.push(rest as u8);
    }
}

/// A request with its length and header. Correlation ids are ignored, since answers come in order.
pub(super) fn frame((api, version): (i16, i16), body: &Writer) -> Vec<u8> {
    let mut head = Writer::default();
    head.i16(api);
    head.i16(version);
    head.i32(0);
    head.text("peers");
    let length = head.0.len() + body.0.len();
    let mut whole = Writer::default();
    whole.i32(length as i32);
    whole.raw(&head.0);
    whole.raw(&body.0);
    whole.0
}

/// Reads the fields of an answer from the front.
pub(super) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    fn some<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (some, rest) = self.0.split_first_chunk().context("an answer is cut off")?;
        self.0 = rest;
        Ok(*some)
    }

    pub(super) fn i8(&mut self) -> Result<i8> {
        self.some().map(i8::from_be_bytes)
    }

    pub(super) fn i16(&mut self) -> Result<i16> {
        self.some().map(i16::from_be_bytes)
    }

    pub(super) fn i32(&mut self) -> Result<i32> {
        self.some().map(i32::from_be_bytes)
    }

    pub(super) fn i64(&mut self) -> Result<i64> {
        self.some().map(i64::from_be_bytes)
    }

    pub(super) fn text(&mut self) -> Result<&'a [u8]> {
        let length = self.i16()?;
        self.skip(usize::try_from(length).unwrap_or(0))
    }

    pub(super) fn varint(&mut self) -> Result<i64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let [byte] = self.some()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok((value >> 1) as i64 ^ -((value & 1) as i64));
            }
        }
        anyhow::bail!("a number without end")
    }

    /// Bytes with a length before them, as in requests and answers; empty for null.
    pub(super) fn rest_of_bytes(&mut self) -> Result<&'a [u8]> {
        let length = self.i32()?;
        self.skip(usize::try_from(length).unwrap_or(0))
    }

    /// Skips the next bytes.
    pub(super) fn skip(&mut self, bytes: usize) -> Result<&'a [u8]> {
        let (skipped, rest) = self
            .0
            .split_at_checked(bytes)
            .context("an answer is cut off")?;
        self.0 = rest;
        Ok(skipped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_any_size_are_read_as_written() {
        for value in [0, 1, -1, 63, 64, -65, 300, i64::MAX, i64::MIN] {
            let mut writer = Writer::default();
            writer.varint(value);
            assert_eq!(Fields::new(writer.written()).varint().unwrap(), value);
        }
    }

    #[test]
    fn an_answer_that_ends_early_is_an_error() {
        assert!(Fields::new(&[0, 0, 0]).i32().is_err());
        assert!(Fields::new(&[0, 9, b'a']).text().is_err());
        assert!(Fields::new(&[0xff; 20]).varint().is_err());
    }
}
