//! A host stops within its deadline, whatever its guests do, and logs what it waits for.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use guest_artifacts as guests;
use millrace_tests::{Client, Host, wait_for};
use serde_json::{Value, json};

use crate::{MILLRACE, deploy_between};

/// The longest time limit that a call may have.
const CALL_MS_MAX: u64 = 600_000;
const DEADLINE: Duration = Duration::from_secs(2);

fn calls_under_way(client: &Client, name: &str) -> Result<usize> {
    let status = client.get(&format!("/v1/processors/{name}"))?.ok()?;
    let partitions = status["partitions"].as_array().cloned().unwrap_or_default();
    Ok(partitions
        .iter()
        .filter(|p| p["calling_ms"].is_u64())
        .count())
}

fn stuck(client: &Client, name: &str, more: &Value) -> Result<()> {
    let (topic, output) = (format!("{name}-in"), format!("{name}-out"));
    client.topic(&topic, 2)?;
    client.topic(&output, 1)?;
    deploy_between(
        client,
        name,
        guests::ENDLESS,
        [&topic, &output],
        more.clone(),
    )?;
    let endless = |partition: u32| json!({"value": "endless", "partition": partition});
    client.produce(&topic, &[endless(0), endless(1)])?;
    wait_for("two calls that never return", || {
        Ok((calls_under_way(client, name)? == 2).then_some(()))
    })
}

#[test]
fn a_stop_keeps_its_deadline_beside_guests_that_never_return_and_says_what_it_waits_for()
-> Result<()> {
    let scratch = tempfile::tempdir()?;
    let log = scratch.path().join("host.log");
    let deadline_ms = DEADLINE.as_millis().to_string();
    let options = ["--stop-deadline-ms", &deadline_ms];
    let mut host = Host::in_directory(MILLRACE, &scratch.path().join("data"), &options);
    host.log_to(&log);
    let mut command = host.serve_command();
    command.env("MILLRACE_LOG_FILTER", "info");
    host.spawn_as(command)?;
    host.wait_until_ready()?;
    let client = host.client();
    let more = json!({"limits": {"call_ms_max": CALL_MS_MAX}, "retry": {"attempts_max": 1}});
    stuck(&client, "one", &more)?;
    stuck(&client, "other", &more)?;
    let before = Instant::now();
    ensure!(host.stop()?.success(), "it ended in order");
    let took = before.elapsed();
    ensure!(took < DEADLINE + Duration::from_secs(1), "it took {took:?}");
    let said = std::fs::read_to_string(&log)?;
    for line in [
        "the host is stopping",
        "waiting for a call to end before stopping",
        "a call was interrupted",
        "host stopped",
    ] {
        ensure!(said.contains(line), "{line:?} is missing: {said}");
    }
    ensure!(!said.contains("requests were still under way"), "{said}");

    // The interrupted calls have no effect: each message is where it was, at its first attempt.
    host.start_again()?;
    let client = host.client();
    for name in ["one", "other"] {
        wait_for("the calls to begin again", || {
            Ok((calls_under_way(&client, name)? == 2).then_some(()))
        })?;
        ensure!(
            client.dead_letters(name)?.is_empty(),
            "no dead letter of {name}"
        );
        let status = client.get(&format!("/v1/processors/{name}"))?.ok()?;
        for partition in status["partitions"].as_array().into_iter().flatten() {
            ensure!(
                partition["parked"] == 0 && partition["next"] == 0,
                "{partition}"
            );
        }
    }
    let before = Instant::now();
    client.delete("/v1/processors/one")?.ok().ok();
    let took = before.elapsed();
    ensure!(took < Duration::from_secs(5), "deleting took {took:?}");
    host.stop()?;
    Ok(())
}
