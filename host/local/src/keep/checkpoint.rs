//! The checkpoint, in SQLite: everything except messages as of one sequence of the journal, and how
//! far each partition's files reach. Each is written in one SQL transaction, never as part of a
//! commit.

mod adoption;
mod encryption;
mod growth;
mod idempotence;
mod renewal;
mod rows;
mod runs;
mod state;
mod vacuum;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use millrace_engine::contract::EntryKind;
use millrace_engine::idempotence::Idempotence;
use millrace_engine::state::StateTable;
use millrace_log::{Cipher, Mark, disk};
use millrace_model::{Offset, PartitionId, Progress, Timestamp, Topic, TopicId, TopicPartition};
use sqlx::sqlite::{
    SqliteAutoVacuum, SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteRow,
    SqliteSynchronous,
};
use sqlx::{Connection, Row};
use tokio::runtime::Runtime;

pub(crate) use self::runs::{PagedTable, RunsStep, StoredRun};

use self::rows::Value;
use crate::decide::codec::topic_json;
use crate::decide::state::Changes;
use crate::ground::open_error::OpenError;

/// The newest format; earlier ones can be read. 2: values may be encrypted and name their key;
/// partitions record the age of their active segment and how far they are compacted. 3: every row
/// has a checksum. 4: tables of state are in runs; without any, 3 is written.
const FORMAT_RUNS: u64 = 4;
/// The format without runs.
const FORMAT_ROWS: u64 = 3;
/// The first format in which every row has a checksum.
const FORMAT_SEALED: u64 = 3;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS topics (id INTEGER PRIMARY KEY, topic TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS removed_topics (id INTEGER PRIMARY KEY);
    CREATE TABLE IF NOT EXISTS partitions (
        topic INTEGER NOT NULL, partition INTEGER NOT NULL,
        start_offset INTEGER NOT NULL, end_offset INTEGER NOT NULL,
        segment INTEGER NOT NULL, bytes INTEGER NOT NULL,
        PRIMARY KEY (topic, partition)) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS groups (
        topic INTEGER NOT NULL, partition INTEGER NOT NULL, name TEXT NOT NULL,
        epoch INTEGER NOT NULL, progress BLOB,
        PRIMARY KEY (topic, partition, name)) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS entries (
        kind TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL,
        PRIMARY KEY (kind, key)) WITHOUT ROWID;";

/// Columns of numbers that came with format 2; a checkpoint of format 1 gets them when it is opened.
const ADDED_COLUMNS: [(&str, &str); 2] =
    [("partitions", "opened_at"), ("partitions", "clean_offset")];

async fn has_column(
    connection: &mut SqliteConnection,
    table: &str,
    column: &str,
) -> Result<bool, sqlx::Error> {
    let known = "SELECT COUNT(*) FROM pragma_table_info(?) WHERE name = ?";
    let known = sqlx::query(known).bind(table).bind(column);
    Ok(number(&known.fetch_one(connection).await?, 0)? > 0)
}

async fn add_column(
    connection: &mut SqliteConnection,
    table: &str,
    column: &str,
    kind: &str,
) -> Result<(), sqlx::Error> {
    if !has_column(connection, table, column).await? {
        let add = format!("ALTER TABLE {table} ADD COLUMN {column} {kind}");
        let add = sqlx::raw_sql(sqlx::AssertSqlSafe(add));
        add.execute(connection).await?;
    }
    Ok(())
}

/// The database and the runtime that its driver needs. Its calls block; only one thread uses it at
/// a time.
pub(crate) struct CheckpointStore {
    runtime: Runtime,
    connection: SqliteConnection,
    path: PathBuf,
    cipher: Option<Arc<Cipher>>,
    /// Whether every row is known to have a checksum.
    is_sealed: bool,
}

/// The content of a checkpoint.
#[derive(Default)]
pub(crate) struct Checkpoint {
    /// Whether a checkpoint was ever made.
    pub(crate) is_made: bool,
    /// It contains everything up to this sequence.
    pub(crate) sequence: u64,
    /// The first journal file that a replay after it needs.
    pub(crate) journal_file: u64,
    pub(crate) next_topic: TopicId,
    pub(crate) topics: Vec<Topic>,
    pub(crate) removed_topics: Vec<TopicId>,
    pub(crate) marks: Vec<(TopicPartition, Mark)>,
    pub(crate) groups: Vec<(TopicPartition, String, u64, Option<Progress>)>,
    pub(crate) entries: Vec<(EntryKind, String, Bytes)>,
    pub(crate) state: BTreeMap<(TopicPartition, String), StateTable>,
    /// Tables of state in runs.
    pub(crate) paged: BTreeMap<(TopicPartition, String), PagedTable>,
    /// The number of the next run; 0 if there never was one.
    pub(crate) next_run: u64,
    pub(crate) idempotence: Idempotence,
}

/// What changes a checkpoint into the next one.
pub(crate) struct Step<'a> {
    pub(crate) sequence: u64,
    pub(crate) journal_file: u64,
    pub(crate) changes: &'a Changes,
    pub(crate) marks: &'a [(TopicPartition, Mark)],
    /// Removed topics whose files are gone.
    pub(crate) swept_topics: &'a [TopicId],
    /// The changes of runs, which are already durable.
    pub(crate) runs: &'a RunsStep,
}

impl CheckpointStore {
    /// Opens the database, creating it if it does not exist, and checks it.
    pub(crate) fn open(path: &Path, cipher: Option<Arc<Cipher>>) -> Result<Self, OpenError> {
        Self::try_open(path, cipher).map_err(|error| unusable(path, &error))
    }

    fn try_open(path: &Path, cipher: Option<Arc<Cipher>>) -> Result<Self, sqlx::Error> {
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        // `extra`: with a rollback journal, only this setting makes the last commit survive a power
        // cut. The journal files that the commit replaces are recycled right after it.
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Delete)
            .synchronous(SqliteSynchronous::Extra)
            // For new databases; for existing ones see [`CheckpointStore::compact`].
            .auto_vacuum(SqliteAutoVacuum::Incremental)
            .pragma("trusted_schema", "OFF")
            .pragma("mmap_size", "0")
            // Plain values that are replaced by encrypted ones must not remain in free pages.
            .pragma("secure_delete", if cipher.is_some() { "ON" } else { "OFF" });
        let connection = runtime.block_on(async {
            let mut connection = SqliteConnection::connect_with(&options).await?;
            let check = sqlx::query("PRAGMA quick_check(1)");
            let found: String = check.fetch_one(&mut connection).await?.try_get(0)?;
            if found != "ok" {
                return Err(sqlx::Error::Protocol(format!("it is damaged: {found}")));
            }
            // SQLite reads a truncated last page as if zeros followed.
            let page = sqlx::query("PRAGMA page_size");
            let page = number(&page.fetch_one(&mut connection).await?, 0)?;
            if std::fs::metadata(path)?.len() % page.max(1) != 0 {
                let cut = "it is damaged: it ends within a page";
                return Err(sqlx::Error::Protocol(cut.to_owned()));
            }
            sqlx::raw_sql(SCHEMA).execute(&mut connection).await?;
            let more = sqlx::raw_sql(idempotence::SCHEMA);
            more.execute(&mut connection).await?;
            let state = sqlx::raw_sql(state::SCHEMA);
            state.execute(&mut connection).await?;
            let runs = sqlx::raw_sql(runs::SCHEMA);
            runs.execute(&mut connection).await?;
            encryption::add_columns(&mut connection).await?;
            for (table, column) in ADDED_COLUMNS {
                let kind = "INTEGER NOT NULL DEFAULT 0";
                add_column(&mut connection, table, column, kind).await?;
            }
            Ok(connection)
        })?;
        Ok(Self {
            runtime,
            connection,
            path: path.to_owned(),
            cipher,
            is_sealed: false,
        })
    }

    /// Reads everything, and verifies the checksum of each row.
    pub(crate) fn load(&mut self) -> Result<Checkpoint, OpenError> {
        let cipher = self.cipher.as_deref();
        let loaded = self.runtime.block_on(load(&mut self.connection, cipher));
        let (checkpoint, is_sealed) = loaded.map_err(|error| unusable(&self.path, &error))?;
        self.is_sealed = is_sealed;
        Ok(checkpoint)
    }

    /// The database's file. Between two steps nothing writes to it.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the database's content.
    pub(crate) fn byte_count(&self) -> u64 {
        growth::held_bytes_of(&self.path).unwrap_or(0)
    }

    /// Whether the step failed only because the disk is full, and can be repeated.
    pub(crate) fn is_full(&self, error: &sqlx::Error) -> bool {
        // If the rollback journal could not be opened, nothing was changed, whatever the cause: no
        // space, or no file descriptor.
        primary_code(error) == Some(CANNOT_OPEN) || is_full(error, &self.path)
    }

    /// Writes the step, completely or not at all; durable on return.
    pub(crate) fn save(&mut self, step: &Step<'_>) -> Result<(), sqlx::Error> {
        growth::grow_ahead(&self.path).map_err(sqlx::Error::Io)?;
        let cipher = self.cipher.as_deref();
        let saving = in_one_step(&mut self.connection, self.is_sealed, async |on| {
            save_step(on, step, cipher).await
        });
        self.runtime.block_on(saving)?;
        self.is_sealed = true;
        Ok(())
    }
}

/// Whether SQLite found no space on the disk of the database at `path`, for bytes or for a file;
/// the step can then be repeated.
fn is_full(error: &sqlx::Error, path: &Path) -> bool {
    if let sqlx::Error::Io(error) = error {
        return disk::is_full(error);
    }
    match primary_code(error) {
        Some(13) => true, // SQLITE_FULL
        // SQLite does not distinguish a file at its size limit from one that cannot be written. It
        // undoes what it wrote.
        Some(10) => code(error) == Some(CANNOT_WRITE) && disk::has_size_limit(),
        // Mostly for a rollback journal; SQLite does not say why it could not be created.
        Some(CANNOT_OPEN) => path.parent().is_some_and(has_no_room_for_a_file),
        _ => false,
    }
}

/// SQLite's code for a file that cannot be opened.
const CANNOT_OPEN: u32 = 14;

/// SQLite's extended code for a failed write: `SQLITE_IOERR_WRITE`.
const CANNOT_WRITE: u32 = 778;

/// SQLite's code of an error.
fn code(error: &sqlx::Error) -> Option<u32> {
    let code = error.as_database_error().and_then(|error| error.code());
    code.and_then(|code| code.parse::<u32>().ok())
}

/// SQLite's primary code of an error.
fn primary_code(error: &sqlx::Error) -> Option<u32> {
    code(error).map(|code| code & 0xff)
}

fn has_no_room_for_a_file(dir: &Path) -> bool {
    let made = tempfile::tempfile_in(dir);
    made.is_err_and(|error| disk::is_full(&error))
}

fn unusable(path: &Path, error: &sqlx::Error) -> OpenError {
    // The file is fine then, and a backup would not help.
    if is_full(error, path) {
        let dir = path.parent().unwrap_or(path).to_owned();
        return OpenError::DiskFull { dir };
    }
    OpenError::Checkpoint {
        path: path.to_owned(),
        reason: error.to_string(),
    }
}

fn malformed(what: &str) -> sqlx::Error {
    sqlx::Error::Protocol(format!("a stored {what} is malformed"))
}

fn number(row: &SqliteRow, column: usize) -> Result<u64, sqlx::Error> {
    let value: i64 = row.try_get(column)?;
    u64::try_from(value).map_err(|_| malformed("number"))
}

fn partition(row: &SqliteRow) -> Result<TopicPartition, sqlx::Error> {
    let partition = u32::try_from(number(row, 1)?).map_err(|_| malformed("partition"))?;
    Ok(TopicPartition {
        topic: TopicId(number(row, 0)?),
        partition: PartitionId(partition),
    })
}

/// The rows of `meta`, each as it was written, and whether every row of the checkpoint has a checksum.
async fn read_meta(
    connection: &mut SqliteConnection,
) -> Result<(Vec<SqliteRow>, bool), sqlx::Error> {
    let meta = rows::META.select(connection, "").await?;
    let format = meta
        .iter()
        .find(|row| matches!(row.try_get(0), Ok("format")));
    let format = format.map_or(Ok(0), |row| number(row, 1))?;
    if format > FORMAT_RUNS {
        let newer = format!("it has format {format}; this version reads up to {FORMAT_RUNS}");
        return Err(sqlx::Error::Protocol(newer));
    }
    let sealed = format >= FORMAT_SEALED;
    meta.iter()
        .try_for_each(|row| rows::META.check(row, sealed))?;
    Ok((meta, sealed))
}

async fn load(
    connection: &mut SqliteConnection,
    cipher: Option<&Cipher>,
) -> Result<(Checkpoint, bool), sqlx::Error> {
    let mut loaded = Checkpoint {
        next_topic: TopicId(1),
        ..Checkpoint::default()
    };
    let (meta, sealed) = read_meta(connection).await?;
    for row in meta {
        let value = number(&row, 1)?;
        match row.try_get::<&str, _>(0)? {
            "format" => loaded.is_made = true,
            "sequence" => loaded.sequence = value,
            "journal_file" => loaded.journal_file = value,
            "next_topic" => loaded.next_topic = TopicId(value),
            "next_run" => loaded.next_run = value,
            "next_producer" => {
                let next = i64::try_from(value).map_err(|_| malformed("number"))?;
                loaded.idempotence.producers.set_next_id(next);
            }
            "moment" => loaded.idempotence.apply_moment(Timestamp(value)),
            _ => {}
        }
    }
    for row in rows::TOPICS.read(connection, sealed).await? {
        let topic = serde_json::from_str(row.try_get(1)?);
        loaded.topics.push(topic.map_err(|_| malformed("topic"))?);
    }
    for row in rows::REMOVED_TOPICS.read(connection, sealed).await? {
        loaded.removed_topics.push(TopicId(number(&row, 0)?));
    }
    for row in rows::PARTITIONS.read(connection, sealed).await? {
        let mark = Mark {
            start: Offset(number(&row, 2)?),
            end: Offset(number(&row, 3)?),
            segment: Offset(number(&row, 4)?),
            bytes: number(&row, 5)?,
            opened_at: Timestamp(number(&row, 6)?),
            clean: Offset(number(&row, 7)?),
        };
        loaded.marks.push((partition(&row)?, mark));
    }
    for row in rows::GROUPS.read(connection, sealed).await? {
        let progress: Option<Vec<u8>> = row.try_get(4)?;
        let (name, epoch): (String, _) = (row.try_get(2)?, number(&row, 3)?);
        let id = partition(&row)?;
        let belongs_to = encryption::group(id, &name);
        let key = row.try_get(5)?;
        let decoded = |progress| {
            let progress = encryption::plain(progress, key, cipher, &belongs_to)?;
            let progress = Progress::decode(&progress);
            progress.ok_or_else(|| malformed("progress"))
        };
        let progress = progress.map(decoded).transpose()?;
        loaded.groups.push((id, name, epoch, progress));
    }
    for row in rows::ENTRIES.read(connection, sealed).await? {
        let kind = EntryKind::parse(row.try_get(0)?).ok_or_else(|| malformed("entry's kind"))?;
        let key: String = row.try_get(1)?;
        let belongs_to = encryption::entry(kind.as_str(), &key);
        let value = encryption::plain(row.try_get(2)?, row.try_get(3)?, cipher, &belongs_to)?;
        loaded.entries.push((kind, key, value));
    }
    state::load(connection, cipher, sealed, &mut loaded).await?;
    runs::load(connection, sealed, &mut loaded).await?;
    idempotence::load(connection, sealed, &mut loaded.idempotence).await?;
    Ok((loaded, sealed))
}

/// Does the work in one transaction, completely or not at all. Rows without checksums get them
/// first: until the newer format is complete, an older version can still write its own.
async fn in_one_step(
    connection: &mut SqliteConnection,
    is_sealed: bool,
    work: impl AsyncFnOnce(&mut SqliteConnection) -> Result<(), sqlx::Error>,
) -> Result<(), sqlx::Error> {
    // Does not use the library's transactions. They count their nesting depth, and count wrong
    // after an error for which SQLite ends the transaction itself, such as a full disk. A later
    // "commit" would then only end an inner step of a transaction that never ends.
    sqlx::raw_sql("BEGIN").execute(&mut *connection).await?;
    let sealed = match is_sealed {
        true => Ok(()),
        false => rows::seal(connection).await,
    };
    let mut done = match sealed {
        Ok(()) => work(connection).await,
        unsealed => unsealed,
    };
    if done.is_ok() {
        let committed = sqlx::raw_sql("COMMIT").execute(&mut *connection).await;
        done = committed.map(drop);
    }
    if done.is_err() {
        // If SQLite has already ended it, this reports that there is none. If it cannot be ended,
        // the next one cannot begin.
        let _ = sqlx::raw_sql("ROLLBACK").execute(&mut *connection).await;
    }
    done
}

async fn save_step(
    on: &mut SqliteConnection,
    step: &Step<'_>,
    cipher: Option<&Cipher>,
) -> Result<(), sqlx::Error> {
    runs::save(on, step.runs).await?;
    let meta = [
        ("format", format_of(on).await?),
        ("next_run", step.runs.next_run),
        ("sequence", step.sequence),
        ("journal_file", step.journal_file),
        ("next_topic", step.changes.next_topic.0),
        ("next_producer", step.changes.producers.next_id as u64),
        ("moment", step.changes.moment.0),
    ];
    let meta = meta.map(|(key, value)| vec![key.into(), value.into()]);
    rows::META.put(on, meta).await?;
    save_changes(on, step.changes, cipher).await?;
    state::save(on, step.changes, cipher).await?;
    idempotence::save(on, step.changes).await?;
    let marks = step.marks.iter().map(|(id, mark)| {
        vec![
            id.topic.0.into(),
            id.partition.0.into(),
            mark.start.0.into(),
            mark.end.0.into(),
            mark.segment.0.into(),
            mark.bytes.into(),
            mark.opened_at.0.into(),
            mark.clean.0.into(),
        ]
    });
    rows::PARTITIONS.put(on, marks).await?;
    for topic in step.changes.removed.iter().map(|removed| removed.topic) {
        remove_topic(on, topic).await?;
    }
    for topic in step.swept_topics {
        // Removing much state needs space, so it happens only now that removing the topic's files
        // has freed some.
        for sweep in [
            "DELETE FROM state WHERE topic = ?",
            "DELETE FROM removed_topics WHERE id = ?",
        ] {
            let sweep = sqlx::query(sweep).bind(topic.0 as i64);
            sweep.execute(&mut *on).await?;
        }
    }
    Ok(())
}

/// The format to write: older versions do not know runs and must not open a database with any, but
/// can open all others.
async fn format_of(on: &mut SqliteConnection) -> Result<u64, sqlx::Error> {
    Ok(match runs::has_paged(on).await? {
        true => FORMAT_RUNS,
        false => FORMAT_ROWS,
    })
}

async fn save_changes(
    on: &mut SqliteConnection,
    changes: &Changes,
    cipher: Option<&Cipher>,
) -> Result<(), sqlx::Error> {
    let active = cipher.map(|cipher| i64::from(cipher.active()));
    let topics = changes.topics.iter();
    let topics = topics.map(|topic| vec![topic.id.0.into(), topic_json(topic).into()]);
    rows::TOPICS.put(on, topics).await?;
    let groups = changes.groups.iter().map(|(id, name, group)| {
        let belongs_to = encryption::group(*id, name.as_str());
        let progress = group.progress.as_ref().map(|progress| progress.encode());
        let progress = progress.map(|p| encryption::stored(&p, cipher, &belongs_to).into_owned());
        vec![
            id.topic.0.into(),
            id.partition.0.into(),
            Value::from(name.as_str()),
            group.epoch.into(),
            progress.map_or(Value::Null, Value::from),
            active.into(),
        ]
    });
    rows::GROUPS.put(on, groups).await?;
    for (kind, key, value) in &changes.entries {
        let Some(value) = value else {
            let remove = sqlx::query("DELETE FROM entries WHERE kind = ? AND key = ?");
            let remove = remove.bind(kind.as_str()).bind(key);
            remove.execute(&mut *on).await?;
            continue;
        };
        let belongs_to = encryption::entry(kind.as_str(), key);
        let value = encryption::stored(value, cipher, &belongs_to);
        let row = vec![
            kind.as_str().into(),
            key.as_str().into(),
            value.into(),
            active.into(),
        ];
        rows::ENTRIES.put(on, [row]).await?;
    }
    Ok(())
}

/// A topic's identity is never reused, so its removal can come after everything else in the step.
async fn remove_topic(on: &mut SqliteConnection, topic: TopicId) -> Result<(), sqlx::Error> {
    for removal in [
        "DELETE FROM topics WHERE id = ?",
        "DELETE FROM partitions WHERE topic = ?",
        "DELETE FROM groups WHERE topic = ?",
        "DELETE FROM producers WHERE topic = ?",
        "DELETE FROM requests WHERE topic = ?",
    ] {
        let removal = sqlx::query(removal).bind(topic.0 as i64);
        removal.execute(&mut *on).await?;
    }
    rows::REMOVED_TOPICS.put(on, [vec![topic.0.into()]]).await
}

#[cfg(test)]
mod flips;
#[cfg(test)]
mod full_disks;
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_not_taken_for_a_damaged_checkpoint() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("checkpoint.sqlite");
        let mut store = CheckpointStore::open(&path, None).expect("a checkpoint");
        // SQLite reports its own size bound in the same way as a full disk.
        let fill = "PRAGMA max_page_count = 1; CREATE TABLE more (x); CREATE TABLE most (x);";
        let filled = sqlx::raw_sql(fill).execute(&mut store.connection);
        let error = store.runtime.block_on(filled).expect_err("no room");
        let told = unusable(&path, &error);
        assert!(matches!(told, OpenError::DiskFull { .. }), "{told}");
    }

    #[test]
    fn a_checkpoint_of_the_version_before_is_read() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("checkpoint.sqlite");
        let mut store = CheckpointStore::open(&path, None).expect("a checkpoint");
        let older = "DROP TABLE producers; DROP TABLE producer_names; DROP TABLE requests;
            INSERT INTO meta VALUES ('format', 1), ('sequence', 7), ('next_topic', 3);";
        let made_older = sqlx::raw_sql(older).execute(&mut store.connection);
        store.runtime.block_on(made_older).expect("made older");
        drop(store);
        let mut store = CheckpointStore::open(&path, None).expect("opened");
        let loaded = store.load().expect("read");
        assert_eq!((loaded.sequence, loaded.next_topic), (7, TopicId(3)));
        let first = loaded.idempotence.producers.decide(None);
        assert_eq!(first.expect("an id").id, 0);
        // It was only read, so the previous version can still write it.
        let written_before = "INSERT OR REPLACE INTO meta VALUES ('sequence', 8)";
        let writing = sqlx::raw_sql(written_before).execute(&mut store.connection);
        store.runtime.block_on(writing).expect("as it was");
        let step = Step {
            sequence: 9,
            journal_file: 1,
            changes: &Changes::default(),
            marks: &[],
            swept_topics: &[],
            runs: &RunsStep::default(),
        };
        store.save(&step).expect("saved");
        let mut store = CheckpointStore::open(&path, None).expect("opened");
        assert_eq!(store.load().expect("read").sequence, 9);
        assert!(store.is_sealed);
    }
}
