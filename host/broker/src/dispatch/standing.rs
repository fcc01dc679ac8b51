//! How a worker does, as others may see it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use millrace_model::{Offset, Progress, Timestamp};
use parking_lot::Mutex;

/// How a worker does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum State {
    #[default]
    Running,
    Paused,
    /// All that it was made to read is settled.
    Done,
    /// Another host is to work here; where that is.
    Elsewhere(String),
    /// Somebody else has the work, and is to give it back: another host, or an operator for a moment.
    Held,
    /// Why, and until when, as far as that is known.
    Waiting(String, Option<Timestamp>),
    Stopped(String),
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Running => f.write_str("running"),
            Self::Paused => f.write_str("paused"),
            Self::Done => f.write_str("done"),
            Self::Elsewhere(host) => write!(f, "at host {host}"),
            Self::Held => f.write_str("waiting: whoever has the work has not given it back yet"),
            Self::Waiting(reason, _) => write!(f, "waiting: {reason}"),
            Self::Stopped(reason) => write!(f, "stopped: {reason}"),
        }
    }
}

impl State {
    /// Whether a worker of this host is at it, or is to be.
    pub(crate) fn is_here(&self) -> bool {
        !matches!(self, Self::Elsewhere(_) | Self::Held)
    }

    /// Until when it waits, if it waits and that is known.
    pub(crate) fn until(&self) -> Option<Timestamp> {
        match self {
            Self::Waiting(_, until) => *until,
            _ => None,
        }
    }
}

/// What others may see of a worker.
#[derive(Clone, Debug, Default)]
pub(crate) struct Standing {
    pub(crate) state: State,
    /// `None` until the worker has read what was committed before it.
    pub(crate) next: Option<Offset>,
    pub(crate) parked: usize,
    /// What the worker knows of its messages.
    pub(crate) progress: Arc<Progress>,
    pub(crate) revision: u32,
    /// Since when, by the monotonic clock, the call at hand is under way; `None` between two of them.
    pub(crate) calling: Option<Duration>,
}

/// Where a worker shows how it does.
pub(crate) type Window = Arc<Mutex<Standing>>;
