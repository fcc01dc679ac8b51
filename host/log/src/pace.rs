//! Background reading: a file whose reads are slowed down and leave nothing in the page cache.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use crate::disk::DiskFile;

/// Called before every read with its number of bytes; waits, or returns an error if the reading
/// should end.
pub type Pace = Arc<dyn Fn(u64) -> io::Result<()> + Send + Sync>;

/// A file that is read at a given pace.
pub(crate) struct PacedFile {
    pub(crate) file: Arc<dyn DiskFile>,
    pub(crate) pace: Pace,
}

impl DiskFile for PacedFile {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let length = buffer.len() as u64;
        (self.pace)(length)?;
        // Dropped before the read, so that it comes from the disk and not from the cache, and after
        // it, so that the cache keeps what others read.
        self.file.forget_cached(at, length);
        let count = self.file.read_at(buffer, at);
        self.file.forget_cached(at, length);
        count
    }

    fn write_all_at(&self, _bytes: &[u8], _at: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn preallocate(&self, _length: u64, _grow: bool) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn set_len(&self, _length: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn sync_data(&self) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn length(&self) -> io::Result<u64> {
        self.file.length()
    }

    fn map_sealed(&self) -> io::Result<Bytes> {
        Err(io::ErrorKind::PermissionDenied.into())
    }
}

/// Lowers the calling thread's priority below all others.
pub fn lower_priority() {
    // The kernel's "process" is the calling thread. If this is refused, the thread only disturbs
    // others more.
    let _ = rustix::process::setpriority_process(None, 15);
}
