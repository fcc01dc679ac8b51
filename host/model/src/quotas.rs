//! Quotas of a principal: how much it may send, read and ask for in a second.

use serde::{Deserialize, Serialize};

/// Limits per second and host; absent ones limit nothing. A caller that was over one is refused until what it took is paid off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Quotas {
    /// Bytes of keys, values and headers that it sends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub produced_bytes: Option<u64>,
    /// Messages that it sends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub produced_messages: Option<u64>,
    /// Bytes of keys, values and headers that it reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_bytes: Option<u64>,
    /// Messages that it reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_messages: Option<u64>,
    /// Requests of any kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<u64>,
}

/// What a quota is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Quota {
    /// [`Quotas::produced_bytes`].
    ProducedBytes,
    /// [`Quotas::produced_messages`].
    ProducedMessages,
    /// [`Quotas::read_bytes`].
    ReadBytes,
    /// [`Quotas::read_messages`].
    ReadMessages,
    /// [`Quotas::requests`].
    Requests,
}

impl Quota {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::ProducedBytes,
        Self::ProducedMessages,
        Self::ReadBytes,
        Self::ReadMessages,
        Self::Requests,
    ];

    /// Its name in settings and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ProducedBytes => "produced_bytes",
            Self::ProducedMessages => "produced_messages",
            Self::ReadBytes => "read_bytes",
            Self::ReadMessages => "read_messages",
            Self::Requests => "requests",
        }
    }

    /// What it counts, for people.
    #[must_use]
    pub const fn unit(self) -> &'static str {
        match self {
            Self::ProducedBytes => "bytes sent a second",
            Self::ProducedMessages => "messages sent a second",
            Self::ReadBytes => "bytes read a second",
            Self::ReadMessages => "messages read a second",
            Self::Requests => "requests a second",
        }
    }
}

impl Quotas {
    /// The limit per second; `None` if there is none.
    #[must_use]
    pub const fn of(&self, quota: Quota) -> Option<u64> {
        match quota {
            Quota::ProducedBytes => self.produced_bytes,
            Quota::ProducedMessages => self.produced_messages,
            Quota::ReadBytes => self.read_bytes,
            Quota::ReadMessages => self.read_messages,
            Quota::Requests => self.requests,
        }
    }

    /// Whether nothing is limited.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// A limit of zero, which would be a right withdrawn in the wrong place.
    #[must_use]
    pub fn zero(&self) -> Option<Quota> {
        Quota::ALL
            .into_iter()
            .find(|quota| self.of(*quota) == Some(0))
    }
}
