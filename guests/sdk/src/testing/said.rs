//! The results of a handler in the author's terms: outcomes, outputs, changes of state. Returned by
//! a run, or written in a test as the expectation.

use std::time::Duration;

use super::text::Text;
use crate::producer::Outgoing;

/// The outcome of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// Done, without outputs.
    Acked,
    /// Done, with these outputs.
    Sent(Vec<Sent>),
    /// To be tried again later.
    Retried {
        /// The delay; `None` leaves it to the processor's policy.
        after: Option<Duration>,
        /// The short word by which failures are grouped.
        class: String,
        /// The explanation for people.
        reason: String,
    },
    /// Given up: it becomes a dead letter.
    Rejected {
        /// The short word by which failures are grouped.
        class: String,
        /// The explanation for people.
        reason: String,
    },
}

impl Said {
    /// A retry with the delay of the policy.
    #[must_use]
    pub fn retried(class: &str, reason: &str) -> Self {
        Self::Retried {
            after: None,
            class: class.to_owned(),
            reason: reason.to_owned(),
        }
    }

    /// A retry after this time.
    #[must_use]
    pub fn retried_after(after: Duration, class: &str, reason: &str) -> Self {
        Self::Retried {
            after: Some(after),
            class: class.to_owned(),
            reason: reason.to_owned(),
        }
    }

    /// A rejection: the message becomes a dead letter.
    #[must_use]
    pub fn rejected(class: &str, reason: &str) -> Self {
        Self::Rejected {
            class: class.to_owned(),
            reason: reason.to_owned(),
        }
    }

    /// The outputs.
    #[must_use]
    pub fn outputs(&self) -> &[Sent] {
        match self {
            Self::Sent(outputs) => outputs,
            _ => &[],
        }
    }

    /// The class of a failure; `None` for other outcomes.
    #[must_use]
    pub fn class(&self) -> Option<&str> {
        match self {
            Self::Retried { class, .. } | Self::Rejected { class, .. } => Some(class),
            Self::Acked | Self::Sent(_) => None,
        }
    }

    /// The reason of a failure; `None` for other outcomes.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Retried { reason, .. } | Self::Rejected { reason, .. } => Some(reason),
            Self::Acked | Self::Sent(_) => None,
        }
    }

    /// Whether the message was retried or rejected.
    #[must_use]
    pub fn is_failure(&self) -> bool {
        matches!(self, Self::Retried { .. } | Self::Rejected { .. })
    }
}

/// An output as a message, including everything that it keeps of the message that it was made from.
///
/// ```
/// use millrace_guest::testing::{Sent, Tester};
/// use millrace_guest::{Outcome, Sample};
///
/// let mut tester = Tester::new(|message| {
///     Outcome::Emit(message.output().topic("late").deliver_at(message.timestamp() + 1_000))
/// });
/// let run = tester.run(Sample::new("in").message("k", "v").header("from", "shop"));
/// let sent = run.output();
/// assert_eq!((sent.key(), sent.value()), (Some("k"), Some("v")));
/// assert_eq!(sent.header("from"), Some("shop"));
/// let expected = Sent::new("k", "v").with_header("from", "shop").to("late");
/// assert_eq!(*sent, expected.delivered_at(1_700_000_001_000));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    pub(super) topic: Option<String>,
    pub(super) partition: Option<u32>,
    pub(super) key: Option<Text>,
    pub(super) value: Option<Text>,
    pub(super) headers: Vec<(Text, Option<Text>)>,
    pub(super) timestamp: Option<u64>,
    pub(super) deliver_at: Option<u64>,
}

impl Sent {
    /// An output with this key and value to the processor's default output, without headers.
    #[must_use]
    pub fn new(key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        Self::nullable(Some(key.as_ref()), Some(value.as_ref()))
    }

    /// A message that the component of a route sends.
    pub(super) fn of_outgoing(topic: &str, outgoing: &Outgoing<'_>) -> Self {
        let header = |(name, value): &(&[u8], Option<&[u8]>)| {
            let name = Text::from(*name);
            (name, value.map(Text::from))
        };
        Self {
            topic: Some(topic.to_owned()),
            partition: outgoing.partition,
            key: outgoing.key.map(Text::from),
            value: outgoing.value.map(Text::from),
            headers: outgoing.headers.iter().map(header).collect(),
            timestamp: Some(outgoing.timestamp).filter(|ms| *ms != 0),
            deliver_at: Some(outgoing.deliver_at).filter(|ms| *ms != 0),
        }
    }

    /// Like [`new`](Self::new), for an output that may have no key or no value.
    #[must_use]
    pub fn nullable(key: Option<&[u8]>, value: Option<&[u8]>) -> Self {
        Self {
            key: key.map(Text::from),
            value: value.map(Text::from),
            ..Self::default()
        }
    }

    /// The same output to this topic.
    #[must_use]
    pub fn to(mut self, topic: &str) -> Self {
        self.topic = Some(topic.to_owned());
        self
    }

    /// The same output to this partition.
    #[must_use]
    pub fn in_partition(mut self, partition: u32) -> Self {
        self.partition = Some(partition);
        self
    }

    /// The same output with another header.
    #[must_use]
    pub fn with_header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        let value = Text::from(value.as_ref());
        self.headers.push((name.as_bytes().into(), Some(value)));
        self
    }

    /// The same output with this timestamp, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn with_timestamp(mut self, ms: u64) -> Self {
        self.timestamp = Some(ms);
        self
    }

    /// The same output delivered at this time, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn delivered_at(mut self, ms: u64) -> Self {
        self.deliver_at = Some(ms);
        self
    }

    /// Its topic; `None` is the processor's default output.
    #[must_use]
    pub fn topic(&self) -> Option<&str> {
        self.topic.as_deref()
    }

    /// Its partition; `None` leaves it to the topic's partitioner.
    #[must_use]
    pub fn partition(&self) -> Option<u32> {
        self.partition
    }

    /// The key as text. Panics if it is not text; see [`key_bytes`](Self::key_bytes).
    #[must_use]
    #[track_caller]
    pub fn key(&self) -> Option<&str> {
        self.key.as_ref().map(Text::text)
    }

    /// The key.
    #[must_use]
    pub fn key_bytes(&self) -> Option<&[u8]> {
        self.key.as_ref().map(Text::bytes)
    }

    /// The value as text. Panics if it is not text; see [`value_bytes`](Self::value_bytes).
    #[must_use]
    #[track_caller]
    pub fn value(&self) -> Option<&str> {
        self.value.as_ref().map(Text::text)
    }

    /// The value.
    #[must_use]
    pub fn value_bytes(&self) -> Option<&[u8]> {
        self.value.as_ref().map(Text::bytes)
    }

    /// The value of the last header with this name, as text; `None` if there is none, or it is
    /// null.
    #[must_use]
    #[track_caller]
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut named = self.headers.iter().rev();
        let (_, value) = named.find(|(found, _)| found == name)?;
        value.as_ref().map(Text::text)
    }

    /// Names and values of all headers, in order.
    #[must_use]
    pub fn headers(&self) -> &[(Text, Option<Text>)] {
        &self.headers
    }

    /// Its timestamp; `None` means the message's, or the time of delivery if there is one.
    #[must_use]
    pub fn timestamp(&self) -> Option<u64> {
        self.timestamp
    }

    /// Its time of delivery, in milliseconds since the Unix epoch; `None` is at once.
    #[must_use]
    pub fn deliver_at(&self) -> Option<u64> {
        self.deliver_at
    }
}

impl PartialEq<Sent> for &Sent {
    fn eq(&self, other: &Sent) -> bool {
        **self == *other
    }
}

/// A changed key of state. It equals a pair of key and value, as text or number, if it has no time
/// to live.
///
/// ```
/// use millrace_guest::testing::{Change, Tester};
/// use millrace_guest::{Outcome, Sample, state};
///
/// let mut tester = Tester::new(|message| {
///     let _ = state::add(message, b"count", 2);
///     let _ = state::set_for(message, b"seen", b"yes", 60_000);
///     state::delete(message, b"old");
///     Outcome::Ack
/// })
/// .with_state("old", "value");
/// let run = tester.run(Sample::new("in").message("k", "v"));
/// let expected = [
///     Change::number("count", 2),
///     Change::removed("old"),
///     Change::set("seen", "yes").ending_after_ms(60_000),
/// ];
/// assert_eq!(run.changes(), expected);
/// assert_eq!(run.changes()[0], ("count", 2));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key.
    pub key: Text,
    /// Its value now; `None` if it was removed.
    pub value: Option<Text>,
    /// Its time to live in milliseconds; `None` is forever.
    pub ttl_ms: Option<u64>,
}

impl Change {
    /// The key has this value now.
    #[must_use]
    pub fn set(key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        Self {
            key: key.as_ref().into(),
            value: Some(value.as_ref().into()),
            ttl_ms: None,
        }
    }

    /// The key has this number now.
    #[must_use]
    pub fn number(key: impl AsRef<[u8]>, number: i64) -> Self {
        Self::set(key, number.to_le_bytes())
    }

    /// A key that was removed.
    #[must_use]
    pub fn removed(key: impl AsRef<[u8]>) -> Self {
        Self {
            key: key.as_ref().into(),
            value: None,
            ttl_ms: None,
        }
    }

    /// The same change, with this time to live in milliseconds.
    #[must_use]
    pub fn ending_after_ms(mut self, ttl_ms: u64) -> Self {
        self.ttl_ms = Some(ttl_ms);
        self
    }
}

impl PartialEq<(&str, &str)> for Change {
    fn eq(&self, (key, value): &(&str, &str)) -> bool {
        *self == Self::set(key, value)
    }
}

impl PartialEq<(&str, i64)> for Change {
    fn eq(&self, (key, number): &(&str, i64)) -> bool {
        *self == Self::number(key, *number)
    }
}
