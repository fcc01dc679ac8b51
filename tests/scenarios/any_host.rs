//! Modules, deployments, pauses, canaries, breakers, dead letters and replays work from any host as from one: each command goes to another host than the
//! one before it, at once, as behind a balancer.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::ops::Range;

use anyhow::{Context, Result, ensure};
use guest_artifacts as guests;
use millrace_tests::{Client, Reply, wait_for};
use serde_json::{Value, json};

use crate::shared::Shared;

const WORKER: &str = "/v1/processors/worker";

/// Hosts that take turns.
struct Turns {
    clients: Vec<Client>,
    next: Cell<usize>,
}

impl Turns {
    fn next(&self) -> &Client {
        let turn = self.next.get();
        self.next.set(turn + 1);
        &self.clients[turn % self.clients.len()]
    }

    fn post(&self, path: &str, body: &Value) -> Result<Value> {
        let posted = self.next().post_json(path, body).and_then(Reply::ok);
        posted.with_context(|| format!("POST {path}"))
    }

    fn put(&self, path: &str, body: &Value) -> Result<Value> {
        let put = self.next().put_json(path, body).and_then(Reply::ok);
        put.with_context(|| format!("PUT {path}"))
    }

    fn get(&self, path: &str) -> Result<Value> {
        let got = self.next().get(path).and_then(Reply::ok);
        got.with_context(|| format!("GET {path}"))
    }

    /// Waits until every host shows the processor so.
    fn all_show(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Result<()> {
        for client in &self.clients {
            let shown = || Ok(is_so(&client.get(WORKER)?.ok()?).then_some(()));
            wait_for(what, shown)?;
        }
        Ok(())
    }

    /// Sends messages, one in `headers_every` of them with headers.
    fn produce(&self, numbers: Range<u32>, headers: &Value, headers_every: u32) -> Result<()> {
        for number in numbers {
            let headers = match number % headers_every {
                0 => headers.clone(),
                _ => json!({}),
            };
            let message = json!({"key": number.to_string(), "value": "v", "headers": headers});
            let path = "/v1/topics/in/messages";
            self.post(path, &json!({"messages": [message]}))?;
        }
        Ok(())
    }

    /// The keys in a topic, in order.
    fn keys(&self, topic: &str) -> Result<Vec<u32>> {
        let messages = self.next().read(topic)?;
        let keys = messages
            .iter()
            .filter_map(|message| message.key.as_ref()?.parse().ok());
        let mut keys: Vec<u32> = keys.collect();
        keys.sort_unstable();
        Ok(keys)
    }

    /// Waits until the output has exactly these keys, each once.
    fn are_out(&self, numbers: Range<u32>) -> Result<()> {
        let expected = Vec::from_iter(numbers);
        wait_for("all to be out", || {
            let keys = self.keys("out")?;
            ensure!(keys.len() <= expected.len(), "more than once: {keys:?}");
            Ok((keys == expected).then_some(()))
        })
    }
}

fn spec(module: &str, attempts_max: u32) -> Value {
    json!({
        "module": module,
        "topics": ["in"],
        "output": "out",
        "retry": {"attempts_max": attempts_max, "delay_first_ms": 5, "delay_max_ms": 50},
        "dead_letters": {"max": 1_000_000, "unproven_max": 1_000_000},
    })
}

/// Three hosts with the worker's topics; `None` if PostgreSQL is not installed.
fn three() -> Result<Option<(Shared, Turns)>> {
    let Some(shared) = Shared::start(3)? else {
        return Ok(None);
    };
    let turns = Turns {
        clients: (0..3).map(|host| shared.client(host)).collect(),
        next: Cell::new(0),
    };
    for name in ["in", "out"] {
        turns.post("/v1/topics", &json!({"name": name, "partitions": 6}))?;
    }
    Ok(Some((shared, turns)))
}

/// While one host compiles an upload, no other one says that there is no such module, and all know how it ends.
#[test]
fn an_upload_to_one_host_can_be_followed_at_every_other() -> Result<()> {
    let Some((_shared, turns)) = three()? else {
        return Ok(());
    };
    let upload = |tag: &str, bytes: &[u8]| {
        let path = format!("/v1/modules?tag={tag}&wait_ms=0");
        turns.clients[0].post(&path, "application/wasm", bytes)
    };
    let accepted = upload("worker@1.0.0", guests::QUAKE_CLASSIFIER)?;
    ensure!(accepted.status == 202, "status {}", accepted.status);
    let digest = accepted.ok()?["digest"].clone();
    let digest = digest.as_str().context("a digest")?;
    for reference in [digest, "worker@1.0.0"] {
        let place = format!("/v1/modules/{reference}");
        // Those first that only hear of it.
        for client in turns.clients.iter().rev() {
            let mut states = BTreeSet::new();
            wait_for("the module at each host", || {
                let asked = client.get(&place)?;
                let status = asked.status;
                let shown = asked.ok()?;
                if status == 202 {
                    states.extend(shown["state"].as_str().map(str::to_owned));
                }
                Ok((status == 200).then_some(()))
            })?;
            println!("{}: {states:?}", client.url());
        }
    }
    let accepted = upload("text@1.0.0", b"no component at all")?;
    ensure!([202, 422].contains(&accepted.status));
    for client in turns.clients.iter().rev() {
        let refused = wait_for("the refusal at each host", || {
            let asked = client.get("/v1/modules/text@1.0.0")?;
            Ok((asked.status != 202).then_some(asked))
        })?;
        let (code, message, _) = refused.error()?;
        ensure!(refused.status == 422, "{message}");
        ensure!(code == "not-a-component", "{code}: {message}");
    }
    let listed = turns.get("/v1/modules")?;
    ensure!(listed["under_way"] == json!([]), "{listed}");
    Ok(())
}

/// Whoever calls it comes to any host as soon as it is set.
#[test]
fn a_route_set_at_one_host_answers_at_every_other_at_once() -> Result<()> {
    let Some((_shared, turns)) = three()? else {
        return Ok(());
    };
    let module = turns.next().push(guests::WEB)?;
    for number in 0..12 {
        let path = format!("/web/{number}");
        turns.put(&format!("/v1/routes{path}"), &json!({"module": module}))?;
        for _ in 1..turns.clients.len() {
            let asked = turns.next().get(&format!("{path}/echo"))?;
            ensure!(asked.status == 200, "{path}: status {}", asked.status);
        }
    }
    Ok(())
}

/// Each host counts its own part of a canary; whoever promotes it is told of all parts.
#[test]
fn a_promotion_says_what_the_canary_got_wrong_on_all_hosts() -> Result<()> {
    let Some((_shared, turns)) = three()? else {
        return Ok(());
    };
    let module = turns.next().push(guests::FLAKY)?;
    let watched = |attempts_max: u32| {
        let mut spec = spec(&module, attempts_max);
        // Nothing withdraws it.
        spec["breaker"] = json!({"enabled": false});
        spec
    };
    turns.put(WORKER, &watched(1))?;
    turns.put(&format!("{WORKER}?canary=99"), &watched(2))?;
    turns.produce(0..90, &json!({"reject": "late"}), 3)?;
    turns.next().wait_until_idle("worker")?;
    let of = |path: &str| -> Result<u64> {
        let shown = turns.get(path)?;
        let messages = &shown["canary_status"]["canary"]["messages"];
        messages.as_u64().with_context(|| shown.to_string())
    };
    let messages = of(WORKER)?;
    for _ in &turns.clients {
        let alone = of(&format!("{WORKER}?hosts=this"))?;
        ensure!(alone < messages, "the others had {messages} - {alone}");
    }
    let promoted = turns.post(&format!("{WORKER}/promote"), &json!({}))?;
    let note = promoted["note"].as_str().context("a note")?;
    let expected = format!("over {messages} messages");
    ensure!(note.contains(&expected), "{note}, not {expected}");
    Ok(())
}

#[test]
fn each_command_may_go_to_another_host_than_the_one_before() -> Result<()> {
    let Some((_shared, turns)) = three()? else {
        return Ok(());
    };
    let module = turns.next().push(guests::FLAKY)?;
    turns.put(WORKER, &spec(&module, 1))?;
    turns.produce(0..30, &json!({}), 1)?;
    turns.are_out(0..30)?;

    // Paused by one, for all.
    turns.post(&format!("{WORKER}/pause"), &json!({}))?;
    turns.all_show("the pause", |shown| shown["paused"] == true)?;
    turns.produce(30..60, &json!({}), 1)?;
    ensure!(
        turns.keys("out")?.len() == 30,
        "a pause is one on all hosts"
    );
    turns.post(&format!("{WORKER}/resume"), &json!({}))?;
    turns.are_out(0..60)?;

    // A canary begun here, given another share there, and promoted by the third; then back.
    turns.put(&format!("{WORKER}?canary=40"), &spec(&module, 2))?;
    turns.post(&format!("{WORKER}/canary"), &json!({"percent": 60}))?;
    turns.produce(60..90, &json!({}), 1)?;
    turns.are_out(0..90)?;
    turns.post(&format!("{WORKER}/promote"), &json!({}))?;
    turns.all_show("the promotion", |shown| shown["current"] == 2)?;
    turns.post(&format!("{WORKER}/rollback"), &json!({}))?;
    turns.all_show("the rollback", |shown| shown["current"] != 2)?;

    let passing = dead_letters(&turns)?;
    breaker(&turns, &module)?;
    replay(&turns, &passing)
}

/// What is rejected is given up, found, tried and sent again by different hosts; returns the revision that takes it.
fn dead_letters(turns: &Turns) -> Result<Value> {
    turns.produce(90..120, &json!({"reject": "late"}), 3)?;
    wait_for("all to be given up", || {
        let letters = turns.get(&format!("{WORKER}/dead-letters?max=100"))?;
        let count = letters["dead_letters"].as_array().map_or(0, Vec::len);
        Ok((count == 10).then_some(()))
    })?;
    let module = turns.next().push(guests::PASSTHROUGH)?;
    let deployed = turns.put(WORKER, &spec(&module, 1))?;
    let tried = json!({"all": true, "revision": deployed["current"]});
    let tried = turns.post(&format!("{WORKER}/dead-letters/dry-run"), &tried)?;
    ensure!(tried["letters"] == 10 && tried["outputs"] == 10, "{tried}");
    ensure!(turns.keys("out")?.len() == 110, "a dry run does nothing");
    let redrive = format!("{WORKER}/dead-letters/redrive");
    let sent = turns.post(&redrive, &json!({"all": true}))?;
    ensure!(sent["sent"] == 10, "{sent}");
    // Once, although another host is asked for the same.
    let again = turns.post(&redrive, &json!({"all": true}))?;
    ensure!(again["sent"] == 0, "{again}");
    turns.are_out(0..120)?;
    Ok(deployed["current"].clone())
}

/// An outage seen by whichever host works is over for all, and loses nothing.
fn breaker(turns: &Turns, module: &str) -> Result<()> {
    turns.put(WORKER, &spec(module, 1))?;
    let down = json!({"unavailable": "the register is down", "unavailable-calls": "4"});
    turns.produce(120..160, &down, 1)?;
    wait_for("a breaker to open", || {
        for client in &turns.clients {
            if client.get(WORKER)?.ok()?["breaker"]["trips"] != 0 {
                return Ok(Some(()));
            }
        }
        Ok(None)
    })?;
    turns.are_out(0..160)
}

/// A replay that one host begins is done by all, and another deletes it.
fn replay(turns: &Turns, revision: &Value) -> Result<()> {
    turns.post("/v1/topics", &json!({"name": "again", "partitions": 2}))?;
    let request = json!({"from": 0, "into": "again", "revision": revision});
    let made = turns.post(&format!("{WORKER}/replay"), &request)?;
    let name = made["name"].as_str().context("no name")?;
    let path = format!("/v1/processors/{name}");
    wait_for("the replay to be done by all hosts", || {
        let again: BTreeSet<u32> = turns.keys("again")?.into_iter().collect();
        Ok((again.len() == 160).then_some(()))
    })?;
    turns.next().delete(&path)?.ok()?;
    for client in &turns.clients {
        wait_for("the replay to be gone", || {
            Ok((client.get(&path)?.status == 404).then_some(()))
        })?;
    }
    Ok(())
}
