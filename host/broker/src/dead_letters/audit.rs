//! The audit trail of dead letters: messages in an ordinary topic, `<topic>.<processor>.audit`, in the same transaction as the action
//! that they record. The actor is what the caller claimed.

use std::sync::Arc;

use bytes::Bytes;
use millrace_engine::Append;
use millrace_model::bounds::AUDIT_LISTED_MAX;
use millrace_model::{
    BatchBuilder, Digest, Message, Offset, PartitionId, ProcessorName, Timestamp, TopicName,
    TopicPartition,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::dead_letters::handle::DeadLetters;
use crate::dead_letters::letters::DeadLetterError;
use crate::dead_letters::record::Sent;
use crate::dead_letters::redrive::Sending;
use crate::dead_letters::shelf::Shelf;
use crate::ground::headers;
use crate::ground::own_topics::AUDIT_SUFFIX;
use crate::ground::verbs::Verb;
use crate::messages::place::MessagePlace;

/// The action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AuditAction {
    /// Dead letters were redriven.
    Redrive,
    /// A dead letter was edited and sent again.
    Edit,
}

/// One entry of an audit trail: one transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditEntry {
    /// The time, in milliseconds since the Unix epoch.
    pub at: Timestamp,
    /// Who asked, as the caller claims.
    pub by: String,
    /// `redrive` or `edit`.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub action: AuditAction,
    /// The processor.
    pub processor: ProcessorName,
    /// The dead-letter topic.
    pub topic: TopicName,
    /// Its partition.
    pub partition: PartitionId,
    /// The dead letters there: ranges of offsets, the end exclusive.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<Vec<u64>>))]
    pub offsets: Sent,
    /// Their number.
    pub count: usize,
    /// What an edit changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edit: Option<EditDigests>,
}

/// A message before and after an edit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EditDigests {
    /// Of the message in the dead letter.
    pub before: Digests,
    /// Of the message that was sent.
    pub after: Digests,
}

/// SHA-256 of the parts of a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Digests {
    /// Of the key's bytes; null without a key.
    pub key: Option<Digest>,
    /// Of the value's bytes; null without a value.
    pub value: Option<Digest>,
    /// Of its own headers in order: name and value of each, each preceded by its length as eight bytes, little-endian; all ones mean no
    /// value.
    pub headers: Digest,
}

/// Entries of an audit trail.
#[derive(Clone, Debug, Default, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditPage {
    /// Oldest first.
    pub entries: Vec<AuditEntry>,
    /// Where to continue, as `from`; null at the end.
    pub next: Option<MessagePlace>,
}

impl Digests {
    pub(super) fn of(message: &Message) -> Self {
        let mut headers = Sha256::new();
        for header in &message.headers {
            if !headers::is_reserved(&header.name) {
                add(&mut headers, Some(&header.name));
                add(&mut headers, header.value.as_ref());
            }
        }
        let digest = |bytes: &Option<Bytes>| {
            let bytes = bytes.as_ref()?;
            Some(Digest(Sha256::digest(bytes).into()))
        };
        Self {
            key: digest(&message.key),
            value: digest(&message.value),
            headers: Digest(headers.finalize().into()),
        }
    }
}

fn add(hash: &mut Sha256, bytes: Option<&Bytes>) {
    let length = bytes.map_or(u64::MAX, |bytes| bytes.len() as u64);
    hash.update(length.to_le_bytes());
    hash.update(bytes.map_or(&[][..], |bytes| bytes));
}

impl DeadLetters {
    /// The audit trail of a processor's dead letters, from the place of an earlier answer: partition by partition, each answer in order
    /// of time.
    ///
    /// # Errors
    /// [`DeadLetterError`].
    pub async fn audit(
        &self,
        name: &ProcessorName,
        from: Option<&MessagePlace>,
        entries_max: usize,
    ) -> Result<AuditPage, DeadLetterError> {
        self.caller.may(Verb::ReadDeadLetters, name.as_str())?;
        let max = entries_max.clamp(1, AUDIT_LISTED_MAX);
        // The shelves of dead letters tell whether the processor exists; the trail has separate
        // shelves.
        self.shelves(name)?;
        let mut page = AuditPage::default();
        for shelf in self.own_shelves(name, AUDIT_SUFFIX) {
            let here = shelf.place(Offset(0));
            if from
                .is_some_and(|from| (&here.topic, here.partition) < (&from.topic, from.partition))
            {
                continue;
            }
            let ends = self.ends_of(&shelf)?;
            let begun = from.filter(|from| shelf.place(from.offset) == **from);
            let mut next = begun.map_or(ends.start, |from| from.offset.max(ends.start));
            while next < ends.end {
                if page.entries.len() >= max {
                    page.next = Some(shelf.place(next));
                    return Ok(page.in_order());
                }
                let (messages, after) = self.on_shelf(&shelf, next).await?;
                if after == next {
                    break;
                }
                next = after;
                for fetched in messages {
                    if page.entries.len() >= max {
                        next = fetched.offset;
                        break;
                    }
                    page.entries.extend(read(&fetched.message));
                }
            }
        }
        Ok(page.in_order())
    }

    /// Where redrives from this shelf are recorded; creates the topic if it is missing.
    pub(super) async fn audit_partition(
        &self,
        name: &ProcessorName,
        shelf: &Arc<Shelf>,
    ) -> Result<TopicPartition, DeadLetterError> {
        let gone = || DeadLetterError::Audit(format!("topic {} was deleted", shelf.origin()));
        let origin = TopicName::parse(shelf.origin()).map_err(|_| gone())?;
        let known = TopicName::parse(&format!("{origin}.{name}{AUDIT_SUFFIX}"));
        let known = known
            .ok()
            .and_then(|topic| self.inner.catalogue.topic(&topic));
        let topic = match known.filter(|topic| topic.spec.owner.as_ref() == Some(name)) {
            Some(topic) => topic,
            None => {
                let _change = self.inner.catalogue.change().await;
                let origin = self.inner.catalogue.topic(&origin).ok_or_else(gone)?;
                let made = self
                    .inner
                    .processors
                    .own_topic(name, &origin, AUDIT_SUFFIX)
                    .await;
                made.map_err(|error| DeadLetterError::Audit(error.to_string()))?
            }
        };
        topic.partition(shelf.partition.partition).ok_or_else(gone)
    }

    /// The entry about a transaction.
    pub(super) fn audit_append(
        &self,
        partition: TopicPartition,
        sending: &Sending,
        offsets: Sent,
        count: usize,
    ) -> Option<Append> {
        let at = self.inner.clock.wall();
        let entry = AuditEntry {
            at,
            by: sending.by.clone(),
            action: sending.action,
            processor: sending.processor.clone(),
            topic: sending.shelf.topic.spec.name.clone(),
            partition: sending.shelf.partition.partition,
            offsets,
            count,
            edit: sending.edit.clone(),
        };
        // Our own type of strings and numbers: it always serialises.
        let value = serde_json::to_vec(&entry).ok()?;
        let mut builder = BatchBuilder::with_capacity(0);
        builder.push(&Message {
            key: None,
            value: Some(value.into()),
            headers: Vec::new(),
            timestamp: at,
        });
        let batch = builder.finish()?;
        Some(Append { partition, batch })
    }
}

impl AuditPage {
    fn in_order(mut self) -> Self {
        self.entries.sort_by_key(|entry| entry.at);
        self
    }
}

/// Reads what [`DeadLetters::audit_append`] wrote; `None` for another version.
fn read(message: &Message) -> Option<AuditEntry> {
    serde_json::from_slice(message.value.as_deref()?).ok()
}
