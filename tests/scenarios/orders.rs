//! The three orders on the real binary, with `kill -9` in the middle of retries: what keeps its
//! order, which messages wait, and which go on.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};
use guest_artifacts as guests;
use millrace_tests::{Client, Host, wait_for};
use serde_json::{Value, json};

use crate::{deploy_worker, host};

const MESSAGES: u32 = 600;
const KEYS: u32 = 20;
const PARTITIONS: u32 = 2;
/// These messages fail until the processor is repaired.
const STUCK: [u32; 2] = [203, 351];
/// One in this many messages fails twice.
const FAILING_EVERY: u32 = 9;

fn key(number: u32) -> u32 {
    number % KEYS
}

fn message(number: u32) -> Value {
    let fails = match number {
        _ if STUCK.contains(&number) => "1000000",
        _ if number.is_multiple_of(FAILING_EVERY) => "2",
        _ => "0",
    };
    json!({
        "key": key(number).to_string(), "value": number.to_string(),
        "headers": {"fail-times": fails, "fail-class": "busy"},
    })
}

fn deploy(client: &Client, component: &[u8], order: &str) -> Result<()> {
    let more = json!({
        "order": order,
        "retry": {"attempts_max": 2_000_000, "delay_first_ms": 20, "delay_max_ms": 50},
        "breaker": {"enabled": false},
        "batch": {"messages_max": 30},
    });
    deploy_worker(client, component, more)?;
    Ok(())
}

/// The numbers in each partition of a topic, in order.
fn numbers(client: &Client, topic: &str) -> Result<BTreeMap<u32, Vec<u32>>> {
    let mut partitions: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for message in client.read(topic)? {
        let numbers = partitions.entry(message.partition).or_default();
        numbers.push(message.text().parse()?);
    }
    Ok(partitions)
}

/// A host with the processor. The messages are produced in pieces, and the host is killed during
/// the retries of each piece.
///
/// It is killed only once the first call of each partition has returned, since a message that is in
/// flight again and again when the host ends is rightly given up.
fn killed_amid_retries(order: &str) -> Result<Host> {
    let mut host = host()?;
    let client = host.client();
    client.topic("in", PARTITIONS)?;
    client.topic("out", PARTITIONS)?;
    deploy(&client, guests::FLAKY, order)?;
    let messages: Vec<Value> = (0..MESSAGES).map(message).collect();
    for piece in messages.chunks(150) {
        let client = host.client();
        let before = wait_for("every partition to be open", || {
            let places = come_to(&client)?;
            Ok((places.len() == PARTITIONS as usize).then_some(places))
        })?;
        client.produce("in", piece)?;
        wait_for("every partition to call, and a message to wait", || {
            let now = come_to(&client)?;
            let all_call = now.iter().all(|place| !before.contains(place));
            let waits = now.iter().any(|place| place.parked > 0);
            Ok((all_call && waits).then_some(()))
        })?;
        host.kill()?;
        host.start_again()?;
    }
    Ok(host)
}

/// The processor's position in a partition.
#[derive(PartialEq)]
struct Place {
    partition: u64,
    next: u64,
    parked: u64,
    attempts: u64,
}

fn come_to(client: &Client) -> Result<Vec<Place>> {
    let status = client.get("/v1/processors/worker")?.ok()?;
    let waiting = client.get("/v1/processors/worker/parked?max=1000")?.ok()?;
    let waiting = waiting["parked"].as_array().cloned().unwrap_or_default();
    let place = |at: &Value| {
        let partition = at["partition"].as_u64()?;
        let here = waiting.iter().filter(|it| it["partition"] == partition);
        Some(Place {
            partition,
            next: at["next"].as_u64()?,
            parked: at["parked"].as_u64()?,
            attempts: here.filter_map(|it| it["attempts"].as_u64()).sum(),
        })
    };
    let partitions = status["partitions"].as_array().cloned();
    Ok(partitions.iter().flatten().filter_map(place).collect())
}

/// Waits until exactly these messages are in the output, and checks that another `kill -9` adds
/// none. Then repairs the processor and returns the whole output, each message once.
fn these_go_on(
    mut host: Host,
    order: &str,
    these: &BTreeSet<u32>,
) -> Result<BTreeMap<u32, Vec<u32>>> {
    let client = host.client();
    let out = |client: &Client| -> Result<BTreeSet<u32>> {
        Ok(numbers(client, "out")?.into_values().flatten().collect())
    };
    wait_for("all that may go on", || {
        let dead = client.dead_letters("worker")?;
        ensure!(dead.is_empty(), "given up: {dead:?}");
        Ok((client.count("out")? >= these.len() as u64).then_some(()))
    })?;
    assert_eq!(out(&client)?, *these);
    host.kill()?;
    host.start_again()?;
    let client = host.client();
    wait_for("the others to be tried again", || {
        // The topic is missing before the first dead letter.
        let retries = client.metric("millrace_retries_total").unwrap_or(0.0);
        Ok((retries >= 20.0).then_some(()))
    })?;
    assert_eq!(out(&client)?, *these, "nobody went past");
    assert!(client.backlog("worker")? > 0);

    deploy(&client, guests::PASSTHROUGH, order)?;
    client.wait_until_idle("worker")?;
    let partitions = numbers(&client, "out")?;
    let mut all: Vec<u32> = partitions.values().flatten().copied().collect();
    all.sort_unstable();
    assert_eq!(all, Vec::from_iter(0..MESSAGES), "each exactly once");
    assert_eq!(client.dead_letters("worker")?.len(), 0);
    Ok(partitions)
}

#[test]
fn by_key_a_key_waits_behind_its_message_in_order_and_all_other_keys_go_on() -> Result<()> {
    let host = killed_amid_retries("key")?;
    let waits = |number: &u32| {
        let mut stuck = STUCK.iter();
        stuck.any(|stuck| key(*stuck) == key(*number) && stuck <= number)
    };
    let these = (0..MESSAGES).filter(|number| !waits(number)).collect();
    for numbers in these_go_on(host, "key", &these)?.into_values() {
        let mut latest: BTreeMap<u32, u32> = BTreeMap::new();
        for number in numbers {
            let before = latest.insert(key(number), number);
            assert!(before < Some(number), "{before:?} stands before {number}");
        }
    }
    Ok(())
}

#[test]
fn by_partition_all_of_it_waits_and_keeps_its_order() -> Result<()> {
    let host = killed_amid_retries("partition")?;
    let produced = numbers(&host.client(), "in")?;
    let these = produced.values().flat_map(|numbers| {
        let stuck = |number: &&u32| !STUCK.contains(number);
        numbers.iter().take_while(stuck).copied()
    });
    let these = these.collect();
    // Both topics assign keys to the same partitions.
    assert_eq!(these_go_on(host, "partition", &these)?, produced);
    Ok(())
}

#[test]
fn without_an_order_nobody_waits_for_anybody() -> Result<()> {
    let host = killed_amid_retries("none")?;
    let these = (0..MESSAGES)
        .filter(|number| !STUCK.contains(number))
        .collect();
    these_go_on(host, "none", &these)?;
    Ok(())
}
