//! Working with dead letters by the command line: finding, counting, trying, editing, redriving at
//! a rate, and the audit trail.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use guest_artifacts as guests;
use millrace_tests::{Client, Deploy, Host, wait_for};
use serde_json::{Value, json};

use crate::{host, user};

fn deploy(client: &Client, component: &[u8]) -> Result<u64> {
    let module = client.push(component)?;
    client.deploy(&Deploy {
        name: "worker",
        module: &module,
        topic: "in",
        output: "out",
        more: json!({
            "retry": {"attempts_max": 1},
            "breaker": {"enabled": false},
            "dead_letters": {"max": 1_000, "per_ms": 1_000},
        }),
    })
}

/// A host with `count` messages in its output, and `count` dead letters each of the classes `late`
/// and `odd`. A second revision, which processes all of them, is current.
fn with_letters(count: u32) -> Result<(Host, Client)> {
    let host = host()?;
    let client = host.client();
    client.topic("in", 2)?;
    client.topic("out", 2)?;
    deploy(&client, guests::FLAKY)?;
    let message = |n: u32| {
        let headers = match n % 3 {
            0 => json!({}),
            1 => json!({"reject": "late", "tenant": "acme"}),
            _ => json!({"reject": "odd"}),
        };
        json!({"key": n.to_string(), "value": format!("value {n}."), "headers": headers})
    };
    let messages: Vec<Value> = (0..3 * count).map(message).collect();
    client.produce("in", &messages)?;
    client.wait_until_idle("worker")?;
    assert_eq!(deploy(&client, guests::PASSTHROUGH)?, 2);
    Ok((host, client))
}

/// The answer of `millrace dlq … --json`.
fn dlq(host: &Host, arguments: &[&str]) -> Result<Value> {
    let mut command = host.command(&[&["dlq"], arguments, &["--json"]].concat());
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{arguments:?}: {said}");
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn listed(host: &Host, arguments: &[&str]) -> Result<usize> {
    let answer = dlq(host, &[&["list", "worker"], arguments].concat())?;
    Ok(answer["dead_letters"].as_array().context("a list")?.len())
}

/// Each of the `count` messages must be in the output exactly once.
fn all_are_out(client: &Client, count: u32) -> Result<()> {
    client.wait_until_idle("worker")?;
    let out = client.read("out")?;
    let keys: BTreeSet<u32> = out
        .iter()
        .filter_map(|message| message.key.as_deref()?.parse().ok())
        .collect();
    assert_eq!(keys, BTreeSet::from_iter(0..count));
    assert_eq!(out.len(), count as usize, "each once");
    Ok(())
}

#[test]
fn dead_letters_are_found_tried_mended_and_sent_again_and_the_trail_says_by_whom() -> Result<()> {
    let (mut host, client) = with_letters(20)?;
    assert_eq!(listed(&host, &[])?, 40);
    assert_eq!(listed(&host, &["--class", "late"])?, 20);
    assert_eq!(listed(&host, &["--header", "tenant=acme"])?, 20);
    assert_eq!(listed(&host, &["--text", "value 7.", "--since", "1h"])?, 1);
    assert_eq!(listed(&host, &["--until", "1h"])?, 0);
    assert_eq!(listed(&host, &["--key", "8", "--class", "odd"])?, 1);
    assert_eq!(listed(&host, &["--failed-revision", "2"])?, 0);
    let first = dlq(&host, &["list", "worker", "--max", "30"])?;
    let from = first["next"].as_str().context("more")?;
    assert_eq!(listed(&host, &["--from", from])?, 10);
    let groups = dlq(&host, &["list", "worker", "--group"])?;
    assert_eq!(groups["count"], 40);
    for (group, class) in groups["groups"]
        .as_array()
        .context("groups")?
        .iter()
        .zip(["late", "odd"])
    {
        assert_eq!(
            (&group["class"], &group["count"]),
            (&json!(class), &json!(20))
        );
    }
    assert_eq!(client.metric("millrace_dead_letters_waiting")?, 40.0);
    assert_eq!(client.metric("millrace_dead_letters_by_class_total")?, 40.0);

    let tried = dlq(
        &host,
        &[
            "redrive",
            "worker",
            "--class",
            "late",
            "--dry-run",
            "--revision",
            "2",
        ],
    )?;
    assert_eq!(
        (&tried["letters"], &tried["outputs"]),
        (&json!(20), &json!(20))
    );
    assert_eq!(
        tried["outcomes"].as_array().map(Vec::len),
        Some(1),
        "{tried}"
    );
    assert_eq!(tried["outcomes"][0]["outcome"], "ok");
    let tried = dlq(
        &host,
        &["redrive", "worker", "--all", "--dry-run", "--revision", "1"],
    )?;
    assert_eq!(
        (&tried["letters"], &tried["outputs"]),
        (&json!(40), &json!(0))
    );
    assert_eq!(client.count("out")?, 20, "a dry run does nothing");

    let one = &first["dead_letters"][0];
    let place = format!(
        "{}/{}/{}",
        one["topic"].as_str().context("a topic")?,
        one["partition"],
        one["offset"]
    );
    let edit = [
        "edit",
        "worker",
        &place,
        "--value",
        "mended",
        "--header",
        "fixed=yes",
        "--remove-header",
        "reject",
    ];
    assert_eq!(dlq(&host, &edit)?["sent"], 1);
    let began = Instant::now();
    let done = dlq(&host, &["redrive", "worker", "--all", "--rate", "40"])?;
    assert_eq!((&done["sent"], &done["already"]), (&json!(39), &json!(1)));
    let took = began.elapsed();
    assert!(
        took >= Duration::from_millis(800),
        "39 at 40 a second took {took:?}"
    );
    all_are_out(&client, 60)?;
    let out = client.read("out")?;
    let mended: Vec<_> = out
        .iter()
        .filter(|m| m.value.as_deref() == Some("mended"))
        .collect();
    assert_eq!(
        (
            mended.len(),
            mended[0].header("fixed"),
            mended[0].header("reject")
        ),
        (1, Some("yes"), None)
    );
    assert_eq!(listed(&host, &[])?, 0);
    assert_eq!(client.metric("millrace_dead_letters_waiting")?, 0.0);

    host.stop()?;
    host.start_again()?;
    let trail = dlq(&host, &["audit", "worker"])?;
    let trail = trail["entries"].as_array().context("entries")?;
    let count = |action: &str| -> u64 {
        let of = trail.iter().filter(|entry| entry["action"] == action);
        of.filter_map(|entry| entry["count"].as_u64()).sum()
    };
    assert_eq!((count("edit"), count("redrive")), (1, 39));
    let user = user()?;
    assert!(trail.iter().all(|entry| entry["by"] == user), "{trail:?}");
    Ok(())
}

#[test]
fn a_redrive_that_is_broken_off_is_finished_by_the_next_and_nothing_is_sent_twice() -> Result<()> {
    let (host, client) = with_letters(30)?;
    let mut paced = host.command(&["dlq", "redrive", "worker", "--all", "--rate", "20"]);
    let mut paced = paced.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    wait_for("some to be sent again", || {
        Ok((client.count("out")? >= 34).then_some(()))
    })?;
    paced.kill()?;
    paced.wait()?;
    let rest = dlq(&host, &["redrive", "worker", "--all"])?;
    let sent = rest["sent"].as_u64().context("a count")?;
    assert!((1..=56).contains(&sent), "{rest}");
    all_are_out(&client, 90)
}

#[test]
fn the_letter_of_a_trap_tells_where_what_the_call_used_and_what_the_guest_said() -> Result<()> {
    let host = host()?;
    let client = host.client();
    client.topic("in", 1)?;
    client.topic("out", 1)?;
    deploy(&client, guests::POISON)?;
    client.produce(
        "in",
        &[json!({"value": "fine"}), json!({"value": "poison"})],
    )?;
    client.wait_until_idle("worker")?;
    let dead = client.dead_letters("worker")?;
    assert_eq!(dead.len(), 1);
    let call = &dead[0]["call"];
    assert_eq!(call["messages"], 1);
    assert!(call["guest_us"].as_u64() > Some(0) && call["memory_bytes"].as_u64() >= Some(1 << 16));
    assert!(call["log"].to_string().contains("poisoned"), "{call}");
    let shown = host
        .command(&["dlq", "show", "worker", "in.worker.dlq/0/0"])
        .output()?;
    let shown = String::from_utf8(shown.stdout)?;
    for part in ["poison::swallow", "guest log", "for one message", "warn: "] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
    Ok(())
}
