//! Rollbacks and the messages that they leave behind, by the command line: what is reported,
//! refused and accepted, on the real binary.

use anyhow::{Result, ensure};
use guest_artifacts as guests;
use millrace_tests::{Client, Host, wait_for};
use serde_json::{Value, json};

use crate::host;

/// The output of a command; its error output if it fails.
fn run(host: &Host, arguments: &[&str]) -> Result<String> {
    let output = host.command(arguments).output()?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    ensure!(output.status.success(), "{arguments:?}: {said}");
    Ok(said)
}

fn refused(host: &Host, arguments: &[&str]) -> Result<String> {
    let output = host.command(arguments).output()?;
    ensure!(!output.status.success(), "{arguments:?} is not refused");
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Topics, a first revision that has worked, and two messages that wait in `in` for a second
/// revision, which traps on them.
fn parked(client: &Client) -> Result<[String; 2]> {
    for topic in ["in", "out", "more"] {
        client.topic(topic, 1)?;
    }
    let modules = [
        client.push(guests::PASSTHROUGH)?,
        client.push(guests::POISON)?,
    ];
    let spec = |module: &str| json!({"module": module, "topics": ["in"], "output": "out"});
    client
        .put_json("/v1/processors/worker", &spec(&modules[0]))?
        .ok()?;
    client.produce("in", &[json!({"key": "a", "value": "fine"})])?;
    client.wait_until_idle("worker")?;
    client
        .put_json("/v1/processors/worker", &spec(&modules[1]))?
        .ok()?;
    let poison = |key: &str| json!({"key": key, "value": "poison"});
    client.produce("in", &[poison("b"), poison("c")])?;
    wait_for("the messages to wait", || {
        let status = client.get("/v1/processors/worker")?.ok()?;
        let parked = status["partitions"][0]["parked"] == 2;
        Ok(parked.then_some(()))
    })?;
    Ok(modules)
}

#[test]
fn what_is_left_waiting_is_told_and_goes_only_where_that_is_accepted() -> Result<()> {
    let host = host()?;
    let client = host.client();
    let [_, poison] = parked(&client)?;
    let deploy = [
        "processor",
        "deploy",
        "worker",
        "--topic",
        "more",
        "--module",
        &poison,
    ];
    let said = run(&host, &deploy)?;
    let left = "left waiting: 2 messages of in, which the processor does not read";
    assert!(said.contains(left), "{said}");
    let said = run(&host, &["processor", "show", "worker"])?;
    assert!(said.contains("2 messages of in, which"), "{said}");
    assert_eq!(client.metric("millrace_left_behind_messages")?, 2.0);

    let said = refused(&host, &["topic", "delete", "in"])?;
    for all in [
        "revision 1 of processor worker, to which a rollback would return, uses it",
        "2 messages in it wait for processor worker, which was later deployed without this topic",
    ] {
        assert!(said.contains(all), "{said}");
    }
    let said = run(&host, &["processor", "delete", "worker"])?;
    assert!(said.contains("left waiting: 2 messages of in\n"), "{said}");
    let said = refused(&host, &["topic", "delete", "in"])?;
    assert!(said.contains("worker, which is deleted"), "{said}");
    let said = run(&host, &["topic", "delete", "in", "--accept-loss"])?;
    assert!(
        said.contains("lost with it: 2 messages in it wait"),
        "{said}"
    );
    Ok(())
}

#[test]
fn a_rollback_says_what_it_does_and_a_call_that_is_sent_twice_goes_back_once() -> Result<()> {
    let host = host()?;
    let client = host.client();
    parked(&client)?;
    let said = run(&host, &["processor", "list"])?;
    assert!(said.contains("WAY BACK"), "{said}");
    let rollback = || {
        let body = json!({"expected_revision": 2});
        client.post_json("/v1/processors/worker/rollback", &body)
    };
    let answer = rollback()?.ok()?;
    let command = "`millrace dlq redrive worker --failed-revision 2` sends again what it gave up";
    assert_eq!(answer["current"], 1);
    assert_eq!(answer["note"], format!("from revision 2; {command}"));
    let (code, _, _) = rollback()?.error()?;
    assert_eq!(code, "other-revision");
    let said = run(&host, &["processor", "show", "worker"])?;
    assert!(said.contains(&format!("revision 2; {command}")), "{said}");
    let said = run(&host, &["processor", "rollback", "worker", "--to", "1"])?;
    assert!(said.contains("revision 1 is already current"), "{said}");
    client.wait_until_idle("worker")?;
    assert_eq!(client.count("out")?, 3);
    Ok(())
}

#[test]
fn a_promotion_answers_as_a_deployment_does_and_a_withdrawal_says_what_stays() -> Result<()> {
    let host = host()?;
    let client = host.client();
    let [passthrough, _] = parked(&client)?;
    run(&host, &["processor", "rollback", "worker"])?;
    let canary = [
        "processor",
        "deploy",
        "worker",
        "--module",
        &passthrough,
        "--attempts-max",
        "7",
        "--canary",
        "50",
    ];
    let said = run(&host, &canary)?;
    assert!(
        said.contains("way back: revision 1, the current one"),
        "{said}"
    );
    let said = run(&host, &["processor", "rollback", "worker"])?;
    assert!(
        said.contains("revision 3 is withdrawn; revision 1 stays"),
        "{said}"
    );
    run(&host, &canary)?;
    let promoted = client
        .post_json("/v1/processors/worker/promote", &json!({}))?
        .ok()?;
    assert_eq!(promoted["current"], 4);
    assert_eq!(promoted["note"], "takes over from revision 1");
    assert_eq!(promoted["way_back"], 1);
    let differs: Vec<&Value> = promoted["differs"]
        .as_array()
        .into_iter()
        .flatten()
        .collect();
    assert_eq!(differs.len(), 1, "{promoted}");
    Ok(())
}
