//! Reads messages of the stream: single ones from its leader, which knows everything, and many at once from any server that has a copy,
//! which may be late.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{LastRawMessageError, LastRawMessageErrorKind};
use bytes::Bytes;
use futures_util::StreamExt as _;
use millrace_model::{Timestamp, TopicPartition};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::atomic::Note;
use crate::store::Store;
use crate::subjects::Place;
use crate::trouble::Trouble;

/// Messages of one request.
const MESSAGES_MAX: usize = 1000;
/// Bytes of one request.
const BYTES_MAX: usize = 16 << 20;
/// Between two looks at a leader that is behind.
const LEADER_INTERVAL: Duration = Duration::from_millis(2);
/// How often it is looked whether the leader has caught up.
const LEADER_LOOKS_MAX: u32 = 1000;
/// How long the next message of a read may take.
pub(crate) const ANSWER_DURATION_MAX: Duration = Duration::from_secs(5);

/// A message of the stream.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) seq: u64,
    /// When the server took it.
    pub(crate) at: Timestamp,
    pub(crate) note: Option<Note>,
    pub(crate) body: Bytes,
}

impl From<StreamMessage> for Message {
    fn from(message: StreamMessage) -> Self {
        Self {
            seq: message.sequence,
            at: stamp(message.time),
            note: Note::of(&message.headers),
            body: message.payload,
        }
    }
}

impl Store {
    /// The last message of a subject, as the leader has it once it has all that this host has heard.
    pub(crate) async fn last(&self, subject: &str) -> Result<Option<Message>, Trouble> {
        let position = *self.mirror.position().borrow();
        self.last_as_of(subject, position).await
    }

    /// The last message of a subject, as the leader has it once it has everything up to a sequence. It may be behind this host, which hears
    /// from any server.
    pub(crate) async fn last_as_of(
        &self,
        subject: &str,
        seq: u64,
    ) -> Result<Option<Message>, Trouble> {
        self.wait_for_leader(seq).await?;
        self.find(self.stream.get_last_raw_message_by_subject(subject))
            .await
    }

    /// The message with a sequence, as the leader has it. `None` is certain: the message is gone.
    pub(crate) async fn at(&self, seq: u64) -> Result<Option<Message>, Trouble> {
        if let Some(found) = self.find(self.stream.get_raw_message(seq)).await? {
            return Ok(Some(found));
        }
        // This host may have heard of it from a server that is faster than the leader.
        self.wait_for_leader(seq).await?;
        self.find(self.stream.get_raw_message(seq)).await
    }

    /// The partition of the batch with a sequence, as the leader has it. `None` is certain: the batch is gone.
    pub(crate) async fn partition_of(&self, seq: u64) -> Result<Option<TopicPartition>, Trouble> {
        for is_certain in [false, true] {
            if is_certain {
                self.wait_for_leader(seq).await?;
            }
            match self.stream.get_raw_message(seq).await {
                Ok(message) => {
                    return Ok(match self.subjects.parse(&message.subject) {
                        Place::Piece(at) => Some(at),
                        _ => None,
                    });
                }
                Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => {}
                Err(error) => return Err(Trouble::unavailable(error)),
            }
        }
        Ok(None)
    }

    /// The first message of a subject from a sequence on. `None` is certain, as far as this host has heard.
    pub(crate) async fn next(&self, subject: &str, from: u64) -> Result<Option<Message>, Trouble> {
        let position = *self.mirror.position().borrow();
        let find = || self.stream.get_first_raw_message_by_subject(subject, from);
        if let Some(found) = self.find(find()).await? {
            return Ok(Some(found));
        }
        self.wait_for_leader(position).await?;
        self.find(find()).await
    }

    async fn find(
        &self,
        asked: impl Future<Output = Result<StreamMessage, LastRawMessageError>>,
    ) -> Result<Option<Message>, Trouble> {
        match asked.await {
            Ok(message) => Ok(Some(message.into())),
            Err(error) => match error.kind() {
                LastRawMessageErrorKind::NoMessageFound => Ok(None),
                _ => Err(Trouble::unavailable(error)),
            },
        }
    }

    /// Waits until the leader has everything up to a sequence.
    async fn wait_for_leader(&self, seq: u64) -> Result<(), Trouble> {
        for _ in 0..LEADER_LOOKS_MAX {
            let info = self.stream.get_info().await.map_err(Trouble::unavailable)?;
            if info.state.last_sequence >= seq {
                return Ok(());
            }
            tokio::time::sleep(LEADER_INTERVAL).await;
        }
        Err(Trouble::unavailable("the stream's leader is behind"))
    }

    /// Messages of a subject from a sequence on, as any server has them: at least one if it has one, and about as many bytes as asked for.
    pub(crate) async fn some(
        &self,
        subject: &str,
        from: u64,
        bytes: usize,
    ) -> Result<Vec<Message>, Trouble> {
        let api = format!("$JS.API.DIRECT.GET.{}", self.options.stream);
        let asked = serde_json::json!({
            "seq": from,
            "next_by_subj": subject,
            "batch": MESSAGES_MAX,
            "max_bytes": bytes.clamp(1, BYTES_MAX),
        });
        let inbox = self.client.new_inbox();
        let answers = self.client.subscribe(inbox.clone()).await;
        let mut answers = answers.map_err(Trouble::unavailable)?;
        let sent = self
            .client
            .publish_with_reply(api, inbox, asked.to_string().into());
        sent.await.map_err(Trouble::unavailable)?;
        let mut messages = Vec::new();
        loop {
            let answer = tokio::time::timeout(ANSWER_DURATION_MAX, answers.next()).await;
            let answer = answer.map_err(|_| Trouble::unavailable("no answer to a read"))?;
            let answer = answer.ok_or_else(|| Trouble::unavailable("the connection is closed"))?;
            if let Some(status) = answer.status {
                // 204 is the end, 404 that there is nothing.
                return match status.as_u16() {
                    204 | 404 => Ok(messages),
                    503 => Err(Trouble::unavailable(
                        "the stream has no server to read from",
                    )),
                    other => Err(Trouble::unavailable(format!(
                        "a read was answered with {other}"
                    ))),
                };
            }
            let headers = answer.headers.unwrap_or_default();
            let Some(seq) = number(&headers, "Nats-Sequence") else {
                return Err(Trouble::malformed("an answer without a sequence"));
            };
            let at = headers.get("Nats-Time-Stamp");
            let at = at.and_then(|at| OffsetDateTime::parse(at.as_str(), &Rfc3339).ok());
            messages.push(Message {
                seq,
                at: at.map(stamp).unwrap_or_default(),
                note: Note::of(&headers),
                body: answer.payload,
            });
        }
    }

    /// All messages of a subject within these sequences, in order. Nothing is missed that the leader has.
    pub(crate) async fn all(
        &self,
        subject: &str,
        from: u64,
        to: u64,
        mut see: impl FnMut(Message) -> Result<(), Trouble>,
    ) -> Result<(), Trouble> {
        let mut next = from;
        while next <= to {
            let found = self.some(subject, next, BYTES_MAX).await?;
            let is_none = found.is_empty();
            for message in found {
                if message.seq > to {
                    return Ok(());
                }
                next = message.seq + 1;
                see(message)?;
            }
            if is_none {
                // Whoever answered may be late.
                match self.next(subject, next).await? {
                    Some(message) if message.seq <= to => {
                        next = message.seq + 1;
                        see(message)?;
                    }
                    _ => return Ok(()),
                }
            }
        }
        Ok(())
    }
}

pub(crate) fn stamp(at: OffsetDateTime) -> Timestamp {
    let ms = at.unix_timestamp_nanos() / 1_000_000;
    Timestamp(u64::try_from(ms).unwrap_or_default())
}

pub(crate) fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.as_str().parse().ok()
}
