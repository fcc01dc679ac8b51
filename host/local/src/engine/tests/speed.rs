//! Measures the speed of commits. Not run by default, because it measures the machine: `cargo test
//! -p millrace-local speed -- --ignored --nocapture`. `MILLRACE_BENCH_DIR` chooses the disk.

use std::time::Instant;

use millrace_log::Disk;

use super::*;

async fn rate(engine: &Arc<LocalEngine>, partition: TopicPartition, tasks: u64, each: u64) -> f64 {
    let value = "m".repeat(100);
    let began = Instant::now();
    let mut running = Vec::new();
    for _ in 0..tasks {
        let (engine, value) = (Arc::clone(engine), value.clone());
        running.push(tokio::spawn(async move {
            for _ in 0..each {
                produce(&engine, partition, &value).await.unwrap();
            }
        }));
    }
    for task in running {
        task.await.unwrap();
    }
    (tasks * each) as f64 / began.elapsed().as_secs_f64()
}

async fn latencies(engine: &LocalEngine, partition: TopicPartition, count: usize) -> [Duration; 2] {
    let value = "m".repeat(100);
    let mut took = Vec::new();
    for _ in 0..count {
        let began = Instant::now();
        produce(engine, partition, &value).await.unwrap();
        took.push(began.elapsed());
    }
    took.sort_unstable();
    [took[count / 2], took[count * 99 / 100]]
}

/// The disk's own time for a small write and a sync, in a file whose blocks were written before or
/// only reserved.
fn raw_sync(dir: &Path, written: bool) -> Duration {
    let path = dir.join("raw");
    let file = millrace_log::RealDisk.create(&path).unwrap();
    file.preallocate(4 << 20, true).unwrap();
    if written {
        file.write_all_at(&vec![0; 4 << 20], 0).unwrap();
    }
    file.sync_data().unwrap();
    let mut took = Vec::new();
    for number in 0..1_000 {
        let began = Instant::now();
        file.write_all_at(&[1; 240], number * 240).unwrap();
        file.sync_data().unwrap();
        took.push(began.elapsed());
    }
    took.sort_unstable();
    took[500]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures the machine"]
async fn commits_per_second_and_latency() {
    let place = std::env::var_os("MILLRACE_BENCH_DIR");
    let dir = match place {
        Some(place) => tempfile::tempdir_in(place).unwrap(),
        None => tempfile::tempdir().unwrap(),
    };
    let engine = open_real(dir.path(), LocalOptions::default()).await;
    let engine = engine.unwrap();
    let os = at(&topic(&engine, "os", Durability::Os).await, 0);
    let durable = at(&topic(&engine, "durable", Durability::Durable).await, 0);
    // The first use of a journal file writes its blocks for the first time.
    rate(&engine, os, 64, 2_000).await;
    for round in 0..3 {
        let [p50, p99] = latencies(&engine, os, 20_000).await;
        println!("{round} os      one by one     p50 {p50:?} p99 {p99:?}");
        let [p50, p99] = latencies(&engine, durable, 1_000).await;
        println!("{round} durable one by one     p50 {p50:?} p99 {p99:?}");
        let [reserved, written] = [false, true].map(|written| raw_sync(dir.path(), written));
        println!("{round} raw write and sync     p50 {written:?}, in reserved blocks {reserved:?}");
        for tasks in [4, 64, 512] {
            let os_rate = rate(&engine, os, tasks, 200_000 / tasks).await;
            let durable_rate = rate(&engine, durable, tasks, 20_000 / tasks).await;
            println!("{round} {tasks:3} tasks  os {os_rate:9.0}/s  durable {durable_rate:9.0}/s");
        }
    }
    assert_eq!(engine.ends(os).unwrap().start, Offset(0));
    engine.close().await;
}
