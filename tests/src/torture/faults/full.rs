//! A full disk: produce calls are refused and may be repeated, everything else continues, and once
//! there is room the host continues by itself.

use std::thread;
use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use super::super::clients::TIMEOUT;
use super::super::disk::{LoopDisk, fill};
use super::super::world::{QUICK, WORKER};
use super::{Fault, World, note, unexpected, within_patience};
use crate::{Client, Reply};

/// Small, because it is filled again and again.
const DISK_BYTES: u64 = 64 << 20;
const PROBE: &str = "probe";
const DOOMED: &str = "doomed";

pub(super) fn disk() -> Result<LoopDisk> {
    LoopDisk::of(DISK_BYTES, DISK_BYTES + (8 << 20), "loop")
}

pub(super) fn inject(world: &mut World) -> Result<Option<u32>> {
    let client = Client::with_timeout(world.host.url(), 4 * TIMEOUT);
    for name in [DOOMED, PROBE] {
        let topic = json!({"name": name, "partitions": 2, "durability": "durable"});
        client.post_json("/v1/topics", &topic)?.ok()?;
    }
    let ballast = world.disk()?.path().join("ballast");
    note(world, Fault::Full, "the file system is filled up");
    fill(&ballast)?;
    // Preallocated space still accepts a little.
    let full = within_patience(|| {
        // A checkpoint of the host may have freed some space.
        fill(&ballast.with_extension("more"))?;
        Ok(refuses(&client))
    })?;
    if full.is_none() {
        unexpected(
            world,
            "the disk is full, and produce is not refused".to_owned(),
        );
    }
    expect_the_rest_works(world, &client);
    thread::sleep(Duration::from_millis(world.random.u64(..500)));
    std::fs::remove_file(ballast.with_extension("more"))?;
    std::fs::remove_file(&ballast)?;
    let resumed = within_patience(|| Ok(takes(&client)))?;
    if resumed.is_none() {
        unexpected(
            world,
            "there is room again, and produce is still refused".to_owned(),
        );
    }
    if let Some(status) = world.host.ended()? {
        unexpected(
            world,
            format!("the host ended with {status} on a full disk"),
        );
        return Ok(world.recover()?.then_some(1));
    }
    Ok(Some(1))
}

/// Whether a produce call is refused correctly: for lack of room, with the advice to repeat it.
fn refuses(client: &Client) -> bool {
    probe(client).is_ok_and(|reply| is_full(&reply))
}

fn takes(client: &Client) -> bool {
    probe(client).is_ok_and(|reply| reply.status == 200)
}

/// Sends to a topic that is not checked.
fn probe(client: &Client) -> Result<Reply> {
    let value = "x".repeat(2_000);
    client.post_json(
        &format!("/v1/topics/{PROBE}/messages"),
        &json!({"value": value}),
    )
}

/// Calls that free room or only administer must still work.
fn expect_the_rest_works(world: &World, client: &Client) {
    let page = format!("/v1/topics/{QUICK}/partitions/0/messages?from=earliest&max=10");
    let doomed = format!("/v1/topics/{DOOMED}");
    let settings = json!({"settings": {"retention_ms": 60_000}});
    let worker = format!("/v1/processors/{WORKER}");
    for (what, answer) in [
        ("reading", client.get(&page)),
        ("listing topics", client.get("/v1/topics")),
        (
            "trimming a topic",
            client.post_json(&format!("{doomed}/trim"), &json!({"before": "end"})),
        ),
        ("changing a topic", client.patch_json(&doomed, &settings)),
        (
            "pausing a processor",
            client.post_json(&format!("{worker}/pause"), &json!({})),
        ),
        (
            "resuming a processor",
            client.post_json(&format!("{worker}/resume"), &json!({})),
        ),
        ("deleting a topic", client.delete(&doomed)),
    ] {
        match answer {
            Ok(reply) if (200..300).contains(&reply.status) => {}
            Ok(reply) => {
                let says = String::from_utf8_lossy(&reply.body);
                unexpected(
                    world,
                    format!("{what} on a full disk: {} {says}", reply.status),
                );
            }
            Err(error) => unexpected(world, format!("{what} on a full disk: {error:#}")),
        }
    }
}

fn is_full(reply: &Reply) -> bool {
    reply.status == 503 && reply.error().is_ok_and(|(code, ..)| code == "disk-full")
}
