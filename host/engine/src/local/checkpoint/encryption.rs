//! Encrypted values of the checkpoint, and the keys that the data directory has been used with.
//!
//! Names, offsets and topics are plain; values of entries and progress of groups are encrypted, each for its place. In `meta` stand
//! the active key's id, and of every key a number that tells a wrong key from the right one before anything is read with it.

use std::borrow::Cow;

use bytes::Bytes;
use millrace_log::Cipher;
use millrace_model::TopicPartition;
use sqlx::Row;
use sqlx::sqlite::SqliteConnection;

use super::rows::{self, Value};
use super::{CheckpointStore, add_column, in_one_step, number, partition, read_meta, unusable};
use crate::local::options::OpenError;

const ACTIVE: &str = "encryption_key";
const CHECK_PREFIX: &str = "encryption_key:";

/// Columns that the first format did not have.
pub(super) async fn add_columns(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    for table in ["groups", "entries"] {
        add_column(connection, table, "encryption_key", "INTEGER").await?;
    }
    Ok(())
}

/// What a group's progress belongs to.
pub(super) fn group(id: TopicPartition, name: &str) -> Vec<u8> {
    format!("group/{}/{}/{name}", id.topic, id.partition).into_bytes()
}

/// What an entry's value belongs to.
pub(super) fn entry(kind: &str, key: &str) -> Vec<u8> {
    format!("entry/{kind}/{key}").into_bytes()
}

/// As it is stored.
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

/// What was stored. Without any key, as it lies there: that is for those who only look.
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
    /// Whether the keys are those that this directory needs. Changes nothing.
    pub(in crate::local) fn check_keys(&mut self) -> Result<(), OpenError> {
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
    pub(in crate::local) fn active_key(&mut self) -> Result<Option<u32>, OpenError> {
        Ok(active(&self.keys()?))
    }

    fn refused(&self, reason: String) -> OpenError {
        let dir = self.path.parent().unwrap_or(&self.path).to_owned();
        OpenError::Encryption { dir, reason }
    }

    /// What is known about keys: names in `meta`, and their numbers.
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

    /// Notes the active key, and encrypts with it what is not: values are few, and another key can then be given up.
    pub(in crate::local) fn adopt_keys(&mut self) -> Result<(), OpenError> {
        let Some(cipher) = self.cipher.clone() else {
            return Ok(());
        };
        let adopting = in_one_step(&mut self.connection, self.is_sealed, async |on| {
            adopt(on, &cipher).await
        });
        let adopted = self.runtime.block_on(adopting);
        adopted.map_err(|error| unusable(&self.path, &error))?;
        self.is_sealed = true;
        Ok(())
    }
}

fn active(known: &[(String, u64)]) -> Option<u32> {
    let active = known.iter().find(|(key, _)| key == ACTIVE);
    active.and_then(|(_, id)| u32::try_from(*id).ok())
}

async fn adopt(on: &mut SqliteConnection, cipher: &Cipher) -> Result<(), sqlx::Error> {
    let active = i64::from(cipher.active());
    let check = cipher.check_value(cipher.active()).unwrap_or_default() as i64;
    let meta = [
        (ACTIVE.to_owned(), active),
        (format!("{CHECK_PREFIX}{active}"), check),
        // Older versions would take encrypted values for plain ones.
        ("format".to_owned(), super::format_of(on).await? as i64),
    ];
    let meta = meta.map(|(key, value)| vec![key.into(), value.into()]);
    rows::META.put(on, meta).await?;
    let others = sqlx::query(
        "SELECT kind, key, value, encryption_key FROM entries WHERE encryption_key IS NOT ?",
    );
    for row in others.bind(active).fetch_all(&mut *on).await? {
        let (kind, key): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        let belongs_to = entry(&kind, &key);
        let value = plain(row.try_get(2)?, row.try_get(3)?, Some(cipher), &belongs_to)?;
        let value = cipher.encrypt(&value, &belongs_to);
        let row = vec![kind.into(), key.into(), value.into(), active.into()];
        rows::ENTRIES.put(on, [row]).await?;
    }
    let others = sqlx::query(
        "SELECT topic, partition, name, progress, encryption_key, epoch FROM groups WHERE progress IS NOT NULL AND encryption_key IS NOT ?",
    );
    for row in others.bind(active).fetch_all(&mut *on).await? {
        let (id, name): (_, String) = (partition(&row)?, row.try_get(2)?);
        let belongs_to = group(id, &name);
        let progress = plain(row.try_get(3)?, row.try_get(4)?, Some(cipher), &belongs_to)?;
        let row = vec![
            id.topic.0.into(),
            id.partition.0.into(),
            name.into(),
            Value::Number(row.try_get(5)?),
            cipher.encrypt(&progress, &belongs_to).into(),
            active.into(),
        ];
        rows::GROUPS.put(on, [row]).await?;
    }
    super::state::adopt(on, cipher).await
}
