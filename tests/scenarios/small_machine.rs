//! A host with a limit of 512 MiB that is attacked from all sides: by clients that produce, by
//! clients that deploy, and by deployed modules. It refuses what it has no room for, the system
//! never kills it for its memory, and after each `kill -9` it starts again with everything that it
//! held.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use guest_artifacts as guests;
use millrace_tests::{Client, Deploy, Host, Reply, wait_for};
use serde_json::{Value, json};

use crate::MILLRACE;

const MEMORY_BYTES: u64 = 512 << 20;
/// How long each attack lasts before the host is killed.
const ROUND: Duration = Duration::from_secs(12);
const ROUNDS: usize = 3;
const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

/// A control group with a limit on memory, removed after the test.
struct Group {
    dir: PathBuf,
    events: &'static str,
}

impl Group {
    /// `None` if this machine cannot create one.
    fn make() -> Option<Self> {
        // Tests of one process run concurrently.
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("millrace-test-{}-{number}", std::process::id());
        let kinds = [
            (
                "/sys/fs/cgroup/memory",
                "memory.limit_in_bytes",
                "memory.oom_control",
            ),
            ("/sys/fs/cgroup", "memory.max", "memory.events"),
        ];
        kinds.into_iter().find_map(|(root, limit, events)| {
            if !Path::new(root).join("cgroup.procs").exists() {
                return None;
            }
            let dir = Path::new(root).join(&name);
            fs::create_dir(&dir).ok()?;
            let group = Self { dir, events };
            let limited = fs::write(group.dir.join(limit), MEMORY_BYTES.to_string());
            limited.ok().map(|()| group)
        })
    }

    /// Wraps the command so that it runs in the group.
    fn holding(&self, command: &Command) -> Command {
        let mut within = Command::new("sh");
        let enter = format!(
            "echo $$ > '{}/cgroup.procs' && exec \"$@\"",
            self.dir.display()
        );
        within.args(["-c", &enter, "sh"]).arg(command.get_program());
        within.args(command.get_args());
        for (name, value) in command.get_envs() {
            within.env(name, value.unwrap_or_default());
        }
        within
    }

    /// Memory of all its processes that belongs to no file, in bytes: what the system cannot
    /// reclaim.
    fn own_bytes(&self) -> Result<u64> {
        let stat = fs::read_to_string(self.dir.join("memory.stat"))?;
        let of = |name: &str| {
            let mut lines = stat.lines();
            lines.find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
        };
        of("rss ").or_else(|| of("anon ")).context("no own memory")
    }

    /// How many of its processes the system killed for lack of memory.
    fn kills(&self) -> Result<u64> {
        let events = fs::read_to_string(self.dir.join(self.events))?;
        let kills = events
            .lines()
            .find_map(|line| line.strip_prefix("oom_kill "));
        Ok(kills.context("no count of kills")?.trim().parse()?)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // It is empty once the system has cleaned up after the last process.
        let gone = || Ok(fs::remove_dir(&self.dir).ok());
        let _ = wait_for("the control group to be empty", gone);
    }
}

/// The error codes with which the host refused requests.
#[derive(Default)]
struct Refusals(Mutex<Vec<String>>);

impl Refusals {
    /// Whether the request was refused. A request to a busy host is repeated.
    fn note(&self, reply: &Reply) -> Result<bool> {
        if reply.status < 300 {
            return Ok(false);
        }
        let (code, message, _) = reply.error()?;
        let is_compiler = code == "internal" && message.contains("compil");
        ensure!(reply.status != 500 || is_compiler, "{code}: {message}");
        let named = if message.contains("the host ") {
            " of the host"
        } else {
            ""
        };
        if let Ok(mut seen) = self.0.lock() {
            seen.push(format!("{code}{named}"));
        }
        if code == "busy" {
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(true)
    }

    fn has(&self, code: &str) -> bool {
        self.0
            .lock()
            .is_ok_and(|seen| seen.iter().any(|seen| seen == code))
    }
}

/// One attack: called again and again, with an increasing number.
type Attack = fn(&Client, &Refusals, usize) -> Result<()>;

fn delay(client: &Client, refusals: &Refusals, number: usize) -> Result<()> {
    // Many small messages cost more around their bytes than in them; large ones arrive at once.
    let (count, bytes) = if number.is_multiple_of(4) {
        (2_000, 20)
    } else {
        (20, 200_000)
    };
    let partition = number % 8;
    let message = json!({"partition": partition, "value": "x".repeat(bytes), "delay_ms": DAY_MS});
    let body = json!({"messages": vec![message; count]});
    let reply = client.post_json("/v1/topics/later/messages", &body)?;
    refusals.note(&reply).map(drop)
}

fn fill(client: &Client, refusals: &Refusals, number: usize) -> Result<()> {
    let what = if number.is_multiple_of(3) {
        "2000 4"
    } else {
        "150 100000"
    };
    let value = format!("{what} {number}-");
    let body = json!({"messages": [{"partition": number % 16, "value": value}]});
    let reply = client.post_json("/v1/topics/state/messages", &body)?;
    refusals.note(&reply)?;
    if number % 20 == 19 {
        wait_for("room to be asked for", || {
            Ok((client.backlog("fill")? < 8).then_some(()))
        })?;
    }
    Ok(())
}

fn import(client: &Client, refusals: &Refusals, number: usize) -> Result<()> {
    let entry =
        |n: usize| json!({"key": format!("import-{number}-{n}"), "value": "x".repeat(180_000)});
    let body = json!({"partition": number % 16, "entries": (0..8).map(entry).collect::<Vec<_>>()});
    let reply = client.post_json("/v1/processors/fill/state", &body)?;
    if refusals.note(&reply)? {
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

fn keys(client: &Client, refusals: &Refusals, number: usize) -> Result<()> {
    // What the host must remember of messages that go to partitions in turn is long.
    let message = |n: usize| json!({"partition": n % 8, "value": "x"});
    let body = json!({"messages": (0..8_000).map(message).collect::<Vec<_>>()});
    let key = format!("key-{number}-{}", fastrand::u64(..));
    let reply = client.post_json_once("/v1/topics/plain/messages", &key, &body)?;
    refusals.note(&reply).map(drop)
}

fn topics(client: &Client, refusals: &Refusals, number: usize) -> Result<()> {
    let body = json!({"name": format!("many-{}-{number}", fastrand::u32(..)), "partitions": 400});
    let reply = client.post_json("/v1/topics", &body)?;
    if refusals.note(&reply)? {
        std::thread::sleep(Duration::from_secs(1));
    }
    Ok(())
}

fn processors(client: &Client, refusals: &Refusals, number: usize) -> Result<()> {
    let pushed = client.post("/v1/modules", "application/wasm", guests::PASSTHROUGH)?;
    if refusals.note(&pushed)? {
        return Ok(());
    }
    let spec = json!({"module": pushed.ok()?["digest"], "topics": ["plain"], "output": "out"});
    let reply = client.put_json(&format!("/v1/processors/many-{number}"), &spec)?;
    if refusals.note(&reply)? {
        std::thread::sleep(Duration::from_secs(1));
    }
    Ok(())
}

fn schedules(client: &Client, refusals: &Refusals, number: usize) -> Result<()> {
    let schedule = json!({"topic": "plain", "cron": "@yearly", "value": "x".repeat(60_000)});
    let reply = client.put_json(&format!("/v1/schedules/many-{number}"), &schedule)?;
    if refusals.note(&reply)? {
        std::thread::sleep(Duration::from_secs(1));
    }
    Ok(())
}

fn large(client: &Client, refusals: &Refusals, _: usize) -> Result<()> {
    let value = vec![b'x'; 7_000_000];
    let path = "/v1/topics/plain/messages";
    let reply = client.post(path, "application/octet-stream", &value)?;
    refusals.note(&reply)?;
    let read =
        client.get("/v1/topics/plain/partitions/0/messages?from=earliest&max_bytes=16000000")?;
    refusals.note(&read).map(drop)
}

fn park(client: &Client, refusals: &Refusals, number: usize) -> Result<()> {
    let message = |n: usize| {
        let headers = json!({"fail-times": "1000000"});
        json!({"partition": (number + n) % 8, "value": "x".repeat(900), "headers": headers})
    };
    let body = json!({"messages": (0..500).map(message).collect::<Vec<_>>()});
    let reply = client.post_json("/v1/topics/parked/messages", &body)?;
    refusals.note(&reply)?;
    std::thread::sleep(Duration::from_millis(100));
    Ok(())
}

fn misbehave(client: &Client, refusals: &Refusals, number: usize) -> Result<()> {
    for (topic, value) in [("chat", "chatty"), ("hoarded", "hoard")] {
        let body = json!({"messages": [{"key": number.to_string(), "value": value}]});
        let reply = client.post_json(&format!("/v1/topics/{topic}/messages"), &body)?;
        refusals.note(&reply)?;
    }
    std::thread::sleep(Duration::from_millis(20));
    Ok(())
}

fn upload(client: &Client, refusals: &Refusals, _: usize) -> Result<()> {
    // An empty section makes it a different module.
    let mut component = guests::UPPERCASE.to_vec();
    component.extend([0, 10, 1, b'n']);
    component.extend(fastrand::u64(..).to_le_bytes());
    let reply = client.post("/v1/modules", "application/wasm", &component)?;
    refusals.note(&reply).map(drop)
}

const ATTACKS: [(&str, Attack); 11] = [
    ("delay", delay),
    ("fill", fill),
    ("import", import),
    ("keys", keys),
    ("topics", topics),
    ("processors", processors),
    ("schedules", schedules),
    ("large", large),
    ("park", park),
    ("misbehave", misbehave),
    ("upload", upload),
];

fn prepare(client: &Client) -> Result<()> {
    for (name, partitions) in [
        ("later", 8),
        ("plain", 8),
        ("parked", 8),
        ("state", 16),
        ("chat", 2),
        ("hoarded", 2),
        ("out", 2),
    ] {
        client.topic(name, partitions)?;
    }
    let patient = json!({"retry": {"attempts_max": 100, "delay_first_ms": 500, "delay_max_ms": 1_000},
        "dead_letters": {"max": 1_000_000}, "breaker": {"enabled": false}});
    for (name, guest, topic) in [
        ("fill", guests::FILL, "state"),
        ("park", guests::FLAKY, "parked"),
        ("chat", guests::CHATTY, "chat"),
        ("hoard", guests::HOARD, "hoarded"),
    ] {
        let module = client.push(guest)?;
        client.deploy(&Deploy {
            name,
            module: &module,
            topic,
            output: "out",
            more: patient.clone(),
        })?;
    }
    Ok(())
}

/// Runs these attacks at the same time for a while. The first request without an answer ends the
/// test.
fn attack(
    host: &Host,
    group: &Group,
    attacks: &[(&'static str, Attack)],
    refusals: &Refusals,
    round: usize,
) -> Result<()> {
    let deadline = Instant::now() + ROUND;
    std::thread::scope(|scope| {
        let highest = scope.spawn(|| -> Result<_> {
            let (mut of_host, mut of_all) = (0, 0);
            while Instant::now() < deadline {
                of_all = group.own_bytes()?.max(of_all);
                // It may have ended; the next request finds out.
                of_host = host.own_bytes().unwrap_or(0).max(of_host);
                std::thread::sleep(Duration::from_millis(10));
            }
            Ok((of_host >> 20, of_all >> 20))
        });
        let attack = |&(name, attack): &(&'static str, Attack)| {
            let client = host.client();
            scope.spawn(move || -> Result<()> {
                let mut number = round * 1_000_000;
                while Instant::now() < deadline {
                    attack(&client, refusals, number)
                        .with_context(|| format!("{name}, number {number}"))?;
                    number += 1;
                }
                eprintln!("round {round}: {name} {} times", number - round * 1_000_000);
                Ok(())
            })
        };
        let attacks: Vec<_> = attacks.iter().map(attack).collect();
        let ended = attacks
            .into_iter()
            .map(|attack| attack.join().expect("no panic"));
        let ended: Vec<Result<()>> = ended.collect();
        let (of_host, of_all) = highest.join().expect("no panic")?;
        eprintln!("round {round}: {of_host} MiB at the most, with its compilers {of_all} MiB");
        ended.into_iter().collect()
    })
}

/// A host after the attacks, and what must exist for as long as it does.
struct Outlived {
    host: Host,
    _directory: tempfile::TempDir,
    _group: Group,
}

/// Attacks and kills a host in its group, round after round; it must be running at the end of each
/// round, and start once more.
fn outlives(attacks: &[(&'static str, Attack)], codes: &[&str]) -> Result<Option<Outlived>> {
    let Some(group) = Group::make() else {
        eprintln!("skipped: no control group with a limit on memory can be made here");
        return Ok(None);
    };
    let directory = tempfile::tempdir()?;
    // Twice what fits in its share of memory.
    let state = ["--state-disk-bytes-max", "100000000"];
    let mut host = Host::in_directory(MILLRACE, &directory.path().join("data"), &state);
    let refusals = Refusals::default();
    for round in 0..ROUNDS {
        let began = Instant::now();
        host.spawn_as(group.holding(&host.serve_command()))?;
        host.wait_until_ready()?;
        let start = began.elapsed().as_millis();
        eprintln!(
            "round {round}: started in {start} ms with {} MiB",
            host.own_bytes()? >> 20
        );
        let client = host.client();
        if round == 0 {
            prepare(&client)?;
        }
        let attacked = attack(&host, &group, attacks, &refusals, round);
        // A compiler that runs out of memory is killed and its upload refused; the host lives on.
        let (kills, ended) = (group.kills()?, host.ended()?);
        eprintln!("round {round}: {kills} processes ended for memory");
        ensure!(ended.is_none(), "the host ended, {ended:?}: {attacked:?}");
        attacked?;
        host.kill()?;
    }
    host.spawn_as(group.holding(&host.serve_command()))?;
    host.wait_until_ready()?;
    ensure!(host.ended()?.is_none(), "ended at a start");
    for code in codes {
        ensure!(refusals.has(code), "{code} was not said: {:?}", refusals.0);
    }
    Ok(Some(Outlived {
        host,
        _directory: directory,
        _group: group,
    }))
}

#[test]
fn a_flood_of_delayed_messages_does_not_end_a_host_with_little_memory() -> Result<()> {
    let Some(after) = outlives(&[("delay", delay)], &["delays-full of the host"])? else {
        return Ok(());
    };
    let delayed = after
        .host
        .client()
        .get("/v1/topics/later/delayed?max=1")?
        .ok()?;
    let held = delayed["total"].as_u64();
    ensure!(
        held.is_some_and(|held| held > 0),
        "what was delayed waits: {delayed}"
    );
    Ok(())
}

#[test]
fn a_flood_of_state_does_not_end_a_host_with_little_memory() -> Result<()> {
    let attacks: [(&str, Attack); 2] = [("fill", fill), ("import", import)];
    let Some(after) = outlives(&attacks, &["state-bound of the host"])? else {
        return Ok(());
    };
    let told = |value: &Value| {
        value["value"]
            .as_str()
            .is_some_and(|text| text.contains("the host has"))
    };
    let outputs = after
        .host
        .client()
        .get("/v1/topics/out/partitions/0/messages?from=earliest&max=10000")?
        .ok()?;
    let outputs = outputs["messages"].as_array().context("no messages")?;
    ensure!(
        outputs.iter().any(told),
        "a component was not told that the host has no room"
    );
    Ok(())
}

#[test]
fn everything_that_anybody_may_ask_for_at_once_does_not_end_a_host_with_little_memory() -> Result<()>
{
    let codes = [
        "delays-full of the host",
        "state-bound of the host",
        "partitions-full of the host",
    ];
    outlives(&ATTACKS, &codes).map(drop)
}
