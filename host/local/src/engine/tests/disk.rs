//! Tests full, failing and decaying disks.

use millrace_engine::ReadError;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_commits_loses_nothing_and_goes_on_when_there_is_room() {
    let (disk, dir) = (SimDisk::default(), tempfile::tempdir().unwrap());
    let engine = open_sim(&disk, dir.path()).await.unwrap();
    let orders = at(&topic(&engine, "orders", Durability::Durable).await, 0);
    disk.set_capacity(Some(disk.used_bytes() + (40 << 10)));
    let mut written = Vec::new();
    let refused = loop {
        let value = format!("{} {}", written.len(), "z".repeat(200));
        match produce(&engine, orders, &value).await {
            Ok(_) => written.push(value),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, CommitError::DiskFull), "{refused}");
    assert!(refused.is_retriable());
    assert_eq!(values(&engine, orders).await, written);
    disk.set_capacity(None);
    eventually(async || produce(&engine, orders, "room again").await.is_ok()).await;
    written.push("room again".to_owned());
    assert_eq!(values(&engine, orders).await, written);
    engine.close().await;
    drop(engine);
    let engine = open_sim(&disk, dir.path()).await.unwrap();
    assert_eq!(values(&engine, orders).await, written);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_sync_stops_the_engine_and_nothing_unsynced_is_shown_or_acknowledged() {
    let (disk, dir) = (SimDisk::default(), tempfile::tempdir().unwrap());
    let engine = open_sim(&disk, dir.path()).await.unwrap();
    let orders = at(&topic(&engine, "orders", Durability::Durable).await, 0);
    let relaxed = at(&topic(&engine, "relaxed", Durability::Os).await, 0);
    produce(&engine, orders, "kept").await.unwrap();
    disk.fail_syncs(1);
    let failed = produce(&engine, orders, "unknown").await;
    assert!(
        matches!(failed, Err(CommitError::Poisoned(_))),
        "{failed:?}"
    );
    // The disk works again, but it must not be trusted.
    for partition in [orders, relaxed] {
        let refused = produce(&engine, partition, "late").await;
        assert!(matches!(refused, Err(CommitError::Poisoned(_))));
    }
    let refused = engine
        .create_topic(spec("late", 1, Durability::Os), Vec::new())
        .await;
    assert!(matches!(
        refused,
        Err(millrace_engine::TopicError::Commit(CommitError::Poisoned(
            _
        )))
    ));
    assert_eq!(values(&engine, orders).await, ["kept"]);
    engine.close().await;
    drop(engine);
    disk.cut_power();
    disk.restore_power(3);
    let engine = open_sim(&disk, dir.path()).await.unwrap();
    assert_eq!(values(&engine, orders).await, ["kept"]);
    produce(&engine, orders, "again").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_in_a_segment_is_named_and_the_rest_stays_readable() {
    let (disk, dir) = (SimDisk::default(), tempfile::tempdir().unwrap());
    let engine = open_sim(&disk, dir.path()).await.unwrap();
    let orders = at(&topic(&engine, "orders", Durability::Durable).await, 0);
    for number in 0..100 {
        let value = format!("{number} {}", "w".repeat(100));
        produce(&engine, orders, &value).await.unwrap();
    }
    engine.close().await;
    drop(engine);
    let segment = dir
        .path()
        .join(format!("topics/{}/0-{:020}.segment", orders.topic, 0));
    let bytes = disk.contents(&segment).expect("the first segment");
    let third = bytes.windows(3).position(|three| three == b"3 w").unwrap();
    disk.flip_bit(&segment, third, 0);
    let engine = open_sim(&disk, dir.path()).await.unwrap();
    let (mut from, mut found) = (Offset(0), Vec::new());
    let mut damaged = Vec::new();
    while from < engine.ends(orders).unwrap().end {
        match engine.read(orders, from, 1_000).await {
            Ok(batches) => {
                from = batches.last().unwrap().end_offset();
                found.extend(batches.iter().map(|batch| batch.base_offset().0));
            }
            Err(ReadError::Damaged {
                from: first, to, ..
            }) => {
                damaged.push((first, to));
                from = to;
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(damaged, [(Offset(3), Offset(4))]);
    let expected: Vec<u64> = (0..100).filter(|&offset| offset != 3).collect();
    assert_eq!(found, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_in_the_journal_is_refused_and_a_torn_tail_is_cut() {
    for (damaged, torn) in [("first", false), ("last", true)] {
        let (disk, dir) = (SimDisk::default(), tempfile::tempdir().unwrap());
        let engine = open_sim(&disk, dir.path()).await.unwrap();
        let orders = at(&topic(&engine, "orders", Durability::Durable).await, 0);
        for value in ["the first", "the middle", "the last"] {
            produce(&engine, orders, value).await.unwrap();
        }
        drop(engine);
        let holds = |path: &std::path::PathBuf| {
            let bytes = disk.contents(path).unwrap();
            let place = bytes.windows(damaged.len());
            let place = { place }.position(|w| w == damaged.as_bytes())?;
            Some((path.clone(), place))
        };
        let (path, place) = disk.paths().iter().find_map(holds).unwrap();
        disk.flip_bit(&path, place, 0);
        let opened = open_sim(&disk, dir.path()).await;
        if torn {
            // As if its write had been interrupted; the two cases look the same.
            let engine = opened.unwrap();
            assert_eq!(values(&engine, orders).await, ["the first", "the middle"]);
            continue;
        }
        let refused = opened.map(|_| ()).unwrap_err();
        assert!(matches!(refused, OpenError::Journal(_)), "{refused}");
        assert!(refused.to_string().contains("is damaged at byte"));
        // The attempt changed nothing: with the bit restored, everything is there.
        disk.flip_bit(&path, place, 0);
        let engine = open_sim(&disk, dir.path()).await.unwrap();
        assert_eq!(values(&engine, orders).await.len(), 3);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_a_deleted_topic_go_and_their_room_is_free() {
    let (disk, dir) = (SimDisk::default(), tempfile::tempdir().unwrap());
    let engine = open_sim(&disk, dir.path()).await.unwrap();
    let doomed = at(&topic(&engine, "doomed", Durability::Os).await, 0);
    for _ in 0..200 {
        let value = "v".repeat(300);
        produce(&engine, doomed, &value).await.unwrap();
    }
    let topic_dir = dir.path().join(format!("topics/{}", doomed.topic));
    let has_files = || disk.paths().iter().any(|path| path.starts_with(&topic_dir));
    eventually(async || has_files()).await;
    let name = TopicName::parse("doomed").unwrap();
    engine.delete_topic(&name, Vec::new()).await.unwrap();
    eventually(async || !has_files()).await;
}

#[tokio::test]
async fn batches_may_leave_memory_before_the_committer_has_counted_them() {
    let (disk, dir) = (SimDisk::default(), tempfile::tempdir().unwrap());
    let engine = open_sim(&disk, dir.path()).await.unwrap();
    let held = || engine.commits.headroom.tail_bytes();
    let written = engine.commits.journal.lock().written_bytes();
    engine.commits.headroom.release(100);
    engine.commits.headroom.note_growth(100, written);
    assert_eq!(held(), 0);
}
