//! Disks that break what the engine relies on.

use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use millrace_log::disk::FileSystem;
use millrace_log::{Disk, DiskFile};

/// What the disk does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DiskBug {
    /// Files are not synced.
    NoSync,
    /// Directories are not synced.
    NoDirectorySync,
    /// Opening a journal file loses its last bytes.
    JournalCut,
    /// Opening a segment loses its last quarter.
    SegmentCut,
}

pub(crate) struct BentDisk {
    pub(crate) inner: Arc<dyn Disk>,
    pub(crate) bug: DiskBug,
}

struct BentFile {
    inner: Arc<dyn DiskFile>,
    bug: DiskBug,
}

/// More than the last frame, and less than is written between two checkpoints.
const FORGOTTEN_BYTES: usize = 600;

impl BentDisk {
    fn bend(&self, inner: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        let bug = self.bug;
        Arc::new(BentFile { inner, bug })
    }
}

impl Disk for BentDisk {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.inner.open(path)?;
        let is = |extension: &str| path.extension().is_some_and(|found| found == extension);
        if self.bug == DiskBug::JournalCut && is("journal") {
            forget_end(&*file)?;
        }
        if self.bug == DiskBug::SegmentCut && is("segment") {
            let length = file.length()?;
            file.set_len(length - length / 4)?;
        }
        Ok(self.bend(file))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.bend(self.inner.create(path)?))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.inner.create_dir_all(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.inner.list(dir)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.inner.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.inner.remove(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.inner.remove_dir_all(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        if self.bug == DiskBug::NoDirectorySync {
            return Ok(());
        }
        self.inner.sync_dir(dir)
    }

    fn file_system(&self, dir: &Path) -> io::Result<Arc<dyn FileSystem>> {
        if self.bug == DiskBug::NoSync {
            return Ok(Arc::new(NeverSynced));
        }
        self.inner.file_system(dir)
    }
}

struct NeverSynced;

impl FileSystem for NeverSynced {
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Overwrites the last bytes that are not zero with zeros.
fn forget_end(file: &dyn DiskFile) -> io::Result<()> {
    let mut bytes = vec![0; usize::try_from(file.length()?).unwrap_or(0)];
    file.read_at(&mut bytes, 0)?;
    let Some(last) = bytes.iter().rposition(|byte| *byte != 0) else {
        return Ok(());
    };
    let from = last.saturating_sub(FORGOTTEN_BYTES);
    file.write_all_at(&vec![0; last + 1 - from], from as u64)
}

impl DiskFile for BentFile {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        self.inner.read_at(buffer, at)
    }

    fn write_all_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.inner.write_all_at(bytes, at)
    }

    fn preallocate(&self, length: u64, grow: bool) -> io::Result<()> {
        self.inner.preallocate(length, grow)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.inner.set_len(length)
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.bug == DiskBug::NoSync {
            return Ok(());
        }
        self.inner.sync_data()
    }

    fn length(&self) -> io::Result<u64> {
        self.inner.length()
    }

    fn map_sealed(&self) -> io::Result<Bytes> {
        self.inner.map_sealed()
    }
}
