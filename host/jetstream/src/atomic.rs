//! Publishes messages as one step: an atomic batch of the server, or a single message. Its answer says the last sequence; those of the
//! other messages are the ones before it.

use std::sync::Arc;
use std::time::Duration;

use async_nats::client::{Request, RequestErrorKind};
use async_nats::{Client, HeaderMap};
use bytes::Bytes;
use serde_json::Value;

use crate::trouble::Trouble;

/// The header that all messages have: which commit, which of its messages, and what a host must know without the message's body.
pub(crate) const NOTE: &str = "Millrace";
/// Messages of one batch that servers take unless they are configured otherwise.
pub(crate) const BATCH_PUTS_MAX: usize = 1000;
/// An answer that takes longer leaves a commit in doubt.
const ANSWER_DURATION_MAX: Duration = Duration::from_secs(5);
/// Between two tries while another batch on the same subject is in flight.
pub(crate) const BUSY_INTERVAL: Duration = Duration::from_millis(1);
/// Tries of a batch that met another one in flight.
pub(crate) const BUSY_TRIES_MAX: u32 = 5000;
/// Room in a message for its headers.
pub(crate) const HEADER_BYTES_MAX: usize = 4 << 10;

/// One message to write.
#[derive(Clone, Debug, Default)]
pub(crate) struct Put {
    pub(crate) subject: String,
    /// The sequence that the last message of the subject has; zero if there is none.
    pub(crate) expected: Option<u64>,
    /// The subject that this is expected of, if it is another one.
    pub(crate) expected_of: Option<String>,
    /// Whether older messages of the subject go.
    pub(crate) is_last: bool,
    /// Seconds after which it goes.
    pub(crate) ttl_s: Option<u64>,
    /// What hosts must know without its body: words with a space between.
    pub(crate) note: String,
    pub(crate) body: Bytes,
}

impl Put {
    /// A cell: its last message is all that counts.
    pub(crate) fn cell(subject: String, expected: Option<u64>, body: impl Into<Bytes>) -> Self {
        Self {
            subject,
            expected,
            is_last: true,
            body: body.into(),
            ..Self::default()
        }
    }

    /// The check of a subject that is not written.
    pub(crate) fn check(carrier: String, subject: String, expected: u64) -> Self {
        Self {
            subject: carrier,
            expected: Some(expected),
            expected_of: Some(subject),
            is_last: true,
            ..Self::default()
        }
    }

    pub(crate) fn noted(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }

    /// The note that it has as this message of a commit.
    fn note_in(&self, commit: u64, index: usize, count: usize) -> String {
        let note = format!("{commit:x} {index} {count} {}", self.note);
        note.trim_end().to_owned()
    }

    fn headers(&self, commit: u64, index: usize, count: usize) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(NOTE, self.note_in(commit, index, count));
        if let Some(expected) = self.expected {
            headers.insert("Nats-Expected-Last-Subject-Sequence", expected.to_string());
        }
        if let Some(subject) = &self.expected_of {
            headers.insert("Nats-Expected-Last-Subject-Sequence-Subject", &**subject);
        }
        if self.is_last {
            headers.insert("Nats-Rollup", "sub");
        }
        if let Some(ttl) = self.ttl_s {
            headers.insert("Nats-TTL", ttl.max(1).to_string());
        }
        if count > 1 {
            headers.insert("Nats-Batch-Id", format!("{commit:016x}"));
            headers.insert("Nats-Batch-Sequence", (index + 1).to_string());
            if index + 1 == count {
                headers.insert("Nats-Batch-Commit", "1");
            }
        }
        headers
    }
}

/// What became of one try.
#[derive(Debug)]
pub(crate) enum Answer {
    /// It was written; the sequence of the first message.
    Done(u64),
    /// Another batch on the same subject is in flight, or a message was lost on the way: a server says that it has written nothing.
    Again,
    /// A server says that it has written nothing.
    Refused(Trouble),
    /// No server has answered; or nothing was sent.
    Failed(Trouble),
}

/// Writes all of them, or none. Returns the sequence of the first. For what may be written twice: a server that was the leader until a moment
/// ago may refuse what the next one has written, so that another try writes it again.
pub(crate) async fn publish(
    client: &Client,
    puts: &[Put],
    commit: impl Fn() -> u64,
) -> Result<u64, Trouble> {
    let mut tries = 0;
    loop {
        tries += 1;
        match publish_once(client, puts, commit()).await {
            Answer::Done(first) => return Ok(first),
            Answer::Refused(trouble) | Answer::Failed(trouble) => return Err(trouble),
            Answer::Again if tries < BUSY_TRIES_MAX => tokio::time::sleep(BUSY_INTERVAL).await,
            Answer::Again => return Err(busy()),
        }
    }
}

/// It was tried often enough.
pub(crate) fn busy() -> Trouble {
    Trouble::unavailable("others keep the same subjects busy")
}

/// Tries it once.
pub(crate) async fn publish_once(client: &Client, puts: &[Put], commit: u64) -> Answer {
    let count = puts.len();
    if count > BATCH_PUTS_MAX {
        let why = format!("{count} messages in one step; the maximum is {BATCH_PUTS_MAX}");
        return Answer::Failed(Trouble::Refused(why.into()));
    }
    let Some((last, others)) = puts.split_last() else {
        return Answer::Failed(Trouble::Refused("nothing to write".into()));
    };
    if client.connection_state() != async_nats::connection::State::Connected {
        // What is sent now would be kept, and arrive long after its caller has given up.
        return Answer::Failed(Trouble::unavailable("no server is connected"));
    }
    for (index, put) in others.iter().enumerate() {
        let headers = put.headers(commit, index, count);
        let (subject, body) = (put.subject.clone(), put.body.clone());
        let sent = client.publish_with_headers(subject, headers, body).await;
        if let Err(error) = sent {
            return Answer::Failed(Trouble::unavailable(error));
        }
    }
    let request = Request::new()
        .headers(last.headers(commit, count - 1, count))
        .payload(last.body.clone())
        .timeout(Some(ANSWER_DURATION_MAX));
    let answer = client.send_request(last.subject.clone(), request).await;
    match answer {
        Ok(message) => match read_answer(&message.payload) {
            Answer::Done(last) => Answer::Done((last + 1).saturating_sub(count as u64)),
            other => other,
        },
        Err(error) => Answer::Failed(match error.kind() {
            RequestErrorKind::NoResponders => Trouble::unavailable("the stream has no leader"),
            RequestErrorKind::MaxPayloadExceeded | RequestErrorKind::InvalidSubject => {
                Trouble::Refused(error.to_string().into())
            }
            _ => Trouble::InDoubt(error.to_string().into()),
        }),
    }
}

/// Codes of the server's errors.
mod code {
    /// The disk, or the account's part of it, is full.
    pub(super) const FULL: [u64; 4] = [10002, 10023, 10028, 10047];
    pub(super) const NO_LEADER: u64 = 10008;
    pub(super) const WRONG_LAST_SEQUENCE: [u64; 2] = [10070, 10071];
    /// A checked subject is in flight.
    pub(super) const IN_FLIGHT: u64 = 10164;
    /// A message of the batch did not arrive.
    pub(super) const INCOMPLETE: u64 = 10176;
    /// Too many batches are open.
    pub(super) const TOO_MANY: u64 = 10210;
}

fn read_answer(payload: &Bytes) -> Answer {
    let answer: Value = match serde_json::from_slice(payload) {
        Ok(answer) => answer,
        Err(error) => return Answer::Failed(Trouble::InDoubt(error.to_string().into())),
    };
    if let Some(error) = answer.get("error") {
        let number = error.get("err_code").and_then(Value::as_u64);
        let number = number.unwrap_or_default();
        let text = error.get("description").and_then(Value::as_str);
        let text: Arc<str> = text.unwrap_or("no reason given").into();
        return match number {
            code::IN_FLIGHT | code::INCOMPLETE | code::TOO_MANY => Answer::Again,
            code::NO_LEADER => Answer::Refused(Trouble::Unavailable(text)),
            number if code::WRONG_LAST_SEQUENCE.contains(&number) => {
                Answer::Refused(Trouble::Moved)
            }
            number if code::FULL.contains(&number) => Answer::Refused(Trouble::DiskFull(text)),
            _ => match error.get("code").and_then(Value::as_u64) {
                Some(429) => Answer::Again,
                Some(503) => Answer::Refused(Trouble::Unavailable(text)),
                _ => Answer::Refused(Trouble::Refused(text)),
            },
        };
    }
    match answer.get("seq").and_then(Value::as_u64) {
        Some(last) => Answer::Done(last),
        None => Answer::Failed(Trouble::InDoubt("an answer without a sequence".into())),
    }
}

/// What [`NOTE`] says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Note {
    pub(crate) commit: u64,
    pub(crate) index: usize,
    pub(crate) count: usize,
    pub(crate) words: Vec<String>,
}

impl Note {
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        Self::parse(headers.get(NOTE)?.as_str())
    }

    /// The note of this message of a commit.
    pub(crate) fn of_put(put: &Put, commit: u64, index: usize, count: usize) -> Option<Self> {
        Self::parse(&put.note_in(commit, index, count))
    }

    fn parse(note: &str) -> Option<Self> {
        let mut words = note.split(' ');
        Some(Self {
            commit: u64::from_str_radix(words.next()?, 16).ok()?,
            index: words.next()?.parse().ok()?,
            count: words.next()?.parse().ok()?,
            words: words.map(str::to_owned).collect(),
        })
    }

    pub(crate) fn number(&self, place: usize) -> Option<u64> {
        self.words.get(place)?.parse().ok()
    }

    /// Whether it says that what the subject is about is gone.
    pub(crate) fn is_gone(&self) -> bool {
        self.words.first().is_some_and(|word| word == GONE)
    }
}

/// The note of a message that removes what its subject is about.
pub(crate) const GONE: &str = "gone";
