//! Hot swap: revisions take over between two batches, and no message is lost or repeated.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use guest_artifacts as guests;
use millrace_tests::{Client, Deploy, Message, hold_for};
use serde_json::{Value, json};

use crate::host;

const PARTITIONS: u32 = 2;
const SWAP_EVERY: Duration = Duration::from_millis(100);
const SWAP_FOR: Duration = Duration::from_secs(10);
const BATCH: u32 = 50;

fn deploy(client: &Client, module: &str) -> Result<u64> {
    client.deploy(&Deploy {
        name: "worker",
        module,
        topic: "in",
        output: "out",
        more: json!({}),
    })
}

/// Produces numbered messages until told to end; returns how many.
fn produce_numbers(client: &Client, done: &AtomicBool) -> Result<u32> {
    let mut next = 0;
    while !done.load(Ordering::Relaxed) {
        let batch: Vec<Value> = (next..next + BATCH)
            .map(|n| json!({"value": n.to_string(), "partition": n % PARTITIONS}))
            .collect();
        client.produce("in", &batch)?;
        next += BATCH;
    }
    Ok(next)
}

/// Watches the output grow; returns the longest time without progress in one of its partitions.
fn longest_pause(client: &Client, done: &AtomicBool) -> Result<Duration> {
    let mut grown: BTreeMap<u64, (u64, Instant)> = BTreeMap::new();
    let mut longest = Duration::ZERO;
    while !done.load(Ordering::Relaxed) {
        let topic = client.get("/v1/topics/out")?.ok()?;
        for at in topic["ends"].as_array().context("no ends")? {
            let (partition, end) = (
                at["partition"].as_u64().unwrap_or(0),
                at["end"].as_u64().unwrap_or(0),
            );
            let (was, since) = *grown
                .entry(partition)
                .or_insert_with(|| (end, Instant::now()));
            if end > was {
                longest = longest.max(since.elapsed());
                grown.insert(partition, (end, Instant::now()));
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(longest)
}

#[test]
fn ten_swaps_a_second_under_load_lose_and_repeat_nothing() -> Result<()> {
    let host = host()?;
    let client = host.client();
    client.topic("in", PARTITIONS)?;
    client.topic("out", PARTITIONS)?;
    let modules = [client.push(guests::STAMP_1)?, client.push(guests::STAMP_2)?];
    deploy(&client, &modules[0])?;

    let done = AtomicBool::new(false);
    let (sent, pause, swaps) = std::thread::scope(|scope| -> Result<_> {
        let producer = scope.spawn(|| produce_numbers(&host.client(), &done));
        let watcher = scope.spawn(|| longest_pause(&host.client(), &done));
        let mut swaps = 0_usize;
        let swapped = hold_for(SWAP_FOR, || {
            let began = Instant::now();
            swaps += 1;
            deploy(&client, &modules[swaps % 2])?;
            std::thread::sleep(SWAP_EVERY.saturating_sub(began.elapsed()));
            Ok(())
        });
        done.store(true, Ordering::Relaxed);
        let sent = producer.join().ok().context("the producer panicked")??;
        let pause = watcher.join().ok().context("the watcher panicked")??;
        swapped.map(|()| (sent, pause, swaps))
    })?;
    client.wait_until_idle("worker")?;

    let out = client.read("out")?;
    let mut numbers: Vec<u32> = out.iter().filter_map(|m| m.text().parse().ok()).collect();
    numbers.sort_unstable();
    assert_eq!(
        numbers,
        (0..sent).collect::<Vec<u32>>(),
        "every input exactly once"
    );
    let seen: BTreeSet<&str> = out.iter().filter_map(|m| m.header("revision")).collect();
    assert_eq!(seen, BTreeSet::from(["1", "2"]), "both revisions worked");
    assert!(swaps >= 50, "only {swaps} swaps: too slow to say anything");
    eprintln!("{swaps} swaps, {sent} messages, longest pause of a partition {pause:?}");
    Ok(())
}

#[test]
fn a_rollback_brings_the_earlier_revision_back() -> Result<()> {
    let host = host()?;
    let client = host.client();
    client.topic("in", 1)?;
    client.topic("out", 1)?;
    let modules = [client.push(guests::STAMP_1)?, client.push(guests::STAMP_2)?];
    let says = |count: usize| -> Result<Option<String>> {
        client.produce("in", &[json!({"value": "x"})])?;
        let out = client.wait_for_messages("out", count)?;
        Ok(out
            .last()
            .and_then(|last: &Message| last.header("revision").map(str::to_owned)))
    };
    assert_eq!(deploy(&client, &modules[0])?, 1);
    assert_eq!(says(1)?.as_deref(), Some("1"));
    assert_eq!(deploy(&client, &modules[1])?, 2);
    assert_eq!(
        deploy(&client, &modules[1])?,
        2,
        "the same again is no new revision"
    );
    assert_eq!(says(2)?.as_deref(), Some("2"));
    let back = client
        .post_json("/v1/processors/worker/rollback", &json!({}))?
        .ok()?;
    assert_eq!(back["current"], 1);
    assert_eq!(says(3)?.as_deref(), Some("1"));
    let nowhere = client.post_json("/v1/processors/worker/rollback", &json!({"revision": 77}))?;
    assert!((400..500).contains(&nowhere.status));
    assert_eq!(says(4)?.as_deref(), Some("1"));
    Ok(())
}
