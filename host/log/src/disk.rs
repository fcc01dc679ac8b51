//! Every file operation goes through [`Disk`]: the real one, or [`SimDisk`](crate::sim::SimDisk), which crashes by seed.
//!
//! Files are written with `pwrite`, never through a mapping, so that a full or failing disk is an
//! error and not a signal. Only sealed files, which never change again, are mapped, read-only.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::{Errno, ReadWriteFlags};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::mapping;

/// The minimum of [`open_files_max`], whatever the system allows.
const OPEN_FILES_MIN: usize = 64;
/// Segment files kept open between writes, or half of what the process may open if that is less; at
/// the bound the one written longest ago is closed.
const OPEN_FILES_MAX: usize = 16 << 10;
/// Pieces that the kernel accepts in one call.
const PIECES_AT_ONCE_MAX: usize = 1024;

/// A disk with files. Paths are complete; [`Disk::sync_dir`] makes names in a directory durable.
pub trait Disk: Send + Sync + 'static {
    /// Opens an existing file for reading and writing.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Creates an empty file, or empties an existing one.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Creates a directory and those above it; not an error if it exists.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Names of the files and directories in a directory; empty if it does not exist.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Renames a file, replacing a file with the new name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Gives a file a second name (a hard link), under which it remains if the first name is
    /// removed or given to another file.
    ///
    /// # Errors
    /// [`io::ErrorKind::Unsupported`], or the system's error, if files can have only one name; also
    /// if the name is taken.
    fn link(&self, _from: &Path, _to: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Removes a file; not an error if it does not exist.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Removes a directory and everything in it; not an error if it does not exist.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Makes creations, renames and removals in the directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// The file system of a directory. It reports only failures from now on, so get it before
    /// anything is written.
    fn file_system(&self, dir: &Path) -> io::Result<Arc<dyn FileSystem>>;
    /// Marks that data beside this disk is about to change or just changed, so that a simulated
    /// disk can lose its power there too.
    ///
    /// # Errors
    /// Only from simulated disks.
    fn moment(&self, _what: &str) -> io::Result<()> {
        Ok(())
    }
}

/// A whole file system, for syncing too many files to sync them one by one.
pub trait FileSystem: Send + Sync {
    /// Makes everything in all files and directories durable, whether or not they are still open.
    /// After an error it is unknown what is durable.
    fn sync(&self) -> io::Result<()>;
}

/// One open file.
pub trait DiskFile: Send + Sync {
    /// Reads from `at` on; returns the number of bytes, fewer than requested only at the end of the
    /// file.
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize>;
    /// Like [`DiskFile::read_at`], but only from the page cache: `None` if it would have to wait
    /// for the disk, or if that is unknown.
    ///
    /// # Errors
    /// The disk's.
    fn read_cached_at(&self, _buffer: &mut [u8], _at: u64) -> io::Result<Option<usize>> {
        Ok(None)
    }
    /// Writes all of `bytes` at `at`.
    fn write_all_at(&self, bytes: &[u8], at: u64) -> io::Result<()>;
    /// Writes all pieces one after the other, the first at `at`.
    fn write_pieces_at(&self, pieces: &[&[u8]], at: u64) -> io::Result<()> {
        self.write_all_at(&pieces.concat(), at)
    }
    /// Reserves space for bytes `0..length`, so that writing there cannot find the disk full. With
    /// `grow` the file has this length, as zeros; without it the length does not change.
    fn preallocate(&self, length: u64, grow: bool) -> io::Result<()>;
    /// Truncates or extends the file. Must not be called on a file that may be mapped.
    fn set_len(&self, length: u64) -> io::Result<()>;
    /// Makes the file's bytes and length durable. After an error it is unknown what is durable: do
    /// not try again.
    fn sync_data(&self) -> io::Result<()>;
    /// The file's length.
    fn length(&self) -> io::Result<u64>;
    /// A text that changes when the file is written or replaced; `None` if the system has none.
    fn version(&self) -> Option<String> {
        None
    }
    /// A whole sealed file, mapped read-only. The caller guarantees that the file never changes
    /// again.
    fn map_sealed(&self) -> io::Result<Bytes>;
    /// Asks the system to drop these bytes from the page cache, if they are neither mapped nor
    /// unwritten.
    fn forget_cached(&self, _at: u64, _length: u64) {}
}

/// Whether the error means a lack of room: on the disk, in a file at its size limit (`ulimit -f`),
/// or for another open file. None of these makes it unknown what is durable, and the same operation
/// may succeed later.
#[must_use]
pub fn is_full(error: &io::Error) -> bool {
    let has_no_room = matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    );
    has_no_room || has_no_descriptor(error)
}

/// Whether no more files can be opened, by this process or on this machine. This says nothing about
/// the disk.
#[must_use]
pub fn has_no_descriptor(error: &io::Error) -> bool {
    is_errno(error, Errno::MFILE) || is_errno(error, Errno::NFILE)
}

/// Whether this process has a file size limit (`ulimit -f`).
#[must_use]
pub fn has_size_limit() -> bool {
    getrlimit(Resource::Fsize).current.is_some()
}

/// How long an open waits for other files to be closed before it fails.
const DESCRIPTOR_WAIT_MAX: Duration = Duration::from_secs(5);
/// Time between two tries.
const DESCRIPTOR_LOOK: Duration = Duration::from_millis(20);

/// Opens a file, and waits for a while if no more files can be opened, because connections come and
/// go.
fn patiently<T>(mut patience: Duration, mut open: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match open() {
            Err(error) if has_no_descriptor(&error) && !patience.is_zero() => {
                patience = patience.saturating_sub(DESCRIPTOR_LOOK);
                std::thread::sleep(DESCRIPTOR_LOOK);
            }
            done => return done,
        }
    }
}

/// The error of a failed sync, which is final whatever its cause: even after a full disk it is not
/// safe to try again.
#[must_use]
pub fn final_error(error: io::Error) -> io::Error {
    io::Error::other(format!("a sync failed: {error}"))
}

/// Number of files that the engine may keep open for writing: half of what the system allows the
/// process, because sockets and readers need the rest. First raises the limit as far as possible
/// without privileges.
#[must_use]
pub fn open_files_max() -> usize {
    let mut limit = getrlimit(Resource::Nofile);
    let wanted = limit
        .maximum
        .unwrap_or(u64::MAX)
        .min(2 * OPEN_FILES_MAX as u64);
    if limit.current.is_some_and(|current| current < wanted) {
        let raised = Rlimit {
            current: Some(wanted),
            ..limit
        };
        if setrlimit(Resource::Nofile, raised).is_ok() {
            limit.current = Some(wanted);
        }
    }
    let half = limit
        .current
        .map_or(OPEN_FILES_MAX, |allowed| (allowed / 2) as usize);
    half.clamp(OPEN_FILES_MIN, OPEN_FILES_MAX)
}

/// The machine's file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        patiently(DESCRIPTOR_WAIT_MAX, || {
            regular(OpenOptions::new().read(true).write(true), path)
        })
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        patiently(DESCRIPTOR_WAIT_MAX, || regular(&mut options, path))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let entries = match patiently(DESCRIPTOR_WAIT_MAX, || fs::read_dir(dir)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        // Names that are not UTF-8 are not ours.
        entries
            .map(|entry| Ok(entry?.file_name().into_string().unwrap_or_default()))
            .collect()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        absent_is_fine(fs::remove_file(path))
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        absent_is_fine(fs::remove_dir_all(path))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        // The changes were already made: giving up here would leave it unknown whether they are
        // durable.
        patiently(Duration::MAX, || File::open(dir))?.sync_all()
    }

    fn file_system(&self, dir: &Path) -> io::Result<Arc<dyn FileSystem>> {
        let opened = patiently(DESCRIPTOR_WAIT_MAX, || File::open(dir))?;
        Ok(Arc::new(RealFileSystem(opened)))
    }
}

/// A directory that stays open, because the kernel reports failures to each descriptor since it was
/// opened (Linux 5.8 and later).
struct RealFileSystem(File);

impl FileSystem for RealFileSystem {
    fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&self.0)?)
    }
}

/// Opens only regular files: links, pipes and devices are not ours, and opening a pipe would wait
/// for its other end.
fn regular(options: &mut OpenOptions, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let refused = || {
        let what = format!("{} is not a regular file; move it away", path.display());
        io::Error::other(what)
    };
    let file = match options.custom_flags(flags.bits() as i32).open(path) {
        Err(error) if is_errno(&error, Errno::LOOP) || is_errno(&error, Errno::ISDIR) => {
            return Err(refused());
        }
        file => file?,
    };
    if !file.metadata()?.is_file() {
        return Err(refused());
    }
    Ok(Arc::new(RealFile(file)))
}

fn is_errno(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Reads until the buffer is full or the file ends, despite interruptions; returns the number of
/// bytes.
pub(crate) fn read_fully(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

struct RealFile(File);

impl DiskFile for RealFile {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        read_fully(&self.0, buffer, at)
    }

    fn read_cached_at(&self, buffer: &mut [u8], at: u64) -> io::Result<Option<usize>> {
        let wanted = buffer.len();
        let slices = &mut [IoSliceMut::new(buffer)];
        match rustix::io::preadv2(&self.0, slices, at, ReadWriteFlags::NOWAIT) {
            Ok(count) => Ok((count == wanted).then_some(count)),
            Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    // Continues after interruptions and short writes.
    fn write_all_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, at)
    }

    fn write_pieces_at(&self, pieces: &[&[u8]], mut at: u64) -> io::Result<()> {
        for pieces in pieces.chunks(PIECES_AT_ONCE_MAX) {
            let mut slices: Vec<IoSlice<'_>> = pieces.iter().map(|p| IoSlice::new(p)).collect();
            let mut left = &mut slices[..];
            IoSlice::advance_slices(&mut left, 0); // over empty pieces
            while !left.is_empty() {
                match rustix::io::pwritev(&self.0, left, at) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(count) => {
                        at += count as u64;
                        IoSlice::advance_slices(&mut left, count);
                    }
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    fn preallocate(&self, length: u64, grow: bool) -> io::Result<()> {
        let flags = if grow {
            FallocateFlags::empty()
        } else {
            FallocateFlags::KEEP_SIZE
        };
        loop {
            match rustix::fs::fallocate(&self.0, flags, 0, length) {
                Ok(()) => return Ok(()),
                Err(Errno::INTR) => {}
                // The file system cannot reserve space. Growing still gives zeros; a full disk
                // shows at the write.
                Err(Errno::OPNOTSUPP) if grow => return self.0.set_len(length),
                Err(Errno::OPNOTSUPP) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn version(&self) -> Option<String> {
        let found = self.0.metadata().ok()?;
        let (seconds, nanos) = (found.mtime(), found.mtime_nsec());
        Some(format!("{}-{seconds}.{nanos:09}", found.ino()))
    }

    fn map_sealed(&self) -> io::Result<Bytes> {
        mapping::map_sealed(&self.0)
    }

    fn forget_cached(&self, at: u64, length: u64) {
        // This is only advice, so a failure does not matter. A length of zero would mean the whole
        // file.
        let length = std::num::NonZeroU64::new(length);
        if length.is_some() {
            let _ = rustix::fs::fadvise(&self.0, at, length, rustix::fs::Advice::DontNeed);
        }
    }
}
