//! The journal's files: their headers, the spares, and the next one, which is prepared before it is
//! needed.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{SUFFIX, SYNCS_AT_ONCE_MAX};
use crate::disk::{Disk, DiskFile, final_error, is_full};
use crate::frame::FRAME_HEADER_BYTES;

/// Files kept for reuse; further ones are removed.
pub(super) const SPARE_FILES_MAX: usize = 8;
/// Spares that frames with messages must not use: on a full disk they are for frames that free
/// space or only administer.
pub(super) const LEFT_BY_MESSAGES: usize = 2;
/// Spares that no frame may use: a checkpoint, which frees files, needs a new file to begin with.
pub(super) const LEFT_BY_FRAMES: usize = 1;
pub(super) const FILE_HEADER_BYTES: usize = 64;
/// Bytes of zeros written at once.
const FILL_BYTES: u64 = 1 << 20;
/// The beginning of every version's magic.
pub(super) const MAGIC_ALL: [u8; 7] = *b"MRJRNL0";
/// Version 1: the header has the first sequence; everything before it was durable.
const MAGIC_1: [u8; 8] = *b"MRJRNL01";
/// Version 2: the header says what was durable when the file was prepared.
const MAGIC: [u8; 8] = *b"MRJRNL02";

/// ```text
/// 0 magic   8 number u64   16 salt u64   24 synced u64 (version 1: first sequence)   32 CRC-32C u32 of all that   36 zeros
/// ```
#[derive(Clone, Copy)]
pub(super) struct FileHeader {
    pub(super) number: u64,
    pub(super) salt: u64,
    /// A sequence known to have been durable.
    pub(super) synced: u64,
}

impl FileHeader {
    fn encode(&self) -> [u8; FILE_HEADER_BYTES] {
        let mut bytes = [0; FILE_HEADER_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..16].copy_from_slice(&self.number.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.salt.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.synced.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..32]);
        bytes[32..36].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.first_chunk::<FILE_HEADER_BYTES>()?;
        let crc = u32::from_le_bytes([bytes[32], bytes[33], bytes[34], bytes[35]]);
        if crc32c::crc32c(&bytes[..32]) != crc {
            return None;
        }
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let synced = match bytes[..8] == MAGIC {
            true => word(24),
            false if bytes[..8] == MAGIC_1 => word(24).saturating_sub(1),
            false => return None,
        };
        Some(Self {
            number: word(8),
            salt: word(16),
            synced,
        })
    }
}

pub(super) type Handles = [Arc<dyn DiskFile>; SYNCS_AT_ONCE_MAX];

/// A file of the right size whose header is durable.
pub(super) struct Ready {
    pub(super) number: u64,
    pub(super) salt: u64,
    pub(super) handles: Handles,
}

/// The source of the next files.
pub(super) struct NextFiles {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    file_bytes: u64,
    spares: Vec<u64>,
    ready: Option<Ready>,
    /// The last number taken.
    taken: u64,
}

impl NextFiles {
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        file_bytes: u64,
        spares: Vec<u64>,
    ) -> Self {
        Self {
            disk,
            dir,
            file_bytes,
            spares,
            ready: None,
            taken: 0,
        }
    }

    /// Whether the file with this number is not prepared yet.
    pub(super) fn lacks(&self, number: u64) -> bool {
        self.taken < number && self.ready.is_none()
    }

    /// Prepares a file, leaving `reserved` spares unused, unless its number was already taken.
    pub(super) fn prepare(&mut self, number: u64, reserved: usize, synced: u64) -> io::Result<()> {
        if self.lacks(number) {
            self.ready = Some(self.make_ready(number, reserved, synced)?);
        }
        Ok(())
    }

    /// The file with this number: the prepared one, or one created now.
    pub(super) fn take(&mut self, number: u64, reserved: usize, synced: u64) -> io::Result<Ready> {
        let taken = match self.ready.take() {
            Some(ready) => ready,
            None => self.make_ready(number, reserved, synced)?,
        };
        assert!(taken.number == number, "files are used in their order");
        self.taken = number;
        Ok(taken)
    }

    /// A spare file, unless only `reserved` of them are left; otherwise a new one.
    fn make_ready(&mut self, number: u64, reserved: usize, synced: u64) -> io::Result<Ready> {
        let spare = self.spare(reserved)?;
        let made = self.make_of(spare.as_ref(), number, synced);
        if let (Some((old, ..)), Err(error)) = (spare, &made)
            && is_full(error)
        {
            self.spares.push(old);
        }
        made
    }

    fn make_of(
        &self,
        spare: Option<&(u64, Arc<dyn DiskFile>)>,
        number: u64,
        synced: u64,
    ) -> io::Result<Ready> {
        let header = FileHeader {
            number,
            salt: fastrand::u64(..),
            synced,
        };
        let path = file_path(&self.dir, number);
        let handles = |path: &Path| -> io::Result<Vec<Arc<dyn DiskFile>>> {
            let others = (1..SYNCS_AT_ONCE_MAX).map(|_| self.disk.open(path));
            others.collect()
        };
        // Opened before it is renamed, so that the spare is unchanged if opening fails.
        let (file, others) = match spare {
            Some((old, file)) => {
                if !was_begun(&**file)? {
                    self.fill(&**file)?;
                }
                // The header is written under the old name, which is no longer read, so that a file
                // with the new name always has the new header.
                begin_file(&**file, header)?;
                let old = file_path(&self.dir, *old);
                let others = handles(&old)?;
                self.disk.rename(&old, &path)?;
                (Arc::clone(file), others)
            }
            None => {
                let file = make(&*self.disk, &path, self.file_bytes)?;
                if let Err(error) = self.fill(&*file) {
                    remove_if_full(&*self.disk, &path, &error);
                    return Err(error);
                }
                begin_file(&*file, header)?;
                let others = handles(&path)?;
                (file, others)
            }
        };
        self.disk.sync_dir(&self.dir).map_err(final_error)?;
        let mut others = others.into_iter();
        Ok(Ready {
            number,
            salt: header.salt,
            handles: std::array::from_fn(|_| others.next().unwrap_or_else(|| Arc::clone(&file))),
        })
    }

    /// Durably writes zeros over reserved blocks, so that later syncs of frames change nothing but
    /// their bytes. Otherwise the file system must record with each sync which reserved blocks are
    /// now written; that is slower, and may fail without an error.
    fn fill(&self, file: &dyn DiskFile) -> io::Result<()> {
        let zeros = vec![0; usize::try_from(self.file_bytes.min(FILL_BYTES)).unwrap_or(0)];
        let mut at = 0;
        while at < self.file_bytes {
            let count = usize::try_from(self.file_bytes - at)
                .map_or(zeros.len(), |left| left.min(zeros.len()));
            file.write_pieces_at(&[&zeros[..count]], at)?;
            at += count as u64;
        }
        file.sync_data().map_err(final_error)
    }

    fn spare(&mut self, reserved: usize) -> io::Result<Option<(u64, Arc<dyn DiskFile>)>> {
        while self.spares.len() > reserved {
            let Some(spare) = self.spares.pop() else {
                break;
            };
            let path = file_path(&self.dir, spare);
            let file = match self.disk.open(&path) {
                Err(error) if is_full(&error) => {
                    // There is no file descriptor for it now; it stays as it is.
                    self.spares.push(spare);
                    return Err(error);
                }
                opened => opened?,
            };
            if file.length()? == self.file_bytes {
                return Ok(Some((spare, file)));
            }
            self.disk.remove(&path)?; // of another configuration
        }
        Ok(None)
    }

    /// Whether there are more spares than `reserved`.
    pub(super) fn has_spare(&self, reserved: usize) -> bool {
        self.spares.len() > reserved
    }

    /// Whether all spares that frames with messages must not use exist.
    pub(super) fn has_reserved(&self) -> bool {
        self.spares.len() >= LEFT_BY_MESSAGES
    }

    /// Removes all other spares, because their space is needed elsewhere.
    pub(super) fn give_up_others(&mut self) -> io::Result<()> {
        if self.spares.len() <= LEFT_BY_MESSAGES {
            return Ok(());
        }
        for spare in self.spares.drain(LEFT_BY_MESSAGES..) {
            self.disk.remove(&file_path(&self.dir, spare))?;
        }
        self.disk.sync_dir(&self.dir).map_err(final_error)
    }

    /// Creates the missing ones among these spares, under the highest numbers below `below` that
    /// are not `taken`.
    pub(super) fn reserve(&mut self, below: u64, taken: &[u64]) -> io::Result<()> {
        for number in (0..below).rev() {
            if self.has_reserved() {
                break;
            }
            if !taken.contains(&number) && !self.spares.contains(&number) {
                make(&*self.disk, &file_path(&self.dir, number), self.file_bytes)?;
                self.spares.push(number);
            }
        }
        self.drop_spares()
    }

    /// Takes files that are no longer needed.
    pub(super) fn give_back(&mut self, numbers: Vec<u64>) -> io::Result<()> {
        self.spares.extend(numbers);
        self.drop_spares()
    }

    fn drop_spares(&mut self) -> io::Result<()> {
        while self.spares.len() > SPARE_FILES_MAX {
            if let Some(number) = self.spares.pop() {
                self.disk.remove(&file_path(&self.dir, number))?;
            }
        }
        Ok(())
    }
}

/// Writes the header, and makes the first frame of the file's earlier use unreadable.
fn begin_file(file: &dyn DiskFile, header: FileHeader) -> io::Result<()> {
    let no_frame = [0; FRAME_HEADER_BYTES];
    file.write_pieces_at(&[&header.encode(), &no_frame], 0)?;
    file.sync_data().map_err(final_error)
}

fn make(disk: &dyn Disk, path: &Path, file_bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
    let file = disk.create(path)?;
    match file.preallocate(file_bytes, true) {
        Ok(()) => Ok(file),
        Err(error) => {
            remove_if_full(disk, path, &error);
            Err(error)
        }
    }
}

/// Frees what was reserved before the disk was full; if that fails too, the next try reuses it.
fn remove_if_full(disk: &dyn Disk, path: &Path, error: &io::Error) {
    if is_full(error) {
        let _ = disk.remove(path);
    }
}

/// Whether a file was ever used, so that it is written and not only reserved.
fn was_begun(file: &dyn DiskFile) -> io::Result<bool> {
    let mut magic = [0; MAGIC_ALL.len()];
    file.read_at(&mut magic, 0)?;
    Ok(magic == MAGIC_ALL)
}

pub(super) fn file_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(file_name(number))
}

fn file_name(number: u64) -> String {
    format!("{number:012}{SUFFIX}")
}

/// Whether this is the name of a journal file.
#[must_use]
pub fn is_file_name(name: &str) -> bool {
    number_of(name).is_some()
}

/// The number in a journal file's name; other names with a number are not ours.
pub(super) fn number_of(name: &str) -> Option<u64> {
    let number = name.strip_suffix(SUFFIX)?.parse().ok()?;
    (file_name(number) == name).then_some(number)
}
