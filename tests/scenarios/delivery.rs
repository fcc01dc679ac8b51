//! Every way that a message can take: emitted, retried, parked, rejected, given up, redriven.

use anyhow::Result;
use guest_artifacts as guests;
use millrace_tests::{Client, Deploy, Message, wait_for};
use serde_json::{Value, json};

use crate::{deploy_worker, host};

/// Creates two topics with a processor between them.
fn pipeline(client: &Client, component: &[u8], more: Value) -> Result<()> {
    client.topic("in", 2)?;
    client.topic("out", 2)?;
    deploy_worker(client, component, more)?;
    Ok(())
}

fn quick_retries(attempts_max: u32) -> Value {
    json!({"retry": {"attempts_max": attempts_max, "delay_first_ms": 5, "delay_max_ms": 20}})
}

fn values(messages: &[Message]) -> Vec<&str> {
    let mut values: Vec<&str> = messages.iter().map(Message::text).collect();
    values.sort_unstable();
    values
}

#[test]
fn a_message_produced_is_processed_and_readable() -> Result<()> {
    let host = host()?;
    let client = host.client();
    pipeline(&client, guests::UPPERCASE, json!({}))?;
    client.produce("in", &[json!({"key": "k", "value": "hello"})])?;
    let out = client.wait_for_messages("out", 1)?;
    assert_eq!(out[0].text(), "HELLO");
    assert_eq!(out[0].key.as_deref(), Some("k"));
    Ok(())
}

#[test]
fn a_filter_passes_some_on_unchanged_forgets_others_and_rejects_what_it_cannot_read() -> Result<()>
{
    let host = host()?;
    let client = host.client();
    pipeline(&client, guests::FILTER, json!({}))?;
    client.produce(
        "in",
        &[
            json!({"key": "a", "value": {"amount": 250}, "headers": {"trace": "t-1"}}),
            json!({"key": "b", "value": {"amount": 5}}),
            json!({"key": "c", "value": "no json"}),
        ],
    )?;
    client.wait_until_idle("worker")?;
    let out = client.read("out")?;
    assert_eq!(values(&out), [r#"{"amount":250}"#]);
    assert_eq!(out[0].header("trace"), Some("t-1"));
    let dead = client.dead_letters("worker")?;
    assert_eq!(dead.len(), 1, "{dead:?}");
    assert_eq!(dead[0]["cause"], "reject");
    assert_eq!(dead[0]["class"], "not-json");
    Ok(())
}

#[test]
fn a_router_writes_to_granted_topics_and_no_others() -> Result<()> {
    let host = host()?;
    let client = host.client();
    client.topic("north", 1)?;
    client.topic("secret", 1)?;
    let more = json!({"grants": ["north"], "retry": {"attempts_max": 1}});
    pipeline(&client, guests::ROUTE, more)?;
    let to = |topic: &str| json!({"value": topic, "headers": {"route-to": topic}});
    client.produce("in", &[to("north"), to("secret")])?;
    client.wait_until_idle("worker")?;
    assert_eq!(values(&client.read("north")?), ["north"]);
    assert_eq!(client.read("secret")?, []);
    let dead = client.dead_letters("worker")?;
    assert_eq!(dead.len(), 1, "{dead:?}");
    assert_eq!(dead[0]["cause"], "bad-answer");
    assert!(dead[0]["reason"].to_string().contains("secret"), "{dead:?}");
    Ok(())
}

#[test]
fn a_message_that_fails_twice_is_retried_and_arrives_once() -> Result<()> {
    let host = host()?;
    let client = host.client();
    pipeline(&client, guests::FLAKY, quick_retries(5))?;
    client.produce(
        "in",
        &[json!({"value": "v", "headers": {"fail-times": "2"}})],
    )?;
    client.wait_for_messages("out", 1)?;
    client.wait_until_idle("worker")?;
    assert_eq!(client.read("out")?.len(), 1);
    assert_eq!(client.dead_letters("worker")?, Vec::<Value>::new());
    assert!(client.metric("millrace_retries_total")? >= 2.0);
    Ok(())
}

#[test]
fn messages_of_a_parked_key_wait_behind_it_and_all_others_go_on() -> Result<()> {
    let host = host()?;
    let client = host.client();
    let retry = json!({"retry": {"attempts_max": 9, "delay_first_ms": 400, "delay_max_ms": 400}});
    pipeline(&client, guests::FLAKY, retry)?;
    let mut batch =
        vec![json!({"key": "slow", "value": "0", "headers": {"fail-times": "3"}, "partition": 0})];
    for n in 1..20 {
        batch.push(json!({"key": "slow", "value": n.to_string(), "partition": 0}));
        batch.push(json!({"key": "fast", "value": n.to_string(), "partition": 0}));
    }
    client.produce("in", &batch)?;
    let out = client.wait_for_messages("out", 39)?;
    let of = |key: &str| -> Vec<u32> {
        let of_key = out
            .iter()
            .filter(|message| message.key.as_deref() == Some(key));
        of_key
            .filter_map(|message| message.text().parse().ok())
            .collect()
    };
    assert_eq!(of("slow"), (0..20).collect::<Vec<u32>>());
    assert_eq!(of("fast"), (1..20).collect::<Vec<u32>>());
    Ok(())
}

#[test]
fn with_partition_order_the_whole_partition_waits_for_a_retry() -> Result<()> {
    let host = host()?;
    let client = host.client();
    let mut more = quick_retries(9);
    more["order"] = json!("partition");
    pipeline(&client, guests::FLAKY, more)?;
    let mut batch =
        vec![json!({"key": "k", "value": "0", "headers": {"fail-times": "3"}, "partition": 0})];
    for n in 1..50 {
        batch.push(json!({"key": "k", "value": n.to_string(), "partition": 0}));
    }
    client.produce("in", &batch)?;
    let out = client.wait_for_messages("out", 50)?;
    let order: Vec<u32> = out.iter().filter_map(|m| m.text().parse().ok()).collect();
    assert_eq!(order, (0..50).collect::<Vec<u32>>());
    Ok(())
}

#[test]
fn a_message_that_keeps_failing_reaches_the_dead_letter_topic_with_its_evidence() -> Result<()> {
    let host = host()?;
    let client = host.client();
    pipeline(&client, guests::FLAKY, quick_retries(3))?;
    let bad = json!({"key": "k", "value": "bad", "headers": {"fail-times": "99", "trace": "t-7"}, "partition": 1});
    client.produce("in", &[bad])?;
    client.wait_for_messages("in.worker.dlq", 1)?;
    let dead = client.dead_letters("worker")?;
    assert_eq!(dead.len(), 1);
    let letter = &dead[0];
    assert_eq!(letter["attempts"], 3, "{letter}");
    assert_eq!(letter["cause"], "retry");
    assert_eq!(letter["origin_topic"], "in");
    assert_eq!(letter["origin_partition"], 1);
    assert_eq!(letter["origin_offset"], 0);
    assert_eq!(letter["revision"], 1);
    assert_eq!(
        letter["attempt_log"].as_array().map(Vec::len),
        Some(3),
        "{letter}"
    );
    let raw = client.read("in.worker.dlq")?;
    assert_eq!(raw[0].text(), "bad");
    assert_eq!(raw[0].header("trace"), Some("t-7"));
    assert_eq!(raw[0].header("millrace-attempts"), Some("3"));
    Ok(())
}

#[test]
fn dead_letters_sent_again_reach_their_processor_only_and_once() -> Result<()> {
    let host = host()?;
    let client = host.client();
    pipeline(&client, guests::FLAKY, quick_retries(2))?;
    let other = client.push(guests::UPPERCASE)?;
    client.topic("elsewhere", 1)?;
    client.deploy(&Deploy {
        name: "bystander",
        module: &other,
        topic: "in",
        output: "elsewhere",
        more: json!({}),
    })?;
    let bad = json!({"key": "k", "value": "again", "headers": {"fail-times": "99"}});
    client.produce("in", &[bad])?;
    client.wait_for_messages("in.worker.dlq", 1)?;
    client.wait_for_messages("elsewhere", 1)?;
    let repaired = client.push(guests::UPPERCASE)?;
    client.deploy(&Deploy {
        name: "worker",
        module: &repaired,
        topic: "in",
        output: "out",
        more: json!({}),
    })?;
    let redrive = || {
        let path = "/v1/processors/worker/dead-letters/redrive";
        client.post_json(path, &json!({"all": true}))?.ok()
    };
    assert_eq!(redrive()?["sent"], 1);
    let out = client.wait_for_messages("out", 1)?;
    assert_eq!(values(&out), ["AGAIN"]);
    assert!(
        out[0]
            .headers
            .keys()
            .all(|name| !name.starts_with("millrace-"))
    );
    assert_eq!(redrive()?["sent"], 0, "the same letter is not sent twice");
    client.wait_until_idle("bystander")?;
    assert_eq!(client.read("elsewhere")?.len(), 1);
    assert_eq!(client.read("out")?.len(), 1);
    Ok(())
}

#[test]
fn an_error_handler_component_decides_what_becomes_of_a_failure() -> Result<()> {
    let host = host()?;
    let client = host.client();
    let handler = client.push(guests::PATIENT_ERRORS)?;
    let mut more = quick_retries(1);
    more["error_handler"] = json!(handler);
    pipeline(&client, guests::FLAKY, more)?;
    let failing = |value: &str, class: &str, times: u32| json!({"value": value, "headers": {"fail-times": times.to_string(), "fail-class": class}});
    client.produce(
        "in",
        &[
            failing("patience", "busy", 2),
            failing("forgotten", "ignore", 9),
            failing("policy", "other", 9),
        ],
    )?;
    client.wait_until_idle("worker")?;
    assert_eq!(values(&client.read("out")?), ["patience"]);
    let dead = client.read("in.worker.dlq")?;
    assert_eq!(values(&dead), ["policy"]);
    assert_eq!(client.metric("millrace_dropped_total")?, 1.0);
    Ok(())
}

#[test]
fn a_partitioner_component_chooses_the_partition() -> Result<()> {
    let host = host()?;
    let client = host.client();
    let partitioner = client.push(guests::REGION_PARTITIONER)?;
    let topic = json!({"name": "quakes", "partitions": 4, "partitioner": partitioner});
    client.post_json("/v1/topics", &topic)?.ok()?;
    let event = |network: &str, n: u32| {
        let properties = json!({"mag": 1.0, "type": "earthquake", "net": network});
        json!({"key": n.to_string(), "headers": {"network": network}, "value": {
            "id": n.to_string(), "properties": properties, "geometry": {"coordinates": [1.0, 2.0, 3.0]},
        }})
    };
    let expected = [("ci", 0), ("nc", 1), ("ak", 2), ("us", 3)];
    let events: Vec<Value> = (0..100)
        .map(|n| event(expected[n as usize % 4].0, n))
        .collect();
    client.produce("quakes", &events)?;
    let stored = client.read("quakes")?;
    assert_eq!(stored.len(), 100);
    for (network, partition) in expected {
        let mut of_network = stored
            .iter()
            .filter(|message| message.header("network") == Some(network));
        assert!(
            of_network.all(|message| message.partition == partition),
            "{network}"
        );
    }
    Ok(())
}

/// The expected partitions are those of Kafka's Java client: `toPositive(murmur2(key)) % 8`.
#[test]
fn keys_go_where_the_clients_of_kafka_would_put_them() -> Result<()> {
    let host = host()?;
    let client = host.client();
    client.topic("keyed", 8)?;
    let expected = [
        ("21", -973_932_308_i32),
        ("foobar", -790_332_482),
        ("a-little-bit-long-string", -985_981_536),
    ];
    for (key, _) in expected {
        client.produce("keyed", &[json!({"key": key, "value": key})])?;
    }
    let stored = client.read("keyed")?;
    for (key, hash) in expected {
        let found = stored.iter().find(|message| message.text() == key);
        assert_eq!(
            found.map(|message| message.partition),
            Some((hash & 0x7fff_ffff) as u32 % 8)
        );
    }
    Ok(())
}

#[test]
fn an_outage_spends_nobody_s_attempts_and_makes_no_dead_letters() -> Result<()> {
    let host = host()?;
    let client = host.client();
    pipeline(&client, guests::FLAKY, quick_retries(1))?;
    let needs_it =
        json!({"key": "k", "value": "later", "headers": {"unavailable": "the register is down"}});
    client.produce("in", &[needs_it])?;
    wait_for("the processor to wait for what is down", || {
        let status = client.get("/v1/processors/worker")?.ok()?;
        let states = status["partitions"].as_array().cloned().unwrap_or_default();
        let waits = |at: &Value| at["state"].to_string().contains("the register is down");
        Ok(states.iter().any(waits).then_some(()))
    })?;
    assert_eq!(client.dead_letters("worker")?, Vec::<Value>::new());
    assert_eq!(client.backlog("worker")?, 1, "nothing moved on without it");
    let module = client.push(guests::UPPERCASE)?;
    client.deploy(&Deploy {
        name: "worker",
        module: &module,
        topic: "in",
        output: "out",
        more: json!({}),
    })?;
    assert_eq!(values(&client.wait_for_messages("out", 1)?), ["LATER"]);
    Ok(())
}

#[test]
fn a_paused_processor_takes_nothing_until_it_is_resumed() -> Result<()> {
    let host = host()?;
    let client = host.client();
    pipeline(&client, guests::UPPERCASE, json!({}))?;
    client
        .post_json("/v1/processors/worker/pause", &json!({}))?
        .ok()?;
    wait_for("all partitions to pause", || {
        let status = client.get("/v1/processors/worker")?.ok()?;
        let states = status["partitions"].as_array().cloned().unwrap_or_default();
        Ok(states
            .iter()
            .all(|at| at["state"] == "paused")
            .then_some(()))
    })?;
    client.produce("in", &[json!({"value": "x"})])?;
    assert_eq!(client.backlog("worker")?, 1);
    assert_eq!(client.count("out")?, 0);
    client
        .post_json("/v1/processors/worker/resume", &json!({}))?
        .ok()?;
    client.wait_for_messages("out", 1)?;
    Ok(())
}

#[test]
fn a_deleted_processor_leaves_its_dead_letters_and_frees_its_topic() -> Result<()> {
    let host = host()?;
    let client = host.client();
    pipeline(&client, guests::FLAKY, quick_retries(1))?;
    client.produce(
        "in",
        &[json!({"value": "x", "headers": {"fail-times": "9"}})],
    )?;
    client.wait_for_messages("in.worker.dlq", 1)?;
    assert_eq!(client.delete("/v1/topics/in")?.status, 409);
    assert_eq!(client.delete("/v1/processors/worker")?.status, 204);
    assert_eq!(client.get("/v1/processors/worker")?.status, 404);
    assert_eq!(client.read("in.worker.dlq")?.len(), 1);
    assert_eq!(client.delete("/v1/topics/in")?.status, 204);
    Ok(())
}
