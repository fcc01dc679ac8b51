//! The database's file is longer than what SQLite uses of it, by zeros that were written and synced before: so a commit writes over
//! blocks that are there, and a sync of it changes nothing but their bytes. Of blocks that are new a file system has to note that
//! they are written now, and ext4 may fail to without telling (see docs/reliability.md).
//!
//! SQLite takes the number of pages from the database's header, not from the file's length.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use millrace_log::disk;

/// Bytes beyond what is used, at least; below half of it the file is made longer.
const AHEAD_BYTES: u64 = 1 << 20;
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// What the database's header tells (the database file format, section 1.3).
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

    /// The bytes of so many pages as stand at this place.
    fn bytes_at(&self, at: usize) -> u64 {
        let pages = self.0[at..].first_chunk::<4>();
        pages.map_or(0, |pages| u64::from(u32::from_be_bytes(*pages))) * self.page_bytes()
    }

    /// Where the database ends.
    fn used_bytes(&self) -> u64 {
        self.bytes_at(28)
    }

    /// Within that, what holds nothing.
    fn free_bytes(&self) -> u64 {
        self.bytes_at(36)
    }
}

/// Bytes of the database that hold anything. To be called between two transactions, as [`grow_ahead`].
pub(super) fn held_bytes_of(path: &Path) -> io::Result<u64> {
    sizes_of(path).map(|(held, _)| held)
}

/// Bytes of the database that hold anything, and those that do not.
pub(super) fn sizes_of(path: &Path) -> io::Result<(u64, u64)> {
    let header = Header::of(&File::open(path)?)?;
    let free = header.free_bytes();
    Ok((header.used_bytes().saturating_sub(free), free))
}

/// Makes the file longer, if it is time. To be called between two transactions: to close the file gives up locks on it. A full disk is
/// no error, the commit will meet it.
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
