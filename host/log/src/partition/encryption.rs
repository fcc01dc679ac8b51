//! Encrypts batches of one partition when they are written to its segments, and decrypts them when
//! they are read.
//!
//! The body of a stored batch is `[version u8][topic u64][partition u32]` (big-endian), followed by
//! an encrypted piece ([`crate::cipher`]), which is bound to the batch's header and place: a batch
//! that was moved to another offset or partition cannot be decrypted.

use std::sync::Arc;

use millrace_model::{RecordBatch, TopicPartition};

use crate::cipher::{self, Cipher, DecryptError};

const VERSION: u8 = 1;
const PLACE_BYTES: usize = 13;

/// The keys, and the partition of the batches.
#[derive(Clone, Debug)]
pub struct BatchCipher {
    cipher: Arc<Cipher>,
    place: [u8; PLACE_BYTES],
}

impl BatchCipher {
    /// For the batches of one partition.
    #[must_use]
    pub fn new(cipher: Arc<Cipher>, partition: TopicPartition) -> Self {
        let mut place = [VERSION; PLACE_BYTES];
        place[1..9].copy_from_slice(&partition.topic.0.to_be_bytes());
        place[9..].copy_from_slice(&partition.partition.0.to_be_bytes());
        Self { cipher, place }
    }

    /// For the partition that the batch itself names, to examine a file on its own.
    #[must_use]
    pub fn as_named(cipher: Arc<Cipher>, batch: &RecordBatch) -> Option<Self> {
        let place = *batch.body().first_chunk()?;
        Some(Self { cipher, place })
    }

    /// The stored form.
    #[must_use]
    pub fn encrypt(&self, batch: &RecordBatch) -> RecordBatch {
        let belongs_to = self.belongs_to(batch);
        batch.encrypted(|out| {
            out.extend(self.place);
            let start = out.len();
            self.cipher.begin(out);
            out.extend_from_slice(batch.body());
            self.cipher.finish(out, start, &belongs_to);
        })
    }

    /// The batch as it was produced; the same batch if it is not encrypted.
    ///
    /// # Errors
    /// [`DecryptError`].
    pub fn decrypt(&self, stored: &RecordBatch) -> Result<RecordBatch, DecryptError> {
        if !stored.is_encrypted() {
            return Ok(stored.clone());
        }
        let belongs_to = self.belongs_to(stored);
        let body = stored.body();
        let (_, piece) = body
            .split_first_chunk::<PLACE_BYTES>()
            .ok_or(DecryptError::Short)?;
        stored.decrypted(|out| self.cipher.decrypt_into(piece, &belongs_to, out))
    }

    fn belongs_to(&self, batch: &RecordBatch) -> Vec<u8> {
        [&batch.identity()[..], &self.place].concat()
    }
}

/// The key id of an encrypted batch; `None` for a plain one.
#[must_use]
pub fn key_id(stored: &RecordBatch) -> Option<u32> {
    let body = stored.is_encrypted().then(|| stored.body())?;
    cipher::key_id(body.get(PLACE_BYTES..)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use millrace_model::{
        BatchBuilder, BatchError, Compression, Message, Offset, PartitionId, TopicId,
    };

    const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

    fn batch_cipher(keys: &str, partition: u32) -> BatchCipher {
        let place = TopicPartition {
            topic: TopicId(3),
            partition: PartitionId(partition),
        };
        BatchCipher::new(Arc::new(Cipher::parse(keys).unwrap()), place)
    }

    fn batch(codec: Compression) -> RecordBatch {
        let mut builder = BatchBuilder::with_capacity(0);
        for _ in 0..9 {
            builder.push(&Message {
                value: Some("a secret value".into()),
                ..Message::default()
            });
        }
        builder.finish_with(codec).unwrap().at_offset(Offset(70))
    }

    #[test]
    fn a_stored_batch_is_walked_without_a_key_and_read_only_with_it_and_in_its_place() {
        let cipher = batch_cipher(&format!("5:{KEY}"), 1);
        for codec in Compression::ALL {
            let plain = batch(codec);
            let stored = cipher.encrypt(&plain);
            assert!(!stored.bytes().windows(6).any(|bytes| bytes == b"secret"));
            let walked =
                RecordBatch::decode_stored(stored.bytes()).expect("its checksum is its own");
            assert_eq!(walked.end_offset(), plain.end_offset());
            assert_eq!(walked.max_timestamp(), plain.max_timestamp());
            assert_eq!(key_id(&walked), Some(5));
            assert_eq!(walked.inflated(), Err(BatchError::Encrypted));
            assert_eq!(walked.records().err(), Some(BatchError::Encrypted));
            assert_eq!(
                RecordBatch::decode(stored.bytes()),
                Err(BatchError::Encrypted)
            );
            assert_eq!(cipher.decrypt(&walked), Ok(plain.clone()));

            let changed = Err(DecryptError::Changed { id: 5 });
            assert_eq!(
                batch_cipher(&format!("5:{KEY}"), 2).decrypt(&walked),
                changed
            );
            assert_eq!(cipher.decrypt(&walked.at_offset(Offset(80))), changed);
            let missing = Err(DecryptError::MissingKey { id: 5 });
            assert_eq!(
                batch_cipher(&format!("6:{KEY}"), 1).decrypt(&walked),
                missing
            );
            assert_eq!(
                cipher.decrypt(&plain),
                Ok(plain.clone()),
                "plain stays plain"
            );
        }
    }
}
