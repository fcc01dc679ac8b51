//! Tests that damage is found, reported exactly and remembered, and affects nothing else.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use millrace_engine::{DamageKind, DamageReport, FoundBy, ReadError};

use super::*;

const VALUE_BYTES: usize = 100;

/// Options with this rate of the background search; 0 turns it off.
fn scrubbing(bytes_per_second: u64) -> LocalOptions {
    LocalOptions {
        scrub_bytes_per_second: bytes_per_second,
        ..small()
    }
}

/// A closed directory with 100 messages in several segments of `orders/1`.
async fn filled() -> (tempfile::TempDir, TopicPartition) {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_real(dir.path(), small()).await.unwrap();
    let orders = at(&topic(&engine, "orders", Durability::Durable).await, 1);
    for number in 0..100 {
        let value = format!("{number:03} {}", "v".repeat(VALUE_BYTES));
        produce(&engine, orders, &value).await.unwrap();
    }
    engine.close().await;
    (dir, orders)
}

/// The file of a message, and its position in it.
fn place_of(dir: &Path, number: u64) -> (PathBuf, usize) {
    let text = format!("{number:03} vvvv");
    let mut open = vec![dir.join("topics")];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
            continue;
        }
        let bytes = fs::read(&path).unwrap();
        let found = bytes.windows(text.len()).position(|w| w == text.as_bytes());
        if let Some(at) = found {
            return (path, at);
        }
    }
    panic!("message {number} is in no file");
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

fn ranges(report: &DamageReport) -> Vec<(u64, u64)> {
    let ranges = report.ranges.iter();
    ranges.map(|range| (range.from.0, range.to.0)).collect()
}

fn rounds_ended(engine: &LocalEngine) -> bool {
    let scrub = engine.damage().scrub.unwrap();
    scrub.round_finished_at.is_some()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_that_a_reader_meets_is_recorded_exactly_and_outlives_the_process() {
    let (dir, orders) = filled().await;
    let (path, place) = place_of(dir.path(), 40);
    flip(&path, place);
    let engine = open_real(dir.path(), scrubbing(0)).await.unwrap();
    assert_eq!(engine.damage().ranges, []);
    for _ in 0..3 {
        let read = engine.read(orders, Offset(40), 1).await;
        let damaged = ReadError::Damaged {
            partition: orders,
            from: Offset(40),
            to: Offset(41),
            kind: DamageKind::Changed,
        };
        assert_eq!(read.unwrap_err().to_string(), damaged.to_string());
    }
    eventually(async || {
        let ranges = engine.damage().ranges;
        ranges.first().is_some_and(|range| range.bytes.is_some())
    })
    .await;
    let report = engine.damage();
    assert_eq!(ranges(&report), [(40, 41)]);
    let range = &report.ranges[0];
    assert_eq!(dir.path().join(&range.file), path);
    assert!(range.bytes.as_ref().unwrap().contains(&(place as u64)));
    assert_eq!((range.found_by, range.accepted_at), (FoundBy::Read, None));
    assert!(engine.read(orders, Offset(39), 1).await.is_ok());
    assert!(engine.read(orders, Offset(41), 1).await.is_ok());
    engine.close().await;
    let again = open_real(dir.path(), scrubbing(0)).await.unwrap();
    assert_eq!(again.damage().ranges, report.ranges);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_scrub_finds_what_nobody_reads_and_notices_when_it_is_mended() {
    let (dir, orders) = filled().await;
    let (path, place) = place_of(dir.path(), 7);
    let (last, of_last) = place_of(dir.path(), 99);
    flip(&path, place);
    flip(&last, of_last);
    let engine = open_real(dir.path(), scrubbing(u64::MAX)).await.unwrap();
    eventually(async || rounds_ended(&engine)).await;
    let report = engine.damage();
    assert_eq!(ranges(&report), [(7, 8), (99, 100)]);
    assert_eq!(report.ranges[0].found_by, FoundBy::Scrub);
    assert!(report.scrub.unwrap().bytes > 100 * VALUE_BYTES as u64);
    engine.close().await;
    // The right bytes are restored.
    flip(&path, place);
    let engine = open_real(dir.path(), scrubbing(u64::MAX)).await.unwrap();
    eventually(async || rounds_ended(&engine)).await;
    assert_eq!(ranges(&engine.damage()), [(99, 100)]);
    engine
        .delete_topic(&TopicName::parse("orders").unwrap(), Vec::new())
        .await
        .unwrap();
    eventually(async || engine.damage().ranges.is_empty()).await;
    assert!(engine.ends(orders).is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_segment_that_is_gone_is_damaged_as_a_whole_and_its_neighbours_are_not() {
    let (dir, orders) = filled().await;
    let (path, _) = place_of(dir.path(), 0);
    fs::rename(&path, dir.path().join("away")).unwrap();
    let engine = open_real(dir.path(), scrubbing(u64::MAX)).await.unwrap();
    eventually(async || rounds_ended(&engine)).await;
    let report = engine.damage();
    let [(0, to)] = ranges(&report)[..] else {
        panic!("{report:?}");
    };
    assert_eq!(dir.path().join(&report.ranges[0].file), path);
    assert!(engine.read(orders, Offset(to), 1).await.is_ok());
    assert!(engine.read(orders, Offset(0), 1).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_scrub_keeps_to_its_rate_and_does_not_hold_up_a_close() {
    let (dir, _) = filled().await;
    // Every file counts as at least 64 KiB, so this takes seconds.
    let began = Instant::now();
    let engine = open_real(dir.path(), scrubbing(200_000)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(600)).await;
    let bytes = engine.damage().scrub.unwrap().bytes as f64;
    let most = 200_000.0 * began.elapsed().as_secs_f64() + 65_536.0;
    assert!(bytes > 0.0 && bytes <= most, "{bytes} of {most}");
    assert!(!rounds_ended(&engine));
    let closing = Instant::now();
    engine.close().await;
    assert!(closing.elapsed() < Duration::from_secs(5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loss_that_is_accepted_stays_accepted() {
    let (dir, orders) = filled().await;
    let (path, place) = place_of(dir.path(), 40);
    flip(&path, place);
    let engine = open_real(dir.path(), scrubbing(0)).await.unwrap();
    let accept = async |from: u64, to: u64| {
        let accepted = engine.accept_damage(orders, Offset(from), Offset(to)).await;
        accepted.unwrap().len()
    };
    assert_eq!(accept(0, 100).await, 0, "nothing is known yet");
    engine.read(orders, Offset(40), 1).await.unwrap_err();
    assert_eq!(accept(0, 40).await, 0);
    assert_eq!(accept(40, 41).await, 1);
    engine.close().await;
    let engine = open_real(dir.path(), scrubbing(u64::MAX)).await.unwrap();
    eventually(async || rounds_ended(&engine)).await;
    let ranges = engine.damage().ranges;
    assert_eq!(ranges.len(), 1);
    assert!(ranges[0].accepted_at.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_module_whose_bytes_changed_is_not_given_out_and_putting_it_again_mends_it() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_real(dir.path(), scrubbing(0)).await.unwrap();
    let module = Bytes::from_static(b"the bytes of a module");
    let digest = digest_of(&module);
    engine.put_module(digest, module.clone()).await.unwrap();
    engine.close().await;
    flip(&dir.path().join(format!("modules/{digest}.wasm")), 3);
    let engine = open_real(dir.path(), scrubbing(u64::MAX)).await.unwrap();
    eventually(async || rounds_ended(&engine)).await;
    assert_eq!(engine.damage().modules, [digest]);
    let read = engine.module(digest).await;
    assert!(matches!(read, Err(ReadError::ModuleDamaged(d)) if d == digest));
    engine.put_module(digest, module.clone()).await.unwrap();
    assert_eq!(engine.module(digest).await.unwrap(), Some(module));
    assert_eq!(engine.damage().modules, []);
}
