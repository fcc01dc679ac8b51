//! Messages with a time: a producer that delays each of its messages, and a schedule that creates
//! one per second.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use fastrand::Rng;
use serde_json::json;

use super::clients::Shared;
use super::history::{Event, Tick};
use crate::{Client, Message};

/// The topic of delayed messages.
pub(super) const LATER: &str = "later";
/// The topic of the schedule's messages.
const TICKS: &str = "ticks";
const SCHEDULE: &str = "tick";
const EVERY_MS: u64 = 1_000;
/// Partitions of the topic of delayed messages.
pub(super) const PARTITIONS: u32 = 2;
/// Longer than the time between two faults, so that most delayed messages wait across one.
const DELAY_MS_MAX: u64 = 800;
/// More than a world has seconds.
const TICKS_MAX: u32 = 10_000;

/// The time by the clock of this machine, which the host also uses.
fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}

/// A random time of delivery.
pub(super) fn due(random: &mut Rng) -> u64 {
    now_ms() + random.u64(..DELAY_MS_MAX)
}

/// Records the current time. What was observed before had arrived by then.
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

/// Records all messages that the schedule has created.
pub(super) fn read_ticks(shared: &Shared, client: &Client, last: bool) -> Result<()> {
    let path = format!("/v1/topics/{TICKS}/partitions/0/messages?from=earliest&max={TICKS_MAX}");
    // A message due by now that is not there is missing; one that is there and due after the
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

/// The number of delayed messages that are not delivered yet.
pub(super) fn waiting(client: &Client) -> Result<u64> {
    let waiting = client.get(&format!("/v1/topics/{LATER}/delayed?max=1"))?;
    waiting.ok()?["total"].as_u64().context("no total")
}
