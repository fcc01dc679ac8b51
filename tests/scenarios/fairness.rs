//! Processors side by side, and batches sized to their component: the worst neighbours delay no
//! other processor and lose nothing, a slow component gets as much as it can handle in its time,
//! and an idle fast one gets each message at once.

use anyhow::Result;
use guest_artifacts as guests;
use millrace_tests::{Client, Message, wait_for};
use serde_json::{Value, json};

use crate::{deploy_between, host};

const PARTITIONS: u32 = 4;
/// Messages for each bad neighbour; every fifth is bad.
const BAD: u32 = 200;
const GOOD: u32 = 4_000;

/// Deploys a processor between two topics named after it.
fn deploy(
    client: &Client,
    name: &str,
    component: &[u8],
    partitions: u32,
    more: Value,
) -> Result<()> {
    let (topic, output) = (format!("{name}-in"), format!("{name}-out"));
    client.topic(&topic, partitions)?;
    client.topic(&output, partitions)?;
    deploy_again(client, name, component, more)
}

fn deploy_again(client: &Client, name: &str, component: &[u8], more: Value) -> Result<()> {
    let (topic, output) = (format!("{name}-in"), format!("{name}-out"));
    deploy_between(client, name, component, [&topic, &output], more)?;
    Ok(())
}

fn numbered(count: u32, bad: Option<&str>, headers: &Value) -> Vec<Value> {
    let value = |n: u32| bad.filter(|_| n.is_multiple_of(5)).unwrap_or("v");
    (0..count)
        .map(|n| json!({"key": n.to_string(), "value": value(n), "headers": headers}))
        .collect()
}

fn keys(messages: &[Message]) -> Vec<u32> {
    let number = |message: &Message| message.key.as_deref()?.parse().ok();
    let mut keys: Vec<u32> = messages.iter().filter_map(number).collect();
    keys.sort_unstable();
    keys
}

/// Checks that every message of the processor is in the output once, and that there are no dead
/// letters.
fn all_once(client: &Client, name: &str, count: u32) -> Result<()> {
    let out = keys(&client.read(&format!("{name}-out"))?);
    assert_eq!(out, Vec::from_iter(0..count), "{name}: each exactly once");
    assert_eq!(client.dead_letters(name)?.len(), 0, "{name}");
    Ok(())
}

/// Settings under which a processor that always fails is neither paused nor gives a message up.
fn at_it_for_ever() -> Value {
    json!({
        "retry": {"attempts_max": 100_000, "delay_first_ms": 1, "delay_max_ms": 5},
        "breaker": {"enabled": false},
        "limits": {"call_ms_max": 200, "memory_bytes_max": 16 << 20},
    })
}

#[test]
fn beside_one_that_never_returns_and_one_that_hoards_memory_a_good_processor_gets_all_done()
-> Result<()> {
    let host = host()?;
    let client = host.client();
    let bad = [
        ("endless", guests::ENDLESS, "timeout"),
        ("hoard", guests::HOARD, "memory"),
    ];
    for (name, component, _) in bad {
        deploy(&client, name, component, PARTITIONS, at_it_for_ever())?;
        let messages = numbered(BAD, Some(name), &json!({}));
        client.produce(&format!("{name}-in"), &messages)?;
    }
    for (name, _, cause) in bad {
        let failing = format!("millrace_traps_total{{processor=\"{name}\",cause=\"{cause}\"}}");
        wait_for(&format!("{name} to be at it"), || {
            let calls = labelled(&client, &failing)?;
            Ok((calls >= 3.0).then_some(()))
        })?;
    }

    deploy(&client, "good", guests::UPPERCASE, PARTITIONS, json!({}))?;
    for piece in numbered(GOOD, None, &json!({})).chunks(100) {
        client.produce("good-in", piece)?;
    }
    client.wait_until_idle("good")?;
    all_once(&client, "good", GOOD)?;
    for (name, ..) in bad {
        assert!(client.backlog(name)? > 0, "{name} is still at it");
    }

    // The messages of the bad processors are all there once they are repaired.
    for (name, ..) in bad {
        deploy_again(&client, name, guests::PASSTHROUGH, at_it_for_ever())?;
        client.wait_until_idle(name)?;
        all_once(&client, name, BAD)?;
    }
    Ok(())
}

/// The value of one line of `/metrics`; 0 if there is no such line yet.
fn labelled(client: &Client, line: &str) -> Result<f64> {
    let text = String::from_utf8(client.get("/metrics")?.body)?;
    let value = text.lines().find_map(|found| found.strip_prefix(line));
    value.map_or(Ok(0.0), |value| Ok(value.trim().parse()?))
}

/// The number of calls with messages so far, and of messages in them.
fn calls(client: &Client) -> Result<(f64, f64)> {
    let calls = client.metric("millrace_batch_messages_count")?;
    Ok((calls, client.metric("millrace_batch_messages_sum")?))
}

#[test]
fn a_slow_component_is_given_what_it_gets_done_in_its_time_and_gives_nothing_up() -> Result<()> {
    const SLOW: u32 = 1_500;
    let host = host()?;
    let client = host.client();
    // A batch of 1,000 such messages would take two seconds, ten times the limit.
    let more = json!({
        "limits": {"call_ms_max": 200},
        "retry": {"attempts_max": 2},
        "batch": {"messages_max": 1_000},
    });
    deploy(&client, "slow", guests::SLOW, 1, more)?;
    client.produce(
        "slow-in",
        &numbered(SLOW, None, &json!({"work-us": "2000"})),
    )?;
    client.wait_until_idle("slow")?;
    all_once(&client, "slow", SLOW)?;
    let timeouts = client.metric("millrace_traps_total")?;
    let (calls, messages) = calls(&client)?;
    println!("{SLOW} slow messages: {calls} calls, {timeouts} ran out of time");
    assert!(
        timeouts <= 20.0,
        "{timeouts} of {calls} calls ran out of time"
    );
    assert!(messages / calls >= 2.0, "still more than one at a time");
    Ok(())
}

#[test]
fn an_idle_fast_component_is_given_each_message_at_once() -> Result<()> {
    const SINGLE: u32 = 50;
    let host = host()?;
    let client = host.client();
    deploy(&client, "fast", guests::UPPERCASE, 1, json!({}))?;
    for message in numbered(SINGLE, None, &json!({})) {
        let before = client.count("fast-out")?;
        client.produce("fast-in", &[message])?;
        // No other message comes that could fill a batch.
        wait_for("the message alone", || {
            Ok((client.count("fast-out")? > before).then_some(()))
        })?;
    }
    let single = f64::from(SINGLE);
    assert_eq!(calls(&client)?, (single, single));
    all_once(&client, "fast", SINGLE)
}
