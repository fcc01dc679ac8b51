//! Writes the audit log: one task takes records, and appends many at once.

use std::sync::Weak;
use std::time::Duration;

use millrace_engine::CommitError;
use millrace_model::bounds::AUDIT_KEPT_MS;
use millrace_model::{Durability, Message, TopicName, TopicSettings};
use tokio::sync::watch;

use crate::audit::log::{Inner, Outlet, Queued, topic};
use crate::audit::record::AuditRecord;
use crate::catalogue::topics::{NewTopic, TopicCreateError};
use crate::ground::own_topics::AUDIT_LOG;
use crate::messages::call::NewMessage;
use crate::messages::produce_error::ProduceError;

/// How long refusals are collected.
const COLLECT: Duration = Duration::from_secs(1);
/// The key of records without a principal.
const NOBODY: &str = "-";
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

/// Why records were not written.
enum Unwritten {
    /// They may be written later.
    ForNow(String),
    /// They are refused as they are.
    ForGood(String),
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
            let error = match self.append(&records).await {
                Ok(()) => break,
                Err(Unwritten::ForGood(why)) => {
                    self.append_each(&records, &why).await;
                    break;
                }
                Err(Unwritten::ForNow(why)) => why,
            };
            let count = records.len();
            if is_last {
                metrics::counter!("millrace_audit_lost_total").increment(count as u64);
                tracing::error!(
                    error,
                    count,
                    "the host stops, and the audit log does not take these records"
                );
                return;
            }
            tracing::warn!(
                error,
                count,
                "the audit log takes no records; the host tries again"
            );
            let _ = tokio::time::timeout(delay, stop.wait_for(|stop| *stop)).await;
            delay = (delay * 2).min(AGAIN_AFTER_MAX);
        }
        for written in waiting {
            // Whoever waited may have left.
            let _ = written.send(());
        }
    }

    /// One record that can never be written must not hold up all others.
    async fn append_each(&self, records: &[AuditRecord], why: &str) {
        for record in records {
            if self.append(std::slice::from_ref(record)).await.is_err() {
                metrics::counter!("millrace_audit_lost_total").increment(1);
                let (verb, on) = (&record.verb, &record.on);
                tracing::error!(error = why, verb, on, principal = ?record.principal, "the audit log does not take this record");
            }
        }
    }

    async fn append(&self, records: &[AuditRecord]) -> Result<(), Unwritten> {
        let for_good = |why: String| Unwritten::ForGood(why);
        let topic = topic().ok_or_else(|| for_good("its topic has no name".to_owned()))?;
        let made = self.make(&topic).await;
        made.map_err(|error| Unwritten::ForNow(error.to_string()))?;
        let message = |record: &AuditRecord| {
            let value = serde_json::to_vec(record).map_err(|error| for_good(error.to_string()))?;
            let key = record.principal.as_ref().map(|name| name.to_string());
            Ok(NewMessage {
                partition: None,
                message: Message {
                    // Always one: a topic that was made to keep the latest of each key takes no message without.
                    key: Some(key.unwrap_or_else(|| NOBODY.to_owned()).into()),
                    value: Some(value.into()),
                    headers: Vec::new(),
                    timestamp: record.at,
                },
                deliver_at: None,
            })
        };
        let messages: Result<Vec<NewMessage>, Unwritten> = records.iter().map(message).collect();
        let produced = self.messages.produce(&topic, messages?).await;
        produced.map(|_| ()).map_err(|error| {
            let is_for_now = match &error {
                ProduceError::Commit(CommitError::TooLarge { .. }) => false,
                ProduceError::Commit(_) | ProduceError::Busy { .. } => true,
                // It was deleted meanwhile; the next try makes it.
                ProduceError::UnknownTopic(_) => true,
                _ => false,
            };
            match is_for_now {
                true => Unwritten::ForNow(error.to_string()),
                false => Unwritten::ForGood(error.to_string()),
            }
        })
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
