//! Data directories of earlier versions, opened by this one, which continues where they were
//! killed. `tests/old_directories/make.py` creates them.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use millrace_tests::tree::repository;
use millrace_tests::{Client, Host, Message};
use serde_json::{Value, json};

use crate::MILLRACE;

fn unpack(archive: &str, into: &Path) -> Result<()> {
    let path = repository().join("tests/old_directories").join(archive);
    let mut tar = Command::new("tar");
    tar.arg("-xzf").arg(path).arg("-C").arg(into);
    ensure!(tar.status()?.success(), "tar cannot unpack {archive}");
    Ok(())
}

/// The values of each key, in order.
fn by_key(messages: &[Message]) -> BTreeMap<&str, Vec<&str>> {
    let mut found: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for message in messages {
        let of_key = found.entry(message.key.as_deref().unwrap_or_default());
        of_key.or_default().push(message.text());
    }
    found
}

fn words(numbers: std::ops::Range<u32>) -> Vec<Value> {
    numbers
        .map(|n| json!({"key": format!("k{}", n % 10), "value": n.to_string()}))
        .collect()
}

/// Each of ten keys must be counted up to `last`, each number once.
fn counted_to(client: &Client, last: usize) -> Result<()> {
    let counts = client.wait_for_messages("counts", 10 * last)?;
    let all: Vec<String> = (1..=last).map(|count| count.to_string()).collect();
    let counts = by_key(&counts);
    assert_eq!(counts.len(), 10);
    for (key, counts) in counts {
        assert_eq!(counts, all, "of {key}");
    }
    Ok(())
}

/// Messages that failed once are tried again, and waiting messages of the same key follow them.
fn parked_messages_went_on(client: &Client) -> Result<()> {
    let done = client.wait_for_messages("done", 15)?;
    let done = by_key(&done);
    assert_eq!(done.len(), 5);
    for (key, values) in done {
        let number = key.trim_start_matches('p');
        let expected = [0, 1, 2].map(|m| format!("{number}.{m}"));
        assert_eq!(values, expected, "of {key}");
    }
    client.wait_until_idle("flaky")
}

#[test]
fn a_directory_of_before_several_hosts_opens_and_goes_on() -> Result<()> {
    let directory = tempfile::tempdir()?;
    unpack("2026-11-22.tar.gz", directory.path())?;
    let mut host = Host::in_directory(MILLRACE, &directory.path().join("data"), &[]);
    host.start_again()?;
    let client = host.client();

    counted_to(&client, 30)?;
    parked_messages_went_on(&client)?;
    assert_eq!(client.dead_letters("flaky")?.len(), 3);
    let stamped = client.read("stamped")?;
    assert_eq!(stamped.len(), 20);
    let stamp = client.get("/v1/processors/stamp")?.ok()?;
    assert_eq!(stamp["current"], 2);
    assert_eq!(stamp["revisions"].as_array().map(Vec::len), Some(2));

    // Eleven were due an hour after the directory was created; the twelfth is due in 2035.
    let later = client.wait_for_messages("later", 11)?;
    let mut values: Vec<&str> = later.iter().map(Message::text).collect();
    values.sort_unstable();
    values.dedup();
    assert_eq!(values.len(), 11);
    let waiting = client.get("/v1/topics/later/delayed")?.ok()?;
    assert_eq!(waiting["total"], 1);
    let late = waiting["delayed"][0]["id"].as_str().context("an id")?;
    client
        .delete(&format!("/v1/topics/later/delayed/{late}"))?
        .ok()?;
    // One message, however many hours were missed.
    client.wait_for_messages("ticks", 1)?;
    client.get("/v1/schedules/hourly")?.ok()?;

    client.produce("words", &words(0..100))?;
    counted_to(&client, 40)?;
    host.kill()?;
    host.start_again()?;
    let client = host.client();
    client.produce("words", &words(0..100))?;
    counted_to(&client, 50)?;
    assert_eq!(client.count("done")?, 15);
    assert_eq!(client.count("later")?, 11);
    Ok(())
}
