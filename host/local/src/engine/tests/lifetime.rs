//! Tests the lifetime of messages: files are removed when they are no longer needed, whatever
//! happens meanwhile.

use std::path::PathBuf;

use millrace_engine::{ReadError, TopicChange};
use millrace_log::Disk;
use millrace_model::{ManualClock, TopicSettings};

use super::*;

pub(super) const START: Timestamp = Timestamp(1_700_000_000_000);

/// Like `small`, with a cleaner that runs all the time.
pub(super) fn cleaned() -> LocalOptions {
    LocalOptions {
        cleaning_interval: Duration::from_millis(3),
        ..small()
    }
}

async fn open_at(disk: &SimDisk, dir: &Path, clock: &Arc<ManualClock>) -> Arc<LocalEngine> {
    let clock = Arc::clone(clock);
    let opened = LocalEngine::open_on(Arc::new(disk.clone()), dir, cleaned(), clock).await;
    opened.expect("the directory opens")
}

pub(super) async fn set(engine: &LocalEngine, settings: TopicSettings) {
    let name = TopicName::parse("orders").unwrap();
    let change = TopicChange {
        settings: Some(settings),
        ..TopicChange::default()
    };
    engine.change_topic(&name, change).await.expect("changed");
}

pub(super) fn keyed(key: Option<&str>, value: Option<&str>, timestamp: Timestamp) -> RecordBatch {
    let mut builder = BatchBuilder::with_capacity(0);
    let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    builder.push(&Message {
        key: key.map(bytes),
        value: value.map(bytes),
        headers: Vec::new(),
        timestamp,
    });
    builder.finish().unwrap()
}

pub(super) async fn put(engine: &LocalEngine, partition: TopicPartition, batch: RecordBatch) {
    let append = Append { partition, batch };
    let produced = engine.commit(Transaction::produce(vec![append])).await;
    produced.expect("committed");
}

async fn fill(
    engine: &LocalEngine,
    partition: TopicPartition,
    numbers: std::ops::Range<u32>,
    at: Timestamp,
) {
    for number in numbers {
        let value = format!("{number} {}", "x".repeat(300));
        put(engine, partition, keyed(None, Some(&value), at)).await;
    }
}

fn start(engine: &LocalEngine, partition: TopicPartition) -> u64 {
    engine.ends(partition).unwrap().start.0
}

/// Segment files, by their names.
fn segments(disk: &SimDisk) -> Vec<PathBuf> {
    let mut paths = disk.paths();
    paths.retain(|path| path.extension().is_some_and(|suffix| suffix == "segment"));
    paths
}

async fn read_from_start(engine: &LocalEngine, partition: TopicPartition) -> Vec<(u64, String)> {
    let ends = engine.ends(partition).unwrap();
    let mut from = ends.start;
    let mut found = Vec::new();
    while from < ends.end {
        let batches = match engine.read(partition, from, 4_000).await {
            Ok(batches) => batches,
            // The cleaner was faster.
            Err(ReadError::BelowStart { start, .. }) => {
                from = start;
                continue;
            }
            Err(error) => panic!("{error}"),
        };
        for batch in batches {
            let seen = from;
            from = batch.end_offset();
            if batch.is_control() {
                continue;
            }
            for record in batch.records().unwrap() {
                let record = record.unwrap();
                if record.offset >= seen {
                    let message = record.to_message(batch.bytes()).unwrap();
                    let text = String::from_utf8(message.value.unwrap_or_default().to_vec());
                    found.push((record.offset.0, text.unwrap()));
                }
            }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn segments_below_a_trim_are_removed_once_a_checkpoint_says_so() {
    let (disk, dir) = (SimDisk::default(), tempfile::tempdir().unwrap());
    let clock = Arc::new(ManualClock::at(START));
    let engine = open_at(&disk, dir.path(), &clock).await;
    let orders = at(&topic(&engine, "orders", Durability::Durable).await, 0);
    fill(&engine, orders, 0..100, START).await;
    let first = dir.path().join("topics/1/0-00000000000000000000.segment");
    eventually(async || segments(&disk).contains(&first)).await;
    engine.trim(orders, Offset(60)).await.unwrap();
    eventually(async || !segments(&disk).contains(&first)).await;
    assert!(segments(&disk).len() > 2, "what is above stays");
    assert_eq!(read_from_start(&engine, orders).await[0].0, 60);
    // Everything: not even the active segment stays.
    engine.trim(orders, Offset(100)).await.unwrap();
    eventually(async || segments(&disk).is_empty()).await;
    assert_eq!(read_from_start(&engine, orders).await, []);
    fill(&engine, orders, 100..103, START).await;
    engine.close().await;
    drop(engine);
    let engine = open_at(&disk, dir.path(), &clock).await;
    let numbers = read_from_start(&engine, orders).await;
    assert_eq!(
        numbers
            .iter()
            .map(|(offset, _)| *offset)
            .collect::<Vec<_>>(),
        [100, 101, 102]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_at_any_step_of_a_trim_brings_nothing_back_and_loses_nothing() {
    for steps in 0..60 {
        let (disk, dir) = (SimDisk::default(), tempfile::tempdir().unwrap());
        let clock = Arc::new(ManualClock::at(START));
        let engine = open_at(&disk, dir.path(), &clock).await;
        let orders = at(&topic(&engine, "orders", Durability::Durable).await, 0);
        fill(&engine, orders, 0..60, START).await;
        disk.cut_power_after(steps);
        let trimmed = engine.trim(orders, Offset(41)).await;
        engine.close().await;
        drop(engine);
        disk.cut_power();
        disk.restore_power(steps);
        let engine = open_at(&disk, dir.path(), &clock).await;
        let first = start(&engine, orders);
        match trimmed {
            Ok(start) => assert_eq!((first, start), (41, Offset(41)), "cut after {steps}"),
            Err(_) => assert!(first == 0 || first == 41, "cut after {steps}: {first}"),
        }
        let offsets = read_from_start(&engine, orders).await.into_iter();
        let offsets: Vec<u64> = offsets.map(|(offset, _)| offset).collect();
        assert_eq!(
            offsets,
            (first..60).collect::<Vec<_>>(),
            "cut after {steps}"
        );
        // Remains of a crash are removed: no segment below the start stays.
        if first == 41 {
            assert!(
                !disk
                    .paths()
                    .iter()
                    .any(|path| path.ends_with("0-00000000000000000000.segment"))
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_oldest_segments_go_while_a_partition_holds_more_than_it_may() {
    let (disk, dir) = (SimDisk::default(), tempfile::tempdir().unwrap());
    let clock = Arc::new(ManualClock::at(START));
    let engine = open_at(&disk, dir.path(), &clock).await;
    let orders = at(&topic(&engine, "orders", Durability::Os).await, 0);
    fill(&engine, orders, 0..200, START).await;
    set(
        &engine,
        TopicSettings {
            retention_bytes: Some(20_000),
            ..TopicSettings::default()
        },
    )
    .await;
    eventually(async || start(&engine, orders) > 100).await;
    eventually(async || segments(&disk).len() <= 6).await;
    let found = read_from_start(&engine, orders).await;
    assert_eq!(found.last().unwrap().0, 199);
    assert_eq!(found.len() as u64, 200 - start(&engine, orders));
    // 20,000 bytes minus one segment contain at least this many.
    assert!(found.len() >= 35, "{}", found.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_go_by_age_and_segments_end_by_age_without_further_writes() {
    let (disk, dir) = (SimDisk::default(), tempfile::tempdir().unwrap());
    let clock = Arc::new(ManualClock::at(START));
    let engine = open_at(&disk, dir.path(), &clock).await;
    let orders = at(&topic(&engine, "orders", Durability::Os).await, 0);
    // One of them claims to be from the year 2255.
    fill(&engine, orders, 0..40, START).await;
    fill(&engine, orders, 40..41, Timestamp(9_000_000_000_000)).await;
    fill(&engine, orders, 41..60, START).await;
    set(
        &engine,
        TopicSettings {
            retention_ms: Some(60_000),
            segment_ms: Some(20_000),
            ..TopicSettings::default()
        },
    )
    .await;
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert_eq!(start(&engine, orders), 0, "nothing is old yet");
    // A segment's age counts from its beginning; batches still in memory would begin one after the
    // clock moved.
    engine.commits.orders.ask(|orders| orders.checkpoint = true);
    let found = engine.partition(orders).unwrap();
    eventually(async || !found.is_unflushed()).await;
    clock.advance(Duration::from_secs(21));
    // The active segment ends, even without writes.
    eventually(async || found.files.read().active_bytes() == 0).await;
    assert_eq!(start(&engine, orders), 0);
    clock.advance(Duration::from_secs(61));
    eventually(async || start(&engine, orders) == 60).await;
    eventually(async || segments(&disk).is_empty()).await;
    fill(&engine, orders, 60..61, START).await;
    assert_eq!(read_from_start(&engine, orders).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compacted_topic_shows_the_latest_of_each_key_through_restarts_and_power_cuts() {
    let (disk, dir) = (SimDisk::default(), tempfile::tempdir().unwrap());
    let clock = Arc::new(ManualClock::at(START));
    let mut random = fastrand::Rng::with_seed(11);
    let mut engine = open_at(&disk, dir.path(), &clock).await;
    let orders = at(&topic(&engine, "orders", Durability::Durable).await, 0);
    let settings = TopicSettings {
        compact: true,
        tombstone_ms: 1 << 40,
        ..TopicSettings::default()
    };
    set(&engine, settings).await;
    let mut latest = std::collections::BTreeMap::new();
    let mut fewest = usize::MAX;
    for round in 0..12 {
        for _ in 0..100 {
            let key = format!("key {}", random.u8(..10));
            let offset = engine.ends(orders).unwrap().end.0;
            let value = format!("{key} {offset} {}", "v".repeat(random.usize(..100)));
            put(&engine, orders, keyed(Some(&key), Some(&value), START)).await;
            latest.insert(key, (offset, value));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        if round % 3 == 1 {
            drop(engine);
            disk.cut_power();
            disk.restore_power(round);
            engine = open_at(&disk, dir.path(), &clock).await;
        }
        let found = read_from_start(&engine, orders).await;
        fewest = fewest.min(found.len() / (round as usize + 1));
        for (key, (offset, value)) in &latest {
            let last = found
                .iter()
                .rfind(|(_, found)| found.starts_with(&format!("{key} ")));
            assert_eq!(last, Some(&(*offset, value.clone())), "round {round}");
        }
    }
    assert!(fewest < 90, "something was compacted");
    let compacted = async || {
        let files = engine.partition(orders).unwrap();
        files.files.read().clean() > Offset(600)
    };
    eventually(compacted).await;
    engine.close().await;
    drop(engine);
    let engine = open_at(&disk, dir.path(), &clock).await;
    let found = engine.partition(orders).unwrap();
    assert!(found.files.read().clean() > Offset(600), "it is remembered");
}

#[tokio::test]
async fn a_data_directory_of_the_version_before_is_opened_and_its_segments_are_found_by_time() {
    let (disk, dir) = (SimDisk::default(), tempfile::tempdir().unwrap());
    let clock = Arc::new(ManualClock::at(START));
    let engine = open_at(&disk, dir.path(), &clock).await;
    let orders = at(&topic(&engine, "orders", Durability::Durable).await, 0);
    for number in 0..50u64 {
        let value = "x".repeat(300);
        put(
            &engine,
            orders,
            keyed(None, Some(&value), Timestamp(START.0 + number)),
        )
        .await;
    }
    engine.close().await;
    drop(engine);
    // As that version left them: no times in the checkpoint, and indexes in an unknown format.
    let path = dir.path().join("checkpoint.sqlite");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&path);
    use sqlx::Connection as _;
    let mut connection = sqlx::SqliteConnection::connect_with(&options)
        .await
        .unwrap();
    let old = "ALTER TABLE partitions DROP COLUMN opened_at; ALTER TABLE partitions DROP COLUMN clean_offset;
               ALTER TABLE meta DROP COLUMN checksum; ALTER TABLE partitions DROP COLUMN checksum;
               UPDATE meta SET value = 1 WHERE key = 'format';";
    sqlx::raw_sql(old).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    for path in disk.paths() {
        if path.extension().is_some_and(|suffix| suffix == "index") {
            let file = disk.create(&path).unwrap();
            file.write_all_at(&[0; 28], 0).unwrap();
        }
    }
    let engine = open_at(&disk, dir.path(), &clock).await;
    for number in [0, 17, 49] {
        let found = engine.offset_at(orders, Timestamp(START.0 + number)).await;
        assert_eq!(found.unwrap(), Some(Offset(number)));
    }
    assert_eq!(
        engine
            .offset_at(orders, Timestamp(START.0 + 50))
            .await
            .unwrap(),
        None
    );
    assert_eq!(values(&engine, orders).await.len(), 50);
}
