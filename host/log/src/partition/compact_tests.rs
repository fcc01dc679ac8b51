//! Tests compaction against a model, with random keyed messages, rolls, passes, restarts and power
//! cuts.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use fastrand::Rng;
use millrace_model::{BatchBuilder, Message, PartitionId, TopicId, TopicPartition};

use super::*;
use crate::cipher::Cipher;
use crate::disk::Disk;
use crate::partition::encryption::BatchCipher;
use crate::partition::{Files, Listing, Mark};
use crate::sim::SimDisk;

const NOW: Timestamp = Timestamp(1_000_000);
const PLACE: TopicPartition = TopicPartition {
    topic: TopicId(1),
    partition: PartitionId(0),
};
const TOPIC: &str = "/data/topics/1";
const NAMES: u32 = 12;
const KEYS: &str = "5:000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

/// The written messages, by offset: the key, and the value unless it is a tombstone.
type Written = BTreeMap<u64, (Option<String>, Option<String>)>;

struct Rig {
    disk: SimDisk,
    files: PartitionFiles,
    written: Written,
    random: Rng,
    /// The mark of the last checkpoint.
    mark: Mark,
    /// Whether batches are compressed, with various codecs, and encrypted.
    hidden: bool,
}

impl Rig {
    fn new(seed: u64) -> Self {
        let disk = SimDisk::default();
        let hidden = seed % 2 == 1;
        Self {
            files: open(&disk, Mark::default(), hidden),
            hidden,
            disk,
            written: Written::new(),
            random: Rng::with_seed(seed),
            mark: Mark::default(),
        }
    }

    fn append(&mut self, batches: usize) {
        for _ in 0..batches {
            let base = self.files.mark().end.0;
            let count = self.random.u64(1..5);
            let mut builder = BatchBuilder::with_capacity(0);
            for offset in base..base + count {
                let key =
                    (self.random.u8(..20) > 0).then(|| format!("key {}", self.random.u32(..NAMES)));
                let removes = key.is_some() && self.random.u8(..4) == 0;
                let value = (!removes)
                    .then(|| format!("{offset} {}", "v".repeat(self.random.usize(..200))));
                builder.push(&Message {
                    key: key.clone().map(Into::into),
                    value: value.clone().map(Into::into),
                    headers: Vec::new(),
                    // Some timestamps are old.
                    timestamp: Timestamp(NOW.0 - self.random.u64(..2_000)),
                });
                self.written.insert(offset, (key, value));
            }
            let codec = match self.hidden {
                true => Compression::ALL[self.random.usize(..Compression::ALL.len())],
                false => Compression::None,
            };
            let batch = builder.finish_with(codec).unwrap().at_offset(Offset(base));
            self.files.append(&[batch]).unwrap();
        }
        self.checkpoint();
    }

    fn checkpoint(&mut self) {
        self.files.take_unsynced().sync(&self.disk).unwrap();
        self.mark = self.files.mark();
        self.files.set_marked(self.mark);
    }

    fn compact(&mut self, keys_max: usize) -> Result<Offset, CompactionError> {
        let segments = self.files.compactable_segments();
        let Mark { clean, start, .. } = self.files.mark();
        let files = &mut self.files;
        let compaction = Compaction {
            segments: &segments,
            start,
            clean,
            now: Timestamp(NOW.0 + self.random.u64(..2_000)),
            tombstone_ms: 1_000,
            keys_max,
            pace: &mut |_| true,
            replace: &mut |rewritten| files.replace(rewritten),
        };
        compaction.run().map(|passed| passed.clean)
    }

    fn reopen(&mut self) {
        self.files = open(&self.disk, self.mark, self.hidden);
    }

    /// Messages by offset, as a reader gets them.
    fn found(&self) -> Written {
        let mut found = Written::new();
        let mut from = Offset(0);
        while let Some(reader) = self.files.reader(from) {
            for batch in reader.read(4_000).expect("no damage") {
                assert!(batch.end_offset() > from);
                assert_eq!(batch.stamp(), Some(millrace_model::Stamp::of(PLACE)));
                from = batch.end_offset();
                let batch = batch.inflated().unwrap();
                for record in messages(&batch) {
                    let message = record.to_message(batch.bytes()).unwrap();
                    let text = |bytes: bytes::Bytes| String::from_utf8(bytes.to_vec()).unwrap();
                    let message = (message.key.map(text), message.value.map(text));
                    found.insert(record.offset.0, message);
                }
            }
        }
        assert_eq!(from, self.mark.end, "every offset is accounted for");
        found
    }

    /// Checks that only superseded messages are missing, and that there are no others.
    fn check(&self, context: &str) {
        let found = self.found();
        for (offset, message) in &found {
            assert_eq!(self.written.get(offset), Some(message), "{context}");
        }
        let mut newest = BTreeMap::new();
        for (offset, (key, _)) in &self.written {
            newest.insert(key, *offset);
        }
        for (offset, (key, value)) in &self.written {
            if found.contains_key(offset) {
                continue;
            }
            assert!(key.is_some(), "{context}: {offset} has no key and is gone");
            let is_newest = newest[key] == *offset;
            assert!(
                !is_newest || value.is_none(),
                "{context}: {offset} is the latest of {key:?}"
            );
            if is_newest {
                // A removed tombstone must not leave messages that it deleted.
                let back = found.values().any(|(found, _)| found == key);
                assert!(!back, "{context}: {key:?} is back");
            }
        }
    }
}

fn open(disk: &SimDisk, mark: Mark, hidden: bool) -> PartitionFiles {
    let listing = Listing::read(disk, Path::new(TOPIC)).unwrap();
    let files: Files = listing.files(disk, 0).unwrap();
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    let files =
        PartitionFiles::open(disk, Arc::default(), files, Some(PLACE), 2_000, mark).unwrap();
    let place = PLACE;
    let cipher = || BatchCipher::new(Arc::new(Cipher::parse(KEYS).unwrap()), place);
    let mut files = files.encrypted_with(hidden.then(cipher));
    files.configure(NOW, 2_000, None);
    files
}

#[test]
fn of_each_key_the_latest_stays_and_nothing_but_what_is_superseded_goes() {
    for seed in 0..60 {
        let mut rig = Rig::new(seed);
        for round in 0..5 {
            let batches = rig.random.usize(1..40);
            rig.append(batches);
            // Sometimes there are more keys than fit into memory.
            let keys_max = rig.random.usize(3..30);
            let reached = rig.compact(keys_max).unwrap();
            assert!(reached >= rig.files.clean());
            rig.files.set_clean(reached);
            rig.check(&format!("seed {seed}, round {round}"));
            if rig.random.bool() {
                rig.checkpoint();
                rig.reopen();
                rig.check(&format!("seed {seed}, round {round}, opened again"));
            }
        }
    }
}

#[test]
fn superseded_messages_do_go_and_the_disk_gets_its_room_back() {
    let mut rig = Rig::new(2);
    rig.append(400);
    let before = rig.disk.used_bytes();
    let reached = rig.compact(1_000).unwrap();
    rig.files.set_clean(reached);
    rig.check("once");
    let sealed: Vec<u64> = rig
        .found()
        .into_keys()
        .filter(|&offset| offset < reached.0)
        .collect();
    let without_key = rig
        .written
        .range(..reached.0)
        .filter(|(_, (key, _))| key.is_none());
    assert!(sealed.len() <= NAMES as usize + without_key.count());
    assert!(
        rig.disk.used_bytes() < before / 2,
        "{} of {before}",
        rig.disk.used_bytes()
    );
}

#[test]
fn a_power_cut_at_any_step_leaves_every_segment_whole_and_the_next_pass_goes_on() {
    let mut finished = false;
    for step in 0.. {
        let mut rig = Rig::new(7);
        rig.append(40);
        rig.disk.cut_power_after(step);
        let made = rig.compact(1_000);
        finished = made.is_ok() && !rig.disk.is_off();
        rig.disk.cut_power();
        rig.disk.restore_power(step);
        rig.reopen();
        rig.check(&format!("cut after {step}"));
        let left: BTreeSet<String> = rig
            .disk
            .paths()
            .iter()
            .filter_map(|path| Some(path.extension()?.to_str()?.to_owned()))
            .collect();
        assert!(!left.contains("unfinished"), "cut after {step}: {left:?}");
        rig.compact(1_000).unwrap();
        rig.check(&format!("after the pass that follows a cut after {step}"));
        if finished {
            assert!(step > 20, "the cuts fell into the pass");
            break;
        }
    }
    assert!(finished);
}

#[test]
fn damage_is_still_damage_after_a_compaction_and_its_segment_is_left_alone() {
    let mut rig = Rig::new(3);
    rig.append(60);
    let reached = rig.compact(1_000).unwrap();
    let segment = &rig.files.compactable_segments()[1];
    let (path, base, end) = (segment.path(), segment.base, segment.end);
    let before = rig.disk.contents(&path).unwrap();
    rig.disk.flip_bit(&path, before.len() - 1, 3);
    rig.reopen();
    let mut from = base;
    let mut damaged = Vec::new();
    while from < end {
        match rig.files.reader(from).unwrap().read(1_000) {
            Ok(read) => from = read.last().unwrap().end_offset(),
            Err(crate::SegmentError::Damaged {
                from: first, to, ..
            }) => {
                damaged.push((first, to));
                from = to;
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(damaged.len(), 1, "{damaged:?}");
    assert_eq!(damaged[0].1, end);
    assert!(reached > end);
    rig.append(200);
    let rotten = rig.disk.contents(&path).unwrap();
    rig.compact(1_000).unwrap();
    assert_eq!(rig.disk.contents(&path).unwrap(), rotten);
}

#[test]
fn a_topic_that_is_deleted_in_the_middle_of_a_pass_is_no_failure_of_the_disk() {
    for steps in 0..60u32 {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("topics/1");
        let disk: Arc<dyn Disk> = Arc::new(crate::RealDisk);
        let location = crate::partition::Location::new(&dir, 0);
        let fresh = PartitionFiles::fresh(disk, Arc::default(), location, Some(PLACE), 300);
        let mut files = fresh;
        for base in 0..12 {
            let mut builder = BatchBuilder::with_capacity(0);
            builder.push(&Message {
                key: Some(vec![base as u8 % 3].into()),
                value: Some("value".into()),
                ..Message::default()
            });
            let batch = builder.finish().unwrap().at_offset(Offset(base));
            files.append(&[batch]).unwrap();
        }
        files.set_marked(files.mark());
        let segments = files.compactable_segments();
        // Before a read, or right after a segment's new file replaced the old one.
        let left = std::cell::Cell::new(steps);
        let go_on = || {
            if left.get() == 0 {
                std::fs::remove_dir_all(&dir).unwrap();
            }
            left.set(left.get().wrapping_sub(1));
        };
        let compaction = Compaction {
            segments: &segments,
            start: Offset(0),
            clean: Offset(0),
            now: NOW,
            tombstone_ms: 1_000,
            keys_max: 1_000,
            pace: &mut |_| {
                go_on();
                true
            },
            replace: &mut |rewritten| {
                let replaced = files.replace(rewritten);
                go_on();
                replaced
            },
        };
        if let Err(CompactionError::Io(error)) = compaction.run() {
            assert_eq!(error.kind(), io::ErrorKind::NotFound, "after {steps}");
        }
    }
}
