//! Revisions on trial, on the real binary: a canary gets its share of the keys and no other, a
//! shadow reports and changes nothing, a replay processes exactly its range, and the history tells
//! who did what.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use guest_artifacts as guests;
use millrace_tests::{Client, Deploy, Host, wait_for};
use serde_json::{Value, json};

use crate::{host, user};

const KEYS: u32 = 300;

fn deployment(module: &str) -> Deploy<'_> {
    Deploy {
        name: "worker",
        module,
        topic: "in",
        output: "out",
        more: json!({}),
    }
}

fn spec(module: &str) -> Value {
    json!({"module": module, "topics": ["in"], "output": "out"})
}

fn topics(client: &Client) -> Result<()> {
    client.topic("in", 2)?;
    client.topic("out", 2)
}

/// Produces one message of each key.
fn produce(client: &Client) -> Result<()> {
    let messages: Vec<Value> = (0..KEYS)
        .map(|key| json!({"key": format!("k{key}"), "value": "x"}))
        .collect();
    client.produce("in", &messages)
}

/// The revisions named in each key's outputs, in order.
fn revisions(client: &Client) -> Result<BTreeMap<String, Vec<String>>> {
    let mut keys: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for message in client.read("out")? {
        let revision = message.header("revision").context("no revision")?;
        let key = message.key.clone().context("no key")?;
        keys.entry(key).or_default().push(revision.to_owned());
    }
    Ok(keys)
}

fn run(host: &Host, arguments: &[&str]) -> Result<String> {
    let output = host.command(arguments).output()?;
    let noted = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{arguments:?}: {noted}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn a_canary_has_its_share_of_the_keys_until_it_is_promoted_and_history_says_who_did_it()
-> Result<()> {
    let mut host = host()?;
    let client = host.client();
    topics(&client)?;
    let modules = [client.push(guests::STAMP_1)?, client.push(guests::STAMP_2)?];
    client.deploy(&deployment(&modules[0]))?;
    let deploy = [
        "processor",
        "deploy",
        "worker",
        "--topic",
        "in",
        "--output",
        "out",
    ];
    let canary = ["--module", &modules[1], "--canary", "20"];
    let said = run(&host, &[&deploy[..], &canary].concat())?;
    assert!(said.contains("revision 2 takes 20 % of the keys"), "{said}");
    produce(&client)?;
    produce(&client)?;
    client.wait_until_idle("worker")?;
    let before = revisions(&client)?;
    assert_eq!(before.len(), KEYS as usize);
    let sides: BTreeSet<&[String]> = before.values().map(|seen| &seen[..]).collect();
    let of = |name: &str| vec![name.to_owned(); 2];
    let (one, two) = (of("1"), of("2"));
    assert_eq!(
        sides,
        BTreeSet::from([&one[..], &two[..]]),
        "no key changes sides"
    );
    let share = before.values().filter(|seen| **seen == two).count();
    assert!((30..90).contains(&share), "{share} of {KEYS} keys");
    let status = client.get("/v1/processors/worker")?.ok()?;
    assert_eq!(status["canary_status"]["canary"]["messages"], share * 2);

    // A canary remains a canary after a crash.
    host.kill()?;
    host.start_again()?;
    let client = host.client();
    produce(&client)?;
    client.wait_until_idle("worker")?;
    for (key, seen) in revisions(&client)? {
        assert_eq!(seen.len(), 3, "{key}");
        assert_eq!(seen[2], before[&key][0], "{key}");
    }
    run(&host, &["processor", "promote", "worker"])?;
    produce(&client)?;
    client.wait_until_idle("worker")?;
    assert!(revisions(&client)?.values().all(|seen| seen[3] == "2"));

    let history = client.get("/v1/processors/worker/history")?.ok()?;
    let changes = history["changes"].as_array().context("no changes")?;
    let said: Vec<(&str, &str)> = changes
        .iter()
        .map(|c| {
            (
                c["what"].as_str().unwrap_or(""),
                c["by"].as_str().unwrap_or(""),
            )
        })
        .collect();
    let user = user()?;
    assert_eq!(
        said,
        [("deploy", "unknown"), ("canary", &user), ("promote", &user)]
    );
    assert_eq!(history["revisions"][1]["differs"][0]["field"], "module");
    let shown = run(&host, &["processor", "history", "worker"])?;
    assert!(
        shown.contains("promote") && shown.contains(&user),
        "{shown}"
    );
    Ok(())
}

#[test]
fn a_canary_that_traps_is_withdrawn_by_the_host_and_every_message_is_processed_once() -> Result<()>
{
    let host = host()?;
    let client = host.client();
    topics(&client)?;
    let good = client.push(guests::STAMP_1)?;
    let bad = client.push(guests::POISON)?;
    client.deploy(&deployment(&good))?;
    let canary = client.put_json("/v1/processors/worker?canary=30", &spec(&bad))?;
    canary.ok()?;
    let messages: Vec<Value> = (0..KEYS)
        .map(|key| json!({"key": format!("k{key}"), "value": "poison"}))
        .collect();
    client.produce("in", &messages)?;
    let status = wait_for("the canary to be withdrawn", || {
        let status = client.get("/v1/processors/worker")?.ok()?;
        Ok(status["canary"].is_null().then_some(status))
    })?;
    client.wait_until_idle("worker")?;
    let keys = revisions(&client)?;
    assert_eq!(keys.len(), KEYS as usize);
    assert!(keys.values().all(|seen| *seen == ["1"]), "each once");
    assert_eq!(client.dead_letters("worker")?.len(), 0);
    let note = status["revisions"][1]["note"].as_str().context("no note")?;
    // Because of what its own breaker saw, or because of the comparison with the current revision,
    // whichever came first.
    let is_told = ["trap", "would have given up"];
    assert!(
        note.contains("withdrawn by the host") && is_told.iter().any(|told| note.contains(told)),
        "{note}"
    );
    Ok(())
}

#[test]
fn a_shadow_reports_the_outcome_that_differs_and_nothing_of_it_counts() -> Result<()> {
    let host = host()?;
    let client = host.client();
    topics(&client)?;
    let current = client.push(guests::PASSTHROUGH)?;
    let other = client.push(guests::FLAKY)?;
    client.deploy(&deployment(&current))?;
    let shadow = client.put_json("/v1/processors/worker?shadow=true", &spec(&other))?;
    shadow.ok()?;
    let mut messages: Vec<Value> = (0..50).map(|n| json!({"value": n.to_string()})).collect();
    messages[17]["headers"] = json!({"reject": "too-old"});
    client.produce("in", &messages)?;
    client.wait_until_idle("worker")?;
    let report = wait_for("all to be compared", || {
        let report = client.get("/v1/processors/worker/shadow")?.ok()?;
        Ok((report["compared"] == 50).then_some(report))
    })?;
    assert_eq!(
        report["outcomes"],
        json!({"emit -> reject too-old": 1}),
        "{report}"
    );
    assert_eq!(report["alike"], 49);
    assert_eq!(report["samples"][0]["current"]["outputs"][0]["value"], "17");
    let shown = run(&host, &["processor", "shadow", "worker"])?;
    assert!(shown.contains("emit -> reject too-old"), "{shown}");
    assert_eq!(client.count("out")?, 50);
    assert_eq!(client.dead_letters("worker")?.len(), 0);
    run(&host, &["processor", "shadow", "worker", "--end"])?;
    let (code, ..) = client.get("/v1/processors/worker/shadow")?.error()?;
    assert_eq!(code, "no-trial");
    Ok(())
}

#[test]
fn a_replay_sends_exactly_its_range_of_time_through_the_revision_asked_for() -> Result<()> {
    let mut host = host()?;
    let client = host.client();
    topics(&client)?;
    client.topic("again", 1)?;
    for module in [guests::STAMP_1, guests::STAMP_2] {
        client.deploy(&deployment(&client.push(module)?))?;
    }
    // One per second, from 2023-11-14T22:13:20Z on.
    let message =
        |n: u64| json!({"value": n.to_string(), "timestamp": 1_700_000_000_000 + n * 1_000});
    let messages: Vec<Value> = (0..100).map(message).collect();
    client.produce("in", &messages)?;
    client.wait_until_idle("worker")?;
    let range = [
        "--from",
        "2023-11-14T22:13:30Z",
        "--until",
        "2023-11-14T22:13:50Z",
    ];
    let replay = [
        "processor",
        "replay",
        "worker",
        "--into",
        "again",
        "--revision",
        "1",
        "--wait",
    ];
    let said = run(&host, &[&replay[..], &range].concat())?;
    assert!(said.contains("worker-replay-1 is done"), "{said}");
    let replayed = |client: &Client| -> Result<Vec<u32>> {
        let again = client.read("again")?;
        assert!(again.iter().all(|m| m.header("revision") == Some("1")));
        let mut numbers: Vec<u32> = again.iter().filter_map(|m| m.text().parse().ok()).collect();
        numbers.sort_unstable();
        Ok(numbers)
    };
    assert_eq!(replayed(&client)?, Vec::from_iter(10..30));
    assert_eq!(client.count("out")?, 100, "the original's, and no more");

    // After a crash it is still done, and repeats nothing.
    host.kill()?;
    host.start_again()?;
    let client = host.client();
    wait_for("the replay to be done again", || {
        let status = client.get("/v1/processors/worker-replay-1")?.ok()?;
        let partitions = status["partitions"].as_array().context("no partitions")?;
        Ok(partitions
            .iter()
            .all(|p| p["state"] == "done")
            .then_some(()))
    })?;
    assert_eq!(replayed(&client)?, Vec::from_iter(10..30));
    run(
        &host,
        &["processor", "delete", "worker-replay-1", "--reset-state"],
    )?;
    let wrong = client.post_json(
        "/v1/processors/worker/replay",
        &json!({"from": 5, "until": 4, "into": "again"}),
    )?;
    assert_eq!(wrong.error()?.0, "invalid-replay");
    Ok(())
}
