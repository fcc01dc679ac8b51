//! The kinds of damage to stored messages, shared by all layers.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What is in place of the written messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DamageKind {
    /// Something else, or nothing.
    #[default]
    Changed,
    /// Messages of another topic or partition: files were swapped or restored to the wrong place,
    /// or a write was misdirected.
    Misplaced,
}

impl fmt::Display for DamageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Changed => "are damaged on disk",
            Self::Misplaced => {
                "are misplaced: the data in their place belongs to another topic or partition"
            }
        })
    }
}
