//! Several hosts on one PostgreSQL database: they share the work, take over from each other, and SQL sees what they do.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use guest_artifacts as guests;
use millrace_tests::{Client, Deploy, Host, Message, Postgres, wait_for};
use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::MILLRACE;
use crate::load::Load;

/// A binary of an older version, for the scenario of a rolling upgrade.
const OLDER: &str = "MILLRACE_OLDER_BINARY";
/// One in this many messages fails for good and becomes a dead letter.
pub(crate) const FAILING_EVERY: u32 = 37;
const KILLS: u32 = 5;
const PARTITIONS: u32 = 8;

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
        self.join_with(Path::new(MILLRACE), &[])
    }

    /// As [`Shared::join`], of this binary, and with options of its own.
    fn join_with(&mut self, binary: &Path, more: &[&str]) -> Result<()> {
        let data = self.directory.path().join(self.hosts.len().to_string());
        let options = self.options.iter().map(String::as_str);
        let options: Vec<&str> = options.chain(more.iter().copied()).collect();
        let mut host = Host::in_directory(binary, &data, &options);
        host.start_again()?;
        self.hosts.push(host);
        Ok(())
    }

    pub(crate) fn client(&self, host: usize) -> Client {
        self.hosts[host].client()
    }
}

pub(crate) fn message(number: u32) -> Value {
    let headers = match number.is_multiple_of(FAILING_EVERY) {
        true => json!({"fail-times": "99"}),
        false => json!({}),
    };
    json!({"key": format!("k{}", number % 50), "value": number.to_string(), "headers": headers})
}

pub(crate) fn numbers(messages: &[Message]) -> BTreeMap<u32, usize> {
    let mut numbers = BTreeMap::new();
    for message in messages {
        let number = message.text().parse().unwrap_or(u32::MAX);
        *numbers.entry(number).or_default() += 1;
    }
    numbers
}

pub(crate) fn deploy(client: &Client) -> Result<()> {
    client.topic("in", PARTITIONS)?;
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

/// The hosts that work the partitions of a processor, one for each.
fn workers(client: &Client, processor: &str) -> Result<Vec<String>> {
    let shown = client.get(&format!("/v1/processors/{processor}"))?.ok()?;
    let partitions = shown["partitions"].as_array().cloned();
    let host = |one: &Value| one["host"].as_str().unwrap_or_default().to_owned();
    Ok(partitions.unwrap_or_default().iter().map(host).collect())
}

/// The address of a host, as the others know it.
fn address(host: &Host) -> &str {
    host.url().trim_start_matches("http://")
}

/// The number of a processor's partitions, and of those that another host works.
pub(crate) fn elsewhere(client: &Client, processor: &str) -> Result<(usize, usize)> {
    let hosts = client.get("/v1/hosts")?.ok()?;
    let hosts = hosts["hosts"].as_array().cloned().unwrap_or_default();
    let own = hosts.iter().find(|host| host["is_this"] == true);
    let own = own.and_then(|host| host["address"].as_str());
    let workers = workers(client, processor)?;
    let others = workers.iter().filter(|host| Some(host.as_str()) != own);
    Ok((workers.len(), others.count()))
}

/// Waits until the worker has done all that any host has stored.
pub(crate) fn wait_until_all_is_done(client: &Client) -> Result<()> {
    // A host hears of what others stored a moment later, but knows everything before a message of its own.
    for partition in 0..PARTITIONS {
        let value = (u32::MAX - 1 - partition).to_string();
        client.produce("in", &[json!({"value": value, "partition": partition})])?;
    }
    client.wait_until_idle("worker")
}

/// Each message that was acknowledged came out once, or was given up once if it fails for good. What was sent and not acknowledged may be
/// there, but not twice.
pub(crate) fn each_was_done_once(
    client: &Client,
    acknowledged: &[u32],
    given_up: impl Fn() -> Result<BTreeMap<u32, usize>>,
) -> Result<()> {
    ensure!(!acknowledged.is_empty(), "something was sent");
    let count = |of: &BTreeMap<u32, usize>, number: u32| of.get(&number).copied().unwrap_or(0);
    // What another host has written last is heard of a moment later.
    let (out, given_up) = wait_for("all that was acknowledged to be done", || {
        let (out, given_up) = (numbers(&client.read("out")?), given_up()?);
        let is_done = |&number: &u32| count(&out, number) + count(&given_up, number) > 0;
        let is_whole = acknowledged.iter().all(is_done);
        Ok(is_whole.then_some((out, given_up)))
    })?;
    for &number in acknowledged {
        let expected = match number.is_multiple_of(FAILING_EVERY) {
            true => (0, 1),
            false => (1, 0),
        };
        let found = (count(&out, number), count(&given_up, number));
        ensure!(
            found == expected,
            "message {number}: {found:?}, not {expected:?}"
        );
    }
    let mut all = out.values().chain(given_up.values());
    ensure!(all.all(|&count| count == 1), "nothing is there twice");
    Ok(())
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
    wait_until_all_is_done(&client)?;
    each_was_done_once(&client, &load.acknowledged(), || {
        let dead = shared
            .database
            .sql("select payload from millrace.broker_dlq")?;
        let mut given_up = BTreeMap::new();
        for number in dead.lines() {
            *given_up.entry(number.parse::<u32>()?).or_insert(0) += 1;
        }
        Ok(given_up)
    })
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
fn each_host_shows_what_all_count_and_names_the_one_that_is_silent() -> Result<()> {
    let Some(shared) = Shared::start(3)? else {
        return Ok(());
    };
    let client = shared.client(0);
    let addresses: Vec<&str> = shared.hosts.iter().map(address).collect();
    client.topic("in", 24)?;
    client.topic("out", 1)?;
    let [flaky, chatty, stamp, other_stamp] = [
        guests::FLAKY,
        guests::CHATTY,
        guests::STAMP_1,
        guests::STAMP_2,
    ]
    .map(|guest| client.push(guest));
    let deploy = |name: &str, module: &str, more: Value| {
        client.deploy(&Deploy {
            name,
            module,
            topic: "in",
            output: "out",
            more,
        })
    };
    let flaky = flaky?;
    deploy("worker", &flaky, json!({"dead_letters": {"max": 2_400}}))?;
    deploy("talker", &chatty?, json!({}))?;
    deploy("stamp", &stamp?, json!({}))?;
    let again = |name: &str, how: &str, module: &str, more: Value| {
        let mut spec = json!({"module": module, "topics": ["in"], "output": "out"});
        if let (Some(spec), Some(more)) = (spec.as_object_mut(), more.as_object()) {
            spec.extend(more.clone());
        }
        let path = format!("/v1/processors/{name}?{how}");
        client.put_json(&path, &spec)?.ok()
    };
    let more = json!({"dead_letters": {"max": 2_400}, "retry": {"attempts_max": 4}});
    again("worker", "canary=50", &flaky, more)?;
    again("stamp", "shadow=true", &other_stamp?, json!({}))?;
    let names = ["worker", "talker", "stamp"];
    for name in names {
        for host in &shared.hosts {
            wait_for("each host knows that all three work", || {
                // It may not have heard of the processor yet.
                let workers = workers(&host.client(), name).unwrap_or_default();
                let all = addresses.iter().all(|one| workers.iter().any(|w| w == one));
                Ok((workers.len() == 24 && all).then_some(()))
            })?;
        }
    }
    for partition in 0..24 {
        let messages: Vec<Value> = (0..10)
            .map(|n| json!({"key": format!("k{partition}-{n}"), "value": "chatty", "partition": partition}))
            .collect();
        client.produce("in", &messages)?;
    }
    for name in names {
        client.wait_until_idle(name)?;
    }
    // Whichever host is asked, the sums are those of all.
    for host in &shared.hosts {
        let client = host.client();
        wait_for("every call is counted", || {
            let shown = client.get("/v1/processors/worker")?.ok()?;
            if !shown["partial"].is_null() {
                // On a busy machine an answer can be late.
                return Ok(None);
            }
            let messages = |side: &str| shown["canary_status"][side]["messages"].as_u64();
            let [canary, current] = ["canary", "current"].map(|side| messages(side).unwrap_or(0));
            ensure!(canary + current <= 240, "none is counted twice: {shown}");
            let left = &shown["breaker"]["dead_letters_left"];
            ensure!(*left == 2_400, "the hosts share the allowance: {left}");
            Ok((canary > 0 && current > 0 && canary + current == 240).then_some(()))
        })?;
        wait_for("every comparison is counted", || {
            let report = client.get("/v1/processors/stamp/shadow")?.ok()?;
            Ok((report["compared"].as_u64() == Some(240)).then_some(()))
        })?;
        let logs = client.get("/v1/processors/talker/logs")?.ok()?;
        let lines = logs["lines"].as_array().cloned().unwrap_or_default();
        for address in &addresses {
            ensure!(lines.iter().any(|line| line["host"] == *address));
        }
        let own = client.get("/v1/processors/worker?hosts=this")?.ok()?;
        let elsewhere = own["partitions"].as_array().into_iter().flatten();
        let elsewhere = elsewhere.filter(|one| {
            let state = one["state"].as_str().unwrap_or_default();
            state.starts_with("at host ")
        });
        ensure!(elsewhere.count() > 0, "alone it knows only its own: {own}");
    }
    // One stands still: it is named, and what the others count is shown.
    let stopped = &shared.hosts[2];
    let pid = stopped.pid()?;
    kill_process(pid, Signal::STOP)?;
    let shown = client.get("/v1/processors/worker")?.ok()?;
    let list = client.get("/v1/processors")?.ok()?;
    let said = shared.hosts[0]
        .command(&["processor", "show", "worker"])
        .output()?;
    let said = String::from_utf8(said.stdout)?;
    kill_process(pid, Signal::CONT)?;
    for answer in [&shown, &list] {
        let missing = &answer["missing_hosts"];
        ensure!(answer["partial"] == true, "{missing}");
        ensure!(
            missing[0]["address"] == addresses[2] && missing[1].is_null(),
            "{missing}"
        );
    }
    let not_known = format!("not known: host {} does not answer", addresses[2]);
    let partitions = shown["partitions"].as_array().cloned().unwrap_or_default();
    ensure!(partitions.len() == 24);
    for partition in partitions {
        let is_there = partition["host"] == addresses[2];
        ensure!(
            (partition["state"] == *not_known) == is_there,
            "{partition}"
        );
    }
    ensure!(said.contains(&not_known), "{said}");
    let missing = format!(
        "partial: host {} is missing: it does not answer",
        addresses[2]
    );
    ensure!(said.contains(&missing), "{said}");
    wait_for("it answers again", || {
        let shown = client.get("/v1/processors/worker")?.ok()?;
        Ok(shown["partial"].is_null().then_some(()))
    })?;
    Ok(())
}

#[test]
fn a_host_whose_address_leads_elsewhere_is_missing_and_not_counted_twice() -> Result<()> {
    let Some(mut shared) = Shared::start(1)? else {
        return Ok(());
    };
    let first = address(&shared.hosts[0]).to_owned();
    shared.join_with(Path::new(MILLRACE), &["--advertise", &first])?;
    shared.join_with(Path::new(MILLRACE), &["--advertise", ""])?;
    let client = shared.client(0);
    deploy(&client)?;
    let missing = wait_for("both others are listed and missing", || {
        let shown = client.get("/v1/processors")?.ok()?;
        let missing = shown["missing_hosts"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        Ok((missing.len() == 2).then_some(missing))
    })?;
    for (address, why) in [
        (&*first, "another host answers at its address"),
        ("", "it gave no address; start it with --advertise"),
    ] {
        let of_it = |host: &&Value| host["address"] == address;
        let host = missing.iter().find(of_it);
        let said = host
            .and_then(|host| host["why"].as_str())
            .unwrap_or_default();
        ensure!(said.contains(why), "{missing:?}");
    }
    Ok(())
}

#[test]
fn hosts_are_replaced_by_newer_ones_while_they_work_and_nothing_is_lost() -> Result<()> {
    let Some(older) = std::env::var_os(OLDER) else {
        println!("skipped: {OLDER} names no older binary");
        return Ok(());
    };
    let Some(mut shared) = Shared::start(0)? else {
        return Ok(());
    };
    let older = Path::new(&older);
    shared.join_with(older, &[])?;
    shared.join_with(older, &[])?;
    deploy(&shared.client(0))?;
    let mut sent = 0..0;
    let mut send = |client: &Client| -> Result<()> {
        sent.end += 200;
        let batch: Vec<Value> = (sent.end - 200..sent.end).map(message).collect();
        client.produce("in", &batch)
    };
    for replaced in 0..2 {
        send(&shared.client(replaced))?;
        shared.join_with(Path::new(MILLRACE), &[])?;
        let newer = shared.client(2 + replaced);
        for _ in 0..5 {
            send(&shared.client(replaced))?;
            send(&newer)?;
        }
        shared.hosts[replaced].stop()?;
        send(&newer)?;
    }
    let client = shared.client(2);
    wait_until_all_is_done(&client)?;
    let out = numbers(&client.read("out")?);
    for number in sent {
        let expected = usize::from(!number.is_multiple_of(FAILING_EVERY));
        ensure!(
            out.get(&number).copied().unwrap_or(0) == expected,
            "{number}"
        );
    }
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
