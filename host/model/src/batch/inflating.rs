//! Compressed batches: decompressed to be read, compressed to be written. The stored bytes stay as they were produced; a decompressed
//! batch lives only while its records are read.

use super::*;
use crate::bounds::BATCH_INFLATED_BYTES_MAX;

impl RecordBatch {
    /// The batch with its records decompressed; the same batch if they are not compressed. It has the same offsets, and may be larger
    /// than a stored batch: it is only for reading.
    ///
    /// # Errors
    /// [`BatchError::Codec`] for an unknown codec, [`BatchError::Inflate`] if the bytes are not valid for the codec or hold more than
    /// [`BATCH_INFLATED_BYTES_MAX`], [`BatchError::Malformed`] if the records contradict the header.
    pub fn inflated(&self) -> Result<Self, BatchError> {
        if self.is_encrypted() {
            return Err(BatchError::Encrypted);
        }
        let number = self.codec();
        if number == 0 {
            return Ok(self.clone());
        }
        let codec = Compression::from_code(number).ok_or(BatchError::Codec { number })?;
        let mut bytes = self.bytes[..HEADER_BYTES].to_vec();
        codec
            .inflate(
                &self.bytes[HEADER_BYTES..],
                &mut bytes,
                BATCH_INFLATED_BYTES_MAX,
            )
            .map_err(|error| BatchError::Inflate { codec, error })?;
        let plain = framed(bytes, self.attributes() & !CODEC_MASK);
        plain.check_records()?;
        Ok(plain)
    }

    /// The batch with its records compressed; the same batch if they already are, or would not become smaller.
    #[must_use]
    pub fn deflated(&self, codec: Compression) -> Self {
        if codec == Compression::None || self.codec() != 0 {
            return self.clone();
        }
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.bytes.len() / 2);
        bytes.extend_from_slice(&self.bytes[..HEADER_BYTES]);
        let done = codec.deflate(&self.bytes[HEADER_BYTES..], &mut bytes);
        if done.is_err() || bytes.len() >= self.bytes.len() {
            return self.clone();
        }
        framed(bytes, self.attributes() | codec.code())
    }

    /// Whether there are as many records as the header says, and nothing after them. Reads only their lengths.
    fn check_records(&self) -> Result<(), BatchError> {
        let (bytes, mut at) = (&self.bytes[..], HEADER_BYTES);
        for _ in 0..self.message_count() {
            let length =
                varint::take(bytes, &mut at).and_then(|length| usize::try_from(length).ok());
            at = length
                .and_then(|length| at.checked_add(length))
                .filter(|&end| end <= bytes.len())
                .ok_or(BatchError::Malformed("it holds fewer records than it says"))?;
        }
        match at == bytes.len() {
            true => Ok(()),
            false => Err(BatchError::Malformed("bytes follow its last record")),
        }
    }
}

impl BatchBuilder {
    /// Like [`BatchBuilder::finish`], compressed if that makes it smaller.
    #[must_use]
    pub fn finish_with(self, codec: Compression) -> Option<RecordBatch> {
        self.finish().map(|batch| batch.deflated(codec))
    }
}
