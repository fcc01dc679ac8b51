//! `kill -9` under load, repeatedly: acknowledged messages survive, and every message takes effect
//! once.

use std::collections::BTreeMap;

use anyhow::Result;
use guest_artifacts as guests;
use millrace_tests::{Deploy, Message};
use serde_json::{Value, json};

use crate::host;
use crate::load::Load;

const KILLS: u32 = 20;
/// One in this many messages fails for good and becomes a dead letter.
const FAILING_EVERY: u32 = 37;

fn message(number: u32) -> Value {
    let fails = number.is_multiple_of(FAILING_EVERY);
    let headers = if fails {
        json!({"fail-times": "99"})
    } else {
        json!({})
    };
    json!({"key": format!("k{}", number % 50), "value": number.to_string(), "headers": headers})
}

fn numbers(messages: &[Message]) -> BTreeMap<u32, usize> {
    let mut numbers = BTreeMap::new();
    for message in messages {
        *numbers
            .entry(message.text().parse().unwrap_or(u32::MAX))
            .or_default() += 1;
    }
    numbers
}

fn survives(durability: &str) -> Result<()> {
    let mut host = host()?;
    let client = host.client();
    for name in ["in", "out"] {
        let topic = json!({"name": name, "partitions": 2, "durability": durability});
        client.post_json("/v1/topics", &topic)?.ok()?;
    }
    let module = client.push(guests::FLAKY)?;
    client.deploy(&Deploy {
        name: "worker",
        module: &module,
        topic: "in",
        output: "out",
        more: json!({
            "retry": {"attempts_max": 2, "delay_first_ms": 5, "delay_max_ms": 10},
            "dead_letters": {"max": 1_000_000},
        }),
    })?;

    let load = Load::of(message);
    for _ in 0..KILLS {
        load.kill(&mut host)?;
    }

    let client = host.client();
    client.wait_until_idle("worker")?;
    let stored = numbers(&client.read("in")?);
    let acknowledged = load.acknowledged();
    assert!(
        acknowledged.len() > 1_000,
        "only {} messages: no load",
        acknowledged.len()
    );
    for number in &acknowledged {
        assert_eq!(
            stored.get(number),
            Some(&1),
            "acknowledged message {number}"
        );
    }
    let mut effects = client.read("out")?;
    let dead = client.read("in.worker.dlq")?;
    assert!(dead.iter().all(|m| {
        m.text()
            .parse::<u32>()
            .is_ok_and(|n| n.is_multiple_of(FAILING_EVERY))
    }));
    effects.extend(dead);
    assert_eq!(
        numbers(&effects),
        stored,
        "each input in exactly one of output and dead letters"
    );
    eprintln!(
        "{KILLS} kills at {durability}, {} acknowledged, {} stored",
        acknowledged.len(),
        stored.len()
    );
    Ok(())
}

#[test]
fn killed_twenty_times_under_load_nothing_acknowledged_is_lost_or_repeated() -> Result<()> {
    survives("durable")
}

#[test]
fn killed_twenty_times_at_durability_os_nothing_acknowledged_is_lost_or_repeated() -> Result<()> {
    survives("os")
}
