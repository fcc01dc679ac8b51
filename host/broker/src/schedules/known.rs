//! The schedules that this host knows, and the status of each.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use millrace_engine::Version;
use millrace_model::calendar::utc;
use millrace_model::{Schedule, ScheduleName, Timestamp};
use parking_lot::RwLock;
use serde::Serialize;
use tokio::sync::Notify;

use crate::catalogue::deciding::Followed;

/// A schedule and its status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ScheduleStatus {
    /// The schedule as it is stored.
    #[serde(flatten)]
    pub schedule: Schedule,
    /// Why its last message could not be created; `None` if it was.
    pub problem: Option<String>,
    /// Why it creates no messages at its pattern's times, and until when, after the clock was set
    /// back; `None` if it follows its pattern.
    pub waiting: Option<String>,
}

/// All schedules.
#[derive(Default)]
pub(crate) struct KnownSchedules {
    pub(super) all: RwLock<BTreeMap<ScheduleName, Known>>,
    /// Up to which version this host knows the catalogue's entries of schedules.
    pub(super) followed: Followed,
    /// Locked while a schedule is changed or creates its message.
    pub(super) changes: tokio::sync::Mutex<()>,
    /// Notified when something is due earlier than before.
    pub(super) changed: Arc<Notify>,
}

/// A schedule as the host knows it.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) schedule: Schedule,
    /// The version of its entry.
    pub(super) version: Version,
    pub(super) problem: Option<String>,
    /// After a temporary failure, when to try again, by the monotonic clock.
    pub(super) again_at: Duration,
    /// Whether it was logged that it waits for the clock.
    pub(super) said_waiting: bool,
}

impl Known {
    pub(super) fn new(schedule: Schedule, version: Version) -> Self {
        Self {
            schedule,
            version,
            problem: None,
            again_at: Duration::ZERO,
            said_waiting: false,
        }
    }

    /// How long there is nothing to do; `None` while it is paused.
    pub(super) fn wait(&self, now: Timestamp, monotonic: Duration) -> Option<Duration> {
        let wait = now.until(self.schedule.next);
        let again = self.again_at.saturating_sub(monotonic);
        (!self.schedule.paused).then_some(wait.max(again))
    }

    pub(super) fn status(&self, now: Timestamp) -> ScheduleStatus {
        ScheduleStatus {
            schedule: self.schedule.clone(),
            problem: self.problem.clone(),
            waiting: waiting(&self.schedule, now),
        }
    }
}

impl KnownSchedules {
    /// Wakes the task that waits for the next due time.
    pub(crate) fn changed(&self) -> Arc<Notify> {
        Arc::clone(&self.changed)
    }
}

/// Why a schedule creates no messages, and until when: it already did for times that are in the future by the present clock.
pub(super) fn waiting(schedule: &Schedule, now: Timestamp) -> Option<String> {
    let by_pattern = schedule.spec.cron.next_after(now);
    let is_ahead = !schedule.paused && schedule.next > by_pattern.after(CLOCK_NOISE_MAX);
    is_ahead.then(|| {
        let next = utc(schedule.next);
        format!("the clock was set back: times before {next} already created their messages; it continues at {next}")
    })
}

/// Clock corrections up to this are not logged.
const CLOCK_NOISE_MAX: Duration = Duration::from_secs(1);
