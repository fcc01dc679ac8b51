//! Tests power cuts at any moment: everything acknowledged as durable exists, transactions are
//! whole, and nothing exists twice.

use fastrand::Rng;
use millrace_engine::conformance::named;
use millrace_engine::{EntryKind, EntryWrite, Lease, ProgressWrite};
use millrace_model::Progress;

use super::*;

const WORKERS: u32 = 3;

/// The record of one worker: it numbers its transactions, and each leaves its number in five
/// places.
#[derive(Default)]
struct Record {
    durably_acknowledged: u64,
    attempted: u64,
}

struct Topics {
    durable: Topic,
    os: Topic,
}

/// Commits until the power fails; every transaction writes its number to two topics, progress and
/// an entry.
async fn work(
    engine: &LocalEngine,
    topics: &Topics,
    lease: &Lease,
    record: &mut Record,
    seed: u64,
) {
    let mut random = Rng::with_seed(seed);
    loop {
        let number = record.attempted + 1;
        let worker = lease.partition.partition.0;
        let padding = "x".repeat(random.usize(..300));
        let value = format!("{number} {padding}");
        let relaxed = random.u8(..3) == 0;
        let first = if relaxed { &topics.os } else { &topics.durable };
        let transaction = Transaction {
            appends: vec![
                append(at(first, worker), &value),
                append(at(&topics.os, worker), &value),
            ],
            progress: vec![ProgressWrite {
                partition: lease.partition,
                lease: lease.clone(),
                progress: Progress {
                    next: Offset(number),
                    ..Progress::default()
                }
                .into(),
            }],
            entries: vec![EntryWrite {
                kind: EntryKind::Redriven,
                key: worker.to_string(),
                value: Some(number.to_string().into()),
            }],
            ..Transaction::default()
        };
        record.attempted = number;
        if engine.commit(transaction).await.is_err() {
            return;
        }
        if !relaxed {
            record.durably_acknowledged = number;
        }
    }
}

fn numbers(values: Vec<String>) -> Vec<u64> {
    let number = |value: String| value.split(' ').next().unwrap().parse().unwrap();
    values.into_iter().map(number).collect()
}

/// Compares the engine's content with the records; the content counts from now on.
async fn check(engine: &LocalEngine, topics: &Topics, worker: u32, record: &mut Record) {
    let mut found = numbers(values(engine, at(&topics.os, worker)).await);
    let durable = numbers(values(engine, at(&topics.durable, worker)).await);
    assert!(durable.is_sorted_by(|a, b| a < b), "in order, none twice");
    // A relaxed transaction is in the `os` topic twice and not in the durable one.
    for number in &durable {
        assert_eq!(found.iter().filter(|&n| n == number).count(), 1);
    }
    for pair in found.chunk_by(|a, b| a == b) {
        let whole = pair.len() + durable.binary_search(&pair[0]).iter().count();
        assert_eq!(whole, 2, "transaction {} is whole", pair[0]);
    }
    found.dedup();
    let last = found.len() as u64;
    assert_eq!(found, (1..=last).collect::<Vec<_>>(), "no hole");
    assert!(
        last >= record.durably_acknowledged,
        "nothing durable is lost"
    );
    assert!(last <= record.attempted, "nothing comes from nowhere");
    let progress = engine
        .progress(&named("group"), at(&topics.os, worker))
        .await;
    let progress = progress.unwrap().map_or(0, |progress| progress.next.0);
    let entry = engine.entry(EntryKind::Redriven, &worker.to_string());
    let entry = entry.map_or(0, |entry| {
        std::str::from_utf8(&entry.value).unwrap().parse().unwrap()
    });
    assert_eq!((progress, entry), (last, last));
    *record = Record {
        durably_acknowledged: last,
        attempted: last,
    };
}

async fn claim(engine: &LocalEngine, topics: &Topics, worker: u32) -> Lease {
    let hold = engine.claim(&named("group"), at(&topics.os, worker)).await;
    hold.unwrap().lease
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_three_hundred_power_cuts_nothing_durable_is_lost_torn_or_doubled() {
    for seed in 0..100 {
        let (disk, dir) = (SimDisk::default(), tempfile::tempdir().unwrap());
        let mut random = Rng::with_seed(seed);
        let mut engine = open_sim(&disk, dir.path()).await.unwrap();
        let topics = Topics {
            durable: topic(&engine, "durable", Durability::Durable).await,
            os: topic(&engine, "os", Durability::Os).await,
        };
        let mut records: [Record; WORKERS as usize] = Default::default();
        let mut epoch = 0;
        for cut in 0..3 {
            let mut leases = Vec::new();
            for worker in 0..WORKERS {
                leases.push(claim(&engine, &topics, worker).await);
            }
            assert!(leases[0].epoch > epoch, "a durable claim is not forgotten");
            epoch = leases[0].epoch;
            disk.cut_power_after(random.u64(..600));
            let [a, b, c] = &mut records;
            tokio::join!(
                work(&engine, &topics, &leases[0], a, random.u64(..)),
                work(&engine, &topics, &leases[1], b, random.u64(..)),
                work(&engine, &topics, &leases[2], c, random.u64(..)),
            );
            drop(engine);
            disk.restore_power(random.u64(..));
            // Sometimes the power fails again during the recovery.
            while random.bool() {
                disk.cut_power_after(random.u64(..120));
                drop(open_sim(&disk, dir.path()).await);
                disk.restore_power(random.u64(..));
            }
            let opened = open_sim(&disk, dir.path()).await;
            engine = opened.unwrap_or_else(|error| panic!("seed {seed}, cut {cut}: {error}"));
            for worker in 0..WORKERS {
                check(&engine, &topics, worker, &mut records[worker as usize]).await;
            }
        }
    }
}

/// Writes thirty durable messages and an entry, and deletes a topic; returns what must be found.
async fn fill(engine: &LocalEngine) -> (Topic, Vec<String>) {
    let kept = topic(engine, "kept", Durability::Durable).await;
    let doomed = topic(engine, "doomed", Durability::Durable).await;
    let mut all = Vec::new();
    for number in 0..30 {
        let value = format!("{number} {}", "y".repeat(number * 9));
        produce(engine, at(&kept, 0), &value).await.unwrap();
        produce(engine, at(&doomed, 1), &value).await.unwrap();
        all.push(value);
    }
    let name = TopicName::parse("doomed").unwrap();
    engine.delete_topic(&name, Vec::new()).await.unwrap();
    (kept, all)
}

async fn assert_filled(engine: &LocalEngine, kept: &Topic, all: &[String]) {
    assert_eq!(engine.topics(), std::slice::from_ref(kept));
    assert_eq!(values(engine, at(kept, 0)).await, all);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_at_any_step_of_a_checkpoint_loses_nothing() {
    let mut cuts = 0;
    // A checkpoint of this size takes fewer steps.
    for steps in 0..80 {
        let (disk, dir) = (SimDisk::default(), tempfile::tempdir().unwrap());
        let engine = open_sim(&disk, dir.path()).await.unwrap();
        let (kept, all) = fill(&engine).await;
        disk.cut_power_after(steps);
        engine.close().await;
        cuts += u32::from(disk.is_off());
        drop(engine);
        disk.cut_power();
        disk.restore_power(steps);
        let engine = open_sim(&disk, dir.path()).await.unwrap();
        assert_filled(&engine, &kept, &all).await;
    }
    assert!((5..80).contains(&cuts), "{cuts} cuts fell into checkpoints");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_at_any_step_of_recovery_loses_nothing() {
    let mut steps = 0;
    let (disk, dir) = (SimDisk::default(), tempfile::tempdir().unwrap());
    let engine = open_sim(&disk, dir.path()).await.unwrap();
    let (kept, mut all) = fill(&engine).await;
    drop(engine);
    loop {
        // Always the same directory: each interrupted recovery leaves its traces for the next.
        disk.cut_power();
        disk.restore_power(steps);
        disk.cut_power_after(steps);
        let recovered = open_sim(&disk, dir.path()).await;
        let finished = recovered.is_ok() && !disk.is_off();
        drop(recovered);
        disk.cut_power();
        disk.restore_power(steps + 1);
        let engine = open_sim(&disk, dir.path()).await.unwrap();
        assert_filled(&engine, &kept, &all).await;
        if finished {
            assert!(steps > 10, "the cut fell into the recovery");
            return;
        }
        // Something to replay again.
        let more = format!("after {steps}");
        produce(&engine, at(&kept, 0), &more).await.unwrap();
        all.push(more);
        steps += 1;
    }
}
