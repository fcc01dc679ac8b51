//! The filter for dead letters, shared by lists, groups, dry runs and redrives.

use std::ops::RangeInclusive;

use bytes::Bytes;
use millrace_model::{Message, PartitionId, Timestamp, TopicName};

use crate::dead_letters::letters::DeadLetter;
use crate::ground::headers;

/// Selects dead letters: all conditions must hold.
#[derive(Clone, Debug, Default)]
pub struct DeadLetterFilter {
    /// With this class.
    pub class: Option<String>,
    /// With this cause: `retry`, `reject`, `trap`, `timeout`, `memory`, `bad-answer` or `host-died`.
    pub cause: Option<String>,
    /// Failed under this revision.
    pub revision: Option<u32>,
    /// Failed under one of these revisions.
    pub revisions: Option<RangeInclusive<u32>>,
    /// With a cause other than these.
    pub other_causes: Vec<String>,
    /// With this key.
    pub key: Option<Bytes>,
    /// Given up at or after this time.
    pub since: Option<Timestamp>,
    /// Given up before this time.
    pub until: Option<Timestamp>,
    /// With this header of the message, not of the evidence.
    pub header: Option<HeaderFilter>,
    /// With this text in the value, the key or the reason.
    pub text: Option<String>,
    /// That came from this topic.
    pub origin_topic: Option<TopicName>,
    /// That came from the partition with this number.
    pub origin_partition: Option<PartitionId>,
    /// Redriven or not.
    pub redriven: Redrives,
}

/// A header to match.
#[derive(Clone, Debug)]
pub struct HeaderFilter {
    /// Its name.
    pub name: Bytes,
    /// Its value; any value if `None`.
    pub value: Option<Bytes>,
}

/// Whether redriven dead letters match.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Redrives {
    /// Only those that were not redriven.
    #[default]
    No,
    /// All.
    Also,
    /// Only those that were redriven.
    Only,
}

impl DeadLetterFilter {
    /// Whether a dead letter matches.
    pub(super) fn fits(&self, letter: &DeadLetter) -> bool {
        let sent_again = match self.redriven {
            Redrives::No => !letter.redriven,
            Redrives::Only => letter.redriven,
            Redrives::Also => true,
        };
        let said = |wanted: &Option<String>, is: &str| wanted.as_ref().is_none_or(|w| w == is);
        let message = &letter.message;
        sent_again
            && said(&self.class, &letter.class)
            && said(&self.cause, &letter.cause)
            && self.revision.is_none_or(|r| r == letter.revision)
            && (self.revisions.as_ref()).is_none_or(|all| all.contains(&letter.revision))
            && !self.other_causes.contains(&letter.cause)
            && self.since.is_none_or(|from| letter.died_at >= from)
            && self.until.is_none_or(|until| letter.died_at < until)
            && (self.origin_partition).is_none_or(|p| p == letter.origin_partition)
            && (self.origin_topic.as_ref()).is_none_or(|t| *t == letter.origin_topic)
            && (self.key.as_ref()).is_none_or(|key| Some(key) == message.key.as_ref())
            && (self.header.as_ref()).is_none_or(|header| header.fits(message))
            && (self.text.as_ref()).is_none_or(|text| has_text(letter, text))
    }
}

impl HeaderFilter {
    fn fits(&self, message: &Message) -> bool {
        // The evidence does not count as headers of the message.
        let own = message
            .headers
            .iter()
            .filter(|header| headers::is_kept(&header.name));
        own.filter(|header| header.name == self.name)
            .any(|header| self.value.is_none() || header.value == self.value)
    }
}

fn has_text(letter: &DeadLetter, text: &str) -> bool {
    let within = |bytes: Option<&Bytes>| {
        bytes.is_some_and(|bytes| String::from_utf8_lossy(bytes).contains(text))
    };
    letter.reason.contains(text)
        || within(letter.message.key.as_ref())
        || within(letter.message.value.as_ref())
}
