//! Reading that stays in the background: a file whose reads wait for their turn and leave nothing behind in the page cache.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use crate::disk::DiskFile;

/// Asked before every read of so many bytes; waits, or says (with an error) that nobody wants them any more.
pub type Pace = Arc<dyn Fn(u64) -> io::Result<()> + Send + Sync>;

/// A file that is read at somebody else's pace.
pub(crate) struct PacedFile {
    pub(crate) file: Arc<dyn DiskFile>,
    pub(crate) pace: Pace,
}

impl DiskFile for PacedFile {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let length = buffer.len() as u64;
        (self.pace)(length)?;
        // Before, so that the disk is asked and not the cache; after, so that what others read stays there.
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

/// Makes the calling thread give way to all others.
pub fn lower_priority() {
    // The kernel's "process" is the calling thread. If it is refused, the thread is only less polite.
    let _ = rustix::process::setpriority_process(None, 15);
}
