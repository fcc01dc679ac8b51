//! Backups by the command line: of a busy host, to a directory and through a pipe, restored, and
//! refused with a reason.

use std::process::{Output, Stdio};
use std::thread;

use anyhow::{Context, Result, ensure};
use guest_artifacts as guests;
use millrace_tests::{Client, Deploy, Host, wait_for};
use serde_json::{Value, json};

use crate::{MILLRACE, host};

fn run(host: &Host, arguments: &[&str]) -> Result<Output> {
    Ok(host.command(arguments).stdin(Stdio::null()).output()?)
}

fn said(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!(
        "{}{}",
        String::from_utf8_lossy(out),
        String::from_utf8_lossy(err)
    )
}

fn succeeds(host: &Host, arguments: &[&str]) -> Result<Value> {
    let output = run(host, &[arguments, &["--json"]].concat())?;
    ensure!(output.status.success(), "{arguments:?}: {}", said(&output));
    serde_json::from_slice(&output.stdout).context("its answer is JSON")
}

fn set_up(client: &Client) -> Result<()> {
    client.topic("in", 2)?;
    client.topic("out", 2)?;
    let module = client.push(guests::UPPERCASE)?;
    client.deploy(&Deploy {
        name: "upper",
        module: &module,
        topic: "in",
        output: "out",
        more: json!({}),
    })?;
    Ok(())
}

fn produce(client: &Client, numbers: std::ops::Range<u32>) -> Result<()> {
    let message = |number: u32| json!({"key": format!("{number}"), "value": format!("m{number}")});
    let messages: Vec<Value> = numbers.map(message).collect();
    client.produce("in", &messages)
}

/// A host that starts on a copy must show inputs and outputs, each exactly once.
fn check_copy(data: &std::path::Path, at_least: u64) -> Result<()> {
    let mut copy = Host::in_directory(MILLRACE, data, &[]);
    copy.start_again()?;
    let client = copy.client();
    client.wait_until_idle("upper")?;
    let mut inputs: Vec<String> = texts(&client, "in")?;
    ensure!(
        inputs.len() as u64 >= at_least,
        "{} of {at_least}",
        inputs.len()
    );
    inputs
        .iter_mut()
        .for_each(|text| *text = text.to_uppercase());
    let mut outputs = texts(&client, "out")?;
    inputs.sort_unstable();
    outputs.sort_unstable();
    assert_eq!(inputs, outputs, "each input once");
    // The copy works as a host of its own.
    produce(&client, 1_000_000..1_000_010)?;
    client.wait_until_idle("upper")?;
    assert_eq!(texts(&client, "out")?.len(), inputs.len() + 10);
    copy.stop()?;
    Ok(())
}

fn texts(client: &Client, topic: &str) -> Result<Vec<String>> {
    let messages = client.read(topic)?;
    Ok(messages
        .iter()
        .map(|message| message.text().to_owned())
        .collect())
}

#[test]
fn a_host_at_work_is_backed_up_to_a_directory_and_through_a_pipe_and_restored() -> Result<()> {
    let host = host()?;
    let client = host.client();
    set_up(&client)?;
    let place = tempfile::tempdir()?;
    let at = |name: &str| place.path().join(name).display().to_string();
    produce(&client, 0..500)?;
    // Producers and the processor continue meanwhile.
    let load = thread::spawn({
        let client = host.client();
        move || (5..60).try_for_each(|at| produce(&client, at * 100..(at + 1) * 100))
    });
    let first = succeeds(&host, &["backup", &at("backup")])?;
    assert_eq!(first["files"], first["files_copied"]);
    let made = host
        .command(&["backup", "-"])
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(made.status.success());
    std::fs::write(at("backup.tar"), &made.stdout)?;
    load.join().expect("the load does not panic")?;
    let before = client.count("in")?;
    succeeds(
        &host,
        &["restore", &at("backup"), "--data-dir", &at("of-directory")],
    )?;
    let restored = host
        .command(&["restore", "-", "--data-dir", &at("of-pipe")])
        .stdin(std::fs::File::open(at("backup.tar"))?)
        .output()?;
    ensure!(restored.status.success(), "{}", said(&restored));
    check_copy(at("of-directory").as_ref(), 500)?;
    check_copy(at("of-pipe").as_ref(), 500)?;
    // The next backup includes the whole load, and copies less.
    let second = succeeds(&host, &["backup", &at("backup")])?;
    assert_eq!(second["damage"], json!([]));
    succeeds(&host, &["backup", "verify", &at("backup")])?;
    succeeds(
        &host,
        &["restore", &at("backup"), "--data-dir", &at("again")],
    )?;
    check_copy(at("again").as_ref(), before)?;
    let idle = succeeds(&host, &["backup", &at("backup")])?;
    assert!(
        idle["files_copied"].as_u64() < idle["files"].as_u64(),
        "{idle}"
    );
    Ok(())
}

#[test]
fn what_cannot_be_backed_up_or_restored_says_why_and_leaves_everything_as_it_is() -> Result<()> {
    let mut host = host()?;
    set_up(&host.client())?;
    let place = tempfile::tempdir()?;
    let at = |name: &str| place.path().join(name).display().to_string();
    let data = host.directory();
    let inside = data.join("backups").display().to_string();
    let refused = |arguments: &[&str], code: i32, says: &str| -> Result<()> {
        let output = run(&host, arguments)?;
        let said = said(&output);
        ensure!(output.status.code() == Some(code), "{arguments:?}: {said}");
        ensure!(said.contains(says), "{arguments:?}: {said}");
        Ok(())
    };
    refused(&["backup", &inside], 4, "is in the data directory")?;
    ensure!(!data.join("backups").exists(), "nothing is made in there");
    std::fs::create_dir(at("photos"))?;
    std::fs::write(at("photos/one"), "kept")?;
    refused(&["backup", &at("photos")], 4, "not part of a backup")?;
    refused(
        &["backup", "verify", &at("photos")],
        3,
        "no finished backup",
    )?;
    refused(
        &["restore", &at("photos"), "--data-dir", &at("new")],
        3,
        "no finished backup",
    )?;
    succeeds(&host, &["backup", &at("backup")])?;
    refused(
        &["restore", &at("backup"), "--data-dir", &at("photos")],
        4,
        "is not empty",
    )?;
    refused(
        &[
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--data-dir",
            &at("backup"),
        ],
        1,
        "contains a backup",
    )?;
    let of_another = crate::host()?;
    let output = run(&of_another, &["backup", &at("backup")])?;
    ensure!(output.status.code() == Some(4), "{}", said(&output));
    ensure!(said(&output).contains("another host"), "{}", said(&output));
    // The host ends in the middle of a backup, or is not there at all.
    host.kill()?;
    let output = run(&host, &["backup", &at("backup")])?;
    ensure!(output.status.code() == Some(5), "{}", said(&output));
    let verified = run(&host, &["backup", "verify", &at("backup")])?;
    ensure!(verified.status.success(), "{}", said(&verified));
    Ok(())
}

#[test]
fn a_delayed_message_that_came_due_meanwhile_is_delivered_by_the_restored_host() -> Result<()> {
    let mut host = host()?;
    let client = host.client();
    client.topic("later", 1)?;
    let message = json!({"value": "in time", "delay_ms": 1_000});
    let path = "/v1/topics/later/messages";
    client
        .post_json(path, &json!({"messages": [message]}))?
        .ok()?;
    let place = tempfile::tempdir()?;
    let at = |name: &str| place.path().join(name).display().to_string();
    succeeds(&host, &["backup", &at("backup")])?;
    wait_for("the message to come due", || {
        Ok((client.count("later")? == 1).then_some(()))
    })?;
    host.kill()?;
    let output = run(
        &host,
        &["restore", &at("backup"), "--data-dir", &at("data")],
    )?;
    ensure!(output.status.success(), "{}", said(&output));
    let mut copy = Host::in_directory(MILLRACE, at("data").as_ref(), &[]);
    copy.start_again()?;
    let found = copy.client().wait_for_messages("later", 1)?;
    assert_eq!(found[0].text(), "in time");
    copy.stop()?;
    Ok(())
}
