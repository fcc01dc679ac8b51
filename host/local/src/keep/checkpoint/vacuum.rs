//! Shrinks the database: free pages are returned to the file system, a bounded number at a time.
//!
//! Databases of earlier versions have no back references to pages and cannot be shrunk step by
//! step. A start rewrites them if that frees more than they contain.

use sqlx::sqlite::SqliteConnection;

use super::{CheckpointStore, growth, number, unusable};
use crate::ground::open_error::OpenError;

/// Free bytes that are kept, for content that soon grows again; in a large database a quarter of
/// its content.
const FREE_BYTES_LEFT: u64 = 4 << 20;
/// Pages that one step returns. A step is one transaction, with its syncs.
const PAGES_AT_ONCE_MAX: u32 = 2_048;

/// `PRAGMA auto_vacuum` of a database that can be shrunk step by step.
const INCREMENTAL: u64 = 2;

impl CheckpointStore {
    /// Returns some free pages if there are many, and says whether there are more. Runs between two
    /// checkpoints; nothing waits for it.
    pub(crate) fn give_back(&mut self) -> Result<bool, sqlx::Error> {
        if !self.has_much_free() {
            return Ok(false);
        }
        let on = &mut self.connection;
        self.runtime.block_on(async {
            if kind(on).await? != INCREMENTAL {
                return Ok(false);
            }
            let cut = format!("PRAGMA incremental_vacuum({PAGES_AT_ONCE_MAX})");
            let cut = sqlx::raw_sql(sqlx::AssertSqlSafe(cut));
            cut.execute(on).await.map(|_| true)
        })
    }

    /// Rewrites a database of an earlier version if that frees more than it contains. If there is
    /// no space it stays as it is.
    pub(crate) fn compact(&mut self) -> Result<(), OpenError> {
        let (held, free) = growth::sizes_of(&self.path).unwrap_or_default();
        if free < held.max(FREE_BYTES_LEFT) {
            return Ok(());
        }
        let on = &mut self.connection;
        let compacted = self.runtime.block_on(async {
            if kind(on).await? == INCREMENTAL {
                return Ok(());
            }
            let anew = sqlx::raw_sql("PRAGMA auto_vacuum = INCREMENTAL; VACUUM");
            anew.execute(on).await.map(drop)
        });
        match compacted {
            Err(error) if !self.is_full(&error) => Err(unusable(&self.path, &error)),
            _ => Ok(()),
        }
    }

    fn has_much_free(&self) -> bool {
        let (held, free) = growth::sizes_of(&self.path).unwrap_or_default();
        free > FREE_BYTES_LEFT.max(held / 4)
    }
}

async fn kind(on: &mut SqliteConnection) -> Result<u64, sqlx::Error> {
    let kind = sqlx::query("PRAGMA auto_vacuum");
    number(&kind.fetch_one(on).await?, 0)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn run(store: &mut CheckpointStore, statement: &'static str) {
        let run = sqlx::raw_sql(statement).execute(&mut store.connection);
        store.runtime.block_on(run).expect(statement);
    }

    const FILL: &str = "CREATE TABLE more (x);
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 400)
        INSERT INTO more SELECT randomblob(100000) FROM n";

    fn length(path: &Path) -> u64 {
        std::fs::metadata(path).expect("a file").len()
    }

    #[test]
    fn what_was_large_once_shrinks_in_steps_and_stays_sound() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("checkpoint.sqlite");
        let mut store = CheckpointStore::open(&path, None).expect("a checkpoint");
        run(&mut store, FILL);
        assert!(length(&path) > 40_000_000);
        assert!(!store.give_back().expect("looked"), "it is in use");
        run(&mut store, "DELETE FROM more WHERE rowid > 20");
        let mut steps = 0;
        while store.give_back().expect("given back") {
            steps += 1;
        }
        assert!((3..20).contains(&steps), "{steps}");
        assert!(length(&path) < 10_000_000, "{}", length(&path));
        drop(store);
        let mut store = CheckpointStore::open(&path, None).expect("sound");
        let count = sqlx::query("SELECT COUNT(*) FROM more");
        let count = store
            .runtime
            .block_on(count.fetch_one(&mut store.connection));
        assert_eq!(number(&count.expect("a count"), 0).expect("a number"), 20);
    }

    #[test]
    fn a_database_of_an_earlier_version_shrinks_at_a_start() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("checkpoint.sqlite");
        let mut store = CheckpointStore::open(&path, None).expect("a checkpoint");
        run(&mut store, "PRAGMA auto_vacuum = NONE; VACUUM");
        run(&mut store, FILL);
        run(&mut store, "DELETE FROM more WHERE rowid > 20");
        assert!(!store.give_back().expect("looked"), "not in pieces");
        store.compact().expect("written anew");
        assert!(length(&path) < 10_000_000, "{}", length(&path));
        drop(store);
        CheckpointStore::open(&path, None).expect("sound");
    }
}
