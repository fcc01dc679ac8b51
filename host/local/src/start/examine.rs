//! Examines a data directory without changing a byte, for `millrace doctor`. Everything is read
//! through a disk that cannot write. The checkpoint is opened as a copy elsewhere, because its
//! database may have to roll back an interrupted transaction.
//!
//! The order is that of a start: lock, checkpoint, journal, and then the files that should exist
//! according to these: segments, files of state and modules.

mod catalogue;
mod journal;
mod modules;
mod partitions;
mod report;
mod runs;

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use millrace_log::Cipher;
use millrace_log::inspect::ReadOnlyDisk;

pub use self::report::{FINDINGS_MAX, Finding, Repair, Report, Severity};

use self::catalogue::Catalogue;
use crate::ground::open_error::OpenError;
use crate::keep::backup;
use crate::keep::checkpoint::{Checkpoint, CheckpointStore};
use crate::keep::evidence;
use crate::keep::names;
use crate::write::reserve;

/// Less free space than this is reported: the journal alone takes several files of 64 MiB.
const FREE_BYTES_MIN: u64 = 512 << 20;
const CHECKPOINT: &str = "checkpoint.sqlite";
const ROLLBACK: &str = "checkpoint.sqlite-journal";
/// Names that may be in a data directory; `code` is the cache of compiled modules, which the host
/// can recreate.
const KNOWN: [&str; 15] = [
    backup::STAGING,
    backup::IDENTITY,
    "lock",
    "journal",
    "topics",
    "modules",
    crate::keep::runs::DIRECTORY,
    CHECKPOINT,
    ROLLBACK,
    "code",
    evidence::FILE,
    names::FILE,
    reserve::FILES[0],
    reserve::FILES[1],
    QUARANTINE,
];
/// Where repairs move files that are in the way.
pub(crate) const QUARANTINE: &str = "quarantine";

/// Why a directory was not examined.
#[derive(Debug, thiserror::Error)]
pub enum ExamineError {
    /// The directory does not exist.
    #[error("there is no directory {}", dir.display())]
    NoSuchDirectory {
        /// The given path.
        dir: PathBuf,
    },
    /// It is not a data directory.
    #[error("{} is not a data directory: it has no lock, no journal and no checkpoint", dir.display())]
    NotADataDirectory {
        /// The given path.
        dir: PathBuf,
    },
    /// A host is running on it: files that change while they are read would look like damage.
    #[error("a host is running on {}", dir.display())]
    InUse {
        /// The given path.
        dir: PathBuf,
    },
    /// An error of the disk, or missing permissions.
    #[error("{} cannot be examined: {source}", path.display())]
    Io {
        /// The path that was examined.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// Progress of the complete check of segments, files of state and modules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reached {
    /// Bytes read.
    pub bytes: u64,
    /// Bytes to read in total.
    pub bytes_total: u64,
}

/// Examines a whole data directory on which no host is running. Blocks, and must not be called
/// within an async runtime. A host that starts meanwhile is refused because the directory is in
/// use.
///
/// # Errors
/// [`ExamineError`]. Damage is not an error; it is in the [`Report`].
pub fn examine(dir: &Path, progress: &mut dyn FnMut(Reached)) -> Result<Report, ExamineError> {
    examine_with(dir, None, progress)
}

/// Like [`examine`], with the keys of an encrypted directory, whose journal and modules are then
/// examined too.
///
/// # Errors
/// [`ExamineError`]. Damage is not an error; it is in the [`Report`].
pub fn examine_with(
    dir: &Path,
    cipher: Option<Arc<Cipher>>,
    progress: &mut dyn FnMut(Reached),
) -> Result<Report, ExamineError> {
    check_is_data_directory(dir)?;
    let mut report = Report::new(dir);
    let _lock = look_at_lock(dir, &mut report)?;
    look(report, cipher, progress)
}

/// The examination itself; the caller holds the lock.
pub(crate) fn look(
    mut report: Report,
    cipher: Option<Arc<Cipher>>,
    progress: &mut dyn FnMut(Reached),
) -> Result<Report, ExamineError> {
    let dir = &report.dir.clone();
    let failed = |path: &Path| {
        let path = dir.join(path);
        move |source| ExamineError::Io { path, source }
    };
    let checkpoint = look_at_checkpoint(dir, cipher.clone(), &mut report)
        .map_err(failed(CHECKPOINT.as_ref()))?;
    let topics = Path::new("topics");
    let catalogue = match checkpoint {
        Some(checkpoint) => {
            let (file, sequence) = (checkpoint.journal_file, checkpoint.sequence);
            let known =
                evidence::read(&ReadOnlyDisk, dir).map_err(failed(evidence::FILE.as_ref()))?;
            let known = known.unwrap_or_default();
            if sequence < known.checkpoint {
                report.add(replaced(&dir.join(CHECKPOINT), sequence, known.checkpoint));
            }
            let mut catalogue = Catalogue::of(checkpoint);
            let journal = journal::examine(
                &mut report,
                &mut catalogue,
                (file, sequence, known.durable),
                cipher.as_deref(),
            );
            report.expect_read("journal", journal);
            catalogue
        }
        None => Catalogue::guessed(dir).map_err(failed(topics))?,
    };
    let read_through = ["topics", crate::keep::runs::DIRECTORY, "modules"];
    let bytes_total = read_through
        .iter()
        .map(|name| byte_count(&dir.join(name)))
        .sum();
    let mut reached = Reached {
        bytes: 0,
        bytes_total,
    };
    let mut read = |bytes| {
        reached.bytes += bytes;
        progress(reached);
    };
    let partitions = partitions::examine(&mut report, &catalogue, &mut read);
    report.expect_read("topics", partitions);
    let runs = runs::examine(&mut report, &catalogue, &mut read, cipher.as_ref());
    report.expect_read(crate::keep::runs::DIRECTORY, runs);
    let modules = modules::examine(&mut report, &catalogue, &mut read, cipher.as_deref());
    report.expect_read("modules", modules);
    report.conclude_keys();
    look_at_strangers(dir, &mut report).map_err(failed("".as_ref()))?;
    look_at_room(dir, &mut report).map_err(failed("".as_ref()))?;
    Ok(report)
}

pub(crate) fn check_is_data_directory(dir: &Path) -> Result<(), ExamineError> {
    let owned = || dir.to_owned();
    match fs::metadata(dir) {
        Ok(found) if found.is_dir() => {}
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(ExamineError::Io {
                path: owned(),
                source,
            });
        }
        _ => return Err(ExamineError::NoSuchDirectory { dir: owned() }),
    }
    let marks = ["lock", "journal", CHECKPOINT];
    match marks.iter().any(|name| dir.join(name).exists()) {
        true => Ok(()),
        false => Err(ExamineError::NotADataDirectory { dir: owned() }),
    }
}

/// Takes the lock, shared with other examinations, so that no host starts meanwhile.
fn look_at_lock(dir: &Path, report: &mut Report) -> Result<Option<File>, ExamineError> {
    let path = dir.join("lock");
    let file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            report.add(Finding::note(&path, "the lock file is missing").advise(
                "the next start makes it; make sure that no host runs on this directory meanwhile",
            ));
            return Ok(None);
        }
        Err(source) => return Err(ExamineError::Io { path, source }),
        Ok(file) => file,
    };
    match file.try_lock_shared() {
        Ok(()) => {
            report.add(Finding::ok(&path, "no host runs on this directory"));
            Ok(Some(file))
        }
        Err(TryLockError::WouldBlock) => Err(ExamineError::InUse {
            dir: dir.to_owned(),
        }),
        Err(TryLockError::Error(source)) => Err(ExamineError::Io { path, source }),
    }
}

/// The checkpoint's content; `None` if it cannot be used.
fn look_at_checkpoint(
    dir: &Path,
    cipher: Option<Arc<Cipher>>,
    report: &mut Report,
) -> io::Result<Option<Checkpoint>> {
    let path = dir.join(CHECKPOINT);
    if !path.exists() {
        return Ok(without_checkpoint(dir, &path, report));
    }
    let copy = tempfile::tempdir()?;
    fs::copy(&path, copy.path().join(CHECKPOINT))?;
    let rollback = dir.join(ROLLBACK);
    if rollback.exists() {
        fs::copy(&rollback, copy.path().join(ROLLBACK))?;
        let meaning = "the last checkpoint was cut short by a crash";
        report.add(Finding::note(&rollback, meaning).advise(
            "keep this file beside the database: the next start rolls back to the checkpoint before, and the journal has the rest",
        ));
    }
    let opened = CheckpointStore::open(&copy.path().join(CHECKPOINT), cipher.clone());
    let loaded = opened.and_then(|mut store| {
        if cipher.is_some() {
            store.check_keys()?;
        }
        if let Some(active) = store.active_key()? {
            report.note_key(Some(active), "checkpoint");
        }
        store.load()
    });
    match loaded {
        Ok(checkpoint) if !checkpoint.is_made => Ok(without_checkpoint(dir, &path, report)),
        Ok(checkpoint) => {
            let topics = checkpoint.topics.len();
            let sequence = checkpoint.sequence;
            let meaning = format!("sound; {topics} topics, as of transaction {sequence}");
            report.add(Finding::ok(&path, meaning));
            Ok(Some(checkpoint))
        }
        Err(error) => {
            let reason = match error {
                OpenError::Checkpoint { reason, .. } => reason,
                OpenError::Encryption { reason, .. } => {
                    let meaning = format!("the encryption keys given do not fit: {reason}");
                    return Err(io::Error::new(io::ErrorKind::PermissionDenied, meaning));
                }
                // An error of the copy, not of the checkpoint.
                OpenError::DiskFull { .. } => return Err(io::ErrorKind::StorageFull.into()),
                other => other.to_string(),
            };
            let meaning = format!(
                "the checkpoint cannot be used, so a host does not start: {reason}. Without it the journal was not examined, \
                 and segments only on their own"
            );
            report.add(Finding::damage(&path, meaning).advise(
                "restore the data directory from a backup; if the format is newer, use the version of millrace that wrote it; else \
                 `--repair` builds again what can be",
            ).repaired_by(Repair::RebuildCheckpoint));
            Ok(None)
        }
    }
}

/// Reports a missing checkpoint. An interrupted first start leaves no checkpoint, but also nothing
/// else.
fn without_checkpoint(dir: &Path, path: &Path, report: &mut Report) -> Option<Checkpoint> {
    let is_empty =
        |name: &str| fs::read_dir(dir.join(name)).map_or(true, |mut d| d.next().is_none());
    if is_empty("journal") && is_empty("topics") && is_empty("modules") {
        report.add(Finding::note(path, "nothing has been written here yet"));
        return Some(Checkpoint::default());
    }
    report.add(
        Finding::damage(
            path,
            "the checkpoint is missing or empty, and with it all progress; a host does not start. The journal was not examined, and \
             segments only on their own",
        )
        .advise("put the checkpoint back, or restore the directory from a backup; `--repair` builds again what can be")
        .repaired_by(Repair::RebuildCheckpoint),
    );
    None
}

fn replaced(path: &Path, found: u64, expected: u64) -> Finding {
    let meaning = format!(
        "it is of transaction {found}, but one of transaction {expected} was made here since: it was replaced by an older one, and a \
         host does not start"
    );
    Finding::damage(path, meaning)
        .advise("put the newer one back, or restore the whole directory from one backup")
}

fn look_at_strangers(dir: &Path, report: &mut Report) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        if !KNOWN.iter().any(|known| name == *known) {
            report.add(Finding::stray(&dir.join(name)));
        }
    }
    Ok(())
}

fn look_at_room(dir: &Path, report: &mut Report) -> io::Result<()> {
    let free = millrace_log::inspect::free_bytes(dir)?;
    let meaning = format!("{} MiB are free on this disk", free >> 20);
    report.add(match free < FREE_BYTES_MIN {
        true => Finding::note(dir, meaning)
            .advise("make room: on a full disk produce is refused, until there is room again"),
        false => Finding::ok(dir, meaning),
    });
    Ok(())
}

/// Bytes of all files under a directory, as far as it can be read; only for the progress bar.
fn byte_count(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else {
        return 0;
    };
    let of = |entry: fs::DirEntry| match entry.metadata() {
        Ok(found) if found.is_dir() => byte_count(&entry.path()),
        Ok(found) if entry.path().extension().is_none_or(|e| e != "index") => found.len(),
        _ => 0,
    };
    entries.flatten().map(of).sum()
}
