//! A deleted key stays deleted: random lives of a compacted partition on a simulated disk, compared
//! with a plain map.
//!
//! A life is a random sequence of batches, flushes, checkpoints, passes that end or are broken off,
//! restarts, power cuts at any operation, damage and losses that are repaired later, encryption
//! keys that are missing for a while, trims, and time that passes; producers put any timestamp on
//! their messages. After each life, once everything can be read again, the last message of each key
//! is the one that was written last, or none if that was a tombstone; each removed tombstone was
//! kept for its time; and once nothing more is written, all tombstones are removed.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fastrand::Rng;
use millrace_log::cipher::Cipher;
use millrace_log::partition::Listing;
use millrace_log::partition::compact::{Compaction, CompactionError};
use millrace_log::partition::encryption::BatchCipher;
use millrace_log::partition::upkeep::Upkeep;
use millrace_log::sim::SimDisk;
use millrace_log::{Disk, Mark, PartitionFiles};
use millrace_model::{
    BatchBuilder, Message, Offset, PartitionId, RecordBatch, Timestamp, TopicId, TopicPartition,
};

/// Default number of lives.
const LIVES: u64 = 100_000;
const LIVES_VARIABLE: &str = "MILLRACE_DELETED_KEYS_LIVES";
const THREADS: u64 = 2;
const STEPS_MAX: u32 = 36;
const KEYS: u8 = 3;
const SEGMENT_BYTES: u64 = 320;
const TOMBSTONE_MS: u64 = 1_000;
const BEGINNING: u64 = 1_700_000_000_000;
const TOPIC: &str = "/data/topics/1";
const PLACE: TopicPartition = TopicPartition {
    topic: TopicId(1),
    partition: PartitionId(0),
};
const CIPHER: &str = "5:000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

/// What was acknowledged, by offset.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Written {
    key: u8,
    value: Option<Vec<u8>>,
    /// The host's clock when readers were shown it.
    at: u64,
}

struct Life {
    random: Rng,
    disk: SimDisk,
    files: PartitionFiles,
    upkeep: Upkeep,
    /// The partition's mark in the last checkpoint.
    mark: Mark,
    /// Batches by their first offset; the journal has those that are not in files yet.
    journal: BTreeMap<u64, RecordBatch>,
    written: Vec<Written>,
    start: u64,
    now: u64,
    /// The original contents of damaged or lost files.
    hurt: BTreeMap<PathBuf, Vec<u8>>,
    is_encrypted: bool,
    has_key: bool,
    steps: Vec<String>,
}

impl Life {
    fn new(seed: u64) -> Self {
        let disk = SimDisk::default();
        let is_encrypted = seed % 16 == 7;
        Self {
            random: Rng::with_seed(seed),
            files: open(&disk, Mark::default(), is_encrypted),
            disk,
            upkeep: Upkeep::default(),
            mark: Mark::default(),
            journal: BTreeMap::new(),
            written: Vec::new(),
            start: 0,
            now: BEGINNING,
            hurt: BTreeMap::new(),
            is_encrypted,
            has_key: true,
            steps: Vec::new(),
        }
    }

    fn live(&mut self) {
        for _ in 0..self.random.u32(4..STEPS_MAX) {
            self.step();
        }
        self.heal();
        self.check();
        self.rest();
    }

    fn step(&mut self) {
        let step = self.random.u8(..100);
        let before = self.written.len();
        match step {
            0..30 => self.produce(),
            30..38 => self.flush(),
            38..53 => self.checkpoint(),
            53..63 => self.now += self.random.u64(..TOMBSTONE_MS * 2),
            63..75 => self.look(),
            75..83 => self.pass_now(),
            83..87 => self.cut_power(),
            87..90 => self.restart(),
            90..92 => self.trim(),
            92..94 => self.drop_segment(),
            94..98 => self.hurt(),
            _ if self.is_encrypted => {
                self.has_key = !self.has_key;
                self.restart();
            }
            _ => self.heal(),
        }
        let made: Vec<_> = self.written[before..]
            .iter()
            .map(|w| (w.key, w.value.is_some()))
            .collect();
        self.steps
            .push(format!("{step} {made:?} at {}", self.now - BEGINNING));
    }

    fn produce(&mut self) {
        for _ in 0..self.random.u32(1..4) {
            let base = self.written.len() as u64;
            let mut builder = BatchBuilder::with_capacity(0);
            for _ in 0..self.random.u32(1..3) {
                let key = self.random.u8(..KEYS);
                let value = self
                    .random
                    .bool()
                    .then(|| vec![b'v'; self.random.usize(..3)]);
                let claimed = match self.random.u8(..4) {
                    0 => 0,
                    1 => 1,
                    2 => self.now * 1_000,
                    _ => self.now,
                };
                builder.push(&Message {
                    key: Some(vec![key].into()),
                    value: value.clone().map(Into::into),
                    headers: Vec::new(),
                    timestamp: Timestamp(claimed),
                });
                self.written.push(Written {
                    key,
                    value,
                    at: self.now,
                });
            }
            let batch = builder.finish().expect("a message").at_offset(Offset(base));
            self.journal.insert(base, batch);
        }
    }

    /// Writes what is in memory to the files.
    fn flush(&mut self) {
        self.files
            .configure(Timestamp(self.now), SEGMENT_BYTES, None);
        let from = self.files.mark().end.0;
        let batches: Vec<RecordBatch> = self
            .journal
            .range(from..)
            .map(|(_, batch)| batch.clone())
            .collect();
        self.files.append(&batches).expect("no fault");
    }

    fn checkpoint(&mut self) {
        self.flush();
        self.files
            .advance_start(Offset(self.start))
            .expect("no fault");
        self.files
            .take_unsynced()
            .sync(&self.disk)
            .expect("no fault");
        self.mark = self.files.mark();
        self.files.set_marked(self.mark);
        self.files.take_below_start().remove().expect("no fault");
    }

    /// Does what the cleaner does at each look.
    fn look(&mut self) {
        self.files
            .configure(Timestamp(self.now), SEGMENT_BYTES, None);
        let mark = self.files.mark();
        let (now, elapsed) = (Timestamp(self.now), self.elapsed());
        let reader = |from| self.files.reader(from);
        let ends = self
            .upkeep
            .ends_active(&mark, TOMBSTONE_MS, now, &mut |_| true, &reader);
        if ends.unwrap_or(false) {
            self.files.roll().expect("no fault");
        }
        let segments = self.files.compactable_segments();
        let times = (now, elapsed);
        let wants = self
            .upkeep
            .wants_pass(&segments, mark.start, TOMBSTONE_MS, times, &mut |_| true);
        if wants.expect("no fault") {
            self.pass(1_000, u64::MAX).expect("no fault");
        }
    }

    fn elapsed(&self) -> Duration {
        Duration::from_millis(self.now - BEGINNING)
    }

    fn pass_now(&mut self) {
        let keys_max = self.random.usize(1..6);
        let steps = match self.random.bool() {
            true => u64::MAX,
            false => self.random.u64(..20),
        };
        match self.pass(keys_max, steps) {
            Ok(()) | Err(CompactionError::Stopped) => {}
            Err(error) => panic!("{error}"),
        }
    }

    fn pass(&mut self, keys_max: usize, mut steps: u64) -> Result<(), CompactionError> {
        let segments = self.files.compactable_segments();
        let Mark { start, clean, .. } = self.files.mark();
        let files = &mut self.files;
        let compaction = Compaction {
            segments: &segments,
            start,
            clean,
            now: Timestamp(self.now),
            tombstone_ms: TOMBSTONE_MS,
            keys_max,
            pace: &mut |_| {
                steps = steps.saturating_sub(1);
                steps > 0
            },
            replace: &mut |rewritten| files.replace(rewritten),
        };
        let passed = compaction.run()?;
        self.files.set_clean(passed.clean);
        self.upkeep
            .note_pass(&passed, Duration::ZERO, self.elapsed());
        Ok(())
    }

    /// Cuts the power somewhere in a pass, in a checkpoint, or between them.
    fn cut_power(&mut self) {
        self.disk.cut_power_after(self.random.u64(..40));
        let _ = match self.random.bool() {
            true => self.pass(1_000, u64::MAX).is_ok(),
            false => self.files.take_unsynced().sync(&self.disk).is_ok(),
        };
        self.disk.cut_power();
        self.disk.restore_power(self.random.u64(..));
        self.reopen();
    }

    fn restart(&mut self) {
        self.reopen();
    }

    /// Opens the partition from the checkpoint; the journal has the rest.
    fn reopen(&mut self) {
        self.files = open(&self.disk, self.mark, self.is_encrypted && self.has_key);
        self.upkeep = Upkeep::default();
        self.flush();
    }

    fn trim(&mut self) {
        let most = self.written.len() as u64;
        self.start = self.start.max(self.random.u64(..=most));
    }

    fn drop_segment(&mut self) {
        if let Some(first) = self.files.sealed_segments().first() {
            self.start = self.start.max(first.end.0);
        }
    }

    /// Damages or removes a segment, which may or may not be noticed.
    fn hurt(&mut self) {
        // Only segments that the checkpoint knows: a start would write later ones again.
        let mut sealed = self.disk.paths();
        sealed.retain(|path| base_of(path).is_some_and(|base| base < self.mark.segment.0));
        if sealed.is_empty() {
            return;
        }
        let path = sealed[self.random.usize(..sealed.len())].clone();
        let whole = self.disk.contents(&path).expect("a file");
        if whole.is_empty() || self.hurt.contains_key(&path) {
            return;
        }
        match self.random.bool() {
            true => {
                self.disk
                    .flip_bit(&path, self.random.usize(..whole.len()), self.random.u8(..8))
            }
            false => self.lose(&path),
        }
        self.hurt.insert(path, whole);
        // A mapped file would not show the change.
        if self.random.bool() {
            self.restart();
        }
    }

    /// Removes a file durably, so that a power cut does not bring it back.
    fn lose(&self, path: &Path) {
        self.disk.remove(path).expect("no fault");
        self.disk.sync_dir(Path::new(TOPIC)).expect("no fault");
    }

    /// Restores all damaged and lost files.
    fn heal(&mut self) {
        for (path, whole) in std::mem::take(&mut self.hurt) {
            self.disk.plant(&path, &whole);
        }
        self.has_key = true;
        self.restart();
    }

    /// The messages that a reader finds, by offset.
    fn found(&self) -> BTreeMap<u64, Written> {
        let mut found = BTreeMap::new();
        let mut from = Offset(self.start);
        while let Some(reader) = self.files.reader(from) {
            let batches = reader.read(1 << 20);
            for batch in batches.unwrap_or_else(|error| panic!("{error}: {:#?}", self.steps)) {
                from = batch.end_offset();
                if batch.is_control() {
                    continue;
                }
                for record in batch.records().expect("records") {
                    let record = record.expect("a record");
                    let message = record.to_message(batch.bytes()).expect("a message");
                    let written = Written {
                        key: message.key.expect("a key")[0],
                        value: message.value.map(|value| value.to_vec()),
                        at: self.written[record.offset.0 as usize].at,
                    };
                    found.insert(record.offset.0, written);
                }
            }
        }
        assert!(
            from.0 >= self.written.len() as u64,
            "every offset is accounted for"
        );
        found.retain(|offset, _| *offset >= self.start);
        found
    }

    fn check(&self) -> BTreeMap<u64, Written> {
        let found = self.found();
        for (offset, message) in &found {
            assert_eq!(
                self.written[*offset as usize], *message,
                "{:#?}",
                self.steps
            );
        }
        for key in 0..KEYS {
            let of_key = |(_, written): &(usize, &Written)| written.key == key;
            let Some((offset, latest)) = self.written.iter().enumerate().rfind(of_key) else {
                continue;
            };
            if (offset as u64) < self.start {
                continue;
            }
            let seen = found.iter().rfind(|(_, written)| written.key == key);
            match seen {
                Some((seen, _)) => {
                    assert_eq!(*seen, offset as u64, "key {key} is back: {:#?}", self.steps)
                }
                None => {
                    assert!(
                        latest.value.is_none(),
                        "key {key} is lost: {:#?}",
                        self.steps
                    );
                    let age = self.now - latest.at;
                    assert!(
                        age > TOMBSTONE_MS,
                        "key {key}: after {age} ms: {:#?}",
                        self.steps
                    );
                }
            }
        }
        found
    }

    /// Lets time pass without writes, while the cleaner looks now and then.
    fn rest(&mut self) {
        for _ in 0..2 {
            self.now += TOMBSTONE_MS + 1;
            for _ in 0..2 {
                self.look();
                self.checkpoint();
            }
        }
        self.look();
        let found = self.check();
        let left: Vec<_> = found
            .iter()
            .filter(|(_, written)| written.value.is_none())
            .collect();
        assert!(left.is_empty(), "{left:?} stay for ever: {:#?}", self.steps);
    }
}

/// The first offset of a segment; `None` of other files.
fn base_of(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?.strip_suffix(".segment")?;
    name.split_once('-')?.1.parse().ok()
}

fn open(disk: &SimDisk, mark: Mark, has_key: bool) -> PartitionFiles {
    let listing = Listing::read(disk, Path::new(TOPIC)).expect("no fault");
    let files = listing.files(disk, 0).expect("no fault");
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    let opened = PartitionFiles::open(
        disk,
        Arc::default(),
        files,
        Some(PLACE),
        SEGMENT_BYTES,
        mark,
    );
    let cipher = || BatchCipher::new(Arc::new(Cipher::parse(CIPHER).expect("a key")), PLACE);
    opened
        .expect("no fault")
        .encrypted_with(has_key.then(cipher))
}

#[test]
fn a_deleted_key_stays_deleted_after_any_life_and_no_tombstone_stays_for_ever() {
    let asked = std::env::var(LIVES_VARIABLE).ok();
    let lives = asked.and_then(|asked| asked.parse().ok()).unwrap_or(LIVES);
    let began_at = std::time::Instant::now();
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= lives {
                        break;
                    }
                    let lived = std::panic::catch_unwind(|| Life::new(seed).live());
                    if let Err(panicked) = lived {
                        next.store(lives, Ordering::Relaxed);
                        eprintln!("in the life of seed {seed}");
                        std::panic::resume_unwind(panicked);
                    }
                }
            });
        }
    });
    let seconds = began_at.elapsed().as_secs();
    // Written so that it is shown also for tests that pass.
    let _ = writeln!(
        std::io::stderr(),
        "{lives} lives of a compacted partition, {seconds} s"
    );
}
