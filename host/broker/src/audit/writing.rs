//! Writes the audit log: one task takes records, and appends many at once.

use std::sync::Weak;
use std::time::Duration;

use millrace_model::bounds::AUDIT_KEPT_MS;
use millrace_model::{Durability, Message, TopicName, TopicSettings};
use tokio::sync::watch;

use crate::audit::log::{Inner, Outlet, Queued, topic};
use crate::audit::record::AuditRecord;
use crate::catalogue::topics::{NewTopic, TopicCreateError};
use crate::ground::own_topics::AUDIT_LOG;
use crate::messages::call::NewMessage;

/// How long refusals are collected.
const COLLECT: Duration = Duration::from_secs(1);
/// Records of one append.
const AT_ONCE_MAX: usize = 256;
/// The first delay before an append is repeated; it doubles each time.
const AGAIN_AFTER: Duration = Duration::from_millis(100);
/// The longest delay.
const AGAIN_AFTER_MAX: Duration = Duration::from_secs(2);

/// Writes records until it is told to stop; then what is there, once more.
pub(crate) async fn run(inner: Weak<Inner>, outlet: Outlet, mut stop: watch::Receiver<bool>) {
    let mut outlet = outlet.lock().await;
    loop {
        let mut taken = Vec::new();
        let is_last = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => true,
            count = outlet.recv_many(&mut taken, AT_ONCE_MAX) => {
                if count == 0 {
                    return;
                }
                false
            }
            () = tokio::time::sleep(COLLECT) => false,
        };
        let Some(inner) = inner.upgrade() else { return };
        while is_last && let Ok(queued) = outlet.try_recv() {
            taken.push(queued);
        }
        let refusals = inner.refusals.lock().take();
        if !(taken.is_empty() && refusals.is_empty()) {
            inner.write(taken, refusals, &mut stop).await;
        }
        if is_last {
            return;
        }
    }
}

impl Inner {
    /// Appends records, as often as it takes. A host that stops tries once more.
    async fn write(
        &self,
        queued: Vec<Queued>,
        refusals: Vec<AuditRecord>,
        stop: &mut watch::Receiver<bool>,
    ) {
        let (mut records, waiting): (Vec<_>, Vec<_>) = queued
            .into_iter()
            .map(|queued| (queued.record, queued.written))
            .unzip();
        records.extend(refusals);
        let mut delay = AGAIN_AFTER;
        loop {
            let is_last = *stop.borrow();
            let Err(error) = self.append(&records).await else {
                break;
            };
            let count = records.len();
            if is_last {
                metrics::counter!("millrace_audit_lost_total").increment(count as u64);
                tracing::error!(%error, count, "the host stops, and the audit log does not take these records");
                return;
            }
            tracing::warn!(%error, count, "the audit log takes no records; the host tries again");
            let _ = tokio::time::timeout(delay, stop.wait_for(|stop| *stop)).await;
            delay = (delay * 2).min(AGAIN_AFTER_MAX);
        }
        for written in waiting {
            // Whoever waited may have left.
            let _ = written.send(());
        }
    }

    async fn append(&self, records: &[AuditRecord]) -> Result<(), String> {
        let topic = topic().ok_or("its topic has no name")?;
        self.make(&topic).await.map_err(|error| error.to_string())?;
        let message = |record: &AuditRecord| {
            let value = serde_json::to_vec(record).map_err(|error| error.to_string())?;
            let key = record
                .principal
                .as_ref()
                .map(|name| name.to_string().into());
            Ok(NewMessage {
                partition: None,
                message: Message {
                    key,
                    value: Some(value.into()),
                    headers: Vec::new(),
                    timestamp: record.at,
                },
                deliver_at: None,
            })
        };
        let messages: Result<Vec<NewMessage>, String> = records.iter().map(message).collect();
        let produced = self.messages.produce(&topic, messages?).await;
        produced.map(|_| ()).map_err(|error| error.to_string())
    }

    /// Makes the topic if there is none.
    async fn make(&self, topic: &TopicName) -> Result<(), TopicCreateError> {
        if self.catalogue.topic(topic).is_some() {
            return Ok(());
        }
        let settings = TopicSettings {
            retention_ms: Some(AUDIT_KEPT_MS),
            ..TopicSettings::default()
        };
        let new = NewTopic {
            name: topic.clone(),
            partitions: 1,
            durability: Durability::default(),
            partitioner: None,
            settings,
        };
        match self.catalogue.create_own_topic(new).await {
            // Another host was quicker.
            Err(_) if self.catalogue.topic(topic).is_some() => Ok(()),
            Err(error) => Err(error),
            Ok(_) => {
                tracing::info!(topic = AUDIT_LOG, "the audit log begins");
                Ok(())
            }
        }
    }
}
