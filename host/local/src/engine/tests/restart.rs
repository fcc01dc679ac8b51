//! Tests of restarts on the real disk.

use millrace_log::Disk;

use super::*;

fn numbered(numbers: std::ops::Range<u32>) -> Vec<String> {
    let value = |number| format!("{number} {}", "v".repeat(number as usize % 200));
    numbers.map(value).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_acknowledged_is_there_after_the_process_ended_without_closing() {
    for durability in [Durability::None, Durability::Os, Durability::Durable] {
        let dir = tempfile::tempdir().unwrap();
        let mut engine = open_real(dir.path(), small()).await.unwrap();
        let orders = at(&topic(&engine, "orders", durability).await, 2);
        let bytes = Bytes::from_static(b"a module");
        let digest = digest_of(&bytes);
        engine.put_module(digest, bytes.clone()).await.unwrap();
        for round in 0..4 {
            let all = numbered(0..round * 100 + 100);
            for value in &all[round as usize * 100..] {
                produce(&engine, orders, value).await.unwrap();
            }
            drop(engine);
            engine = open_real(dir.path(), small()).await.unwrap();
            assert_eq!(values(&engine, orders).await, all);
            assert_eq!(engine.module(digest).await.unwrap(), Some(bytes.clone()));
        }
    }
}

/// Files of new partitions that no checkpoint knows yet are written again from the journal,
/// whatever the previous run left of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_that_were_added_are_there_after_the_process_ended_without_closing() {
    for durability in [Durability::None, Durability::Durable] {
        let dir = tempfile::tempdir().unwrap();
        let mut engine = open_real(dir.path(), small()).await.unwrap();
        let mut grown = topic(&engine, "orders", durability).await;
        let mut expected: Vec<Vec<String>> = vec![Vec::new(); 3];
        for round in 0..6 {
            grown = grow(&engine, "orders", grown.spec.partitions + round % 3).await;
            expected.resize_with(grown.spec.partitions as usize, Vec::new);
            // Segments and journal files roll, and some rounds end before a checkpoint.
            for number in 0..20 + 40 * (round % 2) {
                for (partition, expected) in expected.iter_mut().enumerate() {
                    let value = format!("{round} {number} {}", "v".repeat(number as usize * 9));
                    let at = at(&grown, partition as u32);
                    produce(&engine, at, &value).await.unwrap();
                    expected.push(value);
                }
            }
            drop(engine);
            engine = open_real(dir.path(), small()).await.unwrap();
            let known = engine.topic(&grown.spec.name);
            assert_eq!(known.as_ref(), Some(&grown), "round {round}");
            for (partition, expected) in expected.iter().enumerate() {
                let found = values(&engine, at(&grown, partition as u32)).await;
                assert_eq!(found, *expected, "partition {partition}, round {round}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_after_a_restart_knows_of_what_was_replayed() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_real(dir.path(), small()).await.unwrap();
    let partition = at(&topic(&engine, "t", Durability::Os).await, 0);
    produce(&engine, partition, "written, and nobody told")
        .await
        .unwrap();
    drop(engine);
    let engine = open_real(dir.path(), small()).await.unwrap();
    let end = engine.ends(partition).unwrap().end;
    assert_eq!(engine.watch(partition).unwrap().end(), end);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_is_told_which_directory_is_taken_and_may_come_after_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_real(dir.path(), small()).await.unwrap();
    let refused = open_real(dir.path(), small()).await.map(|_| ());
    let refused = refused.unwrap_err();
    assert!(matches!(refused, OpenError::InUse { .. }));
    let text = refused.to_string();
    assert!(text.contains(&dir.path().display().to_string()), "{text}");
    assert!(text.contains("stop that one"), "{text}");
    engine.close().await;
    // Closing is enough; the handle may still be held.
    assert!(open_real(dir.path(), small()).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_closing_in_order_there_is_nothing_to_replay() {
    let (disk, dir) = (SimDisk::default(), tempfile::tempdir().unwrap());
    let engine = open_sim(&disk, dir.path()).await.unwrap();
    let orders = at(&topic(&engine, "orders", Durability::Os).await, 0);
    let all = numbered(0..50);
    for value in &all {
        produce(&engine, orders, value).await.unwrap();
    }
    engine.close().await;
    drop(engine);
    let journal = dir.path().join("journal");
    for path in disk.paths() {
        if path.starts_with(&journal) {
            disk.remove(&path).unwrap();
        }
    }
    let engine = open_sim(&disk, dir.path()).await.unwrap();
    assert_eq!(values(&engine, orders).await, all);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_is_bounded_and_what_left_it_is_read_from_files_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let options = LocalOptions {
        segment_bytes: 100_000,
        tail_bytes_max: 64 << 10,
        checkpoint_journal_bytes: 1 << 30,
        ..LocalOptions::default()
    };
    let engine = open_real(dir.path(), options).await.unwrap();
    let orders = at(&topic(&engine, "orders", Durability::Os).await, 0);
    let all = numbered(0..5_000);
    for value in &all {
        produce(&engine, orders, value).await.unwrap();
        let held = engine.commits.headroom.tail_bytes();
        assert!(held <= (64 << 10) + 1_000, "{held}");
    }
    assert_eq!(values(&engine, orders).await, all);
}

#[tokio::test]
async fn a_module_that_a_killed_process_left_is_durable_once_it_is_put_again() {
    // Complete under its name, but the name is only in memory: the process died just before it was
    // made durable.
    for seed in 0..20 {
        let (disk, dir) = (SimDisk::default(), tempfile::tempdir().unwrap());
        drop(open_sim(&disk, dir.path()).await.unwrap());
        let digest = digest_of(b"module");
        let path = dir.path().join(format!("modules/{digest}.wasm"));
        let file = disk.create(&path).unwrap();
        file.write_all_at(b"module", 0).unwrap();
        file.sync_data().unwrap();
        let engine = open_sim(&disk, dir.path()).await.unwrap();
        let module = Bytes::from_static(b"module");
        engine.put_module(digest, module.clone()).await.unwrap();
        drop(engine);
        disk.cut_power();
        disk.restore_power(seed);
        let engine = open_sim(&disk, dir.path()).await.unwrap();
        assert_eq!(engine.module(digest).await.unwrap(), Some(module));
    }
}
