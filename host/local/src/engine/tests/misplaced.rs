//! Tests that messages in the wrong partition are never served there, and that none of them are
//! lost.

use std::fs;
use std::path::PathBuf;

use millrace_engine::{DamageKind, FoundBy, ReadError};
use millrace_log::Cipher;

use super::*;
use crate::start::examine::{Severity, examine};

const MESSAGES: u64 = 100;

fn value(topic: &str, number: u64) -> String {
    // Of equal length in both topics, so that their segments begin at the same offsets.
    format!("{topic} {number:03} {}", "v".repeat(100))
}

struct Filled {
    dir: tempfile::TempDir,
    options: LocalOptions,
    /// Partition 1 of both topics.
    partitions: [TopicPartition; 2],
}

const NAMES: [&str; 2] = ["orders", "ledger"];

impl Filled {
    async fn new(options: LocalOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let engine = open_real(dir.path(), options.clone()).await.unwrap();
        let mut partitions = Vec::new();
        for name in NAMES {
            let partition = at(&topic(&engine, name, Durability::Durable).await, 1);
            for number in 0..MESSAGES {
                let value = value(name, number);
                produce(&engine, partition, &value).await.unwrap();
            }
            partitions.push(partition);
        }
        engine.close().await;
        Self {
            dir,
            options,
            partitions: [partitions[0], partitions[1]],
        }
    }

    /// The files of sealed segments, and their first offsets.
    fn sealed(&self, which: usize) -> Vec<(PathBuf, u64)> {
        let partition = self.partitions[which];
        let dir = self.dir.path().join(format!("topics/{}", partition.topic));
        let entries = fs::read_dir(dir).unwrap();
        let mut all: Vec<(PathBuf, u64)> = entries
            .filter_map(|entry| {
                let path = entry.unwrap().path();
                let base = path.file_name()?.to_str()?.strip_prefix("1-")?;
                let base = base.strip_suffix(".segment")?.parse().ok()?;
                Some((path, base))
            })
            .collect();
        all.sort_by_key(|(_, base)| *base);
        all.pop();
        all
    }

    /// Swaps the second sealed segments of both topics; returns their offsets.
    fn swap(&self) -> (u64, u64) {
        let both = [self.sealed(0), self.sealed(1)];
        assert!(both[0].len() > 3, "{both:?}");
        let ((one, from), (other, same)) = (&both[0][1], &both[1][1]);
        assert_eq!(from, same);
        let aside = self.dir.path().join("aside");
        fs::rename(one, &aside).unwrap();
        fs::rename(other, one).unwrap();
        fs::rename(&aside, other).unwrap();
        (*from, both[0][2].1)
    }

    async fn open(&self) -> Arc<LocalEngine> {
        open_real(self.dir.path(), self.options.clone())
            .await
            .unwrap()
    }

    /// Reads a partition: the offsets of its messages, whose values must be the written ones, and
    /// the damage.
    async fn read(&self, engine: &LocalEngine, which: usize) -> (Vec<u64>, Vec<(u64, u64)>) {
        let partition = self.partitions[which];
        let end = engine.ends(partition).unwrap().end;
        let (mut from, mut sound, mut damaged) = (Offset(0), Vec::new(), Vec::new());
        while from < end {
            match engine.read(partition, from, 1_000).await {
                Ok(batches) => {
                    for batch in batches {
                        let number = batch.base_offset().0;
                        assert_eq!(values_of(&batch), [value(NAMES[which], number)]);
                        sound.push(number);
                        from = batch.end_offset();
                    }
                }
                Err(ReadError::Damaged {
                    from: first,
                    to,
                    kind,
                    ..
                }) => {
                    assert_eq!(kind, DamageKind::Misplaced);
                    damaged.push((first.0, to.0));
                    from = to;
                }
                Err(error) => panic!("{error}"),
            }
        }
        (sound, damaged)
    }

    async fn doctor(&self) -> Vec<(String, u64, u64)> {
        let dir = self.dir.path().to_owned();
        let report = tokio::task::spawn_blocking(move || examine(&dir, &mut |_| ()));
        let report = report.await.unwrap().unwrap();
        let damage = report.findings.into_iter();
        let damage = damage.filter(|finding| finding.severity == Severity::Damage);
        let named = damage.map(|finding| {
            assert!(finding.meaning.contains("another topic"), "{finding:?}");
            let offsets = finding.offsets.unwrap();
            (finding.topic.unwrap(), offsets.start.0, offsets.end.0)
        });
        named.collect()
    }
}

fn encrypted() -> LocalOptions {
    let key = format!("1:{}", "0123456789abcdef".repeat(4));
    LocalOptions {
        encryption: Some(Arc::new(Cipher::parse(&key).unwrap())),
        ..small()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn segments_swapped_between_topics_are_damage_in_both_until_they_are_put_back() {
    for options in [small(), encrypted()] {
        let filled = Filled::new(options).await;
        let (from, to) = filled.swap();
        {
            let mut found = filled.doctor().await;
            found.sort();
            let named = |topic: &str| (topic.to_owned(), from, to);
            assert_eq!(found, [named("ledger"), named("orders")]);
        }
        let engine = filled.open().await;
        let sound: Vec<u64> = (0..from).chain(to..MESSAGES).collect();
        for which in [0, 1] {
            let read = filled.read(&engine, which).await;
            assert_eq!(read, (sound.clone(), vec![(from, to)]));
        }
        engine.close().await;
        // Nothing was written or removed there.
        assert_eq!(filled.swap(), (from, to));
        assert_eq!(filled.doctor().await, []);
        let engine = filled.open().await;
        for which in [0, 1] {
            let (sound, damaged) = filled.read(&engine, which).await;
            assert_eq!(sound.len() as u64, MESSAGES);
            assert_eq!(damaged, []);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_with_swapped_topic_directories_removes_nothing_and_the_doctor_tells_before_and_after()
 {
    let filled = Filled::new(small()).await;
    // One of them is longer, so that the other's checkpoint does not know its last segments.
    let engine = filled.open().await;
    for number in MESSAGES..2 * MESSAGES {
        let value = value(NAMES[1], number);
        produce(&engine, filled.partitions[1], &value)
            .await
            .unwrap();
    }
    engine.close().await;
    let topics = filled.dir.path().join("topics");
    let [one, other] = filled.partitions.map(|p| topics.join(p.topic.to_string()));
    let aside = filled.dir.path().join("aside");
    for (from, to) in [(&one, &aside), (&other, &one), (&aside, &other)] {
        fs::rename(from, to).unwrap();
    }
    let segments = || {
        let files = [&one, &other].map(|dir| fs::read_dir(dir).unwrap());
        let paths = files
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().path());
        let segments = paths.filter(|path| path.to_str().unwrap().contains(".segment"));
        let mut segments: Vec<Vec<u8>> = segments.map(|path| fs::read(path).unwrap()).collect();
        segments.sort();
        segments
    };
    let before = segments();
    let meanings = async || {
        let dir = filled.dir.path().to_owned();
        let report = tokio::task::spawn_blocking(move || examine(&dir, &mut |_| ()));
        let findings = report.await.unwrap().unwrap().findings.into_iter();
        findings.map(|finding| finding.meaning).collect::<Vec<_>>()
    };
    let stands_here = "a segment that was written for another topic or partition stands here";
    assert!(
        meanings()
            .await
            .iter()
            .any(|meaning| meaning == stands_here)
    );
    let engine = filled.open().await;
    assert_eq!(filled.read(&engine, 0).await.0, Vec::<u64>::new());
    engine.close().await;
    let after = segments();
    assert!(before.iter().all(|bytes| after.contains(bytes)));
    let kept = "a start kept it under this name";
    assert!(
        meanings()
            .await
            .iter()
            .any(|meaning| meaning.contains(kept))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_scrubber_finds_a_segment_of_another_topic_and_says_so() {
    let filled = Filled::new(LocalOptions {
        scrub_bytes_per_second: 1 << 30,
        ..small()
    })
    .await;
    let (from, to) = filled.swap();
    let engine = filled.open().await;
    eventually(async || engine.damage().ranges.len() == 2).await;
    for range in engine.damage().ranges {
        assert!(filled.partitions.contains(&range.partition));
        assert_eq!((range.from.0, range.to.0), (from, to));
        assert_eq!(range.kind, DamageKind::Misplaced);
        assert_eq!(range.found_by, FoundBy::Scrub);
    }
}
