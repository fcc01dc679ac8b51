//! `millrace copy` on the real binary: from a data directory to PostgreSQL and back, and to NATS and back, killed in the middle, with processors,
//! consumers, delayed messages and schedules that go on where they were; and everything that it refuses.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use guest_artifacts as guests;
use millrace_tests::{Client, Deploy, Host, Nats, Postgres, nats_server, wait_for};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::MILLRACE;
use crate::shared::postgres;

const KEYS: u32 = 20;
const PARTITIONS: u32 = 3;
/// Bytes of the topic that takes a copy some time.
const BULK_BYTES: usize = 32 << 20;
/// A copy that ends before it is killed is made again.
const TRIES_MAX: usize = 5;

/// Now and then one is rejected and becomes a dead letter.
fn message(number: u32) -> Value {
    let mut headers = json!({"id": number.to_string()});
    if number % 41 == 7 {
        headers["reject"] = json!("bad");
    }
    json!({"key": format!("k{}", number % KEYS), "value": "x", "headers": headers})
}

fn produce(client: &Client, numbers: std::ops::Range<u32>) -> Result<()> {
    let messages: Vec<Value> = numbers.map(message).collect();
    client.produce("in", &messages)
}

fn copy(from: &str, to: &str) -> Command {
    let mut command = Command::new(MILLRACE);
    command.args(["copy", "--json", "--from", from, "--to", to]);
    command.stdin(Stdio::null());
    command
}

fn said(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    format!("{}{}", text(out), text(err))
}

/// Copies; returns the answer.
fn copied(from: &str, to: &str) -> Result<Value> {
    let output = copy(from, to).output()?;
    ensure!(output.status.success(), "{from} to {to}: {}", said(&output));
    let answer: Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(answer["differences"], json!([]));
    assert_eq!(answer["damaged"], json!([]));
    Ok(answer)
}

/// A copy that is refused with this exit code, and with these words.
fn refused(from: &str, to: &str, exit: i32, words: &str) -> Result<()> {
    let output = copy(from, to).output()?;
    let told = said(&output);
    ensure!(output.status.code() == Some(exit), "{exit}: {told}");
    ensure!(told.contains(words), "{words:?} is not in {told}");
    Ok(())
}

/// What the doctor says of a store without faults.
fn doctor(store: &str) -> Result<String> {
    let output = Command::new(MILLRACE).args(["doctor", store]).output()?;
    ensure!(output.status.success(), "{}", said(&output));
    Ok(said(&output))
}

fn local(directory: &Path) -> String {
    format!("local:{}", directory.display())
}

/// A host that has worked: all that a copy must carry is in it.
fn set_up(directory: &Path) -> Result<()> {
    let mut host = Host::in_directory(MILLRACE, directory, &[]);
    host.start_again()?;
    let client = host.client();
    // The id of a topic that was deleted is given to none.
    client.topic("deleted", 1)?;
    for name in ["in", "out"] {
        client.topic(name, PARTITIONS)?;
    }
    client.delete("/v1/topics/deleted")?.ok()?;
    let module = client.push(guests::MISCOUNT)?;
    client.deploy(&Deploy {
        name: "count",
        module: &module,
        topic: "in",
        output: "out",
        more: json!({
            "retry": {"attempts_max": 2, "delay_first_ms": 5, "delay_max_ms": 10},
            "dead_letters": {"max": 1_000_000},
            "breaker": {"enabled": false},
        }),
    })?;
    produce(&client, 0..1_000)?;
    client.wait_until_idle("count")?;
    let read = host.command(&["consume", "out", "--as", "billing", "--max", "12"]);
    ensure!({ read }.output()?.status.success(), "it reads and commits");
    let trim = host.command(&["topic", "trim", "out", "--partition", "1", "--before", "5"]);
    ensure!({ trim }.output()?.status.success(), "it trims");
    let pause = client.post_json("/v1/processors/count/pause", &json!({}))?;
    pause.ok()?;
    produce(&client, 1_000..1_500)?;
    let later = json!({"value": "later", "key": "k", "delay_ms": 31_536_000_000_u64});
    client.produce("out", &[later])?;
    let schedule = json!({"topic": "out", "cron": "0 0 1 1 *", "value": "new year"});
    client.put_json("/v1/schedules/yearly", &schedule)?.ok()?;
    client.topic("bulk", 1)?;
    let line = json!({"value": "x".repeat(1 << 10)});
    let lines = vec![line; 1 << 10];
    for _ in 0..BULK_BYTES >> 20 {
        client.produce("bulk", &lines)?;
    }
    host.stop()?;
    Ok(())
}

/// What a host shows of everything that was copied.
fn shown(client: &Client) -> Result<BTreeMap<&'static str, Value>> {
    let mut shown = BTreeMap::new();
    for (name, path) in [
        ("topics", "/v1/topics"),
        ("module", "/v1/modules"),
        ("delayed", "/v1/topics/out/delayed"),
        ("schedule", "/v1/schedules/yearly"),
        (
            "dead",
            "/v1/processors/count/dead-letters?redriven=also&max=1000",
        ),
    ] {
        shown.insert(name, client.get(path)?.ok()?);
    }
    let billing = client.get("/v1/topics/out/consumers/billing")?.ok()?;
    shown.insert("billing", billing["partitions"].clone());
    let processor = client.get("/v1/processors/count")?.ok()?;
    shown.insert("revisions", processor["revisions"].clone());
    let places = processor["partitions"].as_array().context("partitions")?;
    let places = places.iter().map(|at| json!([at["lag"], at["parked"]]));
    shown.insert("lag", places.collect());
    Ok(shown)
}

/// Each key's count is that of what succeeded, and each message is in one of output and dead letters.
fn check(client: &Client, total: u32) -> Result<()> {
    let mut expected = BTreeMap::new();
    let mut ids = BTreeMap::new();
    for number in 0..total {
        ids.insert(number.to_string(), 1);
        if number % 41 != 7 {
            *expected.entry(format!("k{}", number % KEYS)).or_insert(0) += 1;
        }
    }
    let mut counts = BTreeMap::new();
    for partition in 0..PARTITIONS {
        let path = format!("/v1/processors/count/state?partition={partition}&max=10000");
        let page = client.get(&path)?.ok()?;
        for entry in page["entries"].as_array().context("entries")? {
            let number = entry["number"].as_str().context("a number")?;
            let key = entry["key"].as_str().context("a key")?;
            counts.insert(key.to_owned(), number.parse::<u32>()?);
        }
    }
    assert_eq!(counts, expected);
    let mut found = BTreeMap::new();
    for topic in ["out", "in.count.dlq"] {
        for message in client.read(topic)? {
            let id = message.header("id").context("an id")?.to_owned();
            *found.entry(id).or_insert(0) += 1;
        }
    }
    // The first of one partition were trimmed.
    assert!(found.values().all(|&count| count == 1), "{found:?}");
    ids.retain(|id, _| !found.contains_key(id));
    assert_eq!(ids.len(), 5, "{ids:?}");
    Ok(())
}

/// Starts a host there, which goes on with everything from `done` to `total`.
fn goes_on(
    directory: &Path,
    options: &[&str],
    before: &BTreeMap<&str, Value>,
    numbers: std::ops::Range<u32>,
) -> Result<Host> {
    let mut host = Host::in_directory(MILLRACE, directory, options);
    host.start_again()?;
    let client = host.client();
    assert_eq!(shown(&client)?, *before);
    let read = host.command(&["consume", "out", "--as", "billing", "--max", "12"]);
    let read = { read }.output()?;
    ensure!(read.status.success(), "{}", said(&read));
    let resume = client.post_json("/v1/processors/count/resume", &json!({}))?;
    resume.ok()?;
    let total = numbers.end;
    produce(&client, numbers)?;
    client.wait_until_idle("count")?;
    check(&client, total)?;
    client
        .post_json("/v1/processors/count/pause", &json!({}))?
        .ok()?;
    Ok(host)
}

fn shown_in(directory: &Path, options: &[&str]) -> Result<BTreeMap<&'static str, Value>> {
    let mut host = Host::in_directory(MILLRACE, directory, options);
    host.start_again()?;
    let shown = shown(&host.client());
    host.stop()?;
    shown
}

/// A server, and directories for hosts on it.
struct Stores {
    database: Postgres,
    directory: TempDir,
}

impl Stores {
    fn start() -> Result<Option<Self>> {
        let Some(database) = postgres()? else {
            return Ok(None);
        };
        let directory = tempfile::tempdir()?;
        Ok(Some(Self {
            database,
            directory,
        }))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn schema(&self, name: &str) -> String {
        format!("{}#{name}", self.database.url())
    }

    /// How many offsets a copy has reached.
    fn reached(&self, schema: &str) -> Result<u64> {
        let table = format!("select to_regclass('{schema}.partition') is not null");
        if self.database.sql(&table)? != "t" {
            return Ok(0);
        }
        let ends = format!("select coalesce(sum(next), 0) from {schema}.partition");
        Ok(self.database.sql(&ends)?.parse()?)
    }

    /// As long as a server is new, whoever was on it counts as being there: nobody could have come back yet. So does a copy that was killed.
    fn wait_until_it_has_run_for_long(&self) -> Result<()> {
        let old = "select pg_postmaster_start_time() < clock_timestamp() - interval '11 s'";
        wait_for("the server to have run for long", || {
            Ok((self.database.sql(old)? == "t").then_some(()))
        })
    }

    /// A copy that was killed in the middle; returns its schema.
    fn half_a_copy(&self, from: &str, whole: u64) -> Result<String> {
        for attempt in 0..TRIES_MAX {
            let schema = format!("half_{attempt}");
            let mut command = copy(from, &self.schema(&schema));
            command.stdout(Stdio::null()).stderr(Stdio::null());
            let mut child = command.spawn()?;
            wait_for("a part of the messages", || {
                let ended = child.try_wait()?.is_some();
                Ok((ended || self.reached(&schema)? > 0).then_some(()))
            })?;
            child.kill()?;
            child.wait()?;
            let reached = self.reached(&schema)?;
            if reached > 0 && reached < whole {
                self.wait_until_it_has_run_for_long()?;
                return Ok(schema);
            }
        }
        anyhow::bail!("each copy was done before it could be killed")
    }
}

#[test]
fn a_copy_that_was_killed_goes_on_and_so_does_everything_in_it() -> Result<()> {
    let Some(stores) = Stores::start()? else {
        return Ok(());
    };
    let first = stores.path("first");
    set_up(&first)?;
    let before = shown_in(&first, &[])?;
    let whole = copied(&local(&first), &local(&stores.path("whole")))?;
    let ends = whole["partitions"].as_array().context("partitions")?;
    let ends = ends.iter().map(|at| at["end"].as_u64().unwrap_or(0)).sum();

    let schema = stores.half_a_copy(&local(&first), ends)?;
    let there = stores.schema(&schema);
    // No host starts on half a copy, and it is found.
    let url = stores.database.url();
    let options = ["--engine", "postgres", "--postgres-url", &url];
    let options = [&options[..], &["--postgres-schema", &schema]].concat();
    let code = stores.path("code");
    let host = Host::in_directory(MILLRACE, &code, &options);
    let output = host.serve_command().output()?;
    ensure!(!output.status.success(), "it starts on half a copy");
    ensure!(
        said(&output).contains("is not complete"),
        "{}",
        said(&output)
    );
    let examined = Command::new(MILLRACE).args(["doctor", &there]).output()?;
    assert_eq!(examined.status.code(), Some(1));
    ensure!(
        said(&examined).contains("begun and not completed"),
        "{}",
        said(&examined)
    );
    // Only a copy of the same source goes on with it.
    refused(&local(&stores.path("whole")), &there, 4, "not empty")?;
    let through = copied(&local(&first), &there)?;
    assert_eq!(through["partitions"], whole["partitions"]);
    assert!(through["state_entries"].as_u64() > Some(u64::from(KEYS)));
    let examined = doctor(&there)?;
    ensure!(!examined.contains("not completed"), "{examined}");
    ensure!(examined.contains("topic bulk"), "{examined}");

    let mut host = goes_on(&code, &options, &before, 1_500..1_700)?;
    let paused = shown(&host.client())?;
    refused(
        &there,
        &local(&stores.path("busy")),
        6,
        "1 hosts run on the source",
    )?;
    ensure!(!stores.path("busy").exists(), "no target was made");
    host.stop()?;

    let last = stores.path("last");
    copied(&there, &local(&last))?;
    let mut host = goes_on(&last, &[], &paused, 1_700..1_900)?;
    refused(&local(&last), &stores.schema("other"), 6, "used by another")?;
    host.stop()?;
    Ok(())
}

/// Bytes of all files in a directory.
fn bytes_in(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(found) if found.is_dir() => bytes_in(&entry.path()),
            found => found.map_or(0, |found| found.len()),
        })
        .sum()
}

#[test]
fn a_copy_to_nats_that_was_killed_goes_on_and_comes_back_the_same() -> Result<()> {
    if nats_server().is_none() {
        println!("skipped: there is no nats-server on this machine");
        return Ok(());
    }
    let (servers, directory) = (Nats::start(1)?, tempfile::tempdir()?);
    let first = directory.path().join("first");
    set_up(&first)?;
    let before = shown_in(&first, &[])?;
    let urls = servers.urls().join(",");
    // Only a configuration says that the servers write to the disk before they answer.
    let file = directory.path().join("millrace.toml");
    let engine =
        format!("kind = 'jetstream'\njetstream = {{ urls = ['{urls}'], synced = true }}\n");
    std::fs::write(&file, format!("[engine]\n{engine}"))?;
    let there = format!("config:{}", file.display());

    let none = format!("{urls}#none");
    refused(
        &none,
        &local(&directory.path().join("none")),
        3,
        "no stream none",
    )?;
    refused(&local(&first), &none, 1, "synced = true")?;
    let mut killed = copy(&local(&first), &there);
    killed.stdout(Stdio::null()).stderr(Stdio::null());
    let mut killed = killed.spawn()?;
    let empty = bytes_in(servers.directory());
    wait_for("a part of the messages", || {
        let reached = bytes_in(servers.directory()).saturating_sub(empty);
        let is_part = reached > BULK_BYTES as u64 / 8;
        Ok((is_part || killed.try_wait()?.is_some()).then_some(()))
    })?;
    killed.kill()?;
    killed.wait()?;
    let whole = copied(&local(&first), &there)?;
    refused(&local(&first), &there, 4, "not empty: it has topic")?;

    let code = directory.path().join("code");
    let options = ["--engine", "jetstream", "--jetstream-url", &urls];
    let options = [&options[..], &["--jetstream-synced"]].concat();
    let mut host = goes_on(&code, &options, &before, 1_500..1_700)?;
    let paused = shown(&host.client())?;
    let busy = local(&directory.path().join("busy"));
    refused(&there, &busy, 6, "1 hosts run on the source")?;
    host.stop()?;

    let last = directory.path().join("last");
    let back = copied(&format!("{urls}#millrace"), &local(&last))?;
    assert_eq!(
        back["partitions"][0]["topic"],
        whole["partitions"][0]["topic"]
    );
    goes_on(&last, &[], &paused, 1_700..1_900)?.stop()?;
    Ok(())
}

#[test]
fn a_copy_is_refused_wherever_it_could_do_harm() -> Result<()> {
    let Some(stores) = Stores::start()? else {
        return Ok(());
    };
    let first = stores.path("first");
    let mut host = Host::in_directory(MILLRACE, &first, &[]);
    host.start_again()?;
    host.client().topic("orders", 1)?;
    host.client()
        .produce("orders", &[json!({"value": "one"})])?;
    refused(
        &local(&first),
        &stores.schema("millrace"),
        6,
        "stop the host",
    )?;
    host.stop()?;
    let from = local(&first);

    // Sources and targets that are none.
    refused("millrace-data", &from, 2, "names no store; write local:DIR")?;
    refused(&from, &from, 2, "the same store")?;
    let within = first.join("copy");
    refused(&from, &local(&within), 2, "within the other")?;
    ensure!(!within.exists(), "no target was made");
    refused(
        &local(&stores.path("nowhere")),
        &from,
        3,
        "no data directory",
    )?;
    ensure!(!stores.path("nowhere").exists(), "a source is not made");
    refused(&stores.schema("nowhere"), &from, 3, "no schema")?;
    let schemas = "select count(*) from pg_namespace where nspname = 'nowhere'";
    assert_eq!(stores.database.sql(schemas)?, "0");
    let strange = stores.path("strange");
    std::fs::create_dir(&strange)?;
    std::fs::write(strange.join("letters.txt"), "mine")?;
    refused(&from, &local(&strange), 4, "files of others")?;
    let secret = "postgres://ada:s3cret@127.0.0.1:1/nothing";
    let output = copy(&from, secret).output()?;
    assert_eq!(output.status.code(), Some(4));
    ensure!(!said(&output).contains("s3cret"), "{}", said(&output));

    // A target with something in it, also if it is a copy that was completed.
    let there = stores.schema("millrace");
    copied(&from, &there)?;
    refused(&from, &there, 4, "not empty: it has topic orders")?;
    assert_eq!(stores.reached("millrace")?, 1);

    // A host on the target.
    let url = stores.database.url();
    let options = ["--engine", "postgres", "--postgres-url", &url];
    let mut host = Host::in_directory(MILLRACE, &stores.path("code"), &options);
    host.start_again()?;
    refused(&from, &there, 6, "hosts run on the target")?;
    // One that was killed is no obstacle for long.
    host.kill()?;
    wait_for("the killed host to be gone", || {
        let output = copy(&there, &local(&stores.path("back"))).output()?;
        Ok(output.status.success().then_some(()))
    })?;

    // A store of a later version.
    let later = "update millrace.meta set value = 99 where name = 'schema'; insert into millrace.meta values ('schema_min', 99)";
    stores.database.sql(later)?;
    refused(&there, &local(&stores.path("late")), 4, "version 99")?;
    refused(&from, &there, 4, "version 99")?;
    Ok(())
}
