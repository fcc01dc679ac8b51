//! Reads every topic back and counts: each input must be in exactly one of output and dead letters.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use millrace_broker::{DeadLetterQuery, FetchRequest, Session};
use millrace_model::{Message, Offset, PartitionId, ProcessorName};
use serde::Deserialize;

use super::events;

const MESSAGES_AT_ONCE: usize = 1_000;
const BYTES_AT_ONCE: usize = 4 << 20;

/// What happened to the events, by key.
pub(super) struct Tally {
    /// All produced events.
    pub(super) inputs: Vec<Bytes>,
    /// Outputs below the alert magnitude.
    pub(super) classified: Vec<Bytes>,
    /// Outputs at or above the alert magnitude.
    pub(super) alerts: Vec<Bytes>,
    /// Dead letters that were not redriven.
    pub(super) dead: Vec<Bytes>,
    /// Outputs of each revision.
    pub(super) by_revision: BTreeMap<u32, usize>,
    /// Dead letters of each class.
    pub(super) by_class: BTreeMap<String, usize>,
    /// The strongest event.
    pub(super) strongest: Option<Quake>,
}

/// An event as the classifier wrote it.
#[derive(Clone, Deserialize)]
pub(super) struct Quake {
    pub(super) revision: u32,
    pub(super) class: String,
    pub(super) properties: Properties,
}

#[derive(Clone, Deserialize)]
pub(super) struct Properties {
    pub(super) title: String,
    mag: f64,
}

impl Tally {
    /// Reads everything.
    pub(super) async fn read(session: &Session, processor: &ProcessorName) -> Result<Self> {
        let classified = read(session, "classified").await?;
        let alerts = read(session, "alerts").await?;
        let letters = session
            .dead_letters()
            .dead_letters(processor, DeadLetterQuery::default())
            .await?
            .letters;
        let mut by_class = BTreeMap::new();
        for letter in &letters {
            *by_class.entry(letter.class.clone()).or_default() += 1;
        }
        let dead: Vec<Message> = letters.into_iter().map(|letter| letter.message).collect();
        let outputs = classified
            .iter()
            .chain(&alerts)
            .map(quake)
            .collect::<Result<Vec<_>>>()?;
        let mut by_revision = BTreeMap::new();
        for output in &outputs {
            *by_revision.entry(output.revision).or_default() += 1;
        }
        Ok(Self {
            inputs: keys(&read(session, "quakes").await?),
            classified: keys(&classified),
            alerts: keys(&alerts),
            dead: keys(&dead),
            by_revision,
            by_class,
            strongest: outputs
                .into_iter()
                .max_by(|a, b| a.properties.mag.total_cmp(&b.properties.mag)),
        })
    }

    /// The number of outputs.
    pub(super) fn out(&self) -> usize {
        self.classified.len() + self.alerts.len()
    }

    /// Fails unless each input is in exactly one place.
    pub(super) fn check(&self) -> Result<()> {
        let places = [&self.classified, &self.alerts, &self.dead];
        let ended: usize = places.iter().map(|place| place.len()).sum();
        let distinct: BTreeSet<&Bytes> = places.into_iter().flatten().collect();
        ensure!(
            self.inputs.len() == events::count(),
            "{} of {} events are stored",
            self.inputs.len(),
            events::count()
        );
        ensure!(
            ended == distinct.len(),
            "{} events were repeated",
            ended - distinct.len()
        );
        ensure!(
            distinct == self.inputs.iter().collect(),
            "some of {} events are lost",
            self.inputs.len()
        );
        Ok(())
    }
}

fn keys(messages: &[Message]) -> Vec<Bytes> {
    messages
        .iter()
        .map(|message| message.key.clone().unwrap_or_default())
        .collect()
}

fn quake(message: &Message) -> Result<Quake> {
    serde_json::from_slice(message.value.as_deref().unwrap_or_default()).context("an output")
}

async fn read(session: &Session, topic: &str) -> Result<Vec<Message>> {
    let topic = session
        .catalogue()
        .topic(&topic.parse()?)
        .context("a topic")?;
    let mut messages = Vec::new();
    for partition in 0..topic.spec.partitions {
        let mut request = FetchRequest {
            topic: topic.spec.name.clone(),
            partition: PartitionId(partition),
            from: Offset::default(),
            messages_max: MESSAGES_AT_ONCE,
            bytes_max: BYTES_AT_ONCE,
            wait: Duration::ZERO,
        };
        loop {
            let page = session.messages().fetch(request.clone()).await?;
            messages.extend(page.messages.into_iter().map(|fetched| fetched.message));
            if page.next >= page.ends.end {
                break;
            }
            request.from = page.next;
        }
    }
    Ok(messages)
}
