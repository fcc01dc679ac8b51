//! The cleaner's thread: looks now and then at what each partition holds, trims what its topic no longer keeps, compacts what it keeps
//! one of, has segments end that came to their age, and removes [what has ended](super::expiry) of state in files. Decides nothing itself: [`retention`] does, and trims are committed like
//! everything else.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use millrace_log::SegmentFacts;
use millrace_log::disk::is_full;
use millrace_log::partition::compact::{COMPACTION_KEYS_MAX, Compaction, CompactionError};
use millrace_model::{Offset, TopicId, TopicSettings};
use parking_lot::{Condvar, Mutex};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::committer::Request;
use super::retention;
use super::shared::{PoisonOnPanic, Shared};
use super::tail::Partition;

/// Bytes that compaction reads and writes in a second at the most, so that the disk is left to others.
const COMPACTION_BYTES_PER_SECOND_MAX: u64 = 64 << 20;
/// Bytes after which it rests as long as these should have taken.
const COMPACTION_STRIDE_BYTES: u64 = 1 << 20;
/// A partition is compacted when so much of it, in percent, came since the last time: the whole of it is read and written for that.
const COMPACTION_DIRTY_PERCENT_MIN: u64 = 50;

/// How the cleaner is told to end, wherever it is.
#[derive(Default)]
pub(super) struct Pause {
    ended: Mutex<bool>,
    changed: Condvar,
}

impl Pause {
    /// Ends the pause and all later ones.
    pub(super) fn end(&self) {
        *self.ended.lock() = true;
        self.changed.notify_all();
    }

    /// Waits so long; false if it is the end.
    pub(super) fn wait(&self, duration: Duration) -> bool {
        let mut ended = self.ended.lock();
        if !*ended {
            self.changed.wait_for(&mut ended, duration);
        }
        !*ended
    }

    pub(super) fn is_ended(&self) -> bool {
        *self.ended.lock()
    }
}

pub(super) struct Cleaner {
    pub(super) shared: Arc<Shared>,
    pub(super) queue: mpsc::WeakSender<Request>,
    /// Room in the queue.
    pub(super) room: Arc<Semaphore>,
    pub(super) pause: Arc<Pause>,
}

/// What the segments of a topic come to.
#[derive(Default)]
struct Sums {
    bytes: u64,
    segments: u64,
}

impl Cleaner {
    pub(super) fn new(
        shared: Arc<Shared>,
        queue: mpsc::WeakSender<Request>,
        room: Arc<Semaphore>,
        pause: Arc<Pause>,
    ) -> Self {
        Self {
            shared,
            queue,
            room,
            pause,
        }
    }

    /// Works until told to end.
    pub(super) fn run(self) {
        let shared = Arc::clone(&self.shared);
        let _poison = PoisonOnPanic(&shared);
        let mut measured = BTreeMap::new();
        while self.pause.wait(shared.options.cleaning_interval) && shared.poisoned().is_none() {
            self.clean(&mut measured);
            self.remove_ended();
        }
    }

    fn clean(&self, measured: &mut BTreeMap<TopicId, String>) {
        let mut sums: BTreeMap<TopicId, Sums> = BTreeMap::new();
        let mut rolls = false;
        for partition in self.shared.partitions() {
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
            self.shared.orders.ask(|orders| orders.roll = true);
        }
        self.measure(&sums, measured);
    }

    /// Trims what is no longer kept; the bytes and segments that the partition has.
    pub(super) fn look_at(
        &self,
        partition: &Arc<Partition>,
        settings: &TopicSettings,
    ) -> io::Result<(u64, u64)> {
        let now = self.shared.clock.wall();
        let (segments, active_bytes) = {
            let files = partition.files.read();
            (files.sealed_segments(), files.active_bytes())
        };
        let mut facts: Vec<SegmentFacts> = Vec::with_capacity(segments.len());
        for segment in segments {
            match segment.facts(now) {
                Ok(found) => facts.push(found),
                // Trimmed meanwhile, or lost: whatever it is, it takes no room.
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

    /// Has the active segment end if it keeps tombstones from growing old.
    fn look_at_active(&self, partition: &Partition, settings: &TopicSettings) -> io::Result<()> {
        let mark = partition.files.read().mark();
        let mut strode = 0;
        let ends = partition.upkeep.lock().ends_active(
            &mark,
            settings.tombstone_ms,
            self.shared.clock.wall(),
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

    /// One pass, if enough came since the last one, or if tombstones are old.
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
        let (now, began_at) = (self.shared.clock.wall(), self.shared.clock.monotonic());
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
                // Before the files say otherwise.
                self.shared.release(partition.evict_before(rewritten.end()));
                files.replace(rewritten)
            },
        };
        match compaction.run() {
            Ok(passed) => {
                let ended_at = self.shared.clock.monotonic();
                let took = ended_at.saturating_sub(began_at);
                partition.upkeep.lock().note_pass(&passed, took, ended_at);
                self.note_passed(partition, clean, passed.clean);
            }
            Err(CompactionError::Stopped) => {}
            // It comes again, and what makes room is not to wait for it.
            Err(CompactionError::Io(error)) if is_full(&error) => {
                tracing::info!(partition = %partition.id, "the disk is too full to compact a partition");
            }
            Err(CompactionError::Io(error)) => {
                // What a failed sync left on the disk nobody knows; it is told from others by not being the system's own.
                if error.raw_os_error().is_none() && error.kind() == io::ErrorKind::Other {
                    self.shared.poison(&error.to_string());
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
            self.shared.compacted.lock().push(Arc::clone(partition));
        }
    }

    /// Rests, so that no more is read and written in a second than may be; false if it is the end.
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
        // Where nobody takes it the engine ends, and so does the answer.
        let _ = queue.blocking_send(request);
        drop(queue);
        match answered.blocking_recv() {
            Ok(Ok(start)) => {
                tracing::info!(partition = %partition.id, %start, "messages are no longer kept: the partition's start has moved");
            }
            // It is tried again the next time.
            Ok(Err(error)) => {
                tracing::warn!(partition = %partition.id, %error, "a partition could not be trimmed");
            }
            Err(_) => {}
        }
    }

    /// Shows what each topic holds; nothing of those that are gone.
    fn measure(&self, sums: &BTreeMap<TopicId, Sums>, measured: &mut BTreeMap<TopicId, String>) {
        let names: BTreeMap<TopicId, String> = {
            let topics = self.shared.state.read().topics().into_iter();
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

/// Whether segments of a topic with these settings may end though they are not full.
pub(super) fn ends_segments(settings: &TopicSettings) -> bool {
    settings.segment_ms.is_some() || settings.retention_ms.is_some() || settings.compact
}

fn sum_bytes<'a>(segments: impl Iterator<Item = &'a SegmentFacts>) -> u64 {
    segments.map(|segment| segment.bytes).sum()
}

fn stored(topic: String) -> metrics::Gauge {
    metrics::gauge!("millrace_stored_bytes", "topic" => topic)
}
