//! The files of paged tables: which runs the last durable checkpoint names, and what the next one
//! adds and drops. Used only by checkpoints, which run one after the other, so that this is decided
//! in one place (docs/adr/0020).
//!
//! A file that no durable checkpoint names does not count. So it is written and synced before the
//! checkpoint that names it, and removed after the first checkpoint that does not.

mod merging;
mod saving;
pub(crate) mod set;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use millrace_engine::state::{StateSize, StateTable};
use millrace_log::disk::is_full;
use millrace_log::run::{Run, RunError};
use millrace_log::{Cipher, Disk};
use millrace_model::GroupName;

pub(crate) use self::merging::{Merger, Merges};

use self::merging::Merged;
use self::set::RunSet;
use crate::decide::state::TableKey;
use crate::ground::open_error::OpenError;
use crate::keep::checkpoint::{Checkpoint, StoredRun};

/// The directory of runs, in the data directory.
pub(crate) const DIRECTORY: &str = "state";
const EXTENSION: &str = "run";

/// A table that is paged in the checkpoint.
struct Known {
    set: Arc<RunSet>,
    /// Its runs, in the checkpoint's order.
    stored: Vec<StoredRun>,
    /// The size of their content.
    size: StateSize,
    /// The table that reads them.
    table: Weak<StateTable>,
}

/// The runs of the last durable checkpoint.
pub(crate) struct RunFiles {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    cipher: Option<Arc<Cipher>>,
    tables: BTreeMap<TableKey, Known>,
    /// Tables of partitions that do not exist; the next checkpoint drops them.
    strange: Vec<TableKey>,
    /// The next number; no file has ever had it.
    next_number: u64,
    /// Files that no checkpoint names and that could not be removed yet.
    leaving: Vec<u64>,
    /// The link to the merging thread; none during a recovery.
    merges: Option<Arc<Merges>>,
    /// The durable result of a merge that no checkpoint names yet.
    merged: Option<Merged>,
    /// Runs of merges in which one could not be read; remembered until the next start.
    unreadable: BTreeSet<u64>,
}

/// The name of a run's file.
pub(crate) fn file_name(number: u64) -> String {
    format!("{number}.{EXTENSION}")
}

/// The number of a run's file.
pub(crate) fn number_of(name: &str) -> Option<u64> {
    let (number, extension) = name.split_once('.')?;
    let number = number.parse().ok()?;
    (extension == EXTENSION && file_name(number) == name).then_some(number)
}

impl RunFiles {
    /// Opens the runs that the checkpoint names. Only their trailers are read.
    ///
    /// # Errors
    /// [`OpenError::State`] if one of them is missing or incomplete; nothing was changed.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        data_dir: &Path,
        cipher: Option<Arc<Cipher>>,
        checkpoint: &Checkpoint,
    ) -> Result<Self, OpenError> {
        let dir = data_dir.join(DIRECTORY);
        let listed = disk.list(&dir).map_err(|error| OpenError::Io {
            dir: dir.clone(),
            reason: error.to_string(),
        })?;
        let there = listed.iter().filter_map(|name| number_of(name));
        let named = checkpoint.paged.values().flat_map(|table| &table.runs);
        let numbers = there.chain(named.map(|run| run.number));
        let next_number = numbers.max().map_or(1, |last| last.saturating_add(1));
        let mut files = Self {
            next_number: next_number.max(checkpoint.next_run),
            disk,
            dir,
            cipher,
            tables: BTreeMap::new(),
            strange: Vec::new(),
            leaving: Vec::new(),
            merges: None,
            merged: None,
            unreadable: BTreeSet::new(),
        };
        for ((partition, name), table) in &checkpoint.paged {
            let runs = table.runs.iter().map(|stored| files.open_stored(stored));
            let known = Known {
                set: RunSet::of(runs.collect::<Result<_, _>>()?),
                stored: table.runs.clone(),
                size: table.size,
                table: Weak::new(),
            };
            let key = (*partition, GroupName::stored(name));
            files.tables.insert(key, known);
        }
        Ok(files)
    }

    fn open_stored(&self, stored: &StoredRun) -> Result<Arc<Run>, OpenError> {
        let path = self.path(stored.number);
        let refused = |reason: String| OpenError::State {
            path: path.clone(),
            reason,
        };
        let cipher = match (stored.key, &self.cipher) {
            (None, _) => None,
            (Some(key), Some(cipher)) if cipher.check_value(key).is_some() => Some(cipher),
            (Some(key), _) => {
                return Err(refused(format!(
                    "it is encrypted with key {key}, which is not among the keys given"
                )));
            }
        };
        let run = Run::open(&*self.disk, &path, stored.number, cipher.cloned());
        let run = run.map_err(|error| match &error {
            // Not damage: too many files are open.
            RunError::Io { source, .. } if is_full(source) => OpenError::Io {
                dir: self.dir.clone(),
                reason: error.to_string(),
            },
            _ => refused(error.to_string()),
        })?;
        let facts = run.facts();
        let found = (facts.file_bytes, facts.entries, facts.removals);
        if found != (stored.file_bytes, stored.entries, stored.removals) {
            return Err(refused(
                "it is not the one that the checkpoint names".into(),
            ));
        }
        Ok(Arc::new(run))
    }

    /// Whether any table is paged.
    pub(crate) fn any(&self) -> bool {
        !self.tables.is_empty()
    }

    /// The number of runs.
    pub(crate) fn count(&self) -> usize {
        self.tables.values().map(|known| known.stored.len()).sum()
    }

    /// The runs of a table, if the checkpoint says that it is paged.
    pub(crate) fn set_of(&self, key: &TableKey) -> Option<Arc<RunSet>> {
        self.tables.get(key).map(|known| Arc::clone(&known.set))
    }

    /// Registers the table that reads these runs.
    pub(crate) fn register(&mut self, key: &TableKey, table: &Arc<StateTable>) {
        if let Some(known) = self.tables.get_mut(key) {
            known.table = Arc::downgrade(table);
        }
    }

    /// Notes a table of the checkpoint whose partition does not exist; the next checkpoint drops
    /// it.
    pub(crate) fn note_strange(&mut self, key: TableKey) {
        self.strange.push(key);
    }

    /// All runs that the last checkpoint names, and their paths.
    pub(crate) fn files(&self) -> impl Iterator<Item = (StoredRun, PathBuf)> {
        let stored = self.tables.values().flat_map(|known| &known.stored);
        stored.map(|run| (*run, self.path(run.number)))
    }

    fn path(&self, number: u64) -> PathBuf {
        self.dir.join(file_name(number))
    }

    /// Removes runs that no checkpoint names, which a crash left. Call it after this process has
    /// made a checkpoint.
    pub(crate) fn sweep(&mut self) {
        let listed = match self.disk.list(&self.dir) {
            Ok(listed) => listed,
            Err(error) => {
                tracing::warn!(%error, "runs of state could not be listed");
                return;
            }
        };
        let named: Vec<u64> = self.named().collect();
        let strangers = listed.iter().filter_map(|name| number_of(name));
        let strangers = strangers.filter(|number| !named.contains(number));
        self.leaving.extend(strangers);
        self.remove_leaving();
    }

    pub(crate) fn named(&self) -> impl Iterator<Item = u64> {
        let stored = self.tables.values().flat_map(|known| &known.stored);
        stored.map(|stored| stored.number)
    }

    /// Files that cannot be removed stay for the next time; current readers of a removed file can
    /// continue.
    fn remove_leaving(&mut self) {
        let leaving = std::mem::take(&mut self.leaving);
        let remove = |number: &u64| match self.remove(*number) {
            Ok(()) => false,
            Err(error) => {
                tracing::warn!(run = number, %error, "a run of state could not be removed");
                true
            }
        };
        self.leaving = leaving.into_iter().filter(remove).collect();
    }

    fn remove(&self, number: u64) -> io::Result<()> {
        self.disk.remove(&self.path(number))
    }
}
