//! Messages with a time: a producer that gives each of its messages a time of delivery, and a
//! schedule that makes one message each second.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use fastrand::Rng;
use serde_json::json;

use super::clients::Shared;
use super::history::{Event, Tick};
use crate::{Client, Message};

/// The topic whose messages are all delayed.
pub(super) const LATER: &str = "later";
/// The topic of the schedule's messages.
const TICKS: &str = "ticks";
const SCHEDULE: &str = "tick";
const EVERY_MS: u64 = 1_000;
/// Partitions of the topic of delayed messages.
pub(super) const PARTITIONS: u32 = 2;
/// Longer than the time between two faults, so that most delayed messages are waiting when a fault
/// comes.
const DELAY_MS_MAX: u64 = 800;
/// More than a world has seconds.
const TICKS_MAX: u32 = 10_000;

/// The time of day on this machine, which the host uses too.
fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}

/// Picks a time of delivery.
pub(super) fn due(random: &mut Rng) -> u64 {
    now_ms() + random.u64(..DELAY_MS_MAX)
}

/// Notes the time of day; call it between seeing something and noting what was seen. That had
/// arrived by this time.
pub(super) fn write_clock(shared: &Shared) {
    let now_ms = now_ms();
    shared.history.write(Event::Clock { now_ms });
}

/// Creates the topics and the schedule.
pub(super) fn set_up(shared: &Shared, client: &Client) -> Result<()> {
    for (name, partitions) in [(LATER, PARTITIONS), (TICKS, 1)] {
        let topic = json!({"name": name, "partitions": partitions, "durability": "durable"});
        client.post_json("/v1/topics", &topic)?.ok()?;
    }
    let schedule = json!({"topic": TICKS, "cron": "* * * * * *", "value": "now"});
    let path = format!("/v1/schedules/{SCHEDULE}");
    client.put_json(&path, &schedule)?.ok()?;
    shared.history.write(Event::Scheduled {
        every_ms: EVERY_MS,
        since_ms: now_ms(),
    });
    Ok(())
}

/// Notes all messages that the schedule has made.
pub(super) fn read_ticks(shared: &Shared, client: &Client, last: bool) -> Result<()> {
    let path = format!("/v1/topics/{TICKS}/partitions/0/messages?from=earliest&max={TICKS_MAX}");
    // What is due before the reading and not there is missing; what is there and not due after the
    // reading is early.
    let asked_ms = now_ms();
    let page = client.get(&path)?.ok()?;
    let found: Vec<Message> = serde_json::from_value(page["messages"].clone())?;
    let ticks: Option<Vec<Tick>> = found.iter().map(tick).collect();
    let ticks = ticks.context("a message of the schedule that says no time")?;
    write_clock(shared);
    shared.history.write(Event::Ticks {
        asked_ms,
        ticks,
        last,
    });
    Ok(())
}

fn tick(message: &Message) -> Option<Tick> {
    let number = |name: &str| message.header(name)?.parse::<u64>().ok();
    Some(Tick {
        offset: message.offset,
        due_ms: number("millrace-due")?,
        missed: number("millrace-missed").unwrap_or(0),
    })
}

/// How many delayed messages are still waiting.
pub(super) fn waiting(client: &Client) -> Result<u64> {
    let waiting = client.get(&format!("/v1/topics/{LATER}/delayed?max=1"))?;
    waiting.ok()?["total"].as_u64().context("no total")
}
