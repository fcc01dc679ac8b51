//! The place where a backup is ordered, and what a checkpoint does for the order.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;

use millrace_log::partition::verify::KeptSegment;
use millrace_log::{Disk, Mark};
use parking_lot::Mutex;

use super::CHECKPOINT;
use crate::ground::tail::Partition;
use crate::keep::checkpoint::StoredRun;

/// The order for the next checkpoint, if there is one.
#[derive(Default)]
pub(crate) struct Desk(Mutex<Option<Order>>);

/// A backup's order to preserve the files of the next checkpoint.
pub(crate) struct Order {
    /// The existing directory for their hard links.
    pub(super) staging: PathBuf,
    pub(super) answer: mpsc::Sender<io::Result<Staged>>,
}

/// An order accepted by a checkpoint. If it is dropped, the backup learns that it will not be
/// carried out.
pub(crate) struct Errand {
    order: Order,
    partitions: Vec<(Arc<Partition>, Mark)>,
}

/// The files that have hard links.
pub(super) struct Staged {
    /// The transaction that it is as of.
    pub(super) sequence: u64,
    pub(super) files: Vec<StagedFile>,
    /// Missing segments, relative to the data directory.
    pub(super) lost: Vec<String>,
}

pub(super) struct StagedFile {
    /// Its path in the data directory.
    pub(super) path: String,
    /// Where it is now.
    pub(super) stands_at: PathBuf,
    pub(super) kind: Kind,
}

pub(super) enum Kind {
    Checkpoint,
    Segment(KeptSegment),
    Index,
    Module,
    /// State.
    Run(StoredRun),
}

impl Desk {
    pub(super) fn leave(&self, order: Order) {
        *self.0.lock() = Some(order);
    }

    /// Withdraws an order that no checkpoint has accepted.
    pub(super) fn withdraw(&self) {
        self.0.lock().take();
    }

    /// Takes the order. Call it before the checkpoint's moment, so that the checkpoint has
    /// everything that was acknowledged when the order was placed.
    pub(crate) fn take(&self) -> Option<Order> {
        self.0.lock().take()
    }
}

impl Order {
    /// Notes how far the files of all partitions count. Call it when they contain everything up to
    /// the checkpoint's moment, and nothing later.
    pub(crate) fn of(self, partitions: Vec<Arc<Partition>>) -> Errand {
        let marked = partitions.into_iter().map(|partition| {
            let mark = partition.files.read().mark();
            (partition, mark)
        });
        Errand {
            partitions: marked.collect(),
            order: self,
        }
    }
}

impl Errand {
    /// Carries out the order, on the thread of the checkpoint that was just made and before the
    /// next one is decided. `runs` are all runs that the checkpoint names.
    pub(crate) fn run(
        self,
        disk: &dyn Disk,
        database: &Path,
        runs: impl Iterator<Item = (StoredRun, PathBuf)>,
        sequence: u64,
    ) {
        let staged = self.stage(database, sequence);
        let staged = staged.and_then(|mut staged| {
            self.stage_runs(disk, database, runs, &mut staged)?;
            Ok(staged)
        });
        // If the backup no longer waits, the next backup or the next start removes the links.
        let _ = self.order.answer.send(staged);
    }

    /// A run never changes, so a hard link is as good as a copy, and it remains even if later
    /// checkpoints drop the run.
    fn stage_runs(
        &self,
        disk: &dyn Disk,
        database: &Path,
        runs: impl Iterator<Item = (StoredRun, PathBuf)>,
        staged: &mut Staged,
    ) -> io::Result<()> {
        let dir = database.parent().unwrap_or(database);
        for (run, own) in runs {
            let stands_at = self.order.staging.join(format!("state-{}", run.number));
            disk.link(&own, &stands_at)?;
            staged.files.push(StagedFile {
                path: below(dir, &own),
                stands_at,
                kind: Kind::Run(run),
            });
        }
        Ok(())
    }

    fn stage(&self, database: &Path, sequence: u64) -> io::Result<Staged> {
        let staging = &self.order.staging;
        let dir = database.parent().unwrap_or(database);
        let mut staged = Staged {
            sequence,
            files: Vec::new(),
            lost: Vec::new(),
        };
        // Safe because nothing writes to the database's file between two of its transactions.
        let stands_at = staging.join(CHECKPOINT);
        std::fs::create_dir_all(staging)?;
        std::fs::copy(database, &stands_at)?;
        staged.files.push(StagedFile {
            path: CHECKPOINT.to_owned(),
            stands_at,
            kind: Kind::Checkpoint,
        });
        let mut number = 0;
        for (partition, mark) in &self.partitions {
            let files = partition.files.read();
            let (standing, lost) = files.let_stand(*mark, staging, &mut number)?;
            drop(files);
            staged.lost.extend(lost.iter().map(|own| below(dir, own)));
            for one in standing {
                staged.files.push(StagedFile {
                    path: below(dir, &one.own),
                    stands_at: one.segment.path.clone(),
                    kind: Kind::Segment(one.segment),
                });
                let index = one.index.map(|(stands_at, own)| StagedFile {
                    path: below(dir, &own),
                    stands_at,
                    kind: Kind::Index,
                });
                staged.files.extend(index);
            }
        }
        Ok(staged)
    }
}

/// A path relative to the data directory.
fn below(dir: &Path, path: &Path) -> String {
    let below = path.strip_prefix(dir).unwrap_or(path);
    below.display().to_string()
}
