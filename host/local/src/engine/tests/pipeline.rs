//! Tests of which transactions become visible, and which ones wait, while a sync is running.

use millrace_engine::ProgressWrite;
use millrace_engine::conformance::named;
use millrace_log::sim::{Effect, Fault, Gate, OperationKind};
use millrace_model::Progress;

use super::*;

struct Setting {
    disk: SimDisk,
    dir: tempfile::TempDir,
    engine: Arc<LocalEngine>,
    durable: TopicPartition,
    os: TopicPartition,
}

async fn setting() -> Setting {
    let (disk, dir) = (SimDisk::default(), tempfile::tempdir().unwrap());
    let engine = open_sim(&disk, dir.path()).await.unwrap();
    Setting {
        durable: at(&topic(&engine, "durable", Durability::Durable).await, 0),
        os: at(&topic(&engine, "os", Durability::Os).await, 0),
        disk,
        dir,
        engine,
    }
}

/// Makes syncs of these files wait until the gate is opened.
fn hold_syncs(disk: &SimDisk, of: &str) -> Gate {
    let gate = Gate::default();
    let wait = Fault::new(Effect::Wait(gate.clone()));
    disk.inject(wait.on(OperationKind::Sync).at_path(of).for_ever());
    gate
}

type Committing = tokio::task::JoinHandle<Result<Receipt, CommitError>>;

fn begin(engine: &Arc<LocalEngine>, transaction: Transaction) -> Committing {
    let engine = Arc::clone(engine);
    tokio::spawn(async move { engine.commit(transaction).await })
}

fn begin_produce(engine: &Arc<LocalEngine>, to: TopicPartition, value: &str) -> Committing {
    begin(engine, Transaction::produce(vec![append(to, value)]))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_synced_is_not_shown_and_what_needs_no_sync_is_answered_meanwhile() {
    let setting = setting().await;
    let Setting {
        engine,
        disk,
        durable,
        os,
        ..
    } = &setting;
    engine.commits.pipeline.keep_syncs_from_the_committer();
    let gate = hold_syncs(disk, "journal");
    let many: Vec<Committing> = (0..10)
        .map(|number| begin_produce(engine, *durable, &number.to_string()))
        .collect();
    for number in 0..10 {
        produce(engine, *os, &number.to_string()).await.unwrap();
        assert_eq!(engine.ends(*durable).unwrap().end, Offset(0));
        let read = engine.read(*durable, Offset(0), 1_000).await.unwrap();
        assert!(read.is_empty());
    }
    assert!(many.iter().all(|commit| !commit.is_finished()));
    gate.open();
    for commit in many {
        commit.await.unwrap().unwrap();
    }
    assert_eq!(engine.ends(*durable).unwrap().end, Offset(10));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_os_commit_after_an_unsynced_durable_one_of_its_partition_waits_and_others_do_not() {
    let setting = setting().await;
    let Setting {
        engine, disk, os, ..
    } = &setting;
    let other = TopicPartition {
        partition: PartitionId(1),
        ..*os
    };
    engine.commits.pipeline.keep_syncs_from_the_committer();
    let gate = hold_syncs(disk, "journal");
    let demanding = Transaction {
        durability: Some(Durability::Durable),
        ..Transaction::produce(vec![append(*os, "durable")])
    };
    let demanding = begin(engine, demanding);
    let written = async |end| {
        let state = engine.commits.state.read();
        state.partitions[os].end() == Offset(end)
    };
    eventually(async || written(1).await).await;
    let behind = begin_produce(engine, *os, "behind");
    eventually(async || written(2).await).await;
    produce(engine, other, "elsewhere").await.unwrap();
    assert!(!demanding.is_finished() && !behind.is_finished());
    assert_eq!(engine.ends(*os).unwrap().end, Offset(0));
    gate.open();
    demanding.await.unwrap().unwrap();
    behind.await.unwrap().unwrap();
    assert_eq!(values(engine, *os).await, ["durable", "behind"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_is_shown_whole_with_its_progress_once_it_is_synced() {
    let setting = setting().await;
    let Setting {
        engine,
        disk,
        durable,
        os,
        ..
    } = &setting;
    let lease = engine.claim(&named("group"), *os).await.unwrap().lease;
    engine.commits.pipeline.keep_syncs_from_the_committer();
    let gate = hold_syncs(disk, "journal");
    let next = Offset(7);
    let transaction = Transaction {
        appends: vec![append(*os, "both"), append(*durable, "both")],
        progress: vec![ProgressWrite {
            partition: lease.partition,
            lease,
            progress: Progress {
                next,
                ..Progress::default()
            }
            .into(),
        }],
        ..Transaction::default()
    };
    let committing = begin(engine, transaction);
    eventually(async || engine.commits.state.read().partitions[os].end() == Offset(1)).await;
    for partition in [os, durable] {
        assert_eq!(engine.ends(*partition).unwrap().end, Offset(0));
    }
    let reading = tokio::spawn({
        let (engine, os) = (Arc::clone(engine), *os);
        async move { engine.progress(&named("group"), os).await }
    });
    gate.open();
    committing.await.unwrap().unwrap();
    for partition in [os, durable] {
        assert_eq!(values(engine, *partition).await, ["both"]);
    }
    assert_eq!(reading.await.unwrap().unwrap().unwrap().next, next);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_comes_into_line_just_after_the_engine_failed_is_told_too() {
    let setting = setting().await;
    let (engine, disk) = (&setting.engine, &setting.disk);
    let gate = Gate::default();
    let wait = Fault::new(Effect::Wait(gate.clone()));
    disk.inject(wait.on(OperationKind::Write).at_path("journal"));
    let committing = begin_produce(engine, setting.durable, "late");
    assert!(gate.wait_for_arrival(Duration::from_secs(20)));
    engine.commits.poison("another thread's sync failed");
    gate.open();
    let told = tokio::time::timeout(Duration::from_secs(20), committing).await;
    let told = told.expect("it is told").unwrap();
    assert!(matches!(told, Err(CommitError::Poisoned(_))), "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_with_syncs_under_way_leaves_what_was_acknowledged_and_a_prefix_of_the_rest() {
    for seed in 0..60 {
        let mut setting = setting().await;
        let random = seed * 7 % 90;
        setting.disk.cut_power_after(random);
        let commits: Vec<Committing> = (0..64)
            .map(|number| begin_produce(&setting.engine, setting.durable, &number.to_string()))
            .collect();
        let mut acknowledged = Vec::new();
        for (number, commit) in commits.into_iter().enumerate() {
            if let Ok(receipt) = commit.await.unwrap() {
                acknowledged.push((receipt.base_offsets[0], number.to_string()));
            }
        }
        drop(setting.engine);
        setting.disk.cut_power();
        setting.disk.restore_power(seed);
        setting.engine = open_sim(&setting.disk, setting.dir.path()).await.unwrap();
        let found = values(&setting.engine, setting.durable).await;
        for (offset, value) in acknowledged {
            assert_eq!(found.get(offset.0 as usize), Some(&value), "seed {seed}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_go_on_while_a_checkpoint_becomes_durable() {
    let (disk, dir) = (SimDisk::default(), tempfile::tempdir().unwrap());
    let options = LocalOptions {
        journal_file_bytes: 1 << 20,
        ..small()
    };
    let clock = Arc::new(SystemClock::new());
    let engine = LocalEngine::open_on(Arc::new(disk.clone()), dir.path(), options, clock).await;
    let engine = engine.unwrap();
    let os = at(&topic(&engine, "os", Durability::Os).await, 0);
    let gate = hold_syncs(&disk, "topics");
    let value = "v".repeat(1_000);
    let mut written = Vec::new();
    // Far more than fits into memory or between two checkpoints, but less than the bound on the
    // journal.
    for number in 0..40 {
        let value = format!("{number} {value}");
        produce(&engine, os, &value).await.unwrap();
        written.push(value);
    }
    gate.open();
    assert_eq!(values(&engine, os).await, written);
    engine.close().await;
    drop(engine);
    let engine = open_sim(&disk, dir.path()).await.unwrap();
    assert_eq!(values(&engine, os).await, written);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_whose_partitions_have_directories_of_their_own_opens_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_real(dir.path(), small()).await.unwrap();
    let orders = at(&topic(&engine, "orders", Durability::Os).await, 1);
    let mut written = Vec::new();
    for number in 0..60 {
        let value = format!("{number} {}", "v".repeat(200));
        produce(&engine, orders, &value).await.unwrap();
        written.push(value);
    }
    engine.close().await;
    drop(engine);
    let topic_dir = dir.path().join(format!("topics/{}", orders.topic));
    std::fs::create_dir(topic_dir.join("1")).unwrap();
    for entry in std::fs::read_dir(&topic_dir).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if let Some(rest) = name.strip_prefix("1-") {
            std::fs::rename(topic_dir.join(&name), topic_dir.join("1").join(rest)).unwrap();
        }
    }
    for _ in 0..2 {
        let engine = open_real(dir.path(), small()).await.unwrap();
        assert_eq!(values(&engine, orders).await, written);
        for number in 0..60 {
            let value = format!("{number} {}", "w".repeat(200));
            produce(&engine, orders, &value).await.unwrap();
            written.push(value);
        }
    }
    let names = std::fs::read_dir(&topic_dir)
        .unwrap()
        .map(|e| e.unwrap().file_name());
    assert_eq!(names.collect::<Vec<_>>(), ["1"]);
}
