//! Changes the active key: in one step, all encrypted values are re-encrypted with it, so that the
//! previous key can be removed.

use millrace_log::Cipher;
use sqlx::Row;
use sqlx::sqlite::SqliteConnection;

use super::encryption::{ACTIVE, CHECK_PREFIX, entry, group, plain};
use super::rows::{self, Value};
use super::{CheckpointStore, in_one_step, partition, state, unusable};
use crate::ground::open_error::OpenError;

impl CheckpointStore {
    /// Records the active key and re-encrypts values with it. They are few, and other keys can then
    /// be removed.
    pub(crate) fn adopt_keys(&mut self) -> Result<(), OpenError> {
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

async fn adopt(on: &mut SqliteConnection, cipher: &Cipher) -> Result<(), sqlx::Error> {
    let active = i64::from(cipher.active());
    let check = cipher.check_value(cipher.active()).unwrap_or_default() as i64;
    let meta = [
        (ACTIVE.to_owned(), active),
        (format!("{CHECK_PREFIX}{active}"), check),
        // Older versions would read encrypted values as plain ones.
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
    state::adopt(on, cipher).await
}
