//! A topic gets more partitions on the real binary while it is written, read and processed and the
//! host is killed: each acknowledged message is processed once, new partitions are used, and a
//! reader that follows the topic sees all messages.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use guest_artifacts as guests;
use millrace_tests::{Client, Host, Message, wait_for};
use serde_json::{Value, json};

use crate::{deploy_between, host};

const PRODUCERS: u32 = 2;
const KEYS: u32 = 40;
/// Messages per call.
const CALL: u32 = 12;

/// What all threads share: the host's present address, how many messages were acknowledged, and
/// whether producers, and then readers, should end.
struct Rig {
    url: Mutex<String>,
    acknowledged: AtomicUsize,
    produced: AtomicBool,
    done: AtomicBool,
}

type Places = BTreeMap<String, (u32, u64)>;

impl Rig {
    fn client(&self) -> Client {
        let url = self.url.lock().map(|url| url.clone());
        Client::new(&url.unwrap_or_default())
    }

    /// Repeats each call under its idempotency key until it is answered; returns the place reported
    /// for each message.
    fn produce(&self, producer: u32) -> Result<Places> {
        let mut told = Places::new();
        for number in 0.. {
            if self.produced.load(Ordering::SeqCst) {
                break;
            }
            let of_call = number * CALL..(number + 1) * CALL;
            let values: Vec<String> = of_call.map(|n| format!("{producer}-{n}")).collect();
            let message = |(index, value): (usize, &String)| match index % 4 {
                3 => json!({"value": value}),
                _ => json!({"key": key(value), "value": value}),
            };
            let messages: Vec<Value> = values.iter().enumerate().map(message).collect();
            let call = format!("\"{producer}-{number}\"");
            let placed = wait_for("an answer", || {
                Ok(self.client().produce_once("in", &call, &messages).ok())
            })?;
            self.acknowledged.fetch_add(values.len(), Ordering::SeqCst);
            told.extend(values.into_iter().zip(placed));
        }
        Ok(told)
    }

    /// Reads all partitions that the topic has over one connection, until it has seen all messages.
    fn follow(&self) -> Result<Vec<Message>> {
        let mut seen: Vec<Message> = Vec::new();
        let mut from = "earliest".to_owned();
        loop {
            let path = format!("/v1/topics/in/messages?from={from}&max=1000&wait_ms=500");
            if let Ok(answer) = self.client().get(&path).and_then(|reply| reply.ok()) {
                seen.extend(serde_json::from_value::<Vec<Message>>(
                    answer["messages"].clone(),
                )?);
                answer["next"]
                    .as_str()
                    .context("no next")?
                    .clone_into(&mut from);
            }
            let is_over = self.done.load(Ordering::SeqCst);
            if is_over && seen.len() >= self.acknowledged.load(Ordering::SeqCst) {
                return Ok(seen);
            }
        }
    }

    /// Waits until this many more messages were acknowledged.
    fn load(&self, more: usize) -> Result<()> {
        let from = self.acknowledged.load(Ordering::SeqCst);
        wait_for("a load", || {
            let now = self.acknowledged.load(Ordering::SeqCst);
            Ok((now >= from + more).then_some(()))
        })
    }

    fn start_again(&self, host: &mut Host) -> Result<()> {
        host.start_again()?;
        if let Ok(mut url) = self.url.lock() {
            host.url().clone_into(&mut url);
        }
        Ok(())
    }
}

fn key(value: &str) -> String {
    let number = value.split('-').next_back().and_then(|n| n.parse().ok());
    format!("k{}", number.unwrap_or(0) % KEYS)
}

/// With the command line, and with the confirmation that it asks for.
fn grow(host: &Host, topic: &str, partitions: u32) -> Result<()> {
    let partitions = partitions.to_string();
    let arguments = ["topic", "set", topic, "--partitions", &partitions];
    let mut output = host.command(&arguments).output()?;
    if topic == "in" {
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success(), "it is asked for what it means");
        for expected in [
            "keys of topic in move",
            "Processor count has state",
            "--accept-moved-keys",
        ] {
            ensure!(told.contains(expected), "{expected}: {told}");
        }
        let mut accepted = host.command(&arguments);
        output = accepted.arg("--accept-moved-keys").output()?;
    }
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{told}");
    Ok(())
}

fn partitions(client: &Client, topic: &str) -> Result<u64> {
    let shown = client.get(&format!("/v1/topics/{topic}"))?.ok()?;
    shown["partitions"].as_u64().context("no partitions")
}

fn disturb(rig: &Rig, host: &mut Host) -> Result<()> {
    rig.load(300)?;
    grow(host, "in", 3)?;
    grow(host, "out", 4)?;
    rig.load(300)?;
    // The command may or may not be answered before the kill.
    let mut growing = host.command(&["topic", "set", "in", "--partitions", "6"]);
    let mut growing = growing.arg("--accept-moved-keys").spawn()?;
    std::thread::sleep(Duration::from_millis(fastrand::u64(0..60)));
    host.kill()?;
    growing.kill()?;
    growing.wait()?;
    rig.start_again(host)?;
    let found = partitions(&host.client(), "in")?;
    ensure!(
        found == 3 || found == 6,
        "the old count or the new, not {found}"
    );
    for own in ["in.count.dlq", "in.count.redrive"] {
        let own = partitions(&host.client(), own)?;
        ensure!(own == found, "{own} beside {found}");
    }
    rig.load(300)?;
    grow(host, "in", 8)?;
    rig.load(600)?;
    // None of the keys belongs to the last partition, which waits for its turn of the messages
    // without a key; that takes time.
    let client = host.client();
    wait_for("a message in the last partition", || {
        let path = "/v1/topics/in/messages?partitions=7&from=earliest&max=1";
        let answer = client.get(path)?.ok()?;
        let found = answer["messages"].as_array().context("no messages")?;
        Ok((!found.is_empty()).then_some(()))
    })
}

/// The count of each message's key, over all partitions with state of it.
fn counted(client: &Client, partitions: u32) -> Result<BTreeMap<String, i64>> {
    let mut counts = BTreeMap::new();
    for partition in 0..partitions {
        let path = format!("/v1/processors/count/state?partition={partition}&max=10000");
        let shown = client.get(&path)?.ok()?;
        for entry in shown["entries"].as_array().context("no entries")? {
            let key = entry["key"].as_str().context("no key")?.to_owned();
            let count: i64 = entry["number"].as_str().context("no number")?.parse()?;
            *counts.entry(key).or_default() += count;
        }
    }
    Ok(counts)
}

fn once(messages: &[Message], told: &Places, what: &str) -> Result<()> {
    let mut found: BTreeMap<&str, u32> = BTreeMap::new();
    for message in messages {
        *found.entry(message.text()).or_default() += 1;
    }
    for value in told.keys() {
        let times = found.remove(value.as_str());
        ensure!(times == Some(1), "{value} is {times:?} times in {what}");
    }
    ensure!(found.is_empty(), "{what} has what nobody sent: {found:?}");
    Ok(())
}

fn used(messages: &[Message]) -> BTreeSet<u32> {
    messages.iter().map(|message| message.partition).collect()
}

#[test]
fn a_topic_grows_under_load_and_a_kill_and_each_message_is_processed_once() -> Result<()> {
    let mut host = host()?;
    for name in ["in", "out", "counts"] {
        let topic = json!({"name": name, "partitions": 2, "durability": "durable"});
        host.client().post_json("/v1/topics", &topic)?.ok()?;
    }
    let client = host.client();
    deploy_between(
        &client,
        "pass",
        guests::PASSTHROUGH,
        ["in", "out"],
        json!({}),
    )?;
    deploy_between(
        &client,
        "count",
        guests::COUNTER,
        ["in", "counts"],
        json!({}),
    )?;
    let rig = Rig {
        url: Mutex::new(host.url().to_owned()),
        acknowledged: AtomicUsize::new(0),
        produced: AtomicBool::new(false),
        done: AtomicBool::new(false),
    };
    let (told, followed) = std::thread::scope(|scope| {
        let producing: Vec<_> = (0..PRODUCERS)
            .map(|producer| {
                let rig = &rig;
                scope.spawn(move || rig.produce(producer))
            })
            .collect();
        let following = scope.spawn(|| rig.follow());
        // There must be state before the first growth, or the command would not ask about it.
        let disturbed = rig
            .load(100)
            .and_then(|()| client.wait_for_messages("counts", 100).map(drop))
            .and_then(|()| disturb(&rig, &mut host));
        rig.produced.store(true, Ordering::SeqCst);
        let mut told = Places::new();
        for producer in producing {
            told.extend(producer.join().ok().context("a producer panicked")??);
        }
        rig.done.store(true, Ordering::SeqCst);
        disturbed?;
        let followed = following.join().ok().context("the follower panicked")?;
        anyhow::Ok((told, followed?))
    })?;
    let client = host.client();
    client.wait_until_idle("pass")?;
    client.wait_until_idle("count")?;

    let read = client.read("in")?;
    once(&read, &told, "in")?;
    for message in &read {
        let place = told[message.text()];
        ensure!(place == (message.partition, message.offset), "{message:?}");
    }
    once(&followed, &told, "what was followed")?;
    let out = client.read("out")?;
    once(&out, &told, "out")?;
    ensure!(
        used(&read) == BTreeSet::from_iter(0..8),
        "{:?}",
        used(&read)
    );
    ensure!(used(&out) == BTreeSet::from_iter(0..4), "{:?}", used(&out));
    ensure!(
        client.dead_letters("count")?.is_empty(),
        "nothing was given up"
    );

    let mut expected: BTreeMap<String, i64> = BTreeMap::new();
    for message in read.iter().filter_map(|message| message.key.as_ref()) {
        *expected.entry(message.clone()).or_default() += 1;
    }
    let counts = counted(&client, 8)?;
    for (key, count) in &expected {
        ensure!(counts.get(key) == Some(count), "{key}: {counts:?}");
    }
    let moved = expected.keys().find_map(|key| {
        let path = format!("/v1/processors/count/state/key?key={key}");
        let found = client.get(&path).and_then(|reply| reply.ok()).ok()?;
        let places = found["found"].as_array()?;
        (places.len() > 1).then_some(())
    });
    ensure!(moved.is_some(), "no key is found in two partitions");
    let status = client.get("/v1/processors/count")?.ok()?;
    let running = status["partitions"].as_array().context("no partitions")?;
    ensure!(running.len() == 8, "{running:?}");
    eprintln!("{} messages, {} keys", told.len(), expected.len());
    Ok(())
}

#[test]
fn the_doctor_and_a_backup_know_of_partitions_that_were_added() -> Result<()> {
    let mut host = host()?;
    host.client().topic("in", 2)?;
    host.client()
        .produce("in", &[json!({"partition": 1, "value": "before"})])?;
    grow_plain(&host, 5)?;
    host.client()
        .produce("in", &[json!({"partition": 4, "value": "after"})])?;
    let place = tempfile::tempdir()?;
    let (backup, restored) = (place.path().join("backup"), place.path().join("restored"));
    let [backup, restored] = [&backup, &restored].map(|path| path.to_string_lossy().into_owned());
    let taken = host.command(&["backup", &backup]).output()?;
    ensure!(taken.status.success(), "{taken:?}");
    // What came after it is only in the journal.
    host.client()
        .produce("in", &[json!({"partition": 3, "value": "last"})])?;
    host.kill()?;
    let directory = host.directory();
    let doctor = host
        .command(&["doctor", &directory.to_string_lossy()])
        .output()?;
    let told = String::from_utf8_lossy(&doctor.stdout).into_owned();
    ensure!(doctor.status.success(), "{told} {doctor:?}");
    ensure!(told.contains("of 5 partitions"), "{told}");
    host.start_again()?;
    let values = |client: &Client| -> Result<BTreeSet<String>> {
        let read = client.read("in")?;
        Ok(read
            .iter()
            .map(|message| message.text().to_owned())
            .collect())
    };
    let all = ["before", "after", "last"].map(str::to_owned);
    ensure!(values(&host.client())? == BTreeSet::from(all.clone()));
    let done = host
        .command(&["restore", &backup, "--data-dir", &restored])
        .output()?;
    ensure!(done.status.success(), "{done:?}");
    let mut copy = Host::in_directory(crate::MILLRACE, restored.as_ref(), &[]);
    copy.start_again()?;
    ensure!(partitions(&copy.client(), "in")? == 5, "as the backup was");
    ensure!(values(&copy.client())? == BTreeSet::from_iter(all.into_iter().take(2)));
    Ok(())
}

fn grow_plain(host: &Host, partitions: u32) -> Result<()> {
    let body = json!({"partitions": partitions});
    host.client().patch_json("/v1/topics/in", &body)?.ok()?;
    Ok(())
}
