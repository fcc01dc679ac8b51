//! `millrace doctor --repair`: carries out the repair of each finding of an examination, without
//! removing a byte. Files that are in the way are moved to `quarantine/`, under the time of the
//! repair and their original path.

mod rebuild;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use millrace_log::{Cipher, Disk, RealDisk};
use millrace_model::Timestamp;

use crate::ground::open_error::OpenError;
use crate::keep::evidence::{self, Evidence, EvidenceFile};
use crate::start::examine::{self, ExamineError, QUARANTINE, Reached, Repair, Report};
use crate::start::lock::lock;

/// What was done about one finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// The file, relative to the data directory.
    pub place: PathBuf,
    /// The action.
    pub what: String,
    /// What is lost by the action, if anything.
    pub lost: Option<String>,
}

/// Why a repair was not made, or not completed.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// The directory cannot be examined, or a host is running on it. Nothing was changed.
    #[error(transparent)]
    Examine(#[from] ExamineError),
    /// It is encrypted, and no key was given.
    #[error(
        "the directory is encrypted with key {key}; pass the key file with --encryption-key-file. Nothing was changed"
    )]
    Encrypted {
        /// The id of the missing key.
        key: u32,
    },
    /// The checkpoint cannot be rebuilt from the existing files.
    #[error(
        "the checkpoint cannot be rebuilt: {0}. Nothing was changed; restore the directory from a backup"
    )]
    Rebuild(String),
    /// A file could not be moved or written; the files in `quarantine/` were already moved.
    #[error("{} could not be repaired: {source}. Files in quarantine/ were already moved there; run the repair again once the cause is fixed", path.display())]
    Io {
        /// The file in question.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// Whether the repair gives up transactions.
#[must_use]
pub fn gives_up(repair: &Repair) -> bool {
    !matches!(repair, Repair::Quarantine | Repair::KeepCopy)
}

/// Describes what a repair would do about each finding.
#[must_use]
pub fn plan(report: &Report) -> Vec<Done> {
    let steps = steps(report).into_iter();
    steps
        .map(|(place, repair, meaning)| said(place, repair, meaning))
        .collect()
}

fn steps(report: &Report) -> Vec<(&Path, &Repair, &str)> {
    let findings = report.findings.iter();
    let with_repair = findings.filter_map(|finding| {
        let repair = finding.repair.as_ref()?;
        Some((&*finding.place, repair, &*finding.meaning))
    });
    let steps: Vec<_> = with_repair.collect();
    let any_loss = steps.iter().any(|(_, repair, _)| gives_up(repair));
    let mut steps: Vec<_> = steps
        .into_iter()
        .filter(|(_, repair, _)| any_loss || **repair != Repair::KeepCopy)
        .collect();
    // Copies first, so that they exist whatever happens next.
    steps.sort_by_key(|(_, repair, _)| match repair {
        Repair::KeepCopy => 0,
        Repair::Quarantine => 1,
        _ => 2,
    });
    steps
}

fn said(place: &Path, repair: &Repair, meaning: &str) -> Done {
    let (what, lost) = match repair {
        Repair::Quarantine => ("move it to quarantine/".to_owned(), None),
        Repair::KeepCopy => ("put a copy into quarantine/".to_owned(), None),
        Repair::CutJournal {
            position,
            last_sequence,
        } => (
            format!(
                "keep the journal up to transaction {last_sequence} (byte {position} of this file); move the file and later ones to \
                 quarantine/"
            ),
            Some(meaning.to_owned()),
        ),
        Repair::AcceptMissing { last_sequence } => (
            format!("take transaction {last_sequence} for the last one"),
            Some(meaning.to_owned()),
        ),
        Repair::RebuildCheckpoint => (
            "move what is there to quarantine/, and build a checkpoint from topics.json, the segments and the journal".to_owned(),
            Some(rebuild::LOST.to_owned()),
        ),
    };
    Done {
        place: place.to_owned(),
        what,
        lost,
    }
}

/// Examines the directory, on which no host may be running, and makes all known repairs. An
/// encrypted directory needs its keys. Blocks.
///
/// # Errors
/// [`RepairError`] says how far it got.
pub fn repair(
    dir: &Path,
    cipher: Option<Arc<Cipher>>,
    now: Timestamp,
    progress: &mut dyn FnMut(Reached),
) -> Result<Vec<Done>, RepairError> {
    examine::check_is_data_directory(dir)?;
    let _lock = lock(dir).map_err(|error| locked_out(dir, &error))?;
    let report = examine::look(Report::new(dir), cipher.clone(), progress)?;
    // Without a key, the journal's content would count as unknown.
    if let Some(key) = report.key_needed().filter(|_| cipher.is_none()) {
        return Err(RepairError::Encrypted { key });
    }
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let work = Work {
        disk,
        dir,
        cipher,
        quarantine: dir.join(QUARANTINE).join(now.0.to_string()),
    };
    let mut done = Vec::new();
    for (place, repair, meaning) in steps(&report) {
        work.carry_out(place, repair)?;
        done.push(said(place, repair, meaning));
    }
    Ok(done)
}

fn locked_out(dir: &Path, error: &OpenError) -> ExamineError {
    let dir = dir.to_owned();
    match error {
        OpenError::InUse { .. } => ExamineError::InUse { dir },
        error => ExamineError::Io {
            path: dir,
            source: io::Error::other(error.to_string()),
        },
    }
}

/// A running repair.
struct Work<'a> {
    disk: Arc<dyn Disk>,
    dir: &'a Path,
    cipher: Option<Arc<Cipher>>,
    quarantine: PathBuf,
}

impl Work<'_> {
    fn carry_out(&self, place: &Path, repair: &Repair) -> Result<(), RepairError> {
        let failed = |source| RepairError::Io {
            path: self.dir.join(place),
            source,
        };
        match repair {
            Repair::Quarantine => self.move_away(place).map_err(failed),
            Repair::KeepCopy => self.copy(place).map_err(failed),
            &Repair::CutJournal {
                position,
                last_sequence,
            } => self
                .cut_journal(place, position)
                .and_then(|()| self.accept(last_sequence))
                .map_err(failed),
            &Repair::AcceptMissing { last_sequence } => self.accept(last_sequence).map_err(failed),
            Repair::RebuildCheckpoint => rebuild::rebuild(self),
        }
    }

    /// Moves a file or directory, durable on return. A missing one was already moved with its
    /// directory.
    fn move_away(&self, place: &Path) -> io::Result<()> {
        let from = self.dir.join(place);
        if !from.exists() {
            return Ok(());
        }
        let to = self.room_for(place)?;
        self.disk.rename(&from, &to)?;
        self.settle(&to)?;
        self.disk.sync_dir(from.parent().unwrap_or(self.dir))
    }

    fn copy(&self, place: &Path) -> io::Result<()> {
        let from = self.dir.join(place);
        if !from.exists() {
            return Ok(());
        }
        let to = self.room_for(place)?;
        fs::copy(&from, &to)?;
        fs::File::open(&to)?.sync_all()?;
        self.settle(&to)
    }

    /// A free path in the quarantine.
    fn room_for(&self, place: &Path) -> io::Result<PathBuf> {
        let to = self.quarantine.join(place);
        self.disk
            .create_dir_all(to.parent().unwrap_or(&self.quarantine))?;
        match to.exists() {
            true => Err(io::ErrorKind::AlreadyExists.into()),
            false => Ok(to),
        }
    }

    /// Makes the names of the directories above durable, up to the data directory.
    fn settle(&self, path: &Path) -> io::Result<()> {
        let above = path.ancestors().skip(1);
        for dir in above.take_while(|above| above.starts_with(self.dir)) {
            self.disk.sync_dir(dir)?;
        }
        Ok(())
    }

    /// Keeps the intact part in a file of the same name and length; the whole original is in the
    /// quarantine.
    fn cut_journal(&self, place: &Path, position: u64) -> io::Result<()> {
        let damaged = self.dir.join(place);
        let dir = damaged.parent().unwrap_or(self.dir);
        let mut names = self.disk.list(dir)?;
        names.sort_unstable();
        let name = damaged.file_name().and_then(|name| name.to_str());
        let later = names.iter().filter(|later| Some(later.as_str()) > name);
        for later in later.filter(|later| later.ends_with(".journal")) {
            self.move_away(&place.with_file_name(later))?;
        }
        if !damaged.exists() {
            return Ok(());
        }
        let old = self.disk.open(&damaged)?;
        let length = old.length()?;
        let mut sound = vec![0; usize::try_from(position.min(length)).map_err(io::Error::other)?];
        old.read_at(&mut sound, 0)?;
        self.move_away(place)?;
        let unfinished = damaged.with_extension("unfinished");
        let file = self.disk.create(&unfinished)?;
        file.set_len(length)?;
        file.write_all_at(&sound, 0)?;
        file.sync_data()?;
        self.disk.rename(&unfinished, &damaged)?;
        self.disk.sync_dir(dir)
    }

    /// Reduces the claim of what is durable to what exists.
    fn accept(&self, last_sequence: u64) -> io::Result<()> {
        let Some(known) = evidence::read(&*self.disk, self.dir)? else {
            return Ok(());
        };
        if known.durable <= last_sequence {
            return Ok(());
        }
        self.copy(Path::new(evidence::FILE))?;
        let mut file = EvidenceFile::new(Arc::clone(&self.disk), self.dir);
        file.try_write(Evidence {
            durable: last_sequence,
            checkpoint: known.checkpoint.min(last_sequence),
            is_closed: true,
            ..known
        })
    }
}
