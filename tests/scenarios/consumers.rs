//! Consumers across crashes: if a host or a reader is killed while reading, messages may be
//! repeated but are never skipped.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};
use millrace_tests::{Client, Host, wait_for};
use serde_json::{Value, json};

use crate::{MILLRACE, host};

const PARTITIONS: u32 = 3;
const CONSUMER: &str = "/v1/topics/orders/consumers/billing";

/// Produces messages with these numbers, to the partitions in turn.
fn produce(client: &Client, numbers: std::ops::Range<u32>) -> Result<()> {
    let message =
        |number: u32| json!({"value": number.to_string(), "partition": number % PARTITIONS});
    let messages: Vec<Value> = numbers.map(message).collect();
    client.produce("orders", &messages)
}

/// Starts a reader that writes to a file until it is ended.
fn reader(host: &Host, into: &Path) -> Result<Child> {
    let arguments = [
        "consume", "orders", "--as", "billing", "--follow", "--lease", "1",
    ];
    let mut command = host.command(&arguments);
    command.stdout(File::create(into)?).stderr(Stdio::null());
    Ok(command.spawn()?)
}

fn end(mut reader: Child) -> Result<()> {
    reader.kill()?;
    reader.wait()?;
    Ok(())
}

/// The complete lines of a reader's file: partition, offset and number of each.
fn lines(file: &Path) -> Result<Vec<(u32, u64, u32)>> {
    let text = std::fs::read_to_string(file)?;
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let line = |line: &str| {
        let mut cells = line.split('\t');
        let (partition, offset) = cells.next()?.split_once('/')?;
        let number = cells.nth(1)?;
        Some((
            partition.parse().ok()?,
            offset.parse().ok()?,
            number.parse().ok()?,
        ))
    };
    let read = whole.lines().map(line).collect::<Option<Vec<_>>>();
    read.with_context(|| format!("a line is none: {text}"))
}

fn committed(client: &Client) -> Result<u64> {
    let shown = client.get(CONSUMER)?.ok()?;
    let places = shown["partitions"].as_array().context("no partitions")?;
    let position = |place: &Value| place["position"].as_u64().unwrap_or(0);
    Ok(places.iter().map(position).sum())
}

/// In each run of a reader, the offsets of a partition must ascend by one, and must not begin
/// beyond what earlier runs read.
fn check_order(run: &[(u32, u64, u32)], read_before: &mut BTreeMap<u32, u64>) -> Result<()> {
    let mut at = BTreeMap::<u32, u64>::new();
    for &(partition, offset, number) in run {
        ensure!(
            number % PARTITIONS == partition,
            "{number} in partition {partition}"
        );
        match at.insert(partition, offset) {
            Some(last) => ensure!(offset == last + 1, "{partition}: {offset} after {last}"),
            None => {
                let next = read_before.get(&partition).map_or(0, |last| last + 1);
                ensure!(
                    offset <= next,
                    "{partition}: {offset} is read, {next} was next"
                );
            }
        }
    }
    for (partition, last) in at {
        let before = read_before.entry(partition).or_default();
        *before = last.max(*before);
    }
    Ok(())
}

#[test]
fn killed_readers_and_hosts_skip_nothing_and_keep_the_order_of_partitions() -> Result<()> {
    const ROUNDS: u32 = 6;
    const ROUND: u32 = 3_000;
    let mut host = host()?;
    host.client().topic("orders", PARTITIONS)?;
    let files = tempfile::tempdir()?;
    let mut read_before = BTreeMap::new();
    let mut numbers = BTreeMap::<u32, u32>::new();
    for round in 0..ROUNDS {
        let client = host.client();
        let file = files.path().join(round.to_string());
        let reader = reader(&host, &file)?;
        for part in 0..10 {
            let first = round * ROUND + part * (ROUND / 10);
            produce(&client, first..first + ROUND / 10)?;
        }
        // In the middle of reading: usually only a part of this round has been written.
        let wanted = 1 + fastrand::usize(..ROUND as usize / 2);
        wait_for("some lines", || {
            Ok((lines(&file)?.len() >= wanted).then_some(()))
        })?;
        match round % 2 {
            0 => end(reader)?,
            _ => {
                host.kill()?;
                end(reader)?;
                host.start_again()?;
            }
        }
        let run = lines(&file)?;
        check_order(&run, &mut read_before)?;
        for (_, _, number) in run {
            *numbers.entry(number).or_default() += 1;
        }
    }
    // The last reader reads the rest, and ends by itself.
    let arguments = ["consume", "orders", "--as", "billing", "--retry-for", "240"];
    let rest = files.path().join("rest");
    let mut command = host.command(&arguments);
    ensure!(command.stdout(File::create(&rest)?).status()?.success());
    let run = lines(&rest)?;
    check_order(&run, &mut read_before)?;
    for (_, _, number) in run {
        *numbers.entry(number).or_default() += 1;
    }
    let all: Vec<u32> = numbers.keys().copied().collect();
    assert_eq!(
        all,
        (0..ROUNDS * ROUND).collect::<Vec<_>>(),
        "every message at least once"
    );
    assert_eq!(committed(&host.client())?, u64::from(ROUNDS * ROUND));
    let repeated = numbers.values().filter(|&&times| times > 1).count();
    eprintln!("{repeated} of {} were read more than once", numbers.len());
    Ok(())
}

#[test]
fn a_reader_goes_on_over_a_restart_of_the_host_under_its_lease() -> Result<()> {
    let mut host = host()?;
    // Durable, because after a crash that may lose messages the lease ends.
    let durable = json!({"name": "orders", "partitions": PARTITIONS, "durability": "durable"});
    host.client().post_json("/v1/topics", &durable)?.ok()?;
    let answer = host
        .client()
        .get(&format!("{CONSUMER}/messages?lease_ms=60000"))?;
    let lease = answer.ok()?["commit"]["lease"].clone();
    produce(&host.client(), 0..30)?;
    host.kill()?;
    host.start_again()?;
    let client = host.client();
    let second = client.get(&format!("{CONSUMER}/messages"))?;
    assert_eq!(second.error()?.0, "consumer-busy");
    let lease_text = lease.as_str().context("a lease")?;
    let path = format!("{CONSUMER}/messages?max=1000&lease={lease_text}");
    let answer = client.get(&path)?.ok()?;
    assert_eq!(answer["messages"].as_array().map(Vec::len), Some(30));
    let commit = format!("{CONSUMER}/commit");
    client.post_json(&commit, &answer["commit"])?.ok()?;
    // An acknowledged commit survives the next kill, in all partitions.
    host.kill()?;
    host.start_again()?;
    assert_eq!(committed(&host.client())?, 30);
    let lag = host.client().metric("millrace_consumer_lag_messages")?;
    assert!(lag.abs() < 0.5, "{lag}");
    Ok(())
}

#[test]
fn a_backup_has_the_positions_of_its_instant() -> Result<()> {
    let host = host()?;
    let client = host.client();
    client.topic("orders", PARTITIONS)?;
    produce(&client, 0..30)?;
    let consume = |host: &Host, more: &[&str]| -> Result<usize> {
        let arguments = [&["consume", "orders", "--as", "billing"], more].concat();
        let output = host.command(&arguments).output()?;
        ensure!(output.status.success(), "{output:?}");
        Ok(output.stdout.iter().filter(|&&byte| byte == b'\n').count())
    };
    assert_eq!(consume(&host, &["--max", "12"])?, 12);
    let files = tempfile::tempdir()?;
    let (backup, data) = (files.path().join("backup"), files.path().join("data"));
    let path = |path: &Path| path.to_str().map(str::to_owned).context("text");
    let taken = host.command(&["backup", &path(&backup)?]).output()?;
    ensure!(taken.status.success(), "{taken:?}");
    assert_eq!(consume(&host, &[])?, 18);
    let arguments = ["restore", &path(&backup)?, "--data-dir", &path(&data)?];
    let restored = host.command(&arguments).output()?;
    ensure!(restored.status.success(), "{restored:?}");
    let mut copy = Host::in_directory(MILLRACE, &data, &[]);
    copy.start_again()?;
    assert_eq!(committed(&copy.client())?, 12);
    assert_eq!(consume(&copy, &[])?, 18, "the rest, once more");
    copy.stop()?;
    Ok(())
}

#[test]
fn a_deleted_consumer_and_a_deleted_topic_leave_nothing_behind() -> Result<()> {
    let mut host = host()?;
    let client = host.client();
    client.topic("orders", PARTITIONS)?;
    client.topic("other", 1)?;
    for topic in ["orders", "other"] {
        let path = format!("/v1/topics/{topic}/consumers/billing");
        client.put_json(&path, &json!({}))?.ok()?;
    }
    produce(&client, 0..7)?;
    let lags = |client: &Client| -> Result<Vec<String>> {
        let text = String::from_utf8(client.get("/metrics")?.body)?;
        let lines = text.lines().map(str::to_owned);
        let is_lag = |line: &String| line.starts_with("millrace_consumer_lag_messages");
        Ok(lines.filter(is_lag).collect())
    };
    let found = lags(&client)?;
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(
        found
            .iter()
            .any(|line| line.contains("\"orders\"") && line.ends_with("} 7")),
        "{found:?}"
    );
    client.delete(CONSUMER)?.ok()?;
    client.delete("/v1/topics/other")?.ok()?;
    assert_eq!(lags(&client)?, [""; 0]);
    host.kill()?;
    host.start_again()?;
    let client = host.client();
    let listed = client.get("/v1/consumers")?.ok()?;
    assert_eq!(listed["consumers"], json!([]));
    assert_eq!(lags(&client)?, [""; 0]);
    // A consumer created again under this name is a new one.
    let first = client.get(&format!("{CONSUMER}/messages"))?.ok()?;
    assert_eq!(first["created"], true);
    assert_eq!(first["messages"].as_array().map(Vec::len), Some(7));
    Ok(())
}
