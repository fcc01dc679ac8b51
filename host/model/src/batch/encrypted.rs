//! The stored form of an encrypted batch: its header stays readable, with right lengths, offsets and a checksum of its own, so that
//! files are walked and checked without a key; instead of the records stands what only a key makes readable.
//!
//! The mark is a bit of the attributes that Kafka does not use. It never comes from outside: [`RecordBatch::decode`] refuses it.

use super::*;

/// Marks an encrypted batch, in its attributes.
pub(super) const ENCRYPTED_FLAG: i16 = 0x4000;
/// Bytes that a stored batch may be larger than a plain one.
pub(super) const ENCRYPTION_BYTES_MAX: usize = 256;

impl RecordBatch {
    /// As [`RecordBatch::decode`], for what this host wrote itself: takes encrypted batches, too.
    ///
    /// # Errors
    /// [`BatchError`] where the bytes are no whole, sound batch of at least one record.
    pub fn decode_stored(bytes: &Bytes) -> Result<Self, BatchError> {
        Self::decode_any(bytes)
    }

    /// Whether its records are encrypted.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.attributes() & ENCRYPTED_FLAG != 0
    }

    /// What follows the header: the records, compressed or not, or what stands for them.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.bytes[HEADER_BYTES..]
    }

    /// The header as far as it is the same in the plain and in the encrypted form: what an encrypted body belongs to.
    #[must_use]
    pub fn identity(&self) -> [u8; HEADER_BYTES] {
        let mut header = self.field::<HEADER_BYTES>(0);
        header[LENGTH_AT..LENGTH_END].fill(0);
        header[CRC_START..CRC_COVERS_FROM].fill(0);
        let attributes = self.attributes() & !ENCRYPTED_FLAG;
        header[ATTRIBUTES_AT..ATTRIBUTES_AT + 2].copy_from_slice(&attributes.to_be_bytes());
        header
    }

    /// The stored form, with the body that `encrypt` appends.
    #[must_use]
    pub fn encrypted(&self, encrypt: impl FnOnce(&mut Vec<u8>)) -> Self {
        let mut bytes = Vec::with_capacity(self.bytes.len() + ENCRYPTION_BYTES_MAX);
        bytes.extend_from_slice(&self.bytes[..HEADER_BYTES]);
        encrypt(&mut bytes);
        framed(bytes, self.attributes() | ENCRYPTED_FLAG)
    }

    /// The plain form, with the body that `decrypt` appends.
    ///
    /// # Errors
    /// What `decrypt` returns.
    pub fn decrypted<E>(
        &self,
        decrypt: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<Self, E> {
        let mut bytes = Vec::with_capacity(self.bytes.len());
        bytes.extend_from_slice(&self.bytes[..HEADER_BYTES]);
        decrypt(&mut bytes)?;
        Ok(framed(bytes, self.attributes() & !ENCRYPTED_FLAG))
    }
}
