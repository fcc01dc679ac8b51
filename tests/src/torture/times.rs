//! Messages with a time: a producer that says when each of its messages is to be delivered, and a schedule that makes one each second.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use fastrand::Rng;
use serde_json::json;

use super::clients::Shared;
use super::history::{Event, Tick};
use crate::{Client, Message};

/// Where all messages are delayed.
pub(super) const LATER: &str = "later";
/// Where the schedule's messages go.
const TICKS: &str = "ticks";
const SCHEDULE: &str = "tick";
const EVERY_MS: u64 = 1_000;
/// Partitions of the topic of delayed messages.
pub(super) const PARTITIONS: u32 = 2;
/// Longer than the time between two faults: most delayed messages wait over one.
const DELAY_MS_MAX: u64 = 800;
/// More than a world's seconds.
const TICKS_MAX: u32 = 10_000;

/// What time it is for everybody on this machine, the host included.
fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}

/// A time of delivery.
pub(super) fn due(random: &mut Rng) -> u64 {
    now_ms() + random.u64(..DELAY_MS_MAX)
}

/// Writes down what time it is. What was seen before that had come by then.
pub(super) fn write_clock(shared: &Shared) {
    let now_ms = now_ms();
    shared.history.write(Event::Clock { now_ms });
}

/// Makes the topics, and the schedule.
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

/// Writes down all that the schedule has made.
pub(super) fn read_ticks(shared: &Shared, client: &Client, last: bool) -> Result<()> {
    let path = format!("/v1/topics/{TICKS}/partitions/0/messages?from=earliest&max={TICKS_MAX}");
    // What is due by then and not there is missing; what is there and not due afterwards is early.
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

/// How many delayed messages have not been delivered.
pub(super) fn waiting(client: &Client) -> Result<u64> {
    let waiting = client.get(&format!("/v1/topics/{LATER}/delayed?max=1"))?;
    waiting.ok()?["total"].as_u64().context("no total")
}
