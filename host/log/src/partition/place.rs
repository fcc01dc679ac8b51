//! Ownership of files: written batches are stamped for their partition, and files with another
//! partition's stamp are not overwritten.

use std::io;
use std::path::PathBuf;

use millrace_model::batch::HEADER_BYTES;
use millrace_model::{Offset, RecordBatch, Stamp};
use rustix::io::Errno;

use super::{Active, PartitionFiles, Place};

impl PartitionFiles {
    /// Continues in a new segment if the active one's file begins with another partition's
    /// messages, or cannot be read, so that none of them are overwritten.
    pub(super) fn leave_misplaced(&mut self) -> io::Result<()> {
        if self.active.is_own {
            return Ok(());
        }
        let holds = self.place.holds(self.active.base)?;
        self.active.is_own = true;
        if holds == Holds::Other {
            self.sealed.push(self.active.base);
            self.active = Active::new(self.end, 0);
        }
        Ok(())
    }
}

/// The content of a segment's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holds {
    /// There is no file.
    Nothing,
    /// Nothing in it is known to belong to another partition.
    Own,
    /// It begins with another partition's messages, or cannot be read.
    Other,
}

impl Place {
    /// A file that the disk cannot read counts as another partition's; a lack of file descriptors
    /// in this process is an error instead.
    pub(super) fn holds(&self, base: Offset) -> io::Result<Holds> {
        let Some(stamp) = self.stamp else {
            return Ok(Holds::Own);
        };
        let file = match self.disk.open(&self.location.segment(base)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Holds::Nothing),
            Err(error) if is_short_of_files(&error) => return Err(error),
            Err(_) => return Ok(Holds::Other),
        };
        let mut header = [0; HEADER_BYTES];
        Ok(match file.read_at(&mut header, 0) {
            Ok(count) if is_of(&header[..count], stamp) => Holds::Own,
            _ => Holds::Other,
        })
    }

    /// Removes a segment and its index; a file that belongs to another partition, or cannot be
    /// read, is kept under another name.
    pub(super) fn remove(&self, base: Offset) -> io::Result<()> {
        let path = self.location.segment(base);
        self.cache.forget(&path);
        match self.holds(base)? {
            Holds::Nothing => {}
            Holds::Own => self.disk.remove(&path)?,
            Holds::Other => self.set_aside(base)?,
        }
        self.disk.remove(&self.location.index(base))
    }

    fn set_aside(&self, base: Offset) -> io::Result<()> {
        let path = self.location.segment(base);
        let taken = self.disk.list(self.location.dir())?;
        let aside = |number: u32| self.location.aside(base, number);
        let is_free = |aside: &PathBuf| {
            let name = aside.file_name().and_then(|name| name.to_str());
            !taken.iter().any(|taken| Some(taken.as_str()) == name)
        };
        let aside = (1..=u32::MAX).map(aside).find(is_free);
        let aside = aside.ok_or_else(|| io::Error::other("no name is left"))?;
        tracing::error!(from = %path.display(), to = %aside.display(), "a segment that belongs to another partition or cannot be read was about to be removed; it is kept under another name");
        self.disk.rename(&path, &aside)?;
        self.disk.sync_dir(self.location.dir())
    }

    /// A batch in its stored form.
    pub(super) fn stored(&self, batch: &RecordBatch) -> RecordBatch {
        let stamped = match self.stamp {
            Some(stamp) => batch.clone().stamped(stamp),
            None => batch.clone(),
        };
        match &self.cipher {
            Some(cipher) => cipher.encrypt(&stamped),
            None => stamped,
        }
    }
}

fn is_short_of_files(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM)
    )
}

/// Whether a segment with this beginning may belong to the partition.
pub(super) fn is_of(header: &[u8], stamp: Stamp) -> bool {
    Stamp::in_header(header).is_none_or(|found| found == stamp)
}
