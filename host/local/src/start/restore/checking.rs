//! Verifies a backup: compares each file with the manifest, and then examines all of them as
//! `doctor` examines a data directory.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use millrace_log::inspect::ReadOnlyDisk;
use millrace_log::{Cipher, Disk};
use millrace_model::Digest;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use super::receiving::LOOKED_AT;
use crate::keep::backup::PIECE_BYTES;
use crate::keep::backup::manifest::{BackupFile, Flaw, Manifest, ManifestError};
use crate::start::examine::{ExamineError, Report, examine_with};

/// Names in a data directory that a backup does not have.
const BESIDE_A_BACKUP: [&str; 2] = ["lock", "journal"];

/// The result of verifying a backup.
#[derive(Debug)]
pub struct Verified {
    /// The backup.
    pub manifest: Manifest,
    /// Files that differ from what was backed up.
    pub flaws: Vec<Flaw>,
    /// The examination of a data directory made from it.
    pub report: Report,
}

/// Why a backup cannot be verified.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// There is no backup, or its manifest is unusable.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// An error of the disk.
    #[error("the files of the backup cannot be assembled for examination: {0}")]
    Io(#[from] io::Error),
    /// It could not be examined.
    #[error(transparent)]
    Examine(#[from] ExamineError),
}

/// Reads a whole backup in a directory. Blocks, and must not be called within an async runtime.
/// With the keys of an encrypted backup, its modules are examined too. `progress` gets the bytes
/// read and the total.
///
/// # Errors
/// [`VerifyError`]. Problems with the files are not errors.
pub fn verify(
    dir: &Path,
    cipher: Option<Arc<Cipher>>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Verified, VerifyError> {
    let manifest = Manifest::read(&ReadOnlyDisk, dir)?;
    // Everything is read twice: for its digest, and by the examination.
    let (mut read, total) = (0, 2 * manifest.byte_count());
    let mut flaws = Vec::new();
    for file in &manifest.files {
        let found = sum(&file.stands_at(dir), &mut |bytes| {
            read += bytes;
            progress(read, total);
        });
        let what = match found {
            Ok(found) if found == (file.bytes, file.sha256) => continue,
            Ok((bytes, _)) if bytes != file.bytes => {
                format!("it has {bytes} bytes and had {}", file.bytes)
            }
            Ok(_) => "its bytes are not those that were backed up".to_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => "it is missing".to_owned(),
            Err(error) => format!("it cannot be read: {error}"),
        };
        flaws.push(Flaw {
            path: file.path.clone(),
            what,
        });
    }
    let together = put_together(dir, &manifest)?;
    let halfway = read;
    let mut report = examine_with(together.path(), cipher, &mut |reached| {
        progress(halfway + reached.bytes, total);
    })?;
    report.dir = dir.to_owned();
    // A backup has neither and needs neither.
    report.findings.retain(|found| {
        !BESIDE_A_BACKUP
            .iter()
            .any(|name| found.place == Path::new(name))
    });
    Ok(Verified {
        manifest,
        flaws,
        report,
    })
}

fn sum(path: &Path, told: &mut dyn FnMut(u64)) -> io::Result<(u64, Digest)> {
    let file = ReadOnlyDisk.open(path)?;
    let mut piece = vec![0; PIECE_BYTES];
    let (mut at, mut sha256) = (0, Sha256::new());
    loop {
        let count = file.read_at(&mut piece, at)?;
        if count == 0 {
            return Ok((at, Digest(sha256.finalize().into())));
        }
        sha256.update(&piece[..count]);
        at += count as u64;
        told(count as u64);
    }
}

/// A data directory of the same files: of hard links beside them, or of copies if there can be no
/// links.
fn put_together(dir: &Path, manifest: &Manifest) -> io::Result<TempDir> {
    let beside = tempfile::Builder::new().prefix(LOOKED_AT).tempdir_in(dir);
    let together = match beside {
        Ok(beside) => beside,
        Err(_) => tempfile::tempdir()?,
    };
    fs::create_dir(together.path().join("journal"))?;
    File::create(together.path().join("lock"))?;
    for file in &manifest.files {
        put(file, dir, together.path())?;
    }
    Ok(together)
}

fn put(file: &BackupFile, dir: &Path, together: &Path) -> io::Result<()> {
    let (from, to): (PathBuf, PathBuf) = (file.stands_at(dir), together.join(&file.path));
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    let put = fs::hard_link(&from, &to).or_else(|_| fs::copy(&from, &to).map(drop));
    match put {
        // The file was already reported as missing or unreadable.
        Err(_) if !from.exists() => Ok(()),
        put => put,
    }
}
