//! The revision on trial, and its stored form: two fields of the processor, of which at most one is
//! present.

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::clock::Timestamp;

/// The revision on trial beside the current one. There is at most one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trial {
    /// The revision takes a share of the messages.
    Canary {
        /// The revision's number.
        revision: u32,
        /// The percentage of the keys that it takes.
        percent: u32,
        /// When the trial began.
        since: Timestamp,
    },
    /// The revision is called beside the current one, and its answers only go into a report.
    Shadow {
        /// The revision's number.
        revision: u32,
        /// When the trial began.
        since: Timestamp,
    },
}

impl Trial {
    /// The revision's number.
    #[must_use]
    pub fn revision(&self) -> u32 {
        match self {
            Self::Canary { revision, .. } | Self::Shadow { revision, .. } => *revision,
        }
    }

    /// A canary's share of the keys.
    #[must_use]
    pub fn percent(&self) -> Option<u32> {
        match self {
            Self::Canary { percent, .. } => Some(*percent),
            Self::Shadow { .. } => None,
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Stored {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    canary: Option<Canary>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    shadow: Option<Shadow>,
}

#[derive(Serialize, Deserialize)]
struct Canary {
    revision: u32,
    percent: u32,
    since: Timestamp,
}

#[derive(Serialize, Deserialize)]
struct Shadow {
    revision: u32,
    since: Timestamp,
}

pub(super) fn serialize<S: Serializer>(
    trial: &Option<Trial>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let (canary, shadow) = match *trial {
        None => (None, None),
        Some(Trial::Canary {
            revision,
            percent,
            since,
        }) => {
            let canary = Canary {
                revision,
                percent,
                since,
            };
            (Some(canary), None)
        }
        Some(Trial::Shadow { revision, since }) => (None, Some(Shadow { revision, since })),
    };
    Stored { canary, shadow }.serialize(serializer)
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Trial>, D::Error> {
    let Stored { canary, shadow } = Stored::deserialize(deserializer)?;
    match (canary, shadow) {
        (Some(canary), Some(shadow)) => Err(D::Error::custom(format!(
            "it has a canary (revision {}) and a shadow (revision {}); only one revision can be on trial",
            canary.revision, shadow.revision
        ))),
        (Some(canary), None) => Ok(Some(Trial::Canary {
            revision: canary.revision,
            percent: canary.percent,
            since: canary.since,
        })),
        (None, Some(shadow)) => Ok(Some(Trial::Shadow {
            revision: shadow.revision,
            since: shadow.since,
        })),
        (None, None) => Ok(None),
    }
}
