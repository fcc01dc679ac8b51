//! Keeps the database's file longer than the part that SQLite uses, by zeros that were written and
//! synced before. So a commit overwrites existing blocks, and a sync changes nothing but their
//! bytes. For new blocks a file system must also record that they are now written, and ext4 may
//! fail to do so without an error (see docs/reliability.md).
//!
//! SQLite takes the number of pages from the database's header, not from the file's length.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use millrace_log::disk;

/// Bytes beyond the used part; when less than half of this is left, the file is extended.
const AHEAD_BYTES: u64 = 1 << 20;
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// The database's header (database file format, section 1.3).
struct Header([u8; 40]);

impl Header {
    fn of(file: &File) -> io::Result<Self> {
        let mut header = [0; 40];
        file.read_exact_at(&mut header, 0)?;
        Ok(Self(header))
    }

    fn page_bytes(&self) -> u64 {
        match u16::from_be_bytes([self.0[16], self.0[17]]) {
            1 => 1 << 16,
            bytes => u64::from(bytes),
        }
    }

    /// A page count at this position of the header, in bytes.
    fn bytes_at(&self, at: usize) -> u64 {
        let pages = self.0[at..].first_chunk::<4>();
        pages.map_or(0, |pages| u64::from(u32::from_be_bytes(*pages))) * self.page_bytes()
    }

    /// The length of the part that the database uses.
    fn used_bytes(&self) -> u64 {
        self.bytes_at(28)
    }

    /// The free bytes within the used part.
    fn free_bytes(&self) -> u64 {
        self.bytes_at(36)
    }
}

/// Bytes of the database with content. Call it between two transactions, like [`grow_ahead`].
pub(super) fn held_bytes_of(path: &Path) -> io::Result<u64> {
    sizes_of(path).map(|(held, _)| held)
}

/// Bytes of the database with content, and free bytes.
pub(super) fn sizes_of(path: &Path) -> io::Result<(u64, u64)> {
    let header = Header::of(&File::open(path)?)?;
    let free = header.free_bytes();
    Ok((header.used_bytes().saturating_sub(free), free))
}

/// Extends the file if needed. Call it between two transactions, because closing the file releases
/// all locks on it. A full disk is not an error here: the commit will meet it.
pub(super) fn grow_ahead(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let (length, used) = (file.metadata()?.len(), Header::of(&file)?.used_bytes());
    let ahead = AHEAD_BYTES.max(used / 4);
    if length >= used + ahead / 2 {
        return Ok(());
    }
    let wanted = (used + ahead).next_multiple_of(ZEROS.len() as u64);
    match fill(&file, length, wanted) {
        Err(error) if disk::is_full(&error) => file.set_len(length),
        grown => grown,
    }
}

fn fill(file: &File, from: u64, to: u64) -> io::Result<()> {
    let mut at = from;
    while at < to {
        let count = (to - at).min(ZEROS.len() as u64) as usize;
        file.write_all_at(&ZEROS[..count], at)?;
        at += count as u64;
    }
    file.sync_data().map_err(disk::final_error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
    use sqlx::{Connection, Row};

    #[tokio::test]
    async fn a_database_goes_on_in_the_room_ahead_and_is_sound() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(true);
        let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
        let make = "CREATE TABLE t (k INTEGER PRIMARY KEY, v BLOB)";
        sqlx::raw_sql(make).execute(&mut connection).await.unwrap();
        let mut lengths = Vec::new();
        for _ in 0..40 {
            grow_ahead(&path).unwrap();
            let length = std::fs::metadata(&path).unwrap().len();
            let add = "INSERT INTO t (v) VALUES (randomblob(100000))";
            sqlx::raw_sql(add).execute(&mut connection).await.unwrap();
            assert_eq!(std::fs::metadata(&path).unwrap().len(), length);
            lengths.push(length);
        }
        let held = held_bytes_of(&path).unwrap();
        assert!(held > 4_000_000, "{held}");
        lengths.dedup();
        assert!((2..12).contains(&lengths.len()), "{lengths:?}");
        let check = sqlx::query("PRAGMA integrity_check");
        let found = check.fetch_one(&mut connection).await.unwrap();
        assert_eq!(found.get::<String, _>(0), "ok");
        connection.close().await.unwrap();
        let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
        let count = sqlx::query("SELECT COUNT(*) FROM t");
        let count = count.fetch_one(&mut connection).await.unwrap();
        assert_eq!(count.get::<i64, _>(0), 40);
        let empty = sqlx::raw_sql("DELETE FROM t").execute(&mut connection);
        empty.await.unwrap();
        let held = held_bytes_of(&path).unwrap();
        assert!(held < 1_000_000, "{held}");
    }
}
