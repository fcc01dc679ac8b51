//! State on the real binary: the counts equal the successful messages, through `kill -9`, retries,
//! rejections and traps; and the state can be shown, exported, imported and emptied.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use guest_artifacts as guests;
use millrace_tests::{Client, Deploy, Host, Message};
use serde_json::{Value, json};

use crate::host;
use crate::load::Load;

const KILLS: u32 = 12;
const KEYS: u32 = 50;
const PARTITIONS: u32 = 2;

/// A message with this number. Some are rejected, some fail once, and some always trap; all of them
/// after they were counted.
fn message(number: u32) -> Value {
    let mut headers = json!({"id": number.to_string()});
    match number {
        _ if number % 41 == 7 => headers["reject"] = json!("bad"),
        _ if number % 53 == 9 => headers["fail-times"] = json!("1"),
        _ if number % 211 == 11 => headers["trap"] = json!("poison"),
        _ => {}
    }
    json!({"key": format!("k{}", number % KEYS), "value": "x", "headers": headers})
}

fn counting(client: &Client, durability: &str) -> Result<String> {
    for name in ["in", "out"] {
        let topic = json!({"name": name, "partitions": PARTITIONS, "durability": durability});
        client.post_json("/v1/topics", &topic)?.ok()?;
    }
    let module = client.push(guests::MISCOUNT)?;
    client.deploy(&deployment(&module))?;
    Ok(module)
}

fn deployment(module: &str) -> Deploy<'_> {
    Deploy {
        name: "count",
        module,
        topic: "in",
        output: "out",
        more: json!({
            "retry": {"attempts_max": 2, "delay_first_ms": 5, "delay_max_ms": 10},
            "dead_letters": {"max": 1_000_000},
            "breaker": {"enabled": false},
        }),
    }
}

/// The counts in all partitions; each key is in only one of them.
fn counts(client: &Client) -> Result<BTreeMap<String, i64>> {
    let mut counts = BTreeMap::new();
    for partition in 0..PARTITIONS {
        let path = format!("/v1/processors/count/state?partition={partition}&max=10000");
        let shown = client.get(&path)?.ok()?;
        for entry in shown["entries"].as_array().context("no entries")? {
            let key = entry["key"].as_str().context("no key")?.to_owned();
            let count = entry["number"].as_str().context("no number")?.parse()?;
            ensure!(counts.insert(key, count).is_none(), "a key in two places");
        }
    }
    Ok(counts)
}

fn ids(messages: &[Message]) -> BTreeMap<String, usize> {
    let mut ids = BTreeMap::new();
    for message in messages {
        let id = message.header("id").unwrap_or("none").to_owned();
        *ids.entry(id).or_default() += 1;
    }
    ids
}

fn survives(durability: &str) -> Result<()> {
    let mut host = host()?;
    counting(&host.client(), durability)?;
    let load = Load::of(message);
    for _ in 0..KILLS {
        load.kill(&mut host)?;
    }
    let client = host.client();
    client.wait_until_idle("count")?;

    let (inputs, outputs) = (client.read("in")?, client.read("out")?);
    let dead = client.read("in.count.dlq")?;
    let mut effects = ids(&outputs);
    for (id, count) in ids(&dead) {
        *effects.entry(id).or_default() += count;
    }
    assert_eq!(
        effects,
        ids(&inputs),
        "each input in one of output and dead letters"
    );
    assert!(effects.values().all(|&count| count == 1));
    assert!(dead.iter().any(|m| m.header("trap").is_some()));
    assert!(
        dead.iter()
            .all(|m| m.header("trap").is_some() || m.header("reject").is_some())
    );
    let acknowledged = load.acknowledged();
    for number in &acknowledged {
        assert!(
            effects.contains_key(&number.to_string()),
            "{number} is lost"
        );
    }

    // Each key's outputs are 1, 2, 3 …, in order, and the state holds the last one.
    let mut counted: BTreeMap<String, i64> = BTreeMap::new();
    for message in &outputs {
        let id: u32 = message.header("id").context("no id")?.parse()?;
        let count = counted.entry(format!("k{}", id % KEYS)).or_default();
        *count += 1;
        assert_eq!(message.text(), count.to_string(), "message {id}");
    }
    assert_eq!(counts(&client)?, counted);
    eprintln!(
        "{KILLS} kills at {durability}: {} inputs, {} outputs, {} dead letters",
        inputs.len(),
        outputs.len(),
        dead.len()
    );
    Ok(())
}

#[test]
fn killed_under_load_at_durability_os_the_state_is_the_count_of_what_succeeded() -> Result<()> {
    survives("os")
}

#[test]
fn killed_under_load_the_state_is_the_count_of_what_succeeded() -> Result<()> {
    survives("durable")
}

fn run(host: &Host, arguments: &[&str], input: &str) -> Result<String> {
    let mut command = host.command(arguments);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    stdin.write_all(input.as_bytes())?;
    drop(stdin);
    let output = child.wait_with_output()?;
    let noted = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{arguments:?}: {noted}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn produce(client: &Client, times: usize) -> Result<()> {
    let messages: Vec<Value> = (0..4)
        .map(|key| json!({"key": format!("k{key}"), "value": "x"}))
        .collect();
    (0..times).try_for_each(|_| client.produce("in", &messages))?;
    client.wait_until_idle("count")
}

#[test]
fn state_is_shown_taken_out_put_back_emptied_and_stays_over_revisions() -> Result<()> {
    let host = host()?;
    let client = host.client();
    let module = counting(&client, "os")?;
    produce(&client, 3)?;
    let all = |count: i64| -> BTreeMap<String, i64> {
        (0..4).map(|key| (format!("k{key}"), count)).collect()
    };
    assert_eq!(counts(&client)?, all(3));

    // A new revision continues counting; one deployed with empty state starts over.
    let mut next = deployment(&module);
    next.more["batch"] = json!({"messages_max": 2});
    assert_eq!(client.deploy(&next)?, 2);
    produce(&client, 2)?;
    assert_eq!(counts(&client)?, all(5));

    let taken: Vec<String> = (0..PARTITIONS)
        .map(|at| {
            let partition = at.to_string();
            let export = [
                "processor",
                "state",
                "export",
                "count",
                "--partition",
                &partition,
            ];
            run(&host, &export, "")
        })
        .collect::<Result<_>>()?;
    assert_eq!(taken.concat().lines().count(), 4, "{taken:?}");

    let name = module.as_str();
    let deploy = [
        "processor",
        "deploy",
        "count",
        "--module",
        name,
        "--topic",
        "in",
        "--output",
        "out",
        "--reset-state",
    ];
    run(&host, &deploy, "")?;
    assert_eq!(counts(&client)?, BTreeMap::new());
    produce(&client, 1)?;
    assert_eq!(counts(&client)?, all(1));

    for (at, lines) in taken.iter().enumerate() {
        let partition = at.to_string();
        let import = [
            "processor",
            "state",
            "import",
            "count",
            "--partition",
            &partition,
            "--reset",
        ];
        run(&host, &import, lines)?;
    }
    assert_eq!(counts(&client)?, all(5));
    produce(&client, 1)?;
    assert_eq!(counts(&client)?, all(6));
    let counted = client.metric("millrace_state_entries")?;
    assert!((counted - 4.0).abs() < 0.5, "{counted} entries");

    let shown = run(
        &host,
        &["processor", "state", "show", "count", "--partition", "0"],
        "",
    )?;
    assert!(shown.contains("as of offset"), "{shown}");
    for partition in ["0", "1"] {
        let reset = [
            "processor",
            "state",
            "reset",
            "count",
            "--partition",
            partition,
        ];
        run(&host, &reset, "")?;
    }
    assert_eq!(counts(&client)?, BTreeMap::new());
    Ok(())
}

#[test]
fn redriven_messages_count_where_they_first_stood() -> Result<()> {
    let host = host()?;
    let client = host.client();
    counting(&client, "os")?;
    produce(&client, 2)?;
    let failing = json!({"key": "k0", "value": "x", "headers": {"fail-times": "2"}});
    client.produce("in", &[failing])?;
    client.wait_until_idle("count")?;
    assert_eq!(client.dead_letters("count")?.len(), 1);
    assert_eq!(counts(&client)?["k0"], 2);
    // Attempts at a redriven message start over, so that it would fail as before: allow more
    // attempts first.
    let module = client.push(guests::MISCOUNT)?;
    let mut patient = deployment(&module);
    patient.more["retry"]["attempts_max"] = json!(5);
    client.deploy(&patient)?;
    let redrive = client.post_json(
        "/v1/processors/count/dead-letters/redrive",
        &json!({"all": true}),
    )?;
    redrive.ok()?;
    millrace_tests::wait_for("the redriven message to be counted", || {
        Ok((counts(&client)?["k0"] == 3).then_some(()))
    })
}

#[test]
fn an_entry_with_a_time_to_live_ends_by_itself() -> Result<()> {
    let host = host()?;
    let client = host.client();
    counting(&client, "os")?;
    let short = json!({"key": "short", "value": "x", "headers": {"ttl-ms": "300"}});
    let long = json!({"key": "long", "value": "x", "headers": {"ttl-ms": "600000"}});
    client.produce("in", &[short, long])?;
    client.wait_until_idle("count")?;
    assert!(counts(&client)?.contains_key("long"));
    millrace_tests::wait_for("the entry to end", || {
        Ok((!counts(&client)?.contains_key("short")).then_some(()))
    })?;
    client.produce("in", &[json!({"key": "short", "value": "x"})])?;
    client.wait_until_idle("count")?;
    let counts = counts(&client)?;
    assert_eq!((counts["short"], counts["long"]), (1, 1));
    Ok(())
}

#[test]
fn after_a_restart_the_metrics_tell_how_much_state_there_is_before_any_message() -> Result<()> {
    let mut host = host()?;
    counting(&host.client(), "durable")?;
    produce(&host.client(), 1)?;
    host.kill()?;
    host.start_again()?;
    let client = host.client();
    millrace_tests::wait_for("the entries to be counted", || {
        let counted = client.metric("millrace_state_entries").unwrap_or_default();
        Ok(((counted - 4.0).abs() < 0.5).then_some(()))
    })
}
