//! Routes on the real binary: what a component says it has sent is there once, through `kill -9`.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use guest_artifacts as guests;
use millrace_tests::{Client, Deploy, Reply};
use serde_json::json;

use crate::host;

const KILLS: u32 = 8;
const CALLERS: u32 = 3;

/// What the callers share: the host's present address, and whether they should end.
struct Rig {
    url: Mutex<String>,
    stopping: AtomicBool,
    /// Requests that were repeated because no answer came.
    retries: AtomicU32,
}

impl Rig {
    fn client(&self) -> Client {
        let url = self.url.lock().map(|url| url.clone());
        Client::new(&url.unwrap_or_default())
    }

    /// Repeats each request until it is answered; returns the place that the component reported for each value.
    fn call(&self, caller: u32) -> Result<BTreeMap<String, String>> {
        let mut told = BTreeMap::new();
        while !self.stopping.load(Ordering::Relaxed) {
            let value = format!("{caller}-{}", told.len());
            let place = self.retry(&format!("/c?once,{value},in,{caller},{value}"))?;
            told.insert(value, place);
        }
        Ok(told)
    }

    fn retry(&self, path: &str) -> Result<String> {
        let mut client = self.client();
        for _ in 0..10_000 {
            match client.get(path) {
                Ok(reply) if reply.status == 200 => {
                    let said = text(&reply);
                    let place = said.strip_prefix("sent ");
                    let place = place.and_then(|place| place.split(' ').next());
                    let place = place.with_context(|| format!("{path}: {said}"))?;
                    return Ok(place.to_owned());
                }
                // It is being killed, or has just started.
                Ok(reply) => ensure!(reply.status == 503, "{path}: {}", text(&reply)),
                Err(_) => {}
            }
            self.retries.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(5));
            client = self.client();
        }
        bail!("{path} was never answered")
    }
}

fn text(reply: &Reply) -> String {
    String::from_utf8_lossy(&reply.body).into_owned()
}

#[test]
fn what_a_component_says_it_has_sent_is_there_once_and_counted_once_through_kills() -> Result<()> {
    let mut host = host()?;
    let client = host.client();
    for name in ["in", "out"] {
        let topic = json!({"name": name, "partitions": 2, "durability": "durable"});
        client.post_json("/v1/topics", &topic)?.ok()?;
    }
    client.deploy(&Deploy {
        name: "counts",
        module: &client.push(guests::COUNTER)?,
        topic: "in",
        output: "out",
        more: json!({}),
    })?;
    let route = json!({
        "module": client.push(guests::COURIER)?,
        "grants": {"topics": ["in"], "views": ["counts"]},
        "limits": {"call_ms_max": 60_000},
    });
    client.put_json("/v1/routes/c", &route)?.ok()?;
    let rig = Rig {
        url: Mutex::new(host.url().to_owned()),
        stopping: AtomicBool::new(false),
        retries: AtomicU32::new(0),
    };
    let told = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..CALLERS)
            .map(|caller| {
                let rig = &rig;
                scope.spawn(move || rig.call(caller))
            })
            .collect();
        let killed = (0..KILLS).try_for_each(|_| {
            std::thread::sleep(Duration::from_millis(100 + fastrand::u64(0..250)));
            host.kill()?;
            host.start_again()?;
            if let Ok(mut url) = rig.url.lock() {
                host.url().clone_into(&mut url);
            }
            anyhow::Ok(())
        });
        rig.stopping.store(true, Ordering::Relaxed);
        killed?;
        let told = callers
            .into_iter()
            .map(|caller| -> Result<_> { caller.join().ok().context("a caller panicked")? });
        told.collect::<Result<Vec<_>>>()
    })?;
    let client = host.client();
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for message in client.read("in")? {
        let places = found.entry(message.text().to_owned()).or_default();
        places.push(format!("{}/{}", message.partition, message.offset));
    }
    let all: usize = told.iter().map(BTreeMap::len).sum();
    assert!(all > 50, "only {all} messages: no load");
    assert_eq!(found.len(), all, "nothing that nobody was told of");
    for (value, place) in told.iter().flatten() {
        let expected = vec![place.clone()];
        assert_eq!(found.get(value), Some(&expected), "{value}, once and there");
    }
    client.wait_until_idle("counts")?;
    for (caller, told) in told.iter().enumerate() {
        let counted = client.get(&format!("/c?get,counts,{caller}"))?;
        assert_eq!(text(&counted), format!("value {}", told.len()));
    }
    let retries = rig.retries.load(Ordering::Relaxed);
    eprintln!("{KILLS} kills, {all} messages, {retries} requests made again");
    Ok(())
}
