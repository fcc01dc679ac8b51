//! The cleaner's thread: it periodically trims what each topic no longer keeps, compacts
//! partitions, ends segments that have reached their age, and removes [expired
//! entries](crate::keep::expiry) of paged state. It decides nothing itself: [`retention`] does, and
//! trims are committed like everything else.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use millrace_log::SegmentFacts;
use millrace_log::disk::is_full;
use millrace_log::partition::compact::{COMPACTION_KEYS_MAX, Compaction, CompactionError};
use millrace_model::{Offset, TopicId, TopicSettings};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::decide::requests::Request;
use crate::decide::retention::{self, ends_segments};
use crate::ground::tail::Partition;
use crate::keep::checkpoints::Checkpoints;
use crate::keep::pause::Pause;
use crate::write::commits::{Commits, PoisonOnPanic};

/// Maximum bytes per second that compaction reads and writes, so that the disk stays available to
/// other work.
const COMPACTION_BYTES_PER_SECOND_MAX: u64 = 64 << 20;
/// Bytes after which compaction rests for as long as these should have taken.
const COMPACTION_STRIDE_BYTES: u64 = 1 << 20;
/// A partition is compacted when this percentage of it is newer than the last pass, because a pass
/// reads and writes all of it.
const COMPACTION_DIRTY_PERCENT_MIN: u64 = 50;

pub(crate) struct Cleaner {
    pub(crate) commits: Arc<Commits>,
    checkpoints: Arc<Checkpoints>,
    pub(crate) queue: mpsc::WeakSender<Request>,
    /// Room in the queue.
    pub(crate) room: Arc<Semaphore>,
    pub(crate) pause: Arc<Pause>,
}

/// Totals over the segments of a topic.
#[derive(Default)]
struct Sums {
    bytes: u64,
    segments: u64,
}

impl Cleaner {
    pub(crate) fn new(
        commits: Arc<Commits>,
        checkpoints: Arc<Checkpoints>,
        queue: mpsc::WeakSender<Request>,
        room: Arc<Semaphore>,
        pause: Arc<Pause>,
    ) -> Self {
        Self {
            commits,
            checkpoints,
            queue,
            room,
            pause,
        }
    }

    /// Runs until it is told to end.
    pub(crate) fn run(self) {
        let commits = Arc::clone(&self.commits);
        let _poison = PoisonOnPanic(&commits);
        let mut measured = BTreeMap::new();
        while self.pause.wait(commits.options.cleaning_interval) && commits.poisoned().is_none() {
            self.clean(&mut measured);
            self.remove_ended();
        }
    }

    fn clean(&self, measured: &mut BTreeMap<TopicId, String>) {
        let mut sums: BTreeMap<TopicId, Sums> = BTreeMap::new();
        let mut rolls = false;
        for partition in self.commits.partitions() {
            if self.pause.is_ended() {
                return;
            }
            let settings = partition.settings();
            rolls |= ends_segments(&settings);
            match self.look_at(&partition, &settings) {
                Ok((bytes, segments)) => {
                    let sum = sums.entry(partition.id.topic).or_default();
                    sum.bytes += bytes;
                    sum.segments += segments;
                }
                Err(error) => {
                    tracing::warn!(partition = %partition.id, %error, "a partition's segments could not be examined; its messages stay until they can be");
                }
            }
        }
        if rolls {
            self.commits.orders.ask(|orders| orders.roll = true);
        }
        self.measure(&sums, measured);
    }

    /// Trims what is no longer kept; returns the partition's bytes and segments.
    pub(crate) fn look_at(
        &self,
        partition: &Arc<Partition>,
        settings: &TopicSettings,
    ) -> io::Result<(u64, u64)> {
        let now = self.commits.clock.wall();
        let (segments, active_bytes) = {
            let files = partition.files.read();
            (files.sealed_segments(), files.active_bytes())
        };
        let mut facts: Vec<SegmentFacts> = Vec::with_capacity(segments.len());
        for segment in segments {
            match segment.facts(now) {
                Ok(found) => facts.push(found),
                // Trimmed meanwhile, or lost: in both cases it takes no space.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        if settings.compact {
            self.look_at_active(partition, settings)?;
            self.compact(partition, settings, &facts)?;
        }
        let start = retention::new_start(&facts, active_bytes, settings, now);
        if let Some(start) = start.filter(|&start| start > partition.start()) {
            self.trim(partition, start);
        }
        let bytes: u64 = facts.iter().map(|segment| segment.bytes).sum();
        let count = facts.len() as u64 + u64::from(active_bytes > 0);
        Ok((bytes + active_bytes, count))
    }

    /// Ends the active segment if it keeps tombstones from being removed.
    fn look_at_active(&self, partition: &Partition, settings: &TopicSettings) -> io::Result<()> {
        let mark = partition.files.read().mark();
        let mut strode = 0;
        let ends = partition.upkeep.lock().ends_active(
            &mark,
            settings.tombstone_ms,
            self.commits.clock.wall(),
            &mut |bytes| self.pace(&mut strode, bytes),
            &|from| partition.files.read().reader(from),
        );
        match ends {
            Ok(true) => partition.end_segment(mark.segment),
            Ok(false) | Err(CompactionError::Stopped) => {}
            Err(CompactionError::Io(error)) => return Err(error),
        }
        Ok(())
    }

    /// Makes one pass, if there is enough new data since the last one, or if tombstones are old.
    fn compact(
        &self,
        partition: &Arc<Partition>,
        settings: &TopicSettings,
        facts: &[SegmentFacts],
    ) -> io::Result<()> {
        let (segments, mark) = {
            let files = partition.files.read();
            (files.compactable_segments(), files.mark())
        };
        let clean = mark.clean;
        let until = segments.last().map_or(clean, |last| last.end);
        let sealed = facts.iter().filter(|segment| segment.end <= until);
        let dirty = sealed.clone().filter(|segment| segment.end > clean);
        let (total, dirty) = (sum_bytes(sealed), sum_bytes(dirty));
        let enough_came = dirty > 0 && dirty * 100 >= total * COMPACTION_DIRTY_PERCENT_MIN;
        let mut strode = 0;
        let mut pace = |bytes| self.pace(&mut strode, bytes);
        let (now, began_at) = (self.commits.clock.wall(), self.commits.clock.monotonic());
        let (start, tombstone_ms) = (mark.start, settings.tombstone_ms);
        let mut is_due = enough_came;
        if !is_due {
            let mut upkeep = partition.upkeep.lock();
            let times = (now, began_at);
            match upkeep.wants_pass(&segments, start, tombstone_ms, times, &mut pace) {
                Ok(wants) => is_due = wants,
                Err(CompactionError::Stopped) => {}
                Err(CompactionError::Io(error)) => return Err(error),
            }
        }
        if !is_due {
            return Ok(());
        }
        let compaction = Compaction {
            segments: &segments,
            start,
            clean,
            now,
            tombstone_ms,
            keys_max: COMPACTION_KEYS_MAX,
            pace: &mut pace,
            replace: &mut |rewritten| {
                let mut files = partition.files.write();
                // Before the files change.
                self.commits
                    .headroom
                    .release(partition.evict_before(rewritten.end()));
                files.replace(rewritten)
            },
        };
        match compaction.run() {
            Ok(passed) => {
                let ended_at = self.commits.clock.monotonic();
                let took = ended_at.saturating_sub(began_at);
                partition.upkeep.lock().note_pass(&passed, took, ended_at);
                self.note_passed(partition, clean, passed.clean);
            }
            Err(CompactionError::Stopped) => {}
            // It will be retried, and work that frees space must not wait for it.
            Err(CompactionError::Io(error)) if is_full(&error) => {
                tracing::info!(partition = %partition.id, "the disk is too full to compact a partition");
            }
            Err(CompactionError::Io(error)) => {
                // After a failed sync the content of the disk is unknown. Such an error is
                // recognised because it is not the system's own.
                if error.raw_os_error().is_none() && error.kind() == io::ErrorKind::Other {
                    self.commits.poison(&error.to_string());
                }
                return Err(error);
            }
        }
        Ok(())
    }

    fn note_passed(&self, partition: &Arc<Partition>, before: Offset, reached: Offset) {
        partition.files.write().set_clean(reached);
        metrics::counter!("millrace_compactions_total").increment(1);
        tracing::debug!(partition = %partition.id, from = %before, to = %reached, "a partition was compacted");
        if reached > before {
            self.checkpoints
                .compacted
                .lock()
                .push(Arc::clone(partition));
        }
    }

    /// Rests to keep within the allowed bytes per second; false if the thread should end.
    fn pace(&self, strode: &mut u64, bytes: u64) -> bool {
        *strode += bytes;
        if *strode < COMPACTION_STRIDE_BYTES {
            return !self.pause.is_ended();
        }
        let micros = *strode * 1_000_000 / COMPACTION_BYTES_PER_SECOND_MAX;
        *strode = 0;
        self.pause.wait(Duration::from_micros(micros))
    }

    fn trim(&self, partition: &Partition, before: Offset) {
        let Some(queue) = self.queue.upgrade() else {
            return;
        };
        let (answer, answered) = oneshot::channel();
        let request = Request::Trim {
            partition: partition.id,
            before,
            answer,
        };
        // If the request is not taken, the engine is ending, and there will be no answer.
        let _ = queue.blocking_send(request);
        drop(queue);
        match answered.blocking_recv() {
            Ok(Ok(start)) => {
                tracing::info!(partition = %partition.id, %start, "messages are no longer kept: the partition's start has moved");
            }
            // It is retried next time.
            Ok(Err(error)) => {
                tracing::warn!(partition = %partition.id, %error, "a partition could not be trimmed");
            }
            Err(_) => {}
        }
    }

    /// Updates the metrics of each topic, and removes those of deleted topics.
    fn measure(&self, sums: &BTreeMap<TopicId, Sums>, measured: &mut BTreeMap<TopicId, String>) {
        let names: BTreeMap<TopicId, String> = {
            let topics = self.commits.state.read().topics().into_iter();
            topics
                .map(|topic| (topic.id, topic.spec.name.to_string()))
                .collect()
        };
        let gone = std::mem::replace(measured, names.clone());
        let gone = gone
            .into_values()
            .filter(|name| !names.values().any(|known| known == name));
        gone.for_each(|name| stored(name).set(0.0));
        let mut segments = 0;
        for (topic, sum) in sums {
            segments += sum.segments;
            if let Some(name) = names.get(topic) {
                stored(name.clone()).set(sum.bytes as f64);
            }
        }
        metrics::gauge!("millrace_segments").set(segments as f64);
    }
}

fn sum_bytes<'a>(segments: impl Iterator<Item = &'a SegmentFacts>) -> u64 {
    segments.map(|segment| segment.bytes).sum()
}

fn stored(topic: String) -> metrics::Gauge {
    metrics::gauge!("millrace_stored_bytes", "topic" => topic)
}
