//! Badly behaved guests: each harms only itself, while a good neighbour on the same host continues.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use guest_artifacts as guests;
use millrace_tests::{Client, wait_for};
use serde_json::{Value, json};

use crate::{deploy_between, host};

/// The longest that a good neighbour's single message may take while a bad guest runs wild;
/// generous, for shared machines.
const NEIGHBOUR_PATIENCE: Duration = Duration::from_secs(10);

fn deploy(client: &Client, name: &str, component: &[u8], more: Value) -> Result<()> {
    let (topic, output) = (format!("{name}-in"), format!("{name}-out"));
    client.topic(&topic, 1)?;
    client.topic(&output, 1)?;
    deploy_between(client, name, component, [&topic, &output], more)?;
    Ok(())
}

/// Sends `bad` values among good ones to `component`: the bad ones must become dead letters of
/// `cause`, all others must pass, and a neighbour must not be slowed down.
fn the_poison_alone_dies(component: &[u8], bad: &[&str], cause: &str) -> Result<()> {
    let host = host()?;
    let client = host.client();
    let more = json!({
        "retry": {"attempts_max": 2, "delay_first_ms": 5, "delay_max_ms": 10},
        "limits": {"call_ms_max": 200, "memory_bytes_max": 16 << 20},
    });
    deploy(&client, "bad", component, more)?;
    deploy(&client, "good", guests::UPPERCASE, json!({}))?;
    let done = AtomicBool::new(false);
    let slowest = std::thread::scope(|scope| -> Result<Duration> {
        let neighbour = scope.spawn(|| neighbour_latency(&client, &done));
        let outcome = poisoned(&client, bad, cause);
        done.store(true, Ordering::Relaxed);
        let slowest = neighbour.join().ok().context("the neighbour panicked")??;
        outcome.map(|()| slowest)
    })?;
    assert!(
        slowest < NEIGHBOUR_PATIENCE,
        "the neighbour waited {slowest:?}"
    );
    Ok(())
}

fn poisoned(client: &Client, bad: &[&str], cause: &str) -> Result<()> {
    let mut batch: Vec<Value> = (0..40)
        .map(|n| json!({"key": format!("g{n}"), "value": format!("good {n}")}))
        .collect();
    for (place, value) in bad.iter().enumerate() {
        batch.insert(
            place * 5 + 3,
            json!({"key": format!("b{place}"), "value": value}),
        );
    }
    client.produce("bad-in", &batch)?;
    client.wait_for_messages("bad-out", 40)?;
    client.wait_until_idle("bad")?;
    let mut good: Vec<String> = client
        .read("bad-out")?
        .into_iter()
        .filter_map(|m| m.value)
        .collect();
    good.sort();
    let mut expected: Vec<String> = (0..40).map(|n| format!("good {n}")).collect();
    expected.sort();
    assert_eq!(good, expected);
    let dead = client.dead_letters("bad")?;
    assert_eq!(dead.len(), bad.len(), "{dead:?}");
    for letter in &dead {
        assert_eq!(letter["cause"], cause, "{letter}");
    }
    Ok(())
}

/// Sends one message after the other through the good neighbour until told to end; returns the
/// slowest time.
fn neighbour_latency(client: &Client, done: &AtomicBool) -> Result<Duration> {
    let mut slowest = Duration::ZERO;
    let mut sent = 0;
    while !done.load(Ordering::Relaxed) {
        let began = Instant::now();
        client.produce("good-in", &[json!({"value": "fine"})])?;
        sent += 1;
        wait_for("the neighbour's message", || {
            Ok((client.count("good-out")? >= sent).then_some(()))
        })?;
        slowest = slowest.max(began.elapsed());
    }
    Ok(slowest)
}

#[test]
fn a_trap_kills_one_message_and_no_other() -> Result<()> {
    the_poison_alone_dies(guests::POISON, &["poison", "poison"], "trap")
}

#[test]
fn an_endless_loop_ends_at_its_deadline() -> Result<()> {
    the_poison_alone_dies(guests::ENDLESS, &["endless"], "timeout")
}

#[test]
fn a_guest_that_hoards_memory_meets_its_limit() -> Result<()> {
    the_poison_alone_dies(guests::HOARD, &["hoard"], "memory")
}

#[test]
fn a_guest_that_recurses_for_ever_meets_the_end_of_its_stack() -> Result<()> {
    the_poison_alone_dies(guests::DEEP, &["deep"], "trap")
}

#[test]
fn malformed_answers_are_believed_in_no_part() -> Result<()> {
    let kinds = [
        "few-outcomes",
        "many-outcomes",
        "bad-span",
        "bad-source",
        "bad-topic",
        "bad-partition",
        "bad-outcome",
        "bad-detail",
    ];
    the_poison_alone_dies(guests::BABBLE, &kinds, "bad-answer")
}

#[test]
fn a_flood_of_log_lines_is_cut_and_counted() -> Result<()> {
    let host = host()?;
    let client = host.client();
    deploy(
        &client,
        "bad",
        guests::CHATTY,
        json!({"limits": {"log_lines_per_second": 10}}),
    )?;
    client.produce(
        "bad-in",
        &[json!({"value": "chatty"}), json!({"value": "quiet"})],
    )?;
    client.wait_for_messages("bad-out", 2)?;
    let logs = client.get("/v1/processors/bad/logs")?.ok()?;
    let lines = logs["lines"].as_array().context("no lines")?;
    assert!(!lines.is_empty(), "some lines are kept");
    assert!(lines.len() < 100, "{} lines were kept", lines.len());
    assert!(client.metric("millrace_guest_log_lines_dropped_total")? > 100.0);
    Ok(())
}
