//! How long messages are kept, on the real binary: retention, trim, compaction, changes while they
//! run, reading from a time on.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use millrace_tests::{Host, Message, wait_for};
use serde_json::{Value, json};

use crate::MILLRACE;

const PADDING_BYTES: usize = 2_000;

/// A host that runs retention and compaction all the time.
fn cleaned() -> Result<Host> {
    Host::start_with(MILLRACE, &["--cleaning-interval-ms", "50"])
}

/// Runs the command line; returns its standard output and standard error.
fn run(host: &Host, arguments: &[&str]) -> Result<(String, String)> {
    let output = host.command(arguments).output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let noted = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{arguments:?}: {noted}");
    Ok((said, noted))
}

fn numbered(number: usize) -> Value {
    let value = format!("{number} {}", "x".repeat(PADDING_BYTES));
    json!({"key": format!("key {}", number % 10), "value": value})
}

/// Produces `messages` messages, then stops and starts the host, so that all of them are in
/// segments.
fn filled(host: &mut Host, topic: &str, messages: usize) -> Result<()> {
    let all: Vec<Value> = (0..messages).map(numbered).collect();
    for some in all.chunks(50) {
        host.client().produce(topic, some)?;
    }
    restart(host)
}

fn restart(host: &mut Host) -> Result<()> {
    ensure!(host.stop()?.success(), "the host stopped in order");
    host.start_again()
}

fn number_of(message: &Message) -> Option<usize> {
    message.text().split(' ').next()?.parse().ok()
}

fn start(host: &Host, topic: &str) -> Result<u64> {
    let shown = host.client().get(&format!("/v1/topics/{topic}"))?.ok()?;
    shown["ends"][0]["start"].as_u64().context("a start")
}

fn bytes_under(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        bytes += match entry.file_type()?.is_dir() {
            true => bytes_under(&entry.path())?,
            // The file may be removed while it is examined.
            false => entry.metadata().map_or(0, |metadata| metadata.len()),
        };
    }
    Ok(bytes)
}

#[test]
fn retention_by_size_removes_the_oldest_messages_and_the_disk_shrinks() -> Result<()> {
    let mut host = cleaned()?;
    run(
        &host,
        &["topic", "create", "orders", "--segment-bytes", "64KiB"],
    )?;
    filled(&mut host, "orders", 1_000)?;
    let topics = host.directory().join("topics");
    let before = bytes_under(&topics)?;
    assert!(before > 2_000_000, "{before}");
    run(
        &host,
        &["topic", "set", "orders", "--retention-bytes", "400KiB"],
    )?;
    wait_for("the disk to shrink", || {
        Ok((bytes_under(&topics)? < 500_000).then_some(()))
    })?;
    let kept = host.client().read("orders")?;
    let numbers: Vec<Option<usize>> = kept.iter().map(number_of).collect();
    let first = start(&host, "orders")? as usize;
    assert_eq!(numbers, (first..1_000).map(Some).collect::<Vec<_>>());
    assert!(kept.len() > 100, "{} messages are kept", kept.len());
    // The count changes after the files are removed.
    wait_for("what was removed to be counted", || {
        let removed = host
            .client()
            .metric("millrace_retention_removed_bytes_total");
        Ok(removed.ok().filter(|&bytes| bytes > 1_000_000.0))
    })?;
    let (shown, _) = run(&host, &["topic", "list"])?;
    assert!(shown.contains("400KiB"), "{shown}");
    // The removal survives a kill.
    host.kill()?;
    host.start_again()?;
    assert!(start(&host, "orders")? as usize >= first);
    Ok(())
}

#[test]
fn a_trim_holds_through_a_kill_and_readers_are_told_that_they_jumped() -> Result<()> {
    let mut host = cleaned()?;
    run(
        &host,
        &["topic", "create", "orders", "--durability", "durable"],
    )?;
    let all: Vec<Value> = (0..100).map(numbered).collect();
    host.client().produce("orders", &all)?;
    let (said, _) = run(
        &host,
        &["topic", "trim", "orders", "--before", "40", "--json"],
    )?;
    let said: Value = serde_json::from_str(&said)?;
    assert_eq!(said["starts"][0]["start"], 40);
    host.kill()?;
    host.start_again()?;
    assert_eq!(start(&host, "orders")?, 40);
    let (said, noted) = run(&host, &["consume", "orders", "--from", "7", "--max", "1"])?;
    assert!(said.starts_with("0/40\t"), "{said}");
    assert!(noted.contains("offsets 7 to 40"), "{noted}");
    let beyond = host
        .command(&[
            "topic",
            "trim",
            "orders",
            "--before",
            "101",
            "--partition",
            "0",
        ])
        .output()?;
    assert_eq!(beyond.status.code(), Some(4));
    run(&host, &["topic", "trim", "orders", "--before", "end"])?;
    assert!(host.client().read("orders")?.is_empty());
    Ok(())
}

#[test]
fn settings_change_while_messages_come_and_none_is_lost() -> Result<()> {
    let host = cleaned()?;
    run(&host, &["topic", "create", "orders"])?;
    let done = AtomicBool::new(false);
    let produced = std::thread::scope(|scope| -> Result<usize> {
        let producer = scope.spawn(|| -> Result<usize> {
            let client = host.client();
            let mut produced = 0;
            while !done.load(Ordering::Relaxed) {
                let some: Vec<Value> = (produced..produced + 10).map(numbered).collect();
                client.produce("orders", &some)?;
                produced += some.len();
            }
            Ok(produced)
        });
        for round in 0..10 {
            let durability = ["os", "none", "durable"][round % 3];
            let segment = ["64KiB", "1MiB", "none"][round % 3];
            let age = ["100ms", "none"][round % 2];
            let set = [
                "topic",
                "set",
                "orders",
                "--durability",
                durability,
                "--segment-bytes",
                segment,
                "--segment-age",
                age,
                "--retention",
                "7d",
            ];
            let changed = run(&host, &set);
            if changed.is_err() {
                done.store(true, Ordering::Relaxed);
            }
            changed?;
        }
        done.store(true, Ordering::Relaxed);
        producer
            .join()
            .map_err(|_| anyhow::anyhow!("the producer panicked"))?
    })?;
    let read = host.client().read("orders")?;
    let numbers: Vec<Option<usize>> = read.iter().map(number_of).collect();
    assert_eq!(numbers, (0..produced).map(Some).collect::<Vec<_>>());
    let (shown, _) = run(&host, &["topic", "show", "orders"])?;
    assert!(shown.contains("7d"), "{shown}");
    Ok(())
}

#[test]
fn reading_begins_where_a_moment_says_in_segments_and_in_memory() -> Result<()> {
    let mut host = cleaned()?;
    run(
        &host,
        &["topic", "create", "orders", "--segment-bytes", "64KiB"],
    )?;
    // One message a minute from 2026-11-21T10:00:00Z on.
    let timed = |number: u64| {
        let mut message = numbered(number as usize);
        message["timestamp"] = (1_795_255_200_000 + number * 60_000).into();
        message
    };
    let all: Vec<Value> = (0..120).map(timed).collect();
    for round in 0..2 {
        if round == 1 {
            restart(&mut host)?;
        } else {
            host.client().produce("orders", &all)?;
        }
        for (from, first) in [
            ("2026-11-21T09:00:00Z", "0/0\t"),
            ("2026-11-21T11:30:00Z", "0/90\t"),
            ("2026-11-21T12:29:30.5+01:00", "0/90\t"),
        ] {
            let (said, _) = run(&host, &["consume", "orders", "--from", from, "--max", "1"])?;
            assert!(said.starts_with(first), "{from}: {said}");
        }
        let (said, _) = run(
            &host,
            &["consume", "orders", "--from", "2026-11-21T12:00:00Z"],
        )?;
        assert_eq!(said, "");
    }
    let wrong = host
        .command(&["consume", "orders", "--from", "yesterday"])
        .output()?;
    assert_eq!(wrong.status.code(), Some(2));
    Ok(())
}

#[test]
fn of_each_key_a_compacted_topic_keeps_the_latest_value_after_a_restart_too() -> Result<()> {
    let mut host = cleaned()?;
    run(
        &host,
        &[
            "topic",
            "create",
            "prices",
            "--compact",
            "--segment-bytes",
            "64KiB",
        ],
    )?;
    let no_key = host
        .client()
        .post_json("/v1/topics/prices/messages", &json!({"value": "v"}))?;
    assert_eq!(
        (no_key.status, no_key.error()?.0),
        (422, "key-missing".to_owned())
    );
    filled(&mut host, "prices", 1_000)?;
    let topics = host.directory().join("topics");
    wait_for("compaction", || {
        Ok((bytes_under(&topics)? < 500_000).then_some(()))
    })?;
    for kill in [false, true] {
        let read = host.client().read("prices")?;
        assert!(read.windows(2).all(|pair| pair[0].offset < pair[1].offset));
        let latest: BTreeMap<_, _> = read.iter().map(|m| (m.key.clone(), number_of(m))).collect();
        for last in 990..1_000 {
            let key = Some(format!("key {}", last % 10));
            assert_eq!(latest.get(&key), Some(&Some(last)), "{key:?}");
        }
        for message in &read {
            assert_eq!(
                number_of(message),
                Some(message.offset as usize),
                "offsets stay"
            );
        }
        assert!(read.len() < 300, "{} messages are kept", read.len());
        if kill {
            host.kill()?;
            host.start_again()?;
        } else {
            restart(&mut host)?;
        }
    }
    Ok(())
}

#[test]
fn a_repeat_says_which_of_its_messages_compaction_removed() -> Result<()> {
    let mut host = cleaned()?;
    let create = [
        "topic",
        "create",
        "prices",
        "--compact",
        "--segment-bytes",
        "64KiB",
    ];
    run(&host, &create)?;
    let path = "/v1/topics/prices/messages";
    // A later message replaces the first of the two; the other's key is not written again.
    let call = json!({"messages": [numbered(1), {"key": "stays", "value": "v"}]});
    let send = |host: &Host| host.client().post_json_once(path, "call-1", &call)?.ok();
    let first = send(&host)?;
    ensure!(first["repeated"].is_null(), "{first}");
    filled(&mut host, "prices", 1_000)?;
    let gone = |host: &Host| -> Result<Vec<bool>> {
        let again = send(host)?;
        ensure!(again["repeated"] == true, "{again}");
        let placed = again["placed"].as_array().context("places")?;
        for (place, before) in placed
            .iter()
            .zip(first["placed"].as_array().context("places")?)
        {
            ensure!(place["offset"] == before["offset"], "{again}");
        }
        Ok(placed.iter().map(|place| place["gone"] == true).collect())
    };
    wait_for("compaction", || {
        Ok((gone(&host)? == [true, false]).then_some(()))
    })?;
    restart(&mut host)?;
    ensure!(gone(&host)? == [true, false], "as before");
    run(&host, &["topic", "trim", "prices", "--before", "end"])?;
    ensure!(gone(&host)? == [true, true], "a trim removed the rest");
    Ok(())
}
