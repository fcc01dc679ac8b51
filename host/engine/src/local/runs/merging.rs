//! Runs of a table become one, beside everything else: which ones is decided after a checkpoint, and the result counts with a later
//! one, so that only whoever makes checkpoints changes what a table has. A merge changes no content, so it can be broken off anywhere.

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

use super::{RunFiles, TableKey, file_name};
use crate::local::checkpoint::StoredRun;
use crate::local::shared::{PoisonOnPanic, Shared};

/// Fewer runs are not worth a merge.
const MERGED_RUNS_MIN: usize = 4;
/// Runs of a table from which on all of them are merged, whatever their sizes, if there are not enough of like size.
const RUNS_MAX: usize = 24;
/// Which part of what a merge may write has to be free on the disk beside that for it to begin.
const FREE_PART: u64 = 4;
/// Runs that are merged at once, for each is read ahead of; of more the oldest ones, and the next merge goes on.
const MERGED_RUNS_MAX: usize = 32;

/// Which runs are worth to be merged, of runs with these sizes, the oldest first: the newest ones, as long as each is no larger than
/// twice all that are newer. So each entry is written a few times and no more.
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

/// As many of the chosen runs as the disk has room for, the newest ones, and the bytes of them; `None` if those are too few for a merge.
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
    /// The numbers of the runs, as the table has them next to each other, the oldest first.
    pub(super) inputs: Vec<u64>,
    runs: Vec<Arc<Run>>,
    are_oldest: bool,
    /// The table has so many runs that the next merge is not to wait for the time of a checkpoint.
    is_pressing: bool,
    /// What the result is called.
    pub(super) number: u64,
    bytes: u64,
    /// Nobody wants it any more.
    cancelled: AtomicBool,
}

/// What became of a job.
pub(super) enum Outcome {
    /// The runs are one, which is durable; `None` if nothing is left of them.
    Merged(Option<RunFacts>),
    /// It was broken off, or there was no room; it may be tried again.
    GivenUp,
    /// One of the runs cannot be read: they are left as they are.
    Unreadable,
}

/// Between whoever decides about merges and the thread that makes them.
#[derive(Default)]
pub(in crate::local) struct Merges {
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

    /// A job that is over; then another one can be left.
    fn take_over(&self) -> Option<(Arc<Job>, Outcome)> {
        let mut desk = self.desk.lock();
        let outcome = desk.outcome.take()?;
        desk.is_taken = false;
        desk.job.take().map(|job| (job, outcome))
    }

    fn has_result(&self) -> bool {
        matches!(self.desk.lock().outcome, Some(Outcome::Merged(_)))
    }

    /// Breaks off a merge of this table.
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

    /// Ends the thread; what it is at is broken off.
    pub(in crate::local) fn stop(&self) {
        let mut desk = self.desk.lock();
        desk.stops = true;
        if let Some(job) = &desk.job {
            job.cancelled.store(true, Ordering::Relaxed);
        }
        self.changed.notify_all();
    }

    /// Whether nothing is being merged.
    #[cfg(test)]
    pub(in crate::local) fn are_idle(&self) -> bool {
        let desk = self.desk.lock();
        desk.job.is_none() || desk.outcome.is_some()
    }
}

/// The thread of merges.
pub(in crate::local) struct Merger {
    pub(in crate::local) shared: Arc<Shared>,
    pub(in crate::local) disk: Arc<dyn Disk>,
    /// The directory of runs.
    pub(in crate::local) dir: PathBuf,
    pub(in crate::local) cipher: Option<Arc<Cipher>>,
}

impl Merger {
    /// Works until it is stopped, or until the disk fails.
    pub(in crate::local) fn run(self) {
        let _poison = PoisonOnPanic(&self.shared);
        lower_priority();
        while let Some(job) = self.shared.merges.wait() {
            let outcome = self.work(&job);
            let asks = job.is_pressing && matches!(outcome, Outcome::Merged(_));
            self.shared.merges.desk.lock().outcome = Some(outcome);
            if asks {
                self.shared.orders.ask(|orders| orders.checkpoint = true);
            }
        }
    }

    fn work(&self, job: &Arc<Job>) -> Outcome {
        let path = self.dir.join(file_name(job.number));
        let merged = self.merge(job, &path);
        if let Ok(Some(facts)) = merged {
            return Outcome::Merged(Some(facts));
        }
        // A file that no checkpoint names; what cannot be removed goes at the next start.
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
                self.shared.poison(&source.to_string());
                Outcome::GivenUp
            }
            unreadable => {
                let (partition, group) = &job.key;
                tracing::error!(%partition, %group, error = %unreadable, "state cannot be read; its files are left as they are");
                Outcome::Unreadable
            }
        }
    }

    /// Merges the runs into the file, durable on return; `None` if nothing is left of them.
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

/// What came of a merge, until a checkpoint says so.
pub(super) struct Merged {
    pub(super) job: Arc<Job>,
    pub(super) facts: Option<RunFacts>,
}

impl RunFiles {
    /// Has runs merged from now on, by whoever works for this.
    pub(in crate::local) fn merge_with(&mut self, merges: Arc<Merges>) {
        self.merges = Some(merges);
    }

    /// Whether the next checkpoint has a merge to tell of.
    pub(in crate::local) fn has_merged(&self) -> bool {
        let merges = self.merges.as_ref();
        self.merged.is_some() || merges.is_some_and(|merges| merges.has_result())
    }

    /// Begins the next merge, if one is worth it, none is under way, and the disk has room for it.
    pub(in crate::local) fn begin_merge(&mut self) {
        let Some(merges) = self.merges.clone() else {
            return;
        };
        self.take_merged();
        if self.merged.is_some() || !merges.is_free() {
            return;
        }
        let worth = self.tables.iter().filter_map(|(key, known)| {
            // What is newer than a run that cannot be read is merged beside it.
            let is_unreadable = |run: &StoredRun| self.unreadable.contains(&run.number);
            let from = known.stored.iter().rposition(is_unreadable);
            let from = from.map_or(0, |place| place + 1);
            let bytes = known.stored[from..].iter().map(|run| run.file_bytes);
            let chosen = choose(&bytes.collect::<Vec<_>>())?;
            Some((key, known, chosen.start + from..chosen.end + from))
        });
        // Where most stand in the way first.
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

    /// Breaks off a merge of a table that is emptied or gone.
    pub(super) fn cancel_merge(&self, key: &TableKey) {
        if let Some(merges) = &self.merges {
            merges.cancel(key);
        }
    }

    /// Takes what the last merge gave, if it is over, and forgets it if the table has other runs by now.
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

    /// The runs of a table with the merge's result in the place of its inputs.
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

/// Where the inputs stand among the runs of their table, if they all do.
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
        // One that is large is not written again and again while others come.
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
