//! The rule by which a partition is compacted: of all messages with one key, only the latest is kept. Engines whose messages are in rows or
//! pieces share it; how these are read and written is their own.
//!
//! A pass first notes where the latest message of each key is, for as many keys as memory allows. Then it goes through everything, oldest
//! first, and thins what has superseded messages. Offsets never change: what is removed leaves gaps.
//!
//! **A tombstone** (a message without a value) is removed last: when it is old enough, and when the same pass has seen that nothing older
//! with its key is left. Its age counts from its commit, which a producer cannot influence.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use millrace_model::batch::{RecordView, Thinned};
use millrace_model::{Compression, Offset, RecordBatch, Timestamp};

use crate::contract::ReadError;

/// Keys whose latest message one pass remembers, about 64 MiB. More are left for the next pass.
pub const KEYS_MAX: usize = 1 << 20;
/// A partition is compacted when this percentage of it is newer than the last pass, because a pass reads all of it.
pub const DIRTY_PERCENT_MIN: u64 = 50;

/// Messages that are stored together.
#[derive(Debug)]
pub struct Run {
    /// The first offset.
    pub base: Offset,
    /// The offset after it.
    pub next: Offset,
    /// When it was committed.
    pub at: Timestamp,
    /// What is in it, at its offsets.
    pub batches: Result<Vec<RecordBatch>, ReadError>,
}

/// The positions of keys' latest messages. The hash has a random key, so that nobody can choose keys that collide.
#[derive(Debug)]
pub struct Latest {
    hashers: [RandomState; 2],
    offsets: HashMap<[u64; 2], Offset>,
}

/// What is left of a run.
#[derive(Debug)]
pub enum Left {
    /// It stays as it is.
    All,
    /// This.
    Some(Rewritten),
    /// Its offsets are a gap from now on.
    Nothing,
}

/// What is left of a run. It reaches as far as before.
#[derive(Debug)]
pub struct Rewritten {
    /// The offset after it.
    pub next: Offset,
    /// Messages in it.
    pub messages: u64,
    /// The latest time of a message.
    pub latest: Timestamp,
    /// The batches, at their offsets.
    pub batches: Vec<RecordBatch>,
}

impl Default for Latest {
    fn default() -> Self {
        Self {
            hashers: [RandomState::new(), RandomState::new()],
            offsets: HashMap::new(),
        }
    }
}

impl Latest {
    fn hash(&self, key: &[u8]) -> [u64; 2] {
        [0, 1].map(|at| self.hashers[at].hash_one(key))
    }

    /// Notes messages from `clean` on. Returns the offset of the first batch for which there was no room; a pass always has room for one.
    pub fn note(&mut self, runs: &[Run], clean: Offset, mut is_first: bool) -> Option<Offset> {
        for batch in readable(runs.iter()) {
            if !is_first && self.offsets.len() + batch.message_count() > KEYS_MAX {
                return Some(batch.base_offset());
            }
            is_first = false;
            for record in messages(&batch).filter(|record| record.offset >= clean) {
                if let Some(key) = record.key {
                    let hash = self.hash(&batch.bytes()[key]);
                    self.offsets.insert(hash, record.offset);
                }
            }
        }
        None
    }

    /// Notes the tombstones before `clean` that were committed before a time. Returns whether there is no more room.
    pub fn note_old_tombstones(
        &mut self,
        runs: &[Run],
        clean: Offset,
        old_before: Timestamp,
    ) -> bool {
        let old = runs.iter().filter(|run| run.at <= old_before);
        for batch in readable(old) {
            for record in messages(&batch).filter(|record| record.offset < clean) {
                if let (Some(key), None) = (record.key, record.value) {
                    let hash = self.hash(&batch.bytes()[key]);
                    self.offsets.insert(hash, record.offset);
                }
            }
            if self.offsets.len() >= KEYS_MAX / 2 {
                return true;
            }
        }
        false
    }
}

/// The batches with messages, as they were before they were compressed.
fn readable<'a>(runs: impl Iterator<Item = &'a Run>) -> impl Iterator<Item = RecordBatch> {
    let batches = runs.flat_map(|run| run.batches.iter().flatten());
    let produced = batches.filter(|batch| !batch.is_control());
    produced.filter_map(|batch| batch.inflated().ok())
}

fn messages(batch: &RecordBatch) -> impl Iterator<Item = RecordView> {
    let records = batch.records().ok();
    records.into_iter().flatten().map_while(Result::ok)
}

/// The rule by which messages go, and what has been seen on the way.
#[derive(Debug)]
pub struct Thinning {
    latest: Latest,
    end: Offset,
    clean: Offset,
    old_before: Timestamp,
    /// Whether something could not be read, so that tombstones after it stay: it may have what they deleted.
    is_held: bool,
    /// The commit of the oldest tombstone that stays.
    left_at: Option<Timestamp>,
}

impl Thinning {
    /// Goes through runs that end at `end`. Latest messages are known up to `clean`; tombstones that were committed before a time are old.
    #[must_use]
    pub fn new(latest: Latest, end: Offset, clean: Offset, old_before: Timestamp) -> Self {
        Self {
            latest,
            end,
            clean,
            old_before,
            is_held: false,
            left_at: None,
        }
    }

    /// The commit of the oldest tombstone that stayed. What could not be read is to be tried again later, as if it had one of now.
    #[must_use]
    pub fn tombstones_at(&self, now: Timestamp) -> Option<Timestamp> {
        self.is_held.then_some(now).or(self.left_at)
    }

    /// What is left of the next run.
    pub fn thin(&mut self, run: &Run) -> Left {
        let thinned = run.batches.as_ref().ok().and_then(|batches| {
            let keeps_tombstones = self.is_held || run.at > self.old_before;
            self.thin_batches(batches, run, keeps_tombstones)
        });
        match thinned {
            Some((left, has_tombstones)) => {
                if has_tombstones {
                    self.left_at = Some(self.left_at.map_or(run.at, |at| at.min(run.at)));
                }
                left
            }
            None => {
                self.is_held = true;
                Left::All
            }
        }
    }

    /// What is left of a run, and whether that has tombstones; `None` if it cannot be read.
    fn thin_batches(
        &self,
        batches: &[RecordBatch],
        run: &Run,
        keeps_tombstones: bool,
    ) -> Option<(Left, bool)> {
        let (mut left, mut changes, mut has_tombstones) = (Vec::new(), false, false);
        for batch in batches {
            if batch.is_control() {
                // A placeholder is needed while it is the last.
                match batch.is_gap() && run.next < self.end {
                    true => changes = true,
                    false => left.push(batch.clone()),
                }
                continue;
            }
            let plain = batch.inflated().ok()?;
            let thinned = plain.thinned(|record| {
                let stays = self.keeps(&plain, record, keeps_tombstones);
                has_tombstones |= stays && record.key.is_some() && record.value.is_none();
                stays
            });
            match thinned.ok()? {
                Thinned::Whole => left.push(batch.clone()),
                Thinned::Nothing => changes = true,
                Thinned::Part(part) => {
                    changes = true;
                    let codec = Compression::from_code(batch.codec()).unwrap_or_default();
                    left.push(part.deflated(codec));
                }
            }
        }
        let left = match (changes, left.is_empty()) {
            (false, _) => Left::All,
            (true, true) if run.next < self.end => Left::Nothing,
            // A reader before the end of a partition must find something.
            (true, true) => self.rewritten(run, vec![RecordBatch::gap(run.base, run.next)]),
            (true, false) => self.rewritten(run, left),
        };
        Some((left, has_tombstones))
    }

    fn keeps(&self, batch: &RecordBatch, record: &RecordView, keeps_tombstones: bool) -> bool {
        let Some(key) = record.key.clone().filter(|_| record.offset < self.clean) else {
            return true;
        };
        let newest = self
            .latest
            .offsets
            .get(&self.latest.hash(&batch.bytes()[key]));
        match newest {
            Some(&newest) if record.offset < newest => false,
            // Everything before it was visited, and nothing with its key was left.
            Some(&newest) if record.offset == newest => keeps_tombstones || record.value.is_some(),
            _ => true,
        }
    }

    /// The run reaches as far as before, so that whoever reads from within finds something in it.
    fn rewritten(&self, run: &Run, mut batches: Vec<RecordBatch>) -> Left {
        if let Some(last) = batches.last_mut() {
            *last = last.reaching(run.next);
        }
        let produced = || batches.iter().filter(|batch| !batch.is_control());
        let messages: usize = produced().map(RecordBatch::message_count).sum();
        let latest = produced().map(RecordBatch::max_timestamp).max();
        Left::Some(Rewritten {
            next: run.next,
            messages: messages as u64,
            latest: latest.unwrap_or_default(),
            batches,
        })
    }
}
