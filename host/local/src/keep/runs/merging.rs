//! Merges runs of a table in the background. The runs are chosen after a checkpoint, and the result
//! counts from a later checkpoint on, so that only checkpoints change which runs a table has. A
//! merge changes no content, so it can be interrupted anywhere.

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use millrace_log::disk::is_full;
use millrace_log::pace::{Pace, lower_priority};
use millrace_log::run::{Run, RunError, RunFacts, RunWriter, merge};
use millrace_log::{Cipher, Disk};
use parking_lot::{Condvar, Mutex};

use super::{RunFiles, file_name};
use crate::decide::state::TableKey;
use crate::keep::checkpoint::StoredRun;
use crate::write::commits::{Commits, PoisonOnPanic};

/// Minimum number of runs that are worth a merge.
const MERGED_RUNS_MIN: usize = 4;
/// If a table has more runs than this, and not enough of similar size, all of them are merged,
/// whatever their sizes.
const RUNS_MAX: usize = 24;
/// A merge begins only if the disk has room for its result and this fraction of it more.
const FREE_PART: u64 = 4;
/// Runs merged at once, because each has a read buffer. Of more runs the oldest are merged, and the
/// next merge continues.
const MERGED_RUNS_MAX: usize = 32;

/// Chooses the runs to merge, from the sizes of a table's runs, oldest first: the newest ones, as
/// long as each is at most twice as large as all newer ones together. So each entry is written only
/// a few times.
fn choose(bytes: &[u64]) -> Option<Range<usize>> {
    let runs = bytes.len();
    let (mut from, mut newer) = (runs, 0_u64);
    for (place, bytes) in bytes.iter().enumerate().rev() {
        let is_newest = place + 1 == runs;
        if !is_newest && *bytes > newer.saturating_mul(2) {
            break;
        }
        from = place;
        newer = newer.saturating_add(*bytes);
    }
    if runs - from < MERGED_RUNS_MIN {
        if runs < RUNS_MAX {
            return None;
        }
        from = 0;
    }
    Some(from..runs.min(from + MERGED_RUNS_MAX))
}

/// The newest of the chosen runs for which the disk has room, and their bytes; `None` if they are
/// too few for a merge.
fn fitting(bytes: &[u64], chosen: Range<usize>, free: u64) -> Option<(Range<usize>, u64)> {
    let mut sum = bytes[chosen.clone()].iter().sum::<u64>();
    for from in chosen.clone() {
        if chosen.end - from < MERGED_RUNS_MIN {
            break;
        }
        if sum.saturating_add(sum / FREE_PART) <= free {
            return Some((from..chosen.end, sum));
        }
        sum -= bytes[from];
    }
    None
}

/// One merge.
pub(super) struct Job {
    pub(super) key: TableKey,
    /// The numbers of the runs, which are neighbours in the table, oldest first.
    pub(super) inputs: Vec<u64>,
    runs: Vec<Arc<Run>>,
    are_oldest: bool,
    /// Whether the table has so many runs that the next merge should not wait for the next regular
    /// checkpoint.
    is_pressing: bool,
    /// The number of the result.
    pub(super) number: u64,
    bytes: u64,
    /// Whether the result is no longer needed.
    cancelled: AtomicBool,
}

/// The result of a job.
pub(super) enum Outcome {
    /// The merged, durable run; `None` if nothing is left.
    Merged(Option<RunFacts>),
    /// It was interrupted, or the disk was full; it may be retried.
    GivenUp,
    /// One of the runs cannot be read; all are left as they are.
    Unreadable,
}

/// The link between the code that decides about merges and the thread that makes them.
#[derive(Default)]
pub(crate) struct Merges {
    desk: Mutex<Desk>,
    changed: Condvar,
}

#[derive(Default)]
struct Desk {
    job: Option<Arc<Job>>,
    is_taken: bool,
    outcome: Option<Outcome>,
    stops: bool,
}

impl Merges {
    fn is_free(&self) -> bool {
        self.desk.lock().job.is_none()
    }

    fn leave(&self, job: Job) {
        let mut desk = self.desk.lock();
        if !desk.stops {
            desk.job = Some(Arc::new(job));
            self.changed.notify_all();
        }
    }

    /// Takes a finished job; then another one can be given.
    fn take_over(&self) -> Option<(Arc<Job>, Outcome)> {
        let mut desk = self.desk.lock();
        let outcome = desk.outcome.take()?;
        desk.is_taken = false;
        desk.job.take().map(|job| (job, outcome))
    }

    fn has_result(&self) -> bool {
        matches!(self.desk.lock().outcome, Some(Outcome::Merged(_)))
    }

    /// Interrupts a merge of this table.
    fn cancel(&self, key: &TableKey) {
        if let Some(job) = self.desk.lock().job.as_ref().filter(|job| job.key == *key) {
            job.cancelled.store(true, Ordering::Relaxed);
        }
    }

    fn wait(&self) -> Option<Arc<Job>> {
        let mut desk = self.desk.lock();
        loop {
            if desk.stops {
                return None;
            }
            if let Some(job) = desk.job.clone().filter(|_| !desk.is_taken) {
                desk.is_taken = true;
                return Some(job);
            }
            self.changed.wait(&mut desk);
        }
    }

    /// Ends the thread and interrupts its current merge.
    pub(crate) fn stop(&self) {
        let mut desk = self.desk.lock();
        desk.stops = true;
        if let Some(job) = &desk.job {
            job.cancelled.store(true, Ordering::Relaxed);
        }
        self.changed.notify_all();
    }

    /// Whether nothing is being merged.
    #[cfg(test)]
    pub(crate) fn are_idle(&self) -> bool {
        let desk = self.desk.lock();
        desk.job.is_none() || desk.outcome.is_some()
    }
}

/// The thread of merges.
pub(crate) struct Merger {
    pub(crate) commits: Arc<Commits>,
    pub(crate) merges: Arc<Merges>,
    pub(crate) disk: Arc<dyn Disk>,
    /// The directory of runs.
    pub(crate) dir: PathBuf,
    pub(crate) cipher: Option<Arc<Cipher>>,
}

impl Merger {
    /// Runs until it is stopped, or until the disk fails.
    pub(crate) fn run(self) {
        let _poison = PoisonOnPanic(&self.commits);
        lower_priority();
        while let Some(job) = self.merges.wait() {
            let outcome = self.work(&job);
            let asks = job.is_pressing && matches!(outcome, Outcome::Merged(_));
            self.merges.desk.lock().outcome = Some(outcome);
            if asks {
                self.commits.orders.ask(|orders| orders.checkpoint = true);
            }
        }
    }

    fn work(&self, job: &Arc<Job>) -> Outcome {
        let path = self.dir.join(file_name(job.number));
        let merged = self.merge(job, &path);
        if let Ok(Some(facts)) = merged {
            return Outcome::Merged(Some(facts));
        }
        // No checkpoint names this file; if it cannot be removed, the next start removes it.
        if let Err(error) = self.disk.remove(&path) {
            tracing::warn!(%error, "leftovers of a merge could not be removed");
        }
        let error = match merged {
            Ok(_) => return Outcome::Merged(None),
            Err(error) => error,
        };
        if job.cancelled.load(Ordering::Relaxed) {
            return Outcome::GivenUp;
        }
        match error {
            RunError::Io { source, .. } if is_full(&source) => Outcome::GivenUp,
            RunError::Io {
                path: failed,
                source,
            } if failed == path || failed == self.dir => {
                self.commits.poison(&source.to_string());
                Outcome::GivenUp
            }
            unreadable => {
                let (partition, group) = &job.key;
                tracing::error!(%partition, %group, error = %unreadable, "state cannot be read; its files are left as they are");
                Outcome::Unreadable
            }
        }
    }

    /// Merges the runs into the file, durable on return; `None` if nothing is left.
    fn merge(&self, job: &Arc<Job>, path: &std::path::Path) -> Result<Option<RunFacts>, RunError> {
        let io = |path: &std::path::Path| {
            let path = path.to_owned();
            move |source| RunError::Io { path, source }
        };
        let items = job.runs.iter().map(|run| run.facts().items()).sum();
        let cipher = self.cipher.clone();
        let writer = RunWriter::create(&*self.disk, path, job.number, items, cipher);
        let writer = writer.map_err(io(path))?;
        let asked = Arc::clone(job);
        let pace: Pace = Arc::new(move |_| match asked.cancelled.load(Ordering::Relaxed) {
            true => Err(io::ErrorKind::Interrupted.into()),
            false => Ok(()),
        });
        let facts = merge(&job.runs, job.are_oldest, writer, &pace)?;
        if facts.items() == 0 {
            return Ok(None);
        }
        self.disk.sync_dir(&self.dir).map_err(io(&self.dir))?;
        Ok(Some(facts))
    }
}

/// The result of a merge, until a checkpoint names it.
pub(super) struct Merged {
    pub(super) job: Arc<Job>,
    pub(super) facts: Option<RunFacts>,
}

impl RunFiles {
    /// Enables merges, made by the thread that works for `merges`.
    pub(crate) fn merge_with(&mut self, merges: Arc<Merges>) {
        self.merges = Some(merges);
    }

    /// Whether the next checkpoint must record a merge.
    pub(crate) fn has_merged(&self) -> bool {
        let merges = self.merges.as_ref();
        self.merged.is_some() || merges.is_some_and(|merges| merges.has_result())
    }

    /// Begins the next merge, if one is worthwhile, none is running, and the disk has room for it.
    pub(crate) fn begin_merge(&mut self) {
        let Some(merges) = self.merges.clone() else {
            return;
        };
        self.take_merged();
        if self.merged.is_some() || !merges.is_free() {
            return;
        }
        let worth = self.tables.iter().filter_map(|(key, known)| {
            // Runs newer than an unreadable one are merged beside it.
            let is_unreadable = |run: &StoredRun| self.unreadable.contains(&run.number);
            let from = known.stored.iter().rposition(is_unreadable);
            let from = from.map_or(0, |place| place + 1);
            let bytes = known.stored[from..].iter().map(|run| run.file_bytes);
            let chosen = choose(&bytes.collect::<Vec<_>>())?;
            Some((key, known, chosen.start + from..chosen.end + from))
        });
        // The table with the most runs first.
        let mut worth: Vec<_> = worth.collect();
        worth.sort_by_key(|(_, known, _)| std::cmp::Reverse(known.stored.len()));
        if worth.is_empty() {
            return;
        }
        let free = millrace_log::inspect::free_bytes(self.dir.parent().unwrap_or(&self.dir));
        let free = free.unwrap_or(0);
        let fit = worth.into_iter().find_map(|(key, known, chosen)| {
            let bytes = known.stored.iter().map(|run| run.file_bytes);
            let (chosen, bytes) = fitting(&bytes.collect::<Vec<_>>(), chosen, free)?;
            Some((key, known, chosen, bytes))
        });
        let Some((key, known, chosen, bytes)) = fit else {
            tracing::warn!(
                free,
                "the disk has no space to merge files of state: free some space"
            );
            return;
        };
        let stored = &known.stored[chosen.clone()];
        let job = Job {
            key: key.clone(),
            inputs: stored.iter().map(|run| run.number).collect(),
            runs: known.set.runs()[chosen.clone()].to_vec(),
            are_oldest: chosen.start == 0,
            is_pressing: known.stored.len() > RUNS_MAX,
            number: self.next_number,
            bytes,
            cancelled: AtomicBool::new(false),
        };
        self.next_number += 1;
        tracing::debug!(run = job.number, inputs = ?job.inputs, bytes = job.bytes, "files of state are merged");
        merges.leave(job);
    }

    /// Interrupts a merge of a table that was emptied or deleted.
    pub(super) fn cancel_merge(&self, key: &TableKey) {
        if let Some(merges) = &self.merges {
            merges.cancel(key);
        }
    }

    /// Takes the result of the last merge if it has ended, and drops it if the table's runs have
    /// changed meanwhile.
    pub(super) fn take_merged(&mut self) {
        let over = self.merges.as_ref().and_then(|merges| merges.take_over());
        match over {
            Some((job, Outcome::Merged(facts))) => self.merged = Some(Merged { job, facts }),
            Some((job, Outcome::Unreadable)) => self.unreadable.extend(&job.inputs),
            Some((_, Outcome::GivenUp)) | None => {}
        }
        let useless = self.merged.take_if(|merged| {
            let known = self.tables.get(&merged.job.key);
            known.is_none_or(|known| place_of(&merged.job, &known.stored).is_none())
        });
        if let Some(useless) = useless.filter(|merged| merged.facts.is_some()) {
            self.leaving.push(useless.job.number);
            self.remove_leaving();
        }
    }

    /// The runs of a table, with the merge's result in place of its inputs.
    pub(super) fn with_merged(
        &self,
        key: &TableKey,
        runs: &mut Vec<Arc<Run>>,
        stored: &mut Vec<StoredRun>,
    ) -> io::Result<()> {
        let Some(merged) = self.merged.as_ref().filter(|merged| merged.job.key == *key) else {
            return Ok(());
        };
        let Some(place) = place_of(&merged.job, stored) else {
            return Ok(());
        };
        let (mut run, mut facts) = (None, None);
        if let Some(merged) = &merged.facts {
            run = Some(Arc::new(self.open_written(merged.number)?));
            facts = Some(StoredRun::of(merged, self.cipher.as_deref()));
        }
        runs.splice(place.clone(), run);
        stored.splice(place, facts);
        Ok(())
    }
}

/// The position of the inputs among the runs of their table, if all are there.
fn place_of(job: &Job, stored: &[StoredRun]) -> Option<Range<usize>> {
    let first = job.inputs.first()?;
    let from = stored.iter().position(|run| run.number == *first)?;
    let there = stored.get(from..from + job.inputs.len())?;
    let are_same = there
        .iter()
        .map(|run| run.number)
        .eq(job.inputs.iter().copied());
    are_same.then(|| from..from + job.inputs.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_runs_are_merged_once_there_are_enough_of_like_size() {
        assert_eq!(choose(&[]), None);
        assert_eq!(choose(&[1, 1, 1]), None);
        assert_eq!(choose(&[1, 1, 1, 1]), Some(0..4));
        assert_eq!(choose(&[100, 1, 1, 1, 1]), Some(1..5));
        assert_eq!(choose(&[100, 8, 1, 1, 1, 1]), Some(1..6));
        assert_eq!(choose(&[100, 9, 1, 1, 1, 1]), Some(2..6));
        assert_eq!(choose(&[1, 1, 1, 1, 9]), Some(0..5));
        assert_eq!(choose(&[64, 16, 4, 1]), None);
        // A large run is not rewritten for each new small one.
        let beside: Vec<u64> = [1_000].into_iter().chain([1; 40]).collect();
        assert_eq!(choose(&beside), Some(1..33));
        assert_eq!(choose(&beside[..30]), Some(1..30));
        let shrinking: Vec<u64> = (0..30).map(|n| 1 << (2 * (30 - n))).collect();
        assert_eq!(choose(&shrinking[..23]), None);
        assert_eq!(choose(&shrinking[..24]), Some(0..24));
    }

    #[test]
    fn where_the_disk_has_no_room_for_all_the_newest_ones_are_merged() {
        let bytes = [100, 8, 4, 2, 1, 1];
        assert_eq!(fitting(&bytes, 0..6, 145), Some((0..6, 116)));
        assert_eq!(fitting(&bytes, 0..6, 144), Some((1..6, 16)));
        assert_eq!(fitting(&bytes, 0..6, 19), Some((2..6, 8)));
        assert_eq!(fitting(&bytes, 0..6, 9), None);
        assert_eq!(fitting(&bytes, 1..5, 18), Some((1..5, 15)));
    }

    #[test]
    fn each_byte_is_written_a_few_times_and_no_more() {
        let (mut runs, mut written) = (Vec::new(), 0_u64);
        for _ in 0..10_000 {
            runs.push(1);
            written += 1;
            if let Some(chosen) = choose(&runs) {
                let merged: u64 = runs.drain(chosen).sum();
                written += merged;
                runs.push(merged);
            }
            assert!(runs.len() < 16, "{runs:?}");
        }
        assert!(written < 10 * 10_000, "{written}");
    }
}
