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

/// Where the database ends: bytes 28 to 31 of the header count the pages, 16 and 17 say how long one is (the database file format,
/// section 1.3).
fn used_bytes(file: &File) -> io::Result<u64> {
    let mut header = [0; 32];
    file.read_exact_at(&mut header, 0)?;
    let page_bytes = match u16::from_be_bytes([header[16], header[17]]) {
        1 => 1 << 16,
        bytes => u64::from(bytes),
    };
    let pages = u32::from_be_bytes([header[28], header[29], header[30], header[31]]);
    Ok(u64::from(pages) * page_bytes)
}

/// Bytes that the database uses of its file. To be called between two transactions, as [`grow_ahead`].
pub(super) fn used_bytes_of(path: &Path) -> io::Result<u64> {
    used_bytes(&File::open(path)?)
}

/// Makes the file longer, if it is time. To be called between two transactions: to close the file gives up locks on it. A full disk is
/// no error, the commit will meet it.
pub(super) fn grow_ahead(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let (length, used) = (file.metadata()?.len(), used_bytes(&file)?);
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
    }
}
