//! Tests that space can be freed on a full disk.

use millrace_engine::conformance::named;
use millrace_engine::state::{NEVER, StateChange, StateValue, StateWrite, StateWrites};
use millrace_engine::{EntryKind, EntryWrite, TopicChange};
use millrace_log::sim::Fault;
use millrace_log::sim::{Effect, OperationKind};
use millrace_model::TopicSettings;

use super::*;
use crate::keep::checkpoint::CheckpointStore;

/// Writes messages until the disk has no room for more.
async fn fill(engine: &LocalEngine, partition: TopicPartition) -> Vec<String> {
    let mut written = Vec::new();
    loop {
        let value = format!("{} {}", written.len(), "f".repeat(300));
        match produce(engine, partition, &value).await {
            Ok(_) => written.push(value),
            Err(CommitError::DiskFull) => return written,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Makes all requests that free space or only administer.
async fn administer(engine: &LocalEngine, turn: usize) {
    let name = TopicName::parse(&format!("doomed-{turn}")).unwrap();
    let doomed = at(&engine.topic(&name).expect("a topic"), 0);
    let change = TopicChange {
        settings: Some(TopicSettings {
            retention_ms: Some(turn as u64 + 1),
            ..TopicSettings::default()
        }),
        ..TopicChange::default()
    };
    engine.change_topic(&name, change).await.expect("changed");
    engine.trim(doomed, Offset(1)).await.expect("trimmed");
    let entry = EntryWrite {
        kind: EntryKind::ALL[0],
        key: "worker".to_owned(),
        value: Some(vec![b'p'; 200].into()),
    };
    let paused = Transaction {
        entries: vec![entry],
        durability: Some(Durability::Durable),
        ..Transaction::default()
    };
    engine.commit(paused).await.expect("paused");
    engine
        .claim(&named("workers"), doomed)
        .await
        .expect("claimed");
    engine
        .delete_topic(&name, Vec::new())
        .await
        .expect("deleted");
}

async fn with_doomed_topics(engine: &LocalEngine, count: usize) -> TopicPartition {
    let orders = at(&topic(engine, "orders", Durability::Durable).await, 0);
    for turn in 0..count {
        let doomed = topic(engine, &format!("doomed-{turn}"), Durability::Os).await;
        for value in ["first", "second"] {
            produce(engine, at(&doomed, 0), value).await.unwrap();
        }
    }
    orders
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_frees_room_or_administers_works_on_a_full_disk_wherever_the_journal_stands() {
    const TOPICS: usize = 40;
    for messages_before in (0..48).step_by(6) {
        let (disk, dir) = (SimDisk::default(), tempfile::tempdir().unwrap());
        let engine = open_sim(&disk, dir.path()).await.unwrap();
        let orders = with_doomed_topics(&engine, TOPICS).await;
        for _ in 0..messages_before {
            produce(&engine, orders, &"b".repeat(300)).await.unwrap();
        }
        disk.set_capacity(Some(disk.used_bytes()));
        let mut written = vec!["b".repeat(300); messages_before];
        written.extend(fill(&engine, orders).await);
        for turn in 0..TOPICS {
            administer(&engine, turn).await;
        }
        assert_eq!(values(&engine, orders).await, written);
        // The freed space may have been enough to accept messages again.
        disk.set_capacity(None);
        eventually(async || produce(&engine, orders, "room again").await.is_ok()).await;
        written.push("room again".to_owned());
        engine.close().await;
        drop(engine);
        let engine = open_sim(&disk, dir.path()).await.unwrap();
        assert_eq!(values(&engine, orders).await, written);
        assert_eq!(engine.topics().len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_on_a_full_disk_gives_its_room_back_and_messages_are_taken_again() {
    let (disk, dir) = (SimDisk::default(), tempfile::tempdir().unwrap());
    let engine = open_sim(&disk, dir.path()).await.unwrap();
    let orders = at(&topic(&engine, "orders", Durability::Durable).await, 0);
    let doomed = at(&topic(&engine, "doomed", Durability::Os).await, 0);
    for _ in 0..400 {
        let value = "d".repeat(300);
        produce(&engine, doomed, &value).await.unwrap();
    }
    disk.set_capacity(Some(disk.used_bytes()));
    let written = fill(&engine, orders).await;
    let name = TopicName::parse("doomed").unwrap();
    engine
        .delete_topic(&name, Vec::new())
        .await
        .expect("deleted");
    eventually(async || produce(&engine, orders, "freed").await.is_ok()).await;
    let found = values(&engine, orders).await;
    assert_eq!(found[..written.len()], written);
    assert_eq!(found.last().unwrap(), "freed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_on_a_full_disk_refuses_only_what_takes_room() {
    let (disk, dir) = (SimDisk::default(), tempfile::tempdir().unwrap());
    let engine = open_sim(&disk, dir.path()).await.unwrap();
    let orders = with_doomed_topics(&engine, 3).await;
    disk.set_capacity(Some(disk.used_bytes()));
    let mut written = fill(&engine, orders).await;
    administer(&engine, 0).await;
    // Without a close: there is something to replay.
    drop(engine);
    for turn in 1..3 {
        disk.set_capacity(Some(disk.used_bytes()));
        let engine = open_sim(&disk, dir.path()).await.expect("opened");
        administer(&engine, turn).await;
        assert_eq!(values(&engine, orders).await, written);
        drop(engine);
    }
    disk.set_capacity(None);
    let engine = open_sim(&disk, dir.path()).await.expect("opened");
    produce(&engine, orders, "room again").await.unwrap();
    written.push("room again".to_owned());
    assert_eq!(values(&engine, orders).await, written);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_are_refused_as_long_as_the_reserve_cannot_be_made() {
    let (disk, dir) = (SimDisk::default(), tempfile::tempdir().unwrap());
    disk.inject(
        Fault::new(Effect::Full)
            .on(OperationKind::Preallocate)
            .at_path("reserve")
            .for_ever(),
    );
    let engine = open_sim(&disk, dir.path()).await.unwrap();
    let orders = at(&topic(&engine, "orders", Durability::Durable).await, 0);
    let refused = produce(&engine, orders, "early").await;
    assert!(matches!(refused, Err(CommitError::DiskFull)), "{refused:?}");
    disk.heal();
    eventually(async || produce(&engine, orders, "room").await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_reserve_grows_with_the_checkpoint_and_state_leaves_that_after_its_topic_s_files() {
    let (disk, dir) = (SimDisk::default(), tempfile::tempdir().unwrap());
    let engine = open_sim(&disk, dir.path()).await.unwrap();
    let orders = at(&topic(&engine, "orders", Durability::Durable).await, 0);
    let lease = engine
        .claim(&named("worker"), orders)
        .await
        .expect("claimed")
        .lease;
    let before = disk.used_bytes();
    for key in 0..40_u8 {
        let change = StateChange {
            key: vec![key].into(),
            value: Some(StateValue::new(&[key; 8_000])),
            ends_at: NEVER,
        };
        let writes = StateWrites {
            resets: false,
            changes: vec![change],
            adds: None,
        };
        let write = StateWrite {
            group: lease.group.clone(),
            partition: orders,
            lease: Some(lease.clone()),
            writes: Arc::new(writes),
        };
        let counted = Transaction {
            state: vec![write],
            ..Transaction::default()
        };
        engine.commit(counted).await.expect("counted");
    }
    // The database itself is not on the simulated disk.
    eventually(async || disk.used_bytes() > before + 40 * 8_000).await;
    let name = TopicName::parse("orders").unwrap();
    engine
        .delete_topic(&name, Vec::new())
        .await
        .expect("deleted");
    engine.close().await;
    // The last checkpoint removed the files, and the next one removes its own rows of the topic.
    let engine = open_sim(&disk, dir.path()).await.unwrap();
    engine.close().await;
    let path = dir.path().join("checkpoint.sqlite");
    let rows = tokio::task::spawn_blocking(move || {
        let mut store = CheckpointStore::open(&path, None).expect("a checkpoint");
        store.load().expect("readable").state.len()
    });
    assert_eq!(rows.await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_no_file_can_be_made_messages_are_refused_and_taken_again_when_there_is_room() {
    let (disk, dir) = (SimDisk::default(), tempfile::tempdir().unwrap());
    let engine = open_sim(&disk, dir.path()).await.unwrap();
    let orders = with_doomed_topics(&engine, 8).await;
    let mut written = Vec::new();
    for turn in 0..4 {
        // Existing files can take any number of bytes.
        for kind in [OperationKind::Create, OperationKind::CreateDir] {
            disk.inject(Fault::new(Effect::Full).on(kind).for_ever());
        }
        for value in fill(&engine, orders).await {
            written.push(value);
        }
        assert_eq!(values(&engine, orders).await, written);
        administer(&engine, turn).await;
        disk.heal();
        eventually(async || {
            let value = format!("again {turn}");
            let taken = produce(&engine, orders, &value).await.is_ok();
            if taken {
                written.push(value);
            }
            taken
        })
        .await;
        assert_eq!(values(&engine, orders).await, written);
    }
    engine.close().await;
    let engine = open_sim(&disk, dir.path()).await.unwrap();
    assert_eq!(values(&engine, orders).await, written);
}

/// A real file system with this many inodes, removed when dropped.
struct FewInodes(tempfile::TempDir);

impl FewInodes {
    /// `None` if this process must not mount one.
    fn mount(inodes: usize) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size=64m,nr_inodes={inodes}");
        let mount = mount(&["-t", "tmpfs", "-o", &options, "tmpfs"], dir.path());
        mount.then(|| Self(dir))
    }

    fn remount(&self, inodes: usize) {
        let options = format!("remount,nr_inodes={inodes}");
        assert!(mount(&["-o", &options], self.0.path()));
    }
}

impl Drop for FewInodes {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount")
            .args(["--lazy".as_ref(), self.0.path().as_os_str()])
            .status();
    }
}

fn mount(options: &[&str], dir: &Path) -> bool {
    let mount = std::process::Command::new("mount")
        .args(options)
        .arg(dir)
        .output();
    mount.is_ok_and(|made| made.status.success())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_file_system_without_inodes_is_a_full_disk_and_nothing_worse() {
    let Some(small) = FewInodes::mount(60) else {
        println!("skipped: needs the right to mount");
        return;
    };
    let dir = small.0.path().join("data");
    std::fs::create_dir(&dir).unwrap();
    let engine = open_real(&dir, small_files()).await.unwrap();
    let orders = with_doomed_topics(&engine, 3).await;
    let mut written = fill(&engine, orders).await;
    assert!(!written.is_empty());
    assert_eq!(values(&engine, orders).await, written);
    for turn in 0..3 {
        administer(&engine, turn).await;
        written.extend(fill(&engine, orders).await);
    }
    assert_eq!(values(&engine, orders).await, written);
    small.remount(2_000);
    eventually(async || {
        let taken = produce(&engine, orders, "again").await.is_ok();
        written.extend(taken.then(|| "again".to_owned()));
        taken
    })
    .await;
    engine.close().await;
    let engine = open_real(&dir, small_files()).await.unwrap();
    assert_eq!(values(&engine, orders).await, written);
    engine.close().await;
}

/// So small that inodes run out long before bytes do.
fn small_files() -> LocalOptions {
    LocalOptions {
        segment_bytes: 1 << 10,
        ..small()
    }
}

async fn write_state(
    engine: &LocalEngine,
    partition: TopicPartition,
    resets: bool,
    keys: std::ops::Range<u32>,
    value: Option<&str>,
) -> Result<Receipt, CommitError> {
    let change = |key: u32| StateChange {
        key: key.to_le_bytes()[..].into(),
        value: value.map(|value| StateValue::new(value.as_bytes())),
        ends_at: NEVER,
    };
    let changes = keys.map(change).collect();
    let state = vec![StateWrite {
        group: named("counts"),
        partition,
        lease: None,
        writes: Arc::new(StateWrites {
            resets,
            changes,
            adds: None,
        }),
    }];
    let durability = Some(Durability::Durable);
    let transaction = Transaction {
        state,
        durability,
        ..Transaction::default()
    };
    engine.commit(transaction).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_full_disk_state_is_refused_as_messages_are_and_may_be_removed() {
    let (disk, dir) = (SimDisk::default(), tempfile::tempdir().unwrap());
    let engine = open_sim(&disk, dir.path()).await.unwrap();
    let orders = with_doomed_topics(&engine, 3).await;
    let value = "s".repeat(300);
    let written = write_state(&engine, orders, false, 0..10, Some(&value)).await;
    written.expect("there is room");
    disk.set_capacity(Some(disk.used_bytes()));
    fill(&engine, orders).await;
    // More than fits into the reserve.
    for _ in 0..1_000 {
        let refused = write_state(&engine, orders, false, 20..30, Some(&value)).await;
        assert!(matches!(refused, Err(CommitError::DiskFull)), "{refused:?}");
    }
    let removed = write_state(&engine, orders, false, 0..5, None).await;
    removed.expect("removing frees room");
    let table = engine
        .state(&named("counts"), orders)
        .await
        .expect("it is there");
    assert_eq!(table.size().entries, 5);
    let emptied = write_state(&engine, orders, true, 0..0, None).await;
    emptied.expect("emptying frees room");
    assert_eq!(table.size().entries, 0);
    administer(&engine, 0).await;
    disk.set_capacity(None);
    let again = async || {
        write_state(&engine, orders, false, 0..1, Some(&value))
            .await
            .is_ok()
    };
    eventually(again).await;
}
