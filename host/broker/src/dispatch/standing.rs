//! A worker's status, as other parts of the host see it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use millrace_model::{Offset, Progress, Timestamp};
use parking_lot::Mutex;

/// A worker's status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum State {
    #[default]
    Running,
    Paused,
    /// Every message of the worker's input is settled.
    Done,
    /// Another host should work on this partition; its name.
    Elsewhere(String),
    /// Another holder has the lease and must release it first: another host, or an operator for a
    /// moment.
    Held,
    /// The reason, and until when, if known.
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
            Self::Held => {
                f.write_str("waiting: the present holder of the work has not released it yet")
            }
            Self::Waiting(reason, _) => write!(f, "waiting: {reason}"),
            Self::Stopped(reason) => write!(f, "stopped: {reason}"),
        }
    }
}

impl State {
    /// Whether a worker of this host works on the partition, or should.
    pub(crate) fn is_here(&self) -> bool {
        !matches!(self, Self::Elsewhere(_) | Self::Held)
    }

    /// Until when the worker waits; `None` if it does not wait, or if that is not known.
    pub(crate) fn until(&self) -> Option<Timestamp> {
        match self {
            Self::Waiting(_, until) => *until,
            _ => None,
        }
    }
}

/// The published status of a worker.
#[derive(Clone, Debug, Default)]
pub(crate) struct Standing {
    pub(crate) state: State,
    /// `None` until the worker has read the committed progress.
    pub(crate) next: Option<Offset>,
    pub(crate) parked: usize,
    /// The worker's latest progress.
    pub(crate) progress: Arc<Progress>,
    pub(crate) revision: u32,
    /// When the running call started, by the monotonic clock; `None` between calls.
    pub(crate) calling: Option<Duration>,
}

/// Where a worker publishes its status.
pub(crate) type Window = Arc<Mutex<Standing>>;
