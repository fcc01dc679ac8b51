//! The checkpoint's tables, row by row, each with its own checksum: SQLite has none, and trusts a
//! value with a flipped bit.
//!
//! The checksum is a CRC-32C over the table's name and all other columns. Since format 3 every row
//! has one; rows of earlier versions get theirs with the first step ([`seal`]).

use std::borrow::Cow;

use futures_util::TryStreamExt as _;
use sqlx::query_builder::Separated;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{QueryBuilder, Row, Sqlite, TypeInfo, ValueRef};

use super::{add_column, has_column, malformed};

/// Rows written by one statement, because each statement costs a round trip to the database's
/// thread.
pub(super) const ROWS_AT_ONCE_MAX: usize = 500;
/// Approximate bytes of these rows, not counting the last one.
const ROW_BYTES_AT_ONCE_MAX: usize = 1 << 20;

const CHECKSUM: &str = "checksum";

/// A table and its columns except the checksum, those of the key first.
pub(super) struct Table {
    pub(super) name: &'static str,
    columns: &'static [&'static str],
}

pub(super) const META: Table = Table {
    name: "meta",
    columns: &["key", "value"],
};
pub(super) const TOPICS: Table = Table {
    name: "topics",
    columns: &["id", "topic"],
};
pub(super) const REMOVED_TOPICS: Table = Table {
    name: "removed_topics",
    columns: &["id"],
};
pub(super) const PARTITIONS: Table = Table {
    name: "partitions",
    columns: &[
        "topic",
        "partition",
        "start_offset",
        "end_offset",
        "segment",
        "bytes",
        "opened_at",
        "clean_offset",
    ],
};
pub(super) const GROUPS: Table = Table {
    name: "groups",
    columns: &[
        "topic",
        "partition",
        "name",
        "epoch",
        "progress",
        "encryption_key",
    ],
};
pub(super) const ENTRIES: Table = Table {
    name: "entries",
    columns: &["kind", "key", "value", "encryption_key"],
};
pub(super) const STATE: Table = Table {
    name: "state",
    columns: &[
        "topic",
        "partition",
        "name",
        "slot",
        "entry",
        "encryption_key",
    ],
};
pub(super) const STATE_TABLES: Table = Table {
    name: "state_tables",
    columns: &["topic", "partition", "name", "entries", "bytes"],
};
pub(super) const STATE_RUNS: Table = Table {
    name: "state_runs",
    columns: &[
        "topic",
        "partition",
        "name",
        "position",
        "number",
        "file_bytes",
        "entries",
        "removals",
        "encryption_key",
    ],
};
pub(super) const PRODUCERS: Table = Table {
    name: "producers",
    columns: &[
        "topic",
        "partition",
        "producer",
        "epoch",
        "seen_at",
        "batches",
    ],
};
pub(super) const PRODUCER_NAMES: Table = Table {
    name: "producer_names",
    columns: &["name", "producer", "epoch", "given_at"],
};
pub(super) const REQUESTS: Table = Table {
    name: "requests",
    columns: &[
        "topic",
        "position",
        "key",
        "fingerprint",
        "at",
        "offsets",
        "note",
    ],
};

/// All tables.
pub(super) const ALL: [&Table; 12] = [
    &META,
    &TOPICS,
    &REMOVED_TOPICS,
    &PARTITIONS,
    &GROUPS,
    &ENTRIES,
    &STATE,
    &STATE_TABLES,
    &STATE_RUNS,
    &PRODUCERS,
    &PRODUCER_NAMES,
    &REQUESTS,
];

/// The value of a column.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value<'a> {
    Null,
    Number(i64),
    Text(Cow<'a, str>),
    Bytes(Cow<'a, [u8]>),
}

impl From<u64> for Value<'_> {
    /// SQLite's numbers are signed. All numbers of a checkpoint fit, or are converted back in the
    /// same way.
    fn from(number: u64) -> Self {
        Self::Number(number as i64)
    }
}

impl From<u32> for Value<'_> {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl From<i64> for Value<'_> {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

impl From<Option<i64>> for Value<'_> {
    fn from(number: Option<i64>) -> Self {
        number.map_or(Self::Null, Self::Number)
    }
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(text.into())
    }
}

impl From<String> for Value<'_> {
    fn from(text: String) -> Self {
        Self::Text(text.into())
    }
}

impl<'a> From<&'a [u8]> for Value<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self::Bytes(bytes.into())
    }
}

impl From<Vec<u8>> for Value<'_> {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes.into())
    }
}

impl<'a> From<Cow<'a, [u8]>> for Value<'a> {
    fn from(bytes: Cow<'a, [u8]>) -> Self {
        Self::Bytes(bytes)
    }
}

impl<'a> Value<'a> {
    fn stored(row: &'a SqliteRow, column: usize) -> Result<Self, sqlx::Error> {
        let raw = row.try_get_raw(column)?;
        if raw.is_null() {
            return Ok(Self::Null);
        }
        let kind = raw.type_info();
        Ok(match kind.name() {
            "INTEGER" => Self::Number(row.try_get_unchecked(column)?),
            "TEXT" => Self::Text(row.try_get_unchecked::<&str, _>(column)?.into()),
            "BLOB" => Self::Bytes(row.try_get_unchecked::<&[u8], _>(column)?.into()),
            _ => return Err(malformed("value")),
        })
    }

    fn byte_count(&self) -> usize {
        match self {
            Self::Null | Self::Number(_) => size_of::<i64>(),
            Self::Text(text) => text.len(),
            Self::Bytes(bytes) => bytes.len(),
        }
    }

    fn digest(&self, crc: u32) -> u32 {
        let (kind, bytes): (u8, &[u8]) = match self {
            Self::Null => (0, &[]),
            Self::Number(number) => (1, &number.to_le_bytes()),
            Self::Text(text) => (2, text.as_bytes()),
            Self::Bytes(bytes) => (3, bytes),
        };
        let crc = crc32c::crc32c_append(crc, &[kind]);
        let crc = crc32c::crc32c_append(crc, &(bytes.len() as u64).to_le_bytes());
        crc32c::crc32c_append(crc, bytes)
    }

    fn bind(self, row: &mut Separated<'_, Sqlite, &'static str>) {
        match self {
            Self::Null => row.push_bind(None::<i64>),
            Self::Number(number) => row.push_bind(number),
            Self::Text(text) => row.push_bind(text.into_owned()),
            Self::Bytes(bytes) => row.push_bind(bytes.into_owned()),
        };
    }
}

impl Table {
    fn checksum(&self, values: &[Value<'_>]) -> i64 {
        let crc = crc32c::crc32c(self.name.as_bytes());
        let crc = values.iter().fold(crc, |crc, value| value.digest(crc));
        crc.into()
    }

    /// Writes rows, with values in the order of the columns, replacing those with the same keys.
    pub(super) async fn put(
        &self,
        on: &mut SqliteConnection,
        rows: impl IntoIterator<Item = Vec<Value<'_>>>,
    ) -> Result<(), sqlx::Error> {
        let mut rows = rows.into_iter().peekable();
        let columns = self.columns.join(", ");
        let head = format!(
            "INSERT OR REPLACE INTO {} ({columns}, checksum) ",
            self.name
        );
        while rows.peek().is_some() {
            let mut put = QueryBuilder::<Sqlite>::new(head.as_str());
            let mut bytes = 0;
            let some = std::iter::from_fn(|| {
                let fits = bytes < ROW_BYTES_AT_ONCE_MAX;
                let row = fits.then(|| rows.next()).flatten()?;
                bytes += row.iter().map(Value::byte_count).sum::<usize>();
                Some(row)
            });
            put.push_values(some.take(ROWS_AT_ONCE_MAX), |mut row, values| {
                let checksum = self.checksum(&values);
                values.into_iter().for_each(|value| value.bind(&mut row));
                row.push_bind(checksum);
            });
            put.build().execute(&mut *on).await?;
        }
        Ok(())
    }

    /// All rows, verified; `sealed` if every row has a checksum.
    pub(super) async fn read(
        &self,
        on: &mut SqliteConnection,
        sealed: bool,
    ) -> Result<Vec<SqliteRow>, sqlx::Error> {
        let rows = self.select(on, "").await?;
        for row in &rows {
            self.check(row, sealed)?;
        }
        Ok(rows)
    }

    /// Like [`Table::read`], but one row after the other, so that only a few are in memory.
    pub(super) async fn each(
        &self,
        on: &mut SqliteConnection,
        sealed: bool,
        mut visit: impl FnMut(SqliteRow) -> Result<(), sqlx::Error>,
    ) -> Result<(), sqlx::Error> {
        let select = self.selection(on, "").await?;
        let mut rows = sqlx::query(sqlx::AssertSqlSafe(select)).fetch(on);
        while let Some(row) = rows.try_next().await? {
            self.check(&row, sealed)?;
            visit(row)?;
        }
        Ok(())
    }

    pub(super) async fn select(
        &self,
        on: &mut SqliteConnection,
        which: &str,
    ) -> Result<Vec<SqliteRow>, sqlx::Error> {
        let select = self.selection(on, which).await?;
        sqlx::query(sqlx::AssertSqlSafe(select)).fetch_all(on).await
    }

    async fn selection(
        &self,
        on: &mut SqliteConnection,
        which: &str,
    ) -> Result<String, sqlx::Error> {
        let (columns, name) = (self.columns.join(", "), self.name);
        let checksum = match has_column(on, name, CHECKSUM).await? {
            true => CHECKSUM,
            false => "NULL",
        };
        Ok(format!("SELECT {columns}, {checksum} FROM {name} {which}"))
    }

    pub(super) fn check(&self, row: &SqliteRow, sealed: bool) -> Result<(), sqlx::Error> {
        let stored = Value::stored(row, self.columns.len())?;
        if stored == Value::Null && !sealed {
            return Ok(());
        }
        if stored == Value::Number(self.checksum(&self.values(row)?)) {
            return Ok(());
        }
        let damaged = format!(
            "it is damaged: a row of its table {} is not as it was written",
            self.name
        );
        Err(sqlx::Error::Protocol(damaged))
    }

    pub(super) fn values<'a>(&self, row: &'a SqliteRow) -> Result<Vec<Value<'a>>, sqlx::Error> {
        let columns = 0..self.columns.len();
        columns.map(|column| Value::stored(row, column)).collect()
    }
}

/// Adds checksums to rows without one.
pub(super) async fn seal(on: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    for table in ALL {
        add_column(on, table.name, CHECKSUM, "INTEGER").await?;
        let open = table.select(on, "WHERE checksum IS NULL").await?;
        let rows: Result<Vec<_>, _> = open.iter().map(|row| table.values(row)).collect();
        table.put(on, rows?).await?;
    }
    Ok(())
}
