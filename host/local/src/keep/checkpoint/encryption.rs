//! Encrypted values of the checkpoint, and the keys that the data directory has been used with.
//!
//! Names, offsets and topics are plain; values of entries and progress of groups are encrypted,
//! each bound to its place. `meta` has the active key's id, and for every key a check value by
//! which a wrong key is detected before it is used.

use std::borrow::Cow;

use bytes::Bytes;
use millrace_log::Cipher;
use millrace_model::TopicPartition;
use sqlx::Row;
use sqlx::sqlite::SqliteConnection;

use super::{CheckpointStore, add_column, number, read_meta, unusable};
use crate::ground::open_error::OpenError;

/// The name of the active key's id in `meta`.
pub(super) const ACTIVE: &str = "encryption_key";
/// The prefix of the name of a key's check value, before the key's id.
pub(super) const CHECK_PREFIX: &str = "encryption_key:";

/// Adds columns that the first format did not have.
pub(super) async fn add_columns(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    for table in ["groups", "entries"] {
        add_column(connection, table, "encryption_key", "INTEGER").await?;
    }
    Ok(())
}

/// The place that a group's progress is bound to.
pub(super) fn group(id: TopicPartition, name: &str) -> Vec<u8> {
    format!("group/{}/{}/{name}", id.topic, id.partition).into_bytes()
}

/// The place that an entry's value is bound to.
pub(super) fn entry(kind: &str, key: &str) -> Vec<u8> {
    format!("entry/{kind}/{key}").into_bytes()
}

/// A value in its stored form.
pub(super) fn stored<'a>(
    value: &'a [u8],
    cipher: Option<&Cipher>,
    belongs_to: &[u8],
) -> Cow<'a, [u8]> {
    match cipher {
        Some(cipher) => cipher.encrypt(value, belongs_to).into(),
        None => value.into(),
    }
}

/// A stored value, decrypted. Without any key it is returned as stored, for code that only
/// examines.
pub(super) fn plain(
    stored: Vec<u8>,
    key: Option<i64>,
    cipher: Option<&Cipher>,
    belongs_to: &[u8],
) -> Result<Bytes, sqlx::Error> {
    match (key, cipher) {
        (Some(_), Some(cipher)) => {
            let plain = cipher.decrypt(&stored, belongs_to);
            let plain = plain.map_err(|error| sqlx::Error::Protocol(error.to_string()))?;
            Ok(plain.into())
        }
        _ => Ok(stored.into()),
    }
}

impl CheckpointStore {
    /// Checks that the keys are those that this directory needs. Changes nothing.
    pub(crate) fn check_keys(&mut self) -> Result<(), OpenError> {
        let known = self.keys()?;
        match (active(&known), &self.cipher) {
            (None, _) => Ok(()),
            (Some(id), None) => Err(self.refused(format!(
                "it is encrypted with key {id}; name the key file with --encryption-key-file, or set MILLRACE_ENCRYPTION_KEY"
            ))),
            (Some(id), Some(cipher)) => {
                if cipher.check_value(id).is_none() {
                    return Err(self.refused(format!(
                        "it is encrypted with key {id}, which is not among the keys given; add it, after the first line to give it up step by step"
                    )));
                }
                for (key, check) in &known {
                    let id = key.strip_prefix(CHECK_PREFIX).and_then(|id| id.parse().ok());
                    let Some(id) = id else { continue };
                    match cipher.check_value(id) {
                        Some(given) if given != *check => {
                            return Err(self.refused(format!(
                                "key {id} is not the one of this number that it was encrypted with; give the right one"
                            )));
                        }
                        Some(_) => {}
                        None => tracing::warn!(key = id, "an encryption key that was used before is missing; data that is still encrypted with it cannot be read"),
                    }
                }
                Ok(())
            }
        }
    }

    /// The key that values are encrypted with.
    pub(crate) fn active_key(&mut self) -> Result<Option<u32>, OpenError> {
        Ok(active(&self.keys()?))
    }

    fn refused(&self, reason: String) -> OpenError {
        let dir = self.path.parent().unwrap_or(&self.path).to_owned();
        OpenError::Encryption { dir, reason }
    }

    /// The recorded keys: names in `meta`, and their check values.
    fn keys(&mut self) -> Result<Vec<(String, u64)>, OpenError> {
        let read = self.runtime.block_on(async {
            let (rows, _) = read_meta(&mut self.connection).await?;
            let known = rows
                .iter()
                .map(|row| Ok((row.try_get(0)?, number(row, 1)?)));
            let known: Result<Vec<(String, u64)>, sqlx::Error> = known.collect();
            let of_keys = |(key, _): &(String, u64)| key.starts_with(ACTIVE);
            Ok(known?.into_iter().filter(of_keys).collect())
        });
        read.map_err(|error| unusable(&self.path, &error))
    }
}

fn active(known: &[(String, u64)]) -> Option<u32> {
    let active = known.iter().find(|(key, _)| key == ACTIVE);
    active.and_then(|(_, id)| u32::try_from(*id).ok())
}
