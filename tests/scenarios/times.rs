//! Time and place of messages: what a processor sets in its outputs, and delayed messages, also
//! through kills.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use guest_artifacts as guests;
use millrace_tests::{Client, Deploy, Host, Message, wait_for};
use serde_json::{Value, json};

use crate::host;

const KILLS: usize = 5;
const MESSAGES_PER_KILL: u32 = 200;

fn now_ms() -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as u64)
}

/// `forward` from `in` to `out`, allowed to write to `a` and `b`.
fn forwarding(client: &Client, more: Value) -> Result<()> {
    for topic in ["in", "out", "a", "b"] {
        client.topic(topic, 2)?;
    }
    let module = client.push(guests::FORWARD)?;
    let mut body = json!({"grants": ["a", "b"]});
    if let (Some(body), Some(more)) = (body.as_object_mut(), more.as_object()) {
        body.extend(more.clone());
    }
    client.deploy(&Deploy {
        name: "worker",
        module: &module,
        topic: "in",
        output: "out",
        more: body,
    })?;
    Ok(())
}

/// The command's output; it must succeed.
fn run(host: &Host, arguments: &[&str]) -> Result<String> {
    let output = host.command(arguments).output()?;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{arguments:?}: {error}");
    Ok(String::from_utf8(output.stdout)?)
}

fn counts(messages: &[Message]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for message in messages {
        *counts.entry(message.text()).or_default() += 1;
    }
    counts
}

#[test]
fn a_processor_says_topic_partition_key_headers_and_times_of_its_outputs() -> Result<()> {
    let host = host()?;
    let client = host.client();
    forwarding(&client, json!({}))?;
    let headers = json!({
        "to": "a", "to-partition": "1", "set-key": "mine", "set-header": "colour=red", "set-timestamp": "1234",
    });
    client.produce(
        "in",
        &[json!({"key": "k", "value": "v", "headers": headers})],
    )?;
    let found = client.wait_for_messages("a", 1)?;
    assert_eq!((found[0].partition, found[0].text()), (1, "v"));
    assert_eq!(found[0].key.as_deref(), Some("mine"));
    assert_eq!(found[0].header("colour"), Some("red"));
    assert_eq!(found[0].headers.len(), 1);
    let page = client.get("/v1/topics/a/partitions/1/messages?from=earliest")?;
    assert_eq!(page.ok()?["messages"][0]["timestamp"], 1_234);
    Ok(())
}

#[test]
fn a_processor_of_two_topics_fans_out_to_two_granted_ones() -> Result<()> {
    let host = host()?;
    let client = host.client();
    client.topic("in-2", 1)?;
    forwarding(&client, json!({"topics": ["in", "in-2"]}))?;
    let message = |value: &str| json!({"value": value, "headers": {"to": "a,b"}});
    client.produce("in", &[message("1")])?;
    client.produce("in-2", &[message("2")])?;
    for topic in ["a", "b"] {
        let found = client.wait_for_messages(topic, 2)?;
        assert_eq!(counts(&found), BTreeMap::from([("1", 1), ("2", 1)]));
    }
    assert_eq!(client.read("out")?, []);
    Ok(())
}

#[test]
fn an_output_is_delivered_when_its_processor_says() -> Result<()> {
    let host = host()?;
    let client = host.client();
    forwarding(&client, json!({}))?;
    let after = |ms: &str| json!({"value": ms, "headers": {"deliver-after-ms": ms}});
    let before = now_ms()?;
    client.produce("in", &[after("600"), after("3600000")])?;
    client.wait_until_idle("worker")?;
    let found = client.wait_for_messages("out", 1)?;
    ensure!(now_ms()? >= before + 600, "it came too early");
    assert_eq!(found[0].text(), "600");
    let waiting = client.get("/v1/topics/out/delayed")?.ok()?;
    assert_eq!(waiting["total"], 1);
    assert_eq!(waiting["delayed"][0]["message"]["value"], "3600000");
    Ok(())
}

#[test]
fn a_delayed_message_comes_at_its_time_unless_it_is_cancelled() -> Result<()> {
    let host = host()?;
    let client = host.client();
    client.topic("in", 1)?;
    let body = json!({"messages": [
        {"value": "soon", "delay_ms": 500},
        {"value": "once", "deliver_at": "2100-01-01T00:00:00Z"},
        {"value": "never", "deliver_at": 4_000_000_000_000_u64},
        {"value": "past", "deliver_at": 5},
    ]});
    let far = client.post_json("/v1/topics/in/messages", &body)?;
    assert_eq!(far.error()?.0, "too-far-away", "in 2100");
    let mut body = body;
    let in_an_hour = now_ms()? + 3_600_000;
    for message in body["messages"].as_array_mut().context("a list")?[1..3].iter_mut() {
        message["deliver_at"] = json!(in_an_hour);
    }
    let answer = client
        .post_json_once("/v1/topics/in/messages", "key-1", &body)?
        .ok()?;
    let again = client
        .post_json_once("/v1/topics/in/messages", "key-1", &body)?
        .ok()?;
    assert_eq!(again["repeated"], true);
    assert_eq!(again["placed"], answer["placed"]);
    assert_eq!(answer["placed"][3], json!({"partition": 0, "offset": 0}));
    let never = answer["placed"][2]["delayed"].as_str().context("an id")?;
    let listed = run(&host, &["delayed", "list", "in"])?;
    ensure!(
        listed.contains(never) && listed.contains("once"),
        "{listed}"
    );
    run(&host, &["delayed", "cancel", "in", never])?;
    let twice = host.command(&["delayed", "cancel", "in", never]).status()?;
    assert_eq!(twice.code(), Some(3));
    client.wait_for_messages("in", 2)?;
    let values = client.read("in")?;
    assert_eq!(counts(&values), BTreeMap::from([("past", 1), ("soon", 1)]));
    let listed: Value = serde_json::from_str(&run(&host, &["--json", "delayed", "list", "in"])?)?;
    assert_eq!(listed["total"], 1);
    assert_eq!(client.metric("millrace_delayed_messages")?, 1.0);
    assert_eq!(client.metric("millrace_delayed_delivered_total")?, 1.0);
    let said = run(&host, &["produce", "in", "--delay", "300ms", "by command"])?;
    ensure!(said.contains("delayed"), "{said}");
    client.wait_for_messages("in", 3)?;
    Ok(())
}

#[test]
fn delayed_messages_are_delivered_once_over_kills() -> Result<()> {
    let mut host = host()?;
    let client = host.client();
    client.topic("in", 2)?;
    let mut sent = 0;
    for _ in 0..KILLS {
        let client = host.client();
        let messages: Vec<Value> = (sent..sent + MESSAGES_PER_KILL)
            .map(|n| json!({"value": n.to_string(), "delay_ms": 100 + u64::from(n % 100) * 4}))
            .collect();
        sent += MESSAGES_PER_KILL;
        client.produce("in", &messages)?;
        std::thread::sleep(Duration::from_millis(fastrand::u64(50..450)));
        host.kill()?;
        host.start_again()?;
    }
    let client = host.client();
    wait_for("all to be delivered", || {
        let waiting = client.get("/v1/topics/in/delayed")?.ok()?;
        Ok((waiting["total"] == 0).then_some(()))
    })?;
    let found = client.read("in")?;
    let counts = counts(&found);
    assert_eq!(counts.len(), sent as usize);
    assert!(counts.values().all(|&count| count == 1), "{counts:?}");
    Ok(())
}

#[test]
fn a_schedule_makes_one_message_each_time_over_kills() -> Result<()> {
    let mut host = host()?;
    host.client().topic("ticks", 1)?;
    let create = [
        "schedule",
        "create",
        "tick",
        "--topic",
        "ticks",
        "--cron",
        "* * * * * *",
        "--value",
        "now",
        "--header",
        "colour=red",
    ];
    run(&host, &create)?;
    for ticks in 1..=3 {
        host.client().wait_for_messages("ticks", ticks * 2)?;
        host.kill()?;
        host.start_again()?;
    }
    run(&host, &["schedule", "pause", "tick"])?;
    let client = host.client();
    let made = client.read("ticks")?;
    let number = |m: &Message, name: &str| m.header(name).and_then(|n| n.parse::<u64>().ok());
    let mut next = None;
    for message in &made {
        let due = number(message, "millrace-due").context("no millrace-due")?;
        let missed = number(message, "millrace-missed").unwrap_or(0);
        if let Some(next) = next {
            assert_eq!(due - missed * 1_000, next, "each second once");
        }
        next = Some(due + 1_000);
        assert_eq!(message.header("millrace-schedule"), Some("tick"));
        assert_eq!(
            (message.text(), message.header("colour")),
            ("now", Some("red"))
        );
    }
    let shown = client.get("/v1/schedules/tick")?.ok()?;
    assert_eq!(shown["made"], made.len());
    assert_eq!(shown["paused"], true);
    let listed = run(&host, &["schedule", "list"])?;
    ensure!(
        listed.contains("* * * * * *") && listed.contains("paused"),
        "{listed}"
    );
    run(&host, &["schedule", "delete", "tick"])?;
    let gone = host.command(&["schedule", "show", "tick"]).status()?;
    assert_eq!(gone.code(), Some(3));
    let bad = [
        "schedule",
        "create",
        "x",
        "--topic",
        "ticks",
        "--cron",
        "61 * * * *",
    ];
    assert_eq!(host.command(&bad).status()?.code(), Some(2));
    Ok(())
}

#[test]
fn a_cycle_of_two_processors_ends_after_its_hops() -> Result<()> {
    let host = host()?;
    let client = host.client();
    client.topic("ping", 1)?;
    client.topic("pong", 1)?;
    let module = client.push(guests::PASSTHROUGH)?;
    let deploy = |name: &str, topic: &str, output: &str, more: &[&str]| {
        let arguments = [
            "processor",
            "deploy",
            name,
            "--module",
            &module,
            "--topic",
            topic,
            "--output",
            output,
        ];
        host.command(&[&arguments, more].concat()).output()
    };
    assert!(deploy("there", "ping", "pong", &[])?.status.success());
    let refused = deploy("back", "pong", "ping", &[])?;
    assert_eq!(refused.status.code(), Some(4));
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(
        why.contains("back -> ping -> there -> pong -> back"),
        "{why}"
    );
    assert!(
        deploy("back", "pong", "ping", &["--hops-max", "3"])?
            .status
            .success()
    );
    client.produce("ping", &[json!({"key": "k", "value": "ball"})])?;
    let dead = wait_for("the ball to be out", || {
        Ok(client.dead_letters("back")?.into_iter().next())
    })?;
    let (class, cause) = (&dead["class"], &dead["cause"]);
    assert_eq!((class, cause), (&json!("hops"), &json!("reject")));
    client.wait_until_idle("there")?;
    let hops = |topic: &str| -> Result<Vec<Option<String>>> {
        let messages = client.read(topic)?;
        let hops = |m: &Message| m.header("millrace-hops").map(str::to_owned);
        Ok(messages.iter().map(hops).collect())
    };
    let text = |n: &str| Some(n.to_owned());
    assert_eq!(hops("ping")?, [None, text("1"), text("2"), text("3")]);
    assert_eq!(hops("pong")?, [None, text("1"), text("2"), text("3")]);
    Ok(())
}
