//! For examining a data directory without changing a byte: a [`Disk`] that cannot write. Code that
//! uses it, here and in the engine, is read-only by construction.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use crate::disk::{Disk, DiskFile, FileSystem, RealDisk, read_fully};

/// The machine's file system, opened only for reading. Every operation that would change something
/// is an error.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReadOnlyDisk;

fn refused<T>() -> io::Result<T> {
    let why = "the data directory is only looked at";
    Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
}

impl Disk for ReadOnlyDisk {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(ReadOnlyFile(File::open(path)?)))
    }

    fn create(&self, _path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        refused()
    }

    fn create_dir_all(&self, _path: &Path) -> io::Result<()> {
        refused()
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = RealDisk.list(dir)?;
        names.sort_unstable();
        Ok(names)
    }

    fn rename(&self, _from: &Path, _to: &Path) -> io::Result<()> {
        refused()
    }

    fn remove(&self, _path: &Path) -> io::Result<()> {
        refused()
    }

    fn remove_dir_all(&self, _path: &Path) -> io::Result<()> {
        refused()
    }

    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        refused()
    }

    fn file_system(&self, _dir: &Path) -> io::Result<Arc<dyn FileSystem>> {
        refused()
    }
}

struct ReadOnlyFile(File);

impl DiskFile for ReadOnlyFile {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        read_fully(&self.0, buffer, at)
    }

    fn write_all_at(&self, _bytes: &[u8], _at: u64) -> io::Result<()> {
        refused()
    }

    fn preallocate(&self, _length: u64, _grow: bool) -> io::Result<()> {
        refused()
    }

    fn set_len(&self, _length: u64) -> io::Result<()> {
        refused()
    }

    fn sync_data(&self) -> io::Result<()> {
        refused()
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    /// Reads instead of mapping: a disk that fails under a mapping would end the process instead of
    /// giving a finding.
    fn map_sealed(&self) -> io::Result<Bytes> {
        read_whole(self)
    }
}

/// All bytes of a file.
pub(crate) fn read_whole(file: &dyn DiskFile) -> io::Result<Bytes> {
    let mut bytes = vec![0; usize::try_from(file.length()?).map_err(io::Error::other)?];
    let count = file.read_at(&mut bytes, 0)?;
    bytes.truncate(count);
    Ok(bytes.into())
}

/// Bytes that this process can still write to the file system of `dir`.
///
/// # Errors
/// The system's.
pub fn free_bytes(dir: &Path) -> io::Result<u64> {
    let found = rustix::fs::statvfs(dir)?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

/// The total size of a directory's disk in bytes.
///
/// # Errors
/// The system's.
pub fn disk_bytes(dir: &Path) -> io::Result<u64> {
    let found = rustix::fs::statvfs(dir)?;
    Ok(found.f_blocks.saturating_mul(found.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_written_through_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "kept").unwrap();
        let disk = ReadOnlyDisk;
        let file = disk.open(&path).unwrap();
        for refused in [
            file.write_all_at(b"x", 0),
            file.set_len(0),
            file.preallocate(9, true),
            disk.remove(&path),
            disk.rename(&path, &dir.path().join("other")),
            disk.create(&path).map(|_| ()),
            disk.create_dir_all(&dir.path().join("made")),
            disk.remove_dir_all(dir.path()),
        ] {
            assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        }
        assert_eq!(disk.list(dir.path()).unwrap(), ["file"]);
        assert_eq!(file.map_sealed().unwrap(), "kept");
        assert!(free_bytes(dir.path()).unwrap() > 0);
    }
}
