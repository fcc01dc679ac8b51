//! The stored form of an encrypted batch: its header stays readable, with correct lengths and offsets and its own checksum, so that
//! files can be walked and checked without a key; the records are replaced by ciphertext.
//!
//! The mark is an attribute bit that Kafka does not use. It is never accepted from outside: [`RecordBatch::decode`] refuses it.

use super::*;

/// Marks an encrypted batch, in its attributes.
pub(super) const ENCRYPTED_FLAG: i16 = 0x4000;
/// Bytes by which a stored, encrypted batch may exceed the bound of a plain one.
pub(super) const ENCRYPTION_BYTES_MAX: usize = 256;

impl RecordBatch {
    /// Like [`RecordBatch::decode`], for batches that this host wrote itself: accepts encrypted ones, too.
    ///
    /// # Errors
    /// [`BatchError`] if the bytes are not a complete, valid batch of at least one record.
    pub fn decode_stored(bytes: &Bytes) -> Result<Self, BatchError> {
        Self::decode_any(bytes)
    }

    /// Whether its records are encrypted.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.attributes() & ENCRYPTED_FLAG != 0
    }

    /// Everything after the header: the records, compressed or not, or the ciphertext.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.bytes[HEADER_BYTES..]
    }

    /// The part of the header that is the same in the plain and the encrypted form, which authenticates an encrypted body.
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
