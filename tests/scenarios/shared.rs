//! Several hosts on one PostgreSQL database: they share the work, take over from each other, and SQL sees what they do.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use guest_artifacts as guests;
use millrace_tests::{Client, Deploy, Host, Message, Postgres, wait_for};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::MILLRACE;
use crate::load::Load;

/// One in this many messages fails for good and becomes a dead letter.
const FAILING_EVERY: u32 = 37;
const KILLS: u32 = 5;

/// A database and its hosts.
pub(crate) struct Shared {
    pub(crate) database: Postgres,
    directory: TempDir,
    options: Vec<String>,
    pub(crate) hosts: Vec<Host>,
}

/// A server; `None`, with a line that says so, if PostgreSQL is not installed.
pub(crate) fn postgres() -> Result<Option<Postgres>> {
    let is_there = Path::new("/usr/lib/postgresql").is_dir();
    if !is_there || Command::new("psql").arg("--version").output().is_err() {
        println!("skipped: PostgreSQL is not installed on this machine");
        return Ok(None);
    }
    Ok(Some(Postgres::start()?))
}

impl Shared {
    /// `None` if PostgreSQL is not installed.
    pub(crate) fn start(count: usize) -> Result<Option<Self>> {
        Self::start_with(count, &[])
    }

    /// As [`Shared::start`], with further options of the hosts.
    pub(crate) fn start_with(count: usize, more: &[&str]) -> Result<Option<Self>> {
        let Some(database) = postgres()? else {
            return Ok(None);
        };
        let directory = tempfile::tempdir()?;
        let url = database.url();
        let options = [&["--engine", "postgres", "--postgres-url", &url], more].concat();
        let mut shared = Self {
            database,
            directory,
            options: options.into_iter().map(str::to_owned).collect(),
            hosts: Vec::new(),
        };
        for _ in 0..count {
            shared.join()?;
        }
        Ok(Some(shared))
    }

    /// Starts one more host.
    pub(crate) fn join(&mut self) -> Result<()> {
        let data = self.directory.path().join(self.hosts.len().to_string());
        let options: Vec<&str> = self.options.iter().map(String::as_str).collect();
        let mut host = Host::in_directory(MILLRACE, &data, &options);
        host.start_again()?;
        self.hosts.push(host);
        Ok(())
    }

    pub(crate) fn client(&self, host: usize) -> Client {
        self.hosts[host].client()
    }
}

fn message(number: u32) -> Value {
    let headers = match number.is_multiple_of(FAILING_EVERY) {
        true => json!({"fail-times": "99"}),
        false => json!({}),
    };
    json!({"key": format!("k{}", number % 50), "value": number.to_string(), "headers": headers})
}

fn numbers(messages: &[Message]) -> BTreeMap<u32, usize> {
    let mut numbers = BTreeMap::new();
    for message in messages {
        let number = message.text().parse().unwrap_or(u32::MAX);
        *numbers.entry(number).or_default() += 1;
    }
    numbers
}

fn deploy(client: &Client) -> Result<()> {
    client.topic("in", 8)?;
    client.topic("out", 2)?;
    let module = client.push(guests::FLAKY)?;
    client.deploy(&Deploy {
        name: "worker",
        module: &module,
        topic: "in",
        output: "out",
        more: json!({
            "retry": {"attempts_max": 2, "delay_first_ms": 5, "delay_max_ms": 10},
            "dead_letters": {"max": 1_000_000},
        }),
    })?;
    Ok(())
}

/// The number of a processor's partitions, and of those that another host works.
pub(crate) fn elsewhere(client: &Client, processor: &str) -> Result<(usize, usize)> {
    let processor = client.get(&format!("/v1/processors/{processor}"))?.ok()?;
    let partitions = processor["partitions"].as_array();
    let partitions = partitions.map(Vec::as_slice).unwrap_or_default();
    let is_elsewhere = |partition: &&Value| {
        let state = partition["state"].as_str().unwrap_or_default();
        state.starts_with("at host ")
    };
    let others = partitions.iter().filter(is_elsewhere).count();
    Ok((partitions.len(), others))
}

#[test]
fn what_a_killed_host_was_at_is_done_once_by_the_others() -> Result<()> {
    let Some(mut shared) = Shared::start(3)? else {
        return Ok(());
    };
    deploy(&shared.client(0))?;
    let load = Load::of(message);
    for kill in 0..KILLS {
        // The clients lose their host; two others go on meanwhile.
        let killed = 1 + (kill as usize % 2);
        load.kill(&mut shared.hosts[killed])?;
    }
    let client = shared.client(0);
    client.wait_until_idle("worker")?;
    let acknowledged = load.acknowledged();
    ensure!(!acknowledged.is_empty(), "something was sent");
    let out = numbers(&client.read("out")?);
    let dead = shared
        .database
        .sql("select payload from millrace.broker_dlq")?;
    let mut given_up = BTreeMap::new();
    for number in dead.lines() {
        *given_up.entry(number.parse::<u32>()?).or_insert(0) += 1;
    }
    for number in acknowledged {
        let expected = match number.is_multiple_of(FAILING_EVERY) {
            true => (0, 1),
            false => (1, 0),
        };
        let found = (
            out.get(&number).copied().unwrap_or(0),
            given_up.get(&number).copied().unwrap_or(0),
        );
        ensure!(
            found == expected,
            "message {number}: {found:?}, not {expected:?}"
        );
    }
    // What was sent and not acknowledged may be there, but not twice.
    ensure!(
        out.values()
            .chain(given_up.values())
            .all(|&count| count == 1)
    );
    Ok(())
}

#[test]
fn hosts_share_the_partitions_and_one_that_stops_gives_its_own_back_at_once() -> Result<()> {
    let Some(mut shared) = Shared::start(2)? else {
        return Ok(());
    };
    let client = shared.client(0);
    deploy(&client)?;
    let addresses = wait_for("both hosts are listed", || {
        let hosts = client.get("/v1/hosts")?.ok()?;
        let hosts = hosts["hosts"].as_array().cloned().unwrap_or_default();
        Ok((hosts.len() == 2).then_some(hosts))
    })?;
    ensure!(
        addresses
            .iter()
            .filter(|host| host["is_this"] == true)
            .count()
            == 1
    );
    wait_for("each works some partitions", || {
        let (partitions, others) = elsewhere(&client, "worker")?;
        Ok((partitions == 8 && (1..8).contains(&others)).then_some(()))
    })?;
    shared.hosts[1].stop()?;
    for number in 0..40 {
        client.produce(
            "in",
            &[json!({"key": format!("k{number}"), "value": number.to_string()})],
        )?;
    }
    client.wait_until_idle("worker")?;
    ensure!(numbers(&client.read("out")?).len() == 40);
    Ok(())
}

#[test]
fn what_is_sent_in_sql_arrives_once_with_its_transaction_and_not_without() -> Result<()> {
    let Some(shared) = Shared::start(2)? else {
        return Ok(());
    };
    let client = shared.client(1);
    deploy(&client)?;
    let sql = |statements: &str| shared.database.sql(statements);
    sql("create table orders (n int)")?;
    for number in 1..=20 {
        let end = if number % 5 == 0 {
            "rollback"
        } else {
            "commit"
        };
        sql(&format!(
            "begin; insert into orders values ({number}); \
             select millrace.send_bytes('in', 'k{number}', '{number}', '{{\"source\": \"shop\"}}'); {end}"
        ))?;
    }
    let sent = client.wait_for_messages("out", 16)?;
    ensure!(sql("select count(*) from orders")? == "16");
    let expected: Vec<u32> = (1..=20).filter(|number| number % 5 != 0).collect();
    ensure!(
        numbers(&sent).into_iter().collect::<Vec<_>>()
            == expected.iter().map(|&n| (n, 1)).collect::<Vec<_>>()
    );
    ensure!(
        sent.iter()
            .all(|message| message.headers.get("source") == Some(&json!("shop")))
    );
    ensure!(sql("select count(*) from millrace.outbox")? == "0");
    // A topic that does not exist is refused where it can be mended, and the transaction with it.
    let refused = sql("select millrace.send('nowhere', 'k', '{}')");
    let why = refused
        .err()
        .map(|error| error.to_string())
        .unwrap_or_default();
    ensure!(why.contains("topic nowhere does not exist"), "{why}");
    // Its topic goes while it waits: it stays, and says why.
    sql("insert into millrace.outbox (topic, payload) values ('gone', 'left')")?;
    wait_for("it says why it is left", || {
        let error = sql("select coalesce(error, '') from millrace.outbox")?;
        Ok(error.contains("gone").then_some(()))
    })?;
    client.topic("gone", 1)?;
    sql("update millrace.outbox set due = now()")?;
    ensure!(client.wait_for_messages("gone", 1)?[0].text() == "left");
    // Another one has a time.
    sql("select millrace.send('gone', null, '{\"n\": 1}', null, now() + interval '1 second')")?;
    ensure!(client.wait_for_messages("gone", 2)?[1].text() == "{\"n\": 1}");
    Ok(())
}
