//! How work spreads over hosts that join, are killed, stop and restart, while messages arrive: what moves, that no partition is worked by two, and
//! how long a partition waits. The times are printed; a busy machine stretches them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use guest_artifacts as guests;
use millrace_tests::{Client, Deploy, Host, Message, sql, wait_for};
use serde_json::{Value, json};

use crate::shared::Shared;

const PARTITIONS: usize = 64;
/// Between two messages of a partition.
const SENT_EVERY: Duration = Duration::from_millis(100);
const LOOK_AGAIN: Duration = Duration::from_millis(25);
/// For how long the placing must not change until it counts as settled: longer than hosts wait before they move work.
const SETTLED_AFTER: Duration = Duration::from_secs(7);
/// Generous, because machines are busy; the time that is promised is 12 seconds.
const SILENCE_MAX: Duration = Duration::from_secs(90);

/// Who has the work of each partition, and with which epoch, as the database says.
type Placing = BTreeMap<u32, (String, u64)>;

fn placing(database: &str) -> Result<Placing> {
    let rows = sql(
        database,
        "select c.number, coalesce(c.holder::text, ''), c.epoch from millrace.chain c join millrace.topic t on t.id = c.topic \
         where t.name = 'in' and c.grp = 'worker' order by 1",
    )?;
    let row = |row: &str| {
        let mut parts = row.split('|');
        let partition = parts.next()?.parse().ok()?;
        Some((
            partition,
            (parts.next()?.to_owned(), parts.next()?.parse().ok()?),
        ))
    };
    let placing: Option<Placing> = rows.lines().map(row).collect();
    placing.with_context(|| format!("not a placing: {rows}"))
}

/// How many partitions each host has, and how many have another host than before.
fn moved(before: &Placing, after: &Placing) -> (BTreeMap<String, usize>, BTreeSet<u32>) {
    let mut shares: BTreeMap<String, usize> = BTreeMap::new();
    for (host, _) in after.values() {
        *shares.entry(host.clone()).or_default() += 1;
    }
    let is_moved = |(at, (host, _)): &(&u32, &(String, u64))| {
        before.get(at).is_none_or(|(before, _)| before != host)
    };
    let moved = after.iter().filter(is_moved).map(|(at, _)| *at);
    (shares, moved.collect())
}

/// Waits until every partition is worked, and the placing has stayed for a while.
fn settled(database: &str, hosts: usize) -> Result<Placing> {
    let mut last = (placing(database)?, Instant::now());
    wait_for("the work to be placed", || {
        thread::sleep(LOOK_AGAIN * 4);
        let now = placing(database)?;
        if now != last.0 {
            last = (now, Instant::now());
        }
        let holders: BTreeSet<&String> = last.0.values().map(|(host, _)| host).collect();
        let is_whole = last.0.len() == PARTITIONS && holders.iter().all(|host| !host.is_empty());
        let is_settled = is_whole && holders.len() == hosts && last.1.elapsed() > SETTLED_AFTER;
        Ok(is_settled.then(|| last.0.clone()))
    })
}

/// What is sent and what has come out, as followed from a host that lives throughout.
struct Flow<'a> {
    client: Client,
    /// The address of the database.
    database: &'a str,
    /// A key of each partition.
    keys: Vec<String>,
    stopping: AtomicBool,
    watched: Mutex<Watched>,
}

#[derive(Default)]
struct Watched {
    /// The end of each partition of the output, and since when.
    ends: BTreeMap<u64, (u64, Option<Instant>)>,
    /// The longest wait of a partition since it was last asked for.
    silence: Duration,
}

impl Flow<'_> {
    fn send(&self) -> Result<u64> {
        let mut sent = 0;
        while !self.stopping.load(Ordering::Relaxed) {
            let messages: Vec<Value> = self
                .keys
                .iter()
                .map(|key| json!({"key": key, "value": sent.to_string()}))
                .collect();
            self.client.produce("in", &messages)?;
            sent += 1;
            thread::sleep(SENT_EVERY);
        }
        Ok(sent)
    }

    /// Follows the ends of the output.
    fn watch(&self) -> Result<()> {
        while !self.stopping.load(Ordering::Relaxed) {
            let described = self.client.get("/v1/topics/out")?.ok()?;
            let now = Instant::now();
            {
                let mut watched = self.watched.lock().ok().context("a panic")?;
                let watched = &mut *watched;
                for end in described["ends"].as_array().context("no ends")? {
                    let partition = end["partition"].as_u64().context("no partition")?;
                    let next = end["end"].as_u64().context("no end")?;
                    let known = watched.ends.entry(partition).or_insert((next, None));
                    let waited = known.1.map_or(Duration::ZERO, |since| now - since);
                    watched.silence = watched.silence.max(waited);
                    if known.0 != next || known.1.is_none() {
                        *known = (next, Some(now));
                    }
                }
            }
            thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }

    /// The longest wait of a partition since this was last called.
    fn silence(&self) -> Result<Duration> {
        let mut watched = self.watched.lock().ok().context("a panic")?;
        Ok(std::mem::take(&mut watched.silence))
    }

    /// No two hosts work on a partition: none is shown as running by two hosts while its epoch stays the same.
    fn worked_by_one(&self, hosts: &[&Host]) -> Result<()> {
        let running = |host: &&Host| -> Result<BTreeSet<u64>> {
            let shown = host
                .client()
                .get("/v1/processors/worker?hosts=this")?
                .ok()?;
            let partitions = shown["partitions"].as_array().context("no partitions")?;
            let running = partitions.iter().filter(|one| one["state"] == "running");
            Ok(running
                .filter_map(|one| one["partition"].as_u64())
                .collect())
        };
        let (before, first) = (placing(self.database)?, hosts.iter().map(running));
        let first: Vec<BTreeSet<u64>> = first.collect::<Result<_>>()?;
        let second: Vec<BTreeSet<u64>> = hosts.iter().map(running).collect::<Result<_>>()?;
        let after = placing(self.database)?;
        for (partition, place) in before
            .iter()
            .filter(|&(at, place)| after.get(at) == Some(place))
        {
            let at = u64::from(*partition);
            let both = first.iter().zip(&second);
            let count = both.filter(|(first, second)| first.contains(&at) && second.contains(&at));
            let count = count.count();
            ensure!(
                count <= 1,
                "{count} hosts work on partition {at}, {place:?}"
            );
        }
        Ok(())
    }
}

/// A key for each partition of `in`, in order; the output has as many partitions, so that a key has the same number there.
fn keys(client: &Client) -> Result<Vec<String>> {
    let mut keys = BTreeMap::new();
    for number in 0.. {
        let key = format!("k{number}");
        let message = json!({"key": key, "value": "first"});
        let placed = client.produce_once("in", &format!("find-{number}"), &[message])?;
        keys.entry(placed[0].0).or_insert(key);
        if keys.len() == PARTITIONS {
            break;
        }
    }
    Ok(keys.into_values().collect())
}

/// Each message is out once, in its order.
fn each_once_in_order(client: &Client, flow: &Flow<'_>, sent: u64) -> Result<()> {
    client.wait_until_idle("worker")?;
    let mut values: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for message in client.read("out")? {
        let Message { key, value, .. } = message;
        if let Ok(number) = value.unwrap_or_default().parse() {
            values
                .entry(key.unwrap_or_default())
                .or_default()
                .push(number);
        }
    }
    let all: Vec<u64> = (0..sent).collect();
    for key in &flow.keys {
        let found = values.get(key);
        ensure!(found == Some(&all), "{key}: {found:?}, not 0 to {sent}");
    }
    Ok(())
}

#[test]
fn what_moves_is_a_hosts_share_nothing_is_worked_by_two_and_no_partition_waits_for_long()
-> Result<()> {
    let Some(mut shared) = Shared::start(1)? else {
        return Ok(());
    };
    let client = shared.client(0);
    for name in ["in", "out"] {
        client.topic(name, u32::try_from(PARTITIONS)?)?;
    }
    client.deploy(&Deploy {
        name: "worker",
        module: &client.push(guests::PASSTHROUGH)?,
        topic: "in",
        output: "out",
        more: json!({}),
    })?;
    let keys = keys(&client)?;
    let database = shared.database.url();
    let flow = Flow {
        client: client.clone(),
        database: &database,
        keys,
        stopping: AtomicBool::new(false),
        watched: Mutex::default(),
    };
    let share = |hosts: usize| PARTITIONS.div_ceil(hosts);
    let sent = thread::scope(|scope| {
        let sending = scope.spawn(|| flow.send());
        let watching = scope.spawn(|| flow.watch());
        let changed = change_hosts(&mut shared, &flow, share);
        flow.stopping.store(true, Ordering::Relaxed);
        let sent = sending.join().ok().context("the sender panicked")?;
        watching.join().ok().context("the watcher panicked")??;
        changed?;
        sent
    })?;
    each_once_in_order(&client, &flow, sent)
}

fn change_hosts(
    shared: &mut Shared,
    flow: &Flow<'_>,
    share: impl Fn(usize) -> usize,
) -> Result<()> {
    let database = flow.database;
    let one = settled(database, 1)?;
    flow.silence()?;
    shared.join()?;
    shared.join()?;
    let mut placed = settled(database, 3)?;
    flow.worked_by_one(&shared.hosts.iter().collect::<Vec<_>>())?;
    let (shares, went) = moved(&one, &placed);
    println!(
        "1 → 3 hosts: {} of {PARTITIONS} partitions moved, {:?} each (a third is {}); the longest wait of one was {:?}",
        went.len(),
        shares.values().collect::<Vec<_>>(),
        share(3),
        flow.silence()?
    );

    // Killed: only what it had moves.
    let had = |placed: &Placing, host: &str| -> BTreeSet<u32> {
        let of = placed.iter().filter(|(_, (holder, _))| holder == host);
        of.map(|(at, _)| *at).collect()
    };
    let killed = id_of(&shared.hosts[2])?;
    shared.hosts[2].kill()?;
    let after = settled(database, 2)?;
    flow.worked_by_one(&shared.hosts[..2].iter().collect::<Vec<_>>())?;
    let silence = flow.silence()?;
    let (_, went) = moved(&placed, &after);
    println!(
        "kill -9 of one of 3: {} partitions moved; the longest wait of one was {silence:?}",
        went.len()
    );
    ensure!(went == had(&placed, &killed), "only the lost ones move");
    ensure!(silence < SILENCE_MAX, "a partition waited for {silence:?}");
    placed = after;

    // Back: it gets a share, and nothing else moves.
    shared.hosts[2].start_again()?;
    let after = settled(database, 3)?;
    let back = id_of(&shared.hosts[2])?;
    let (_, went) = moved(&placed, &after);
    println!(
        "2 → 3 hosts: {} partitions moved (a third is {}); the longest wait of one was {:?}",
        went.len(),
        share(3),
        flow.silence()?
    );
    ensure!(
        went == had(&after, &back),
        "all that moves goes to the new host"
    );
    placed = after;

    // A planned stop: its own, at once.
    let stopped = id_of(&shared.hosts[1])?;
    shared.hosts[1].stop()?;
    let after = settled(database, 2)?;
    let silence = flow.silence()?;
    let (_, went) = moved(&placed, &after);
    println!(
        "planned stop of one of 3: {} partitions moved; the longest wait of one was {silence:?}",
        went.len()
    );
    ensure!(went == had(&placed, &stopped), "only its own move");
    ensure!(silence < SILENCE_MAX, "a partition waited for {silence:?}");
    Ok(())
}

/// The id of a host, by its address.
fn id_of(host: &Host) -> Result<String> {
    let shown = host.client().get("/v1/hosts")?.ok()?;
    let hosts = shown["hosts"].as_array().context("no hosts")?;
    let this = hosts.iter().find(|host| host["is_this"] == true);
    let id = this.context("it does not list itself")?["id"].as_str();
    // The database has it as a number.
    let id = u64::from_str_radix(id.context("no id")?, 16)?;
    Ok(id.to_string())
}
