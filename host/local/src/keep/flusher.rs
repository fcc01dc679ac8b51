//! The flusher's thread: it writes tails to files when memory fills, and decides checkpoints, after
//! which journal files are reused. Another thread makes each checkpoint durable, so that flushing
//! continues meanwhile. Only the committer waits for either, at the bounds of memory and of the
//! journal.

use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use millrace_engine::room::Kept;
use millrace_model::Offset;

use crate::decide::retention::ends_segments;
use crate::decide::state::Changes;
use crate::ground::keep_error::KeepError;
use crate::ground::tail::Partition;
use crate::keep::backup::desk::Errand;
use crate::keep::checkpoints::Checkpoints;
use crate::keep::keeper::{Flushed, Keeper};
use crate::keep::saver::Saver;
use crate::write::commits::{Commits, PoisonOnPanic};
use crate::write::orders::{Orders, Stop};
use crate::write::pipeline::FLUSHER;

/// How long the flusher waits before it retries on a full disk.
const FULL_RETRY_DELAY: Duration = Duration::from_millis(100);

pub(crate) struct Flusher {
    pub(crate) commits: Arc<Commits>,
    checkpoints: Arc<Checkpoints>,
    pub(crate) keeper: Keeper,
    saving: Saving,
    /// The changes of a checkpoint that found the disk full.
    unsaved: Option<Changes>,
    /// A checkpoint was requested while another one was running.
    wanted: bool,
    /// The transaction up to which the last checkpoint contains everything.
    sequence: u64,
    made_at: Duration,
    /// Files changed since the last checkpoint, although nothing was committed.
    marks_moved: bool,
}

/// Whether a checkpoint is running.
enum Saving {
    No(Box<Saver>),
    Yes(JoinHandle<Saved>),
    /// Only during a change, or permanently after the thread panicked.
    Unknown,
}

/// The result of a checkpoint.
struct Saved {
    saver: Box<Saver>,
    made: Result<(), KeepError>,
    /// Whether the database contains it, even if something failed afterwards.
    is_saved: bool,
    snapshot: Snapshot,
    partitions: Vec<Arc<Partition>>,
}

impl Flusher {
    pub(crate) fn new(
        commits: Arc<Commits>,
        checkpoints: Arc<Checkpoints>,
        keeper: Keeper,
        saver: Saver,
    ) -> Self {
        let sequence = commits.journal.lock().last_sequence();
        let made_at = commits.clock.monotonic();
        Self {
            commits,
            checkpoints,
            keeper,
            saving: Saving::No(Box::new(saver)),
            unsaved: None,
            wanted: false,
            sequence,
            made_at,
            marks_moved: false,
        }
    }

    /// Runs until it is told to stop, or until the disk fails.
    pub(crate) fn run(mut self) {
        let commits = Arc::clone(&self.commits);
        let _poison = PoisonOnPanic(&commits);
        let mut waits_for_room = false;
        loop {
            let patience = if waits_for_room || commits.reserve.is_full() {
                FULL_RETRY_DELAY
            } else {
                commits.options.checkpoint_interval
            };
            let orders = commits
                .orders
                .take(patience, matches!(self.saving, Saving::Yes(_)));
            if orders.stop == Some(Stop::AtOnce) || commits.poisoned().is_some() {
                // The next process that opens the directory must not find this thread running.
                let _ = self.finish_checkpoint();
                return;
            }
            waits_for_room = match self.work(orders) {
                Ok(()) => false,
                Err(KeepError::Full) => true,
                Err(KeepError::Failed(reason)) => {
                    commits.poison(&reason);
                    let _ = self.finish_checkpoint();
                    return;
                }
            };
            if orders.stop.is_some() {
                if !waits_for_room {
                    self.checkpoints.note_durable(true);
                }
                return;
            }
            if waits_for_room || commits.reserve.is_full() {
                waits_for_room |= !self.reserve_room();
                commits.headroom.set_disk_full(waits_for_room);
            }
        }
    }

    fn work(&mut self, orders: Orders) -> Result<(), KeepError> {
        self.wanted |= orders.checkpoint;
        if orders.saved || orders.stop.is_some() {
            self.finish_checkpoint()?;
        }
        // Space can be freed even on a full disk: the checkpoint may be needed for that, and has a
        // reserve.
        let flushed = self.flush_tails();
        if matches!(flushed, Err(KeepError::Failed(_))) {
            return flushed;
        }
        self.evict();
        if orders.roll && flushed.is_ok() {
            self.marks_moved |= self.roll_aged()?;
        }
        for partition in std::mem::take(&mut *self.checkpoints.compacted.lock()) {
            self.keeper.note_compacted(partition);
            self.marks_moved = true;
        }
        let now = self.commits.clock.monotonic();
        let age = now.saturating_sub(self.made_at);
        metrics::gauge!("millrace_checkpoint_age_seconds").set(age.as_secs_f64());
        self.show_kept();
        let asked = self.wanted || orders.stop.is_some() || self.unsaved.is_some();
        let asked = asked || self.marks_moved;
        let due = age >= self.commits.options.checkpoint_interval
            || self.commits.headroom.journal_is_long()
            || self.commits.state.read().has_removed_topics();
        if (due || asked) && matches!(self.saving, Saving::No(_)) {
            self.begin_checkpoint()?;
        }
        if orders.stop.is_some() {
            return self.finish_checkpoint();
        }
        flushed
    }

    fn show_kept(&self) {
        let room = Arc::clone(&self.commits.state.read().room);
        let state = room.held(Kept::Consumers) + room.held(Kept::State);
        for (held, of) in [(room.held(Kept::Delayed), "delayed"), (state, "state")] {
            metrics::gauge!("millrace_kept_bytes", "of" => of).set(held as f64);
        }
        metrics::gauge!("millrace_state_disk_bytes").set(room.stored() as f64);
    }

    /// Restores the parts of the reserve that were given up; true if it is complete. Not while a
    /// checkpoint may need the space.
    fn reserve_room(&self) -> bool {
        matches!(self.saving, Saving::No(_))
            && self.commits.journal.lock().reserve().is_ok()
            && self.commits.reserve.fill()
    }

    /// Flushes the fullest partitions first, until little is left: small tails may grow and are
    /// then written in larger pieces.
    fn flush_tails(&mut self) -> Result<(), KeepError> {
        let mut partitions: Vec<(usize, Arc<Partition>)> = {
            let state = self.commits.state.read();
            let all = state.partitions.values();
            let with_bytes = all.map(|p| (p.unflushed_bytes(), Arc::clone(p)));
            with_bytes.filter(|(bytes, _)| *bytes > 0).collect()
        };
        partitions.sort_unstable_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));
        let mut left: usize = partitions.iter().map(|(bytes, _)| bytes).sum();
        for (bytes, partition) in partitions {
            if left <= self.commits.options.tail_bytes_max / 4 {
                break;
            }
            self.keeper.flush(&partition, Offset::MAX)?;
            left -= bytes;
        }
        Ok(())
    }

    fn roll_aged(&mut self) -> Result<bool, KeepError> {
        let mut rolled = false;
        for partition in self.commits.partitions() {
            if ends_segments(&partition.settings()) {
                rolled |= self.keeper.roll_aged(&partition)?;
            }
        }
        Ok(rolled)
    }

    /// Halves the batches in memory if it is more than half full; the newest ones stay for readers
    /// that keep up.
    fn evict(&self) {
        let wanted = self.commits.options.tail_bytes_max / 2;
        let held = self.commits.headroom.tail_bytes();
        let mut excess = held.saturating_sub(wanted);
        if excess == 0 {
            return;
        }
        for partition in self.commits.partitions() {
            let evicted = partition.evict(excess);
            self.commits.headroom.release(evicted);
            excess = excess.saturating_sub(evicted);
            if excess == 0 {
                return;
            }
        }
    }

    /// Decides a checkpoint, and starts a thread that makes it durable.
    fn begin_checkpoint(&mut self) -> Result<(), KeepError> {
        let order = self.checkpoints.backups.take();
        let of_all = order.is_some();
        let mut snapshot = self.commits.reserve.spend(|| self.snapshot(of_all))?;
        self.made_at = self.commits.clock.monotonic();
        self.wanted = false;
        let is_same = snapshot.sequence == self.sequence && !self.marks_moved;
        // A checkpoint is also needed without new commits in three cases. Entries of state may have
        // expired, and a removal that this checkpoint does not get is never written. Rows of a
        // deleted topic are removed once its files are gone. And merged files of state must be
        // named.
        let has_news = |saver: &Saver| saver.has_swept() || saver.has_merged();
        let is_same = is_same && !matches!(&self.saving, Saving::No(saver) if has_news(saver));
        let says_nothing = is_same && snapshot.changes.tables.is_empty();
        if says_nothing && self.unsaved.is_none() && order.is_none() {
            self.commits.headroom.paging.note_over();
            return Ok(());
        }
        if let Some(mut earlier) = self.unsaved.take() {
            earlier.merge(snapshot.changes);
            snapshot.changes = earlier;
        }
        let reserve = Arc::clone(&self.commits.reserve);
        for (partition, end) in std::mem::take(&mut snapshot.ends) {
            let flushed = reserve.spend(|| self.keeper.flush(&partition, end));
            if let Err(error) = flushed {
                self.commits.headroom.paging.note_over();
                self.unsaved = Some(snapshot.changes);
                return Err(error);
            }
        }
        let trimmed = reserve.spend(|| self.keeper.trim(&snapshot.changes));
        if let Err(error) = trimmed {
            self.commits.headroom.paging.note_over();
            self.unsaved = Some(snapshot.changes);
            return Err(error);
        }
        let Saving::No(saver) = std::mem::replace(&mut self.saving, Saving::Unknown) else {
            unreachable!("one checkpoint at a time");
        };
        let all = std::mem::take(&mut snapshot.all);
        let errand = order.map(|order| order.of(all));
        let partitions = self.keeper.changed();
        let flushed = self.keeper.take_flushed(&snapshot.changes);
        self.marks_moved = false;
        let commits = Arc::clone(&self.commits);
        let checkpoints = Arc::clone(&self.checkpoints);
        let save = move || {
            save(
                &commits,
                &checkpoints,
                saver,
                snapshot,
                flushed,
                partitions,
                errand,
            )
        };
        let thread = Builder::new().name("millrace-checkpoint".to_owned());
        let thread = thread
            .spawn(save)
            .map_err(|error| KeepError::Failed(format!("no thread for the checkpoint: {error}")))?;
        self.saving = Saving::Yes(thread);
        Ok(())
    }

    /// Waits for the running checkpoint, if there is one.
    fn finish_checkpoint(&mut self) -> Result<(), KeepError> {
        let thread = match std::mem::replace(&mut self.saving, Saving::Unknown) {
            Saving::Yes(thread) => thread,
            other => {
                self.saving = other;
                return Ok(());
            }
        };
        let Ok(saved) = thread.join() else {
            return Err(KeepError::Failed("a checkpoint panicked".to_owned()));
        };
        self.saving = Saving::No(saved.saver);
        if let Err(error) = saved.made {
            let mut changes = saved.snapshot.changes;
            if saved.is_saved {
                // Runs that are already written are not written again.
                changes.tables.clear();
            }
            self.unsaved = Some(changes);
            self.keeper.take_back(saved.partitions.iter());
            return Err(error);
        }
        self.sequence = saved.snapshot.sequence;
        Ok(())
    }

    /// Takes everything as of one moment between two groups; from there the journal continues in a
    /// new file.
    fn snapshot(&self, of_all: bool) -> Result<Snapshot, KeepError> {
        let mut journal = self.commits.journal.lock();
        if !self.commits.pipeline.line().is_empty() {
            // Everything in the checkpoint must be visible; otherwise the files would end before
            // the checkpoint does.
            let settled = self.commits.settle(&mut journal, FLUSHER);
            settled.map_err(|error| KeepError::Failed(error.to_string()))?;
        }
        let sequence = journal.last_sequence();
        let journal_file = journal.rotate()?;
        let journal_bytes = journal.written_bytes();
        let mut state = self.commits.state.write();
        let unflushed = state.partitions.values().filter(|p| p.is_unflushed());
        let ends = unflushed.map(|p| (Arc::clone(p), p.end())).collect();
        let all = state.partitions.values().filter(|_| of_all);
        let all = all.cloned().collect();
        Ok(Snapshot {
            sequence,
            journal_file,
            journal_bytes,
            ends,
            all,
            changes: {
                if !self.commits.reserve.is_full() {
                    state.sweep(self.commits.clock.wall());
                }
                let changes = state.take_changes();
                self.commits.headroom.paging.note_begun();
                changes
            },
        })
    }
}

struct Snapshot {
    sequence: u64,
    journal_file: u64,
    journal_bytes: u64,
    ends: Vec<(Arc<Partition>, Offset)>,
    /// All partitions, for a backup.
    all: Vec<Arc<Partition>>,
    changes: Changes,
}

/// Runs one checkpoint, on its own thread.
fn save(
    commits: &Commits,
    checkpoints: &Checkpoints,
    mut saver: Box<Saver>,
    snapshot: Snapshot,
    flushed: Flushed,
    partitions: Vec<Arc<Partition>>,
    errand: Option<Errand>,
) -> Saved {
    let _poison = PoisonOnPanic(commits);
    let Snapshot {
        sequence,
        journal_file,
        ref changes,
        ..
    } = snapshot;
    let marks = flushed.marks.clone();
    let saved = saver.save(sequence, journal_file, changes, flushed);
    let is_saved = saved.is_ok();
    commits.headroom.paging.note_over();
    let made = saved.and_then(|()| {
        let removed = changes.removed.iter().flat_map(|r| &r.partitions);
        removed.for_each(|partition| commits.headroom.release(partition.clear()));
        saver.sweep();
        Keeper::note_saved(&partitions, &marks);
        metrics::counter!("millrace_checkpoints_total").increment(1);
        checkpoints.note_made(sequence, snapshot.journal_bytes);
        commits.journal.lock().recycle_before(journal_file)?;
        commits.headroom.note_recycled();
        checkpoints.note_durable(false);
        // The checkpoint is made; only the next one may wait for this.
        while !commits.orders.has_stop()
            && !commits.headroom.journal_is_long()
            && !commits.headroom.paging.is_due()
            && saver.give_back()?
        {}
        Ok(())
    });
    if let Some(errand) = errand.filter(|_| made.is_ok()) {
        saver.run(errand, sequence);
    }
    if made.is_ok() && !commits.reserve.is_full() && !commits.orders.has_stop() {
        saver.runs().begin_merge();
    }
    // The flusher handles the result.
    commits.orders.ask(|orders| orders.saved = true);
    Saved {
        saver,
        made,
        is_saved,
        snapshot,
        partitions,
    }
}
