//! Rows of a checkpoint for groups' state: one per entry, under a number that its table assigned.
//! The key is part of the value, so that an encrypted checkpoint does not reveal it.

use millrace_engine::state::keeper::{KeepTable as _, TableChanges, TableStep};
use millrace_log::Cipher;
use millrace_model::TopicPartition;
use sqlx::sqlite::SqliteConnection;
use sqlx::{QueryBuilder, Row, Sqlite};

use super::rows::{self, ROWS_AT_ONCE_MAX};
use super::{Checkpoint, encryption, malformed, number, partition};
use crate::decide::codec::state::{entry_bytes, entry_of};
use crate::decide::state::Changes;

pub(super) const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS state (
        topic INTEGER NOT NULL, partition INTEGER NOT NULL, name TEXT NOT NULL, slot INTEGER NOT NULL,
        entry BLOB NOT NULL, encryption_key INTEGER,
        PRIMARY KEY (topic, partition, name, slot)) WITHOUT ROWID;";

/// Rows read at once for re-encryption, because they may be large and many.
const ADOPTED_AT_ONCE: i64 = 50;

/// The place that an entry is bound to.
fn place(id: TopicPartition, name: &str, slot: u64) -> Vec<u8> {
    format!("state/{}/{}/{name}/{slot}", id.topic, id.partition).into_bytes()
}

pub(super) async fn load(
    on: &mut SqliteConnection,
    cipher: Option<&Cipher>,
    sealed: bool,
    loaded: &mut Checkpoint,
) -> Result<(), sqlx::Error> {
    // Read rows are not held twice, so that a start needs no more memory than the previous run.
    let reading = rows::STATE.each(on, sealed, |row| {
        let (id, name): (_, String) = (partition(&row)?, row.try_get(2)?);
        let slot = number(&row, 3)?;
        let belongs_to = place(id, &name, slot);
        let key: Option<i64> = row.try_get(5)?;
        if key.is_some() && cipher.is_none() {
            // Without a key, which is only for examining, no entries are returned.
            return Ok(());
        }
        let entry = encryption::plain(row.try_get(4)?, key, cipher, &belongs_to)?;
        let entry = entry_of(entry).ok_or_else(|| malformed("entry of state"))?;
        let table = loaded.state.entry((id, name)).or_default();
        table.insert_stored(slot, &entry);
        Ok(())
    });
    reading.await
}

pub(super) async fn save(
    on: &mut SqliteConnection,
    changes: &Changes,
    cipher: Option<&Cipher>,
) -> Result<(), sqlx::Error> {
    for (id, name, step) in &changes.tables {
        if let TableStep::Rows(changes) = step {
            save_table(on, *id, name.as_str(), changes, cipher).await?;
        }
    }
    Ok(())
}

async fn save_table(
    on: &mut SqliteConnection,
    id: TopicPartition,
    name: &str,
    changes: &TableChanges,
    cipher: Option<&Cipher>,
) -> Result<(), sqlx::Error> {
    let active = cipher.map(|cipher| i64::from(cipher.active()));
    let (topic, partition) = (id.topic.0 as i64, i64::from(id.partition.0));
    if changes.empties {
        sqlx::query("DELETE FROM state WHERE topic = ? AND partition = ? AND name = ?")
            .bind(topic)
            .bind(partition)
            .bind(name)
            .execute(&mut *on)
            .await?;
    }
    for freed in changes.freed.chunks(ROWS_AT_ONCE_MAX) {
        let mut remove = QueryBuilder::<Sqlite>::new("DELETE FROM state WHERE topic = ");
        remove
            .push_bind(topic)
            .push(" AND partition = ")
            .push_bind(partition);
        remove
            .push(" AND name = ")
            .push_bind(name)
            .push(" AND slot IN (");
        let mut slots = remove.separated(", ");
        for slot in freed {
            slots.push_bind(*slot as i64);
        }
        remove.push(")");
        remove.build().execute(&mut *on).await?;
    }
    let entries = changes.entries.iter().map(|(slot, entry)| {
        let belongs_to = place(id, name, *slot);
        let entry = encryption::stored(&entry_bytes(entry), cipher, &belongs_to).into_owned();
        vec![
            topic.into(),
            partition.into(),
            name.into(),
            (*slot).into(),
            entry.into(),
            active.into(),
        ]
    });
    rows::STATE.put(on, entries).await
}

/// Re-encrypts values that are not encrypted with the active key.
pub(super) async fn adopt(on: &mut SqliteConnection, cipher: &Cipher) -> Result<(), sqlx::Error> {
    let active = i64::from(cipher.active());
    let mut after = (0, 0, String::new(), -1);
    loop {
        let others = sqlx::query(
            "SELECT topic, partition, name, slot, entry, encryption_key FROM state
            WHERE (topic, partition, name, slot) > (?, ?, ?, ?) AND encryption_key IS NOT ?
            ORDER BY topic, partition, name, slot LIMIT ?",
        );
        let others = others.bind(after.0).bind(after.1).bind(&after.2);
        let others = others.bind(after.3).bind(active).bind(ADOPTED_AT_ONCE);
        let some = others.fetch_all(&mut *on).await?;
        let Some(last) = some.last() else {
            return Ok(());
        };
        after = (
            last.try_get(0)?,
            last.try_get(1)?,
            last.try_get(2)?,
            last.try_get(3)?,
        );
        for row in some {
            let (id, name): (_, String) = (partition(&row)?, row.try_get(2)?);
            let slot = number(&row, 3)?;
            let belongs_to = place(id, &name, slot);
            let (entry, key) = (row.try_get(4)?, row.try_get(5)?);
            let entry = encryption::plain(entry, key, Some(cipher), &belongs_to)?;
            let row = vec![
                id.topic.0.into(),
                id.partition.0.into(),
                name.into(),
                slot.into(),
                cipher.encrypt(&entry, &belongs_to).into(),
                active.into(),
            ];
            rows::STATE.put(on, [row]).await?;
        }
    }
}
