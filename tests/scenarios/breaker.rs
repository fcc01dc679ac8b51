//! An outage, a bad deployment, a flood of poison messages, and a message that ends the host: what
//! pauses, what it costs, and how work continues.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use guest_artifacts as guests;
use millrace_tests::{Client, Host, Message, wait_for};
use serde_json::{Value, json};

use crate::{deploy_worker, host};

fn topics(client: &Client) -> Result<()> {
    client.topic("in", 2)?;
    client.topic("out", 2)
}

/// Messages with this value and numbers as keys.
fn numbered(count: u32, value: &str, headers: &Value) -> Vec<Value> {
    let message = |n: u32| json!({"key": n.to_string(), "value": value, "headers": headers});
    (0..count).map(message).collect()
}

fn breaker(client: &Client) -> Result<Value> {
    Ok(client.get("/v1/processors/worker")?.ok()?["breaker"].clone())
}

fn wait_until_open(client: &Client, reason: &str) -> Result<Value> {
    wait_for(&format!("the breaker to open for {reason}"), || {
        let breaker = breaker(client)?;
        Ok((breaker["reason"] == reason).then_some(breaker))
    })
}

fn keys(messages: &[Message]) -> Vec<u32> {
    let number = |message: &Message| message.key.as_deref()?.parse().ok();
    messages.iter().filter_map(number).collect()
}

/// Checks that each of `count` messages is either in the output or a dead letter, once; returns how
/// many are dead letters.
fn each_once(client: &Client, count: u32) -> Result<usize> {
    let dead = keys(&client.read("in.worker.dlq")?);
    let mut all = keys(&client.read("out")?);
    all.extend(&dead);
    all.sort_unstable();
    assert_eq!(all, Vec::from_iter(0..count), "each exactly once");
    Ok(dead.len())
}

#[test]
fn an_outage_pauses_the_processor_gives_nothing_up_and_ends_by_itself() -> Result<()> {
    let host = host()?;
    let client = host.client();
    topics(&client)?;
    deploy_worker(
        &client,
        guests::FLAKY,
        json!({"retry": {"attempts_max": 1}}),
    )?;
    let down = json!({"unavailable": "the register is down", "unavailable-calls": "6"});
    client.produce("in", &numbered(500, "v", &down))?;
    let open = wait_until_open(&client, "outage")?;
    assert_eq!(open["text"], "outage: the register is down");
    assert_eq!(client.metric("millrace_breaker_state")?, 1.0);
    let shown = host.command(&["processor", "show", "worker"]).output()?;
    let shown = String::from_utf8(shown.stdout)?;
    assert!(
        shown.contains("outage: the register is down (next probe"),
        "{shown}"
    );
    client.wait_until_idle("worker")?;
    assert_eq!(each_once(&client, 500)?, 0);
    assert_eq!(client.metric("millrace_breaker_state")?, 0.0);
    assert!(client.metric("millrace_probes_total")? >= 3.0);
    assert!(client.metric("millrace_breaker_trips_total")? >= 1.0);
    Ok(())
}

/// How long 10,000 messages take until all are processed.
fn ten_thousand(poison: Option<usize>) -> Result<Duration> {
    const COUNT: u32 = 10_000;
    let host = host()?;
    let client = host.client();
    topics(&client)?;
    deploy_worker(&client, guests::POISON, json!({}))?;
    let mut messages = numbered(COUNT, "v", &json!({}));
    if let Some(place) = poison {
        messages[place]["value"] = json!("poison");
    }
    let good = COUNT as usize - usize::from(poison.is_some());
    let began = Instant::now();
    client.produce("in", &messages)?;
    wait_for("all good messages", || {
        Ok((client.count("out")? >= good as u64).then_some(()))
    })?;
    let took = began.elapsed();
    client.wait_until_idle("worker")?;
    assert_eq!(each_once(&client, COUNT)?, usize::from(poison.is_some()));
    assert_eq!(
        breaker(&client)?["trips"],
        0,
        "one poison message is no flood"
    );
    Ok(took)
}

#[test]
fn one_poison_message_among_ten_thousand_holds_nobody_up() -> Result<()> {
    let clean = ten_thousand(None)?;
    let poisoned = ten_thousand(Some(4_321))?;
    println!("10,000 messages: clean {clean:?}, with one poison {poisoned:?}");
    Ok(())
}

const DEPLOYED: u32 = 2_000;

/// Deploys a revision that handles everything, then one that traps on everything, while messages
/// arrive; returns how long it took from the deployment to the pause.
fn bad_deploy(client: &Client, auto_rollback: bool) -> Result<Instant> {
    topics(client)?;
    let more = json!({"retry": {"attempts_max": 1}, "auto_rollback": auto_rollback});
    deploy_worker(client, guests::PASSTHROUGH, more.clone())?;
    let messages = numbered(DEPLOYED, "poison", &json!({}));
    client.produce("in", &messages[..100])?;
    client.wait_for_messages("out", 100)?;
    assert_eq!(deploy_worker(client, guests::POISON, more)?, 2);
    let began = Instant::now();
    client.produce("in", &messages[100..])?;
    Ok(began)
}

#[test]
fn a_bad_deploy_is_paused_and_after_a_rollback_every_message_is_processed_once() -> Result<()> {
    let host = host()?;
    let client = host.client();
    let began = bad_deploy(&client, false)?;
    let open = wait_until_open(&client, "bad-deploy")?;
    let paused = began.elapsed();
    let text = open["text"].to_string();
    assert!(
        text.contains("revision 2 fails where revision 1 did not"),
        "{text}"
    );
    let began = Instant::now();
    let rolled = host
        .command(&["processor", "rollback", "worker"])
        .output()?;
    assert!(rolled.status.success());
    let back = began.elapsed();
    client.wait_until_idle("worker")?;
    let done = began.elapsed();
    let dead = each_once(&client, DEPLOYED)?;
    assert!(dead <= 4, "{dead} dead letters");
    println!(
        "a bad deploy: paused after {paused:?}, {dead} dead letters, rolled back in {back:?}, all processed {done:?} later"
    );
    Ok(())
}

#[test]
fn a_bad_deploy_rolls_itself_back_if_asked_to_and_says_why() -> Result<()> {
    let host = host()?;
    let client = host.client();
    let began = bad_deploy(&client, true)?;
    let processor = wait_for("the rollback", || {
        let processor = client.get("/v1/processors/worker")?.ok()?;
        Ok((processor["current"] == 1).then_some(processor))
    })?;
    let back = began.elapsed();
    let note = processor["revisions"][1]["note"].to_string();
    assert!(
        note.contains("rolled back to revision 1 by the host: bad deploy"),
        "{note}"
    );
    client.wait_until_idle("worker")?;
    let dead = each_once(&client, DEPLOYED)?;
    assert!(dead <= 4, "{dead} dead letters");
    assert_eq!(client.metric("millrace_auto_rollbacks_total")?, 1.0);
    println!("a bad deploy: rolled itself back after {back:?}, {dead} dead letters");
    Ok(())
}

#[test]
fn at_the_bound_of_dead_letters_a_partition_waits_until_there_may_be_more_or_somebody_accepts_them()
-> Result<()> {
    let host = host()?;
    let client = host.client();
    topics(&client)?;
    let more = json!({"dead_letters": {"max": 20, "per_ms": 3_600_000}});
    deploy_worker(&client, guests::FLAKY, more)?;
    client.produce("in", &numbered(100, "v", &json!({"reject": "no"})))?;
    wait_for("a partition to wait", || {
        let processor = client.get("/v1/processors/worker")?.ok()?;
        let states = processor["partitions"].to_string();
        Ok(states
            .contains("poison flood: 20 dead letters")
            .then_some(()))
    })?;
    assert_eq!(client.count("in.worker.dlq")?, 20);
    let resume = [
        "processor",
        "resume",
        "worker",
        "--accept-dead-letters",
        "80",
    ];
    assert!(host.command(&resume).output()?.status.success());
    client.wait_until_idle("worker")?;
    assert_eq!(each_once(&client, 100)?, 100);
    assert!(client.metric("millrace_dead_letters_held_total")? >= 1.0);
    Ok(())
}

#[test]
fn a_topic_of_nothing_but_poison_ends_as_dead_letters_when_an_operator_says_so() -> Result<()> {
    let host = host()?;
    let client = host.client();
    topics(&client)?;
    deploy_worker(
        &client,
        guests::POISON,
        json!({"retry": {"attempts_max": 2, "delay_first_ms": 5}}),
    )?;
    client.produce("in", &numbered(30, "poison", &json!({})))?;
    wait_until_open(&client, "poison-flood")?;
    assert!(client.count("in.worker.dlq")? <= 4);
    let body = json!({"accept_dead_letters": 30});
    client
        .post_json("/v1/processors/worker/resume", &body)?
        .ok()?;
    client.wait_until_idle("worker")?;
    assert_eq!(each_once(&client, 30)?, 30);
    Ok(())
}

#[test]
fn a_breaker_that_cannot_be_is_refused_by_name() -> Result<()> {
    let host = host()?;
    let client = host.client();
    topics(&client)?;
    let module = client.push(guests::PASSTHROUGH)?;
    let refused = |field: &str, value: Value| -> Result<String> {
        let spec = json!({"module": module, "topics": ["in"], "output": "out", field: value});
        let reply = client.put_json("/v1/processors/worker", &spec)?;
        assert!((400..500).contains(&reply.status));
        let (_, message, hint) = reply.error()?;
        Ok(format!("{message} {hint}"))
    };
    let text = refused("breaker", json!({"failures_min": 1}))?;
    assert!(
        text.contains("breaker.failures_min is 1; it must be 2"),
        "{text}"
    );
    let text = refused("dead_letters", json!({"max": 0}))?;
    assert!(text.contains("dead_letters.max is 0"), "{text}");
    let text = refused("breaker", json!({"failure_min": 9}))?;
    assert!(text.contains("failures_min"), "{text}");
    Ok(())
}

/// Waits until a component is in a call that never returns, then kills the host.
fn killed_in_flight(host: &mut Host) -> Result<()> {
    let client = host.client();
    wait_for("the message that never returns to be in flight", || {
        let logs = client.get("/v1/processors/worker/logs")?.ok()?;
        Ok(logs["lines"]
            .to_string()
            .contains("never to return")
            .then_some(()))
    })?;
    host.kill()?;
    host.start_again()
}

#[test]
fn a_message_with_which_the_host_ends_is_found_out_and_all_others_are_processed_once() -> Result<()>
{
    const COUNT: u32 = 60;
    let mut host = host()?;
    let client = host.client();
    client.topic("in", 1)?;
    client.topic("out", 1)?;
    deploy_worker(
        &client,
        guests::ENDLESS,
        json!({"limits": {"call_ms_max": 600_000}}),
    )?;
    let mut messages = numbered(COUNT, "v", &json!({}));
    messages[23]["value"] = json!("endless");
    client.produce("in", &messages)?;
    for _ in 0..3 {
        killed_in_flight(&mut host)?;
    }
    let client = host.client();
    client.wait_until_idle("worker")?;
    assert_eq!(each_once(&client, COUNT)?, 1);
    let dead = client.dead_letters("worker")?;
    let letter = dead.first().context("no dead letter")?;
    assert_eq!(letter["cause"], "host-died", "{letter}");
    assert_eq!(letter["origin_offset"], 23);
    let logs = client.get("/v1/processors/worker/logs")?.ok()?;
    assert!(
        !logs["lines"].to_string().contains("never to return"),
        "it was not called again"
    );
    let passed: BTreeSet<u32> = keys(&client.read("out")?).into_iter().collect();
    assert!(!passed.contains(&23));
    Ok(())
}
