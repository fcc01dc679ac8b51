//! Rows of a checkpoint for paged tables: the size of each and its runs (docs/adr/0020). The runs
//! are separate files.

use std::collections::BTreeMap;

use millrace_engine::state::StateSize;
use millrace_log::Cipher;
use millrace_log::run::RunFacts;
use millrace_model::TopicPartition;
use sqlx::Row;
use sqlx::sqlite::SqliteConnection;

use super::rows;
use super::{Checkpoint, malformed, number, partition};
use crate::decide::state::TableKey;

pub(super) const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS state_tables (
        topic INTEGER NOT NULL, partition INTEGER NOT NULL, name TEXT NOT NULL,
        entries INTEGER NOT NULL, bytes INTEGER NOT NULL, checksum INTEGER,
        PRIMARY KEY (topic, partition, name)) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS state_runs (
        topic INTEGER NOT NULL, partition INTEGER NOT NULL, name TEXT NOT NULL, position INTEGER NOT NULL,
        number INTEGER NOT NULL, file_bytes INTEGER NOT NULL, entries INTEGER NOT NULL, removals INTEGER NOT NULL,
        encryption_key INTEGER, checksum INTEGER,
        PRIMARY KEY (topic, partition, name, position)) WITHOUT ROWID;";

/// A paged table in a checkpoint.
#[derive(Clone, Debug, Default)]
pub(crate) struct PagedTable {
    pub(crate) size: StateSize,
    /// The oldest first.
    pub(crate) runs: Vec<StoredRun>,
    /// Whether the checkpoint may still have rows of it, which no longer count.
    pub(crate) replaces_rows: bool,
}

/// A run in a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StoredRun {
    pub(crate) number: u64,
    pub(crate) file_bytes: u64,
    pub(crate) entries: u64,
    pub(crate) removals: u64,
    /// The id of its encryption key.
    pub(crate) key: Option<u32>,
}

impl StoredRun {
    /// A run that was just written.
    pub(crate) fn of(facts: &RunFacts, cipher: Option<&Cipher>) -> Self {
        Self {
            number: facts.number,
            file_bytes: facts.file_bytes,
            entries: facts.entries,
            removals: facts.removals,
            key: cipher.map(Cipher::active),
        }
    }
}

/// The changes of runs in a step.
#[derive(Debug, Default)]
pub(crate) struct RunsStep {
    /// The new state of tables; `None` if not paged.
    pub(crate) tables: Vec<(TableKey, Option<PagedTable>)>,
    /// The number of the next run.
    pub(crate) next_run: u64,
}

pub(super) async fn load(
    on: &mut SqliteConnection,
    sealed: bool,
    loaded: &mut Checkpoint,
) -> Result<(), sqlx::Error> {
    for row in rows::STATE_TABLES.read(on, sealed).await? {
        let key = (partition(&row)?, row.try_get(2)?);
        if loaded.state.contains_key(&key) {
            return Err(malformed("table of state, which has rows and runs,"));
        }
        let size = |column| {
            let number = number(&row, column)?;
            usize::try_from(number).map_err(|_| malformed("number"))
        };
        let table = PagedTable {
            size: StateSize {
                entries: size(3)?,
                bytes: size(4)?,
            },
            ..PagedTable::default()
        };
        loaded.paged.insert(key, table);
    }
    let mut runs: BTreeMap<(TopicPartition, String), BTreeMap<u64, StoredRun>> = BTreeMap::new();
    for row in rows::STATE_RUNS.read(on, sealed).await? {
        let key: Option<i64> = row.try_get(8)?;
        let key = key.map(u32::try_from).transpose();
        let run = StoredRun {
            number: number(&row, 4)?,
            file_bytes: number(&row, 5)?,
            entries: number(&row, 6)?,
            removals: number(&row, 7)?,
            key: key.map_err(|_| malformed("key's number"))?,
        };
        let table = runs.entry((partition(&row)?, row.try_get(2)?)).or_default();
        table.insert(number(&row, 3)?, run);
    }
    for (key, runs) in runs {
        let table = loaded.paged.get_mut(&key);
        let table = table.ok_or_else(|| malformed("run of no table"))?;
        // The checksums do not show a missing row, so this checks for one.
        if runs.keys().copied().ne(0..runs.len() as u64) {
            return Err(malformed("list of runs"));
        }
        table.runs.extend(runs.into_values());
    }
    Ok(())
}

pub(super) async fn save(on: &mut SqliteConnection, step: &RunsStep) -> Result<(), sqlx::Error> {
    for ((id, name), table) in &step.tables {
        let forget_runs = "DELETE FROM state_runs WHERE topic = ? AND partition = ? AND name = ?";
        let forget_table =
            "DELETE FROM state_tables WHERE topic = ? AND partition = ? AND name = ?";
        let forget_rows = "DELETE FROM state WHERE topic = ? AND partition = ? AND name = ?";
        let forgets = match table {
            None => vec![forget_runs, forget_table],
            Some(table) if table.replaces_rows => vec![forget_runs, forget_rows],
            Some(_) => vec![forget_runs],
        };
        for forget in forgets {
            sqlx::query(forget)
                .bind(id.topic.0 as i64)
                .bind(i64::from(id.partition.0))
                .bind(name.as_str())
                .execute(&mut *on)
                .await?;
        }
        let Some(table) = table else { continue };
        let place = || {
            vec![
                id.topic.0.into(),
                id.partition.0.into(),
                name.as_str().into(),
            ]
        };
        let mut row = place();
        row.push((table.size.entries as u64).into());
        row.push((table.size.bytes as u64).into());
        rows::STATE_TABLES.put(on, [row]).await?;
        let runs = table.runs.iter().zip(0_u64..).map(|(run, position)| {
            let mut row = place();
            row.extend(
                [
                    position,
                    run.number,
                    run.file_bytes,
                    run.entries,
                    run.removals,
                ]
                .map(Into::into),
            );
            row.push(run.key.map(i64::from).into());
            row
        });
        rows::STATE_RUNS.put(on, runs).await?;
    }
    Ok(())
}

/// Whether the checkpoint has any paged table.
pub(super) async fn has_paged(on: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
    let any = sqlx::query("SELECT EXISTS (SELECT 1 FROM state_tables)");
    Ok(number(&any.fetch_one(on).await?, 0)? > 0)
}
