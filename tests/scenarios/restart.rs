//! A restart keeps everything: messages, modules, revisions, progress, parked messages and dead
//! letters.

use anyhow::Result;
use guest_artifacts as guests;
use millrace_tests::wait_for;
use serde_json::{Value, json};

use crate::{deploy_worker, host};

#[test]
fn a_restart_keeps_messages_modules_revisions_and_progress() -> Result<()> {
    let mut host = host()?;
    let client = host.client();
    client.topic("in", 2)?;
    client.topic("out", 2)?;
    deploy_worker(&client, guests::STAMP_1, json!({}))?;
    deploy_worker(&client, guests::STAMP_2, json!({}))?;
    let batch: Vec<Value> = (0..500)
        .map(|n| json!({"key": n.to_string(), "value": "v"}))
        .collect();
    client.produce("in", &batch)?;
    client.wait_for_messages("out", 500)?;
    client.wait_until_idle("worker")?;
    let before = client.get("/v1/processors/worker")?.ok()?;

    assert!(host.stop()?.success());
    host.start_again()?;
    let client = host.client();
    client.wait_until_idle("worker")?;
    let after = client.get("/v1/processors/worker")?.ok()?;
    assert_eq!(after["revisions"], before["revisions"]);
    assert_eq!(after["current"], 2);
    assert_eq!(client.read("in")?.len(), 500);
    assert_eq!(client.read("out")?.len(), 500, "nothing is processed twice");
    client.produce("in", &[json!({"value": "more"})])?;
    assert_eq!(client.wait_for_messages("out", 501)?.len(), 501);
    Ok(())
}

#[test]
fn a_parked_message_is_retried_after_a_restart_and_its_attempts_count_on() -> Result<()> {
    let mut host = host()?;
    let client = host.client();
    client.topic("in", 1)?;
    client.topic("out", 1)?;
    let retry = json!({"retry": {"attempts_max": 3, "delay_first_ms": 1500, "delay_max_ms": 1500}});
    deploy_worker(&client, guests::FLAKY, retry)?;
    client.produce(
        "in",
        &[json!({"key": "k", "value": "x", "headers": {"fail-times": "99"}})],
    )?;
    wait_for("the first failed attempt", || {
        let status = client.get("/v1/processors/worker")?.ok()?;
        Ok((status["partitions"][0]["parked"] == 1).then_some(()))
    })?;
    host.kill()?;
    host.start_again()?;
    let client = host.client();
    client.wait_for_messages("in.worker.dlq", 1)?;
    let dead = client.dead_letters("worker")?;
    assert_eq!(dead[0]["attempts"], 3);
    Ok(())
}

#[test]
fn a_second_host_on_the_same_data_is_refused_with_a_clear_error() -> Result<()> {
    let host = host()?;
    let second = host.serve_command().output()?;
    assert_eq!(second.status.code(), Some(6));
    let says = String::from_utf8_lossy(&second.stderr);
    assert!(says.contains("another"), "{says}");
    assert_eq!(host.client().get("/health/ready")?.status, 200);
    Ok(())
}
