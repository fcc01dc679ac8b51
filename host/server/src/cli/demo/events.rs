//! The demo's events and their sender: a week in a few seconds, in the original order.

use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use millrace_broker::{NewMessage, Session};
use millrace_model::{Message, Timestamp, TopicName};
use serde::Deserialize;
use tokio::sync::watch;
use tokio::task::JoinHandle;

const EVENTS: &str = include_str!("../../../../../examples/earthquakes.ndjson");

/// Events per produce request.
const PER_REQUEST: usize = 12;

/// The fields used for the key and the timestamp.
#[derive(Deserialize)]
struct Event {
    id: String,
    properties: Properties,
}

#[derive(Deserialize)]
struct Properties {
    time: u64,
}

/// A running sender.
pub(super) struct Sender {
    /// How many events are acknowledged.
    pub(super) sent: watch::Receiver<usize>,
    task: JoinHandle<Result<()>>,
}

impl Sender {
    /// Waits for the sender to finish.
    pub(super) async fn finish(self) -> Result<()> {
        self.task.await.context("the sender panicked")?
    }
}

/// How many events there are.
pub(super) fn count() -> usize {
    EVENTS.lines().count()
}

/// Sends all events to `quakes`, taking about as long as `week`.
pub(super) fn send(session: Session, week: Duration) -> Sender {
    let (progress, sent) = watch::channel(0);
    let task = tokio::spawn(async move {
        let topic: TopicName = "quakes".parse()?;
        let lines: Vec<&str> = EVENTS.lines().collect();
        let pause = week / (lines.len() / PER_REQUEST) as u32;
        for chunk in lines.chunks(PER_REQUEST) {
            let messages = chunk
                .iter()
                .map(|line| message(line))
                .collect::<Result<Vec<_>>>()?;
            session.messages().produce(&topic, messages).await?;
            progress.send_modify(|sent| *sent += chunk.len());
            tokio::time::sleep(pause).await;
        }
        Ok(())
    });
    Sender { sent, task }
}

/// An event as a message with the event's id as its key.
fn message(line: &'static str) -> Result<NewMessage> {
    let event: Event = serde_json::from_str(line).context("an event")?;
    Ok(NewMessage {
        partition: None,
        deliver_at: None,
        message: Message {
            timestamp: Timestamp(event.properties.time),
            key: Some(Bytes::from(event.id)),
            value: Some(Bytes::from_static(line.as_bytes())),
            headers: Vec::new(),
        },
    })
}
