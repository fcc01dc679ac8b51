//! Creates the messages of schedules when they are due.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use metrics::counter;
use millrace_engine::{CommitError, EntryKind, Transaction, Version};
use millrace_model::{Header, Schedule, ScheduleName, ScheduleRun, Timestamp};
use tokio::sync::{Notify, watch};

use crate::catalogue::entries::entry;
use crate::ground::headers::{DUE, MISSED, RUN_BY, SCHEDULE};
use crate::ground::tasks;
use crate::ground::tasks::SLEEP_MAX;
use crate::ground::verbs::Verb;
use crate::handler::CallError;
use crate::messages::produce_error::ProduceError;
use crate::schedules::handle::{Inner, Schedules};
use crate::schedules::keeping::{ScheduleError, message_of};
use crate::schedules::known::{Known, ScheduleStatus, waiting};

/// Messages of schedules that are created concurrently.
const MADE_AT_ONCE_MAX: usize = 16;
/// Missed times are counted up to this; beyond it the header has this number.
const MISSED_COUNTED_MAX: u64 = 100_000;
/// Delay before a schedule whose message could not be created tries again.
const AGAIN_AFTER: Duration = Duration::from_secs(5);
/// A schedule whose next time is later than its pattern says by more than this was set by a clock that was ahead. A smaller difference
/// is kept, so that a clock that is set back a little creates nothing twice.
const CLOCK_AHEAD_MAX: Duration = Duration::from_secs(3_600);

/// Why a message was not created.
enum Unmade {
    /// It may be created later.
    Wait(String),
    /// It cannot be: its time is skipped.
    Pass(String),
    /// Another host created it, or changed the schedule.
    Elsewhere,
    /// The engine accepts nothing more.
    End,
}

impl From<ProduceError> for Unmade {
    fn from(error: ProduceError) -> Self {
        match error {
            ProduceError::Commit(CommitError::Closed | CommitError::Poisoned(_))
            | ProduceError::Partitioner(CallError::Interrupted) => Self::End,
            ProduceError::Commit(CommitError::Conflict(_)) => Self::Elsewhere,
            ProduceError::Commit(_)
            | ProduceError::Busy { .. }
            | ProduceError::Partitioner(_)
            | ProduceError::PartitionerGone(_) => Self::Wait(error.to_string()),
            _ => Self::Pass(error.to_string()),
        }
    }
}

/// Runs until told to stop, until the engine stops, or until the broker is gone.
pub(crate) async fn run(
    schedules: Weak<Inner>,
    changed: Arc<Notify>,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        let wait = match schedules.upgrade() {
            Some(inner) => Schedules::of(inner).make_due().await,
            None => None,
        };
        let Some(wait) = wait else {
            return;
        };
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = changed.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

impl Schedules {
    /// Creates all due messages; returns how long nothing will be due. `None` means that the engine
    /// has ended.
    async fn make_due(&self) -> Option<Duration> {
        let schedules = &self.inner.known;
        let _change = schedules.changes.lock().await;
        self.catch_up_schedules();
        let now = self.inner.clock.wall();
        let monotonic = self.inner.clock.monotonic();
        for known in schedules.all.write().values_mut() {
            bring_back(&mut known.schedule, now);
            say_waiting(known, now);
        }
        let due: Vec<Schedule> = {
            let all = schedules.all.read();
            let is_due = |known: &&Known| known.wait(now, monotonic).is_some_and(|w| w.is_zero());
            let due = all.values().filter(is_due);
            due.map(|known| known.schedule.clone()).collect()
        };
        let made = stream::iter(due).map(|schedule| async move {
            let made = tasks::caught("schedules", self.make(&schedule, now)).await;
            let made = made.unwrap_or_else(|panicked| {
                self.read_again(&schedule.name);
                Err(Unmade::Wait(panicked.to_owned()))
            });
            self.made(schedule, made)
        });
        let made = made.buffer_unordered(MADE_AT_ONCE_MAX);
        let all_made: Vec<bool> = made.collect().await;
        if all_made.contains(&false) {
            return None;
        }
        let (now, monotonic) = (self.inner.clock.wall(), self.inner.clock.monotonic());
        let all = schedules.all.read();
        let waits = all.values().filter_map(|k| k.wait(now, monotonic));
        Some(waits.min().unwrap_or(SLEEP_MAX).min(SLEEP_MAX))
    }

    /// One message and the next time, in one transaction.
    async fn make(
        &self,
        schedule: &Schedule,
        now: Timestamp,
    ) -> Result<(Schedule, Version), Unmade> {
        let (next, missed) = after(schedule, now);
        let made = match self.make_message(schedule, &next, missed).await {
            Ok(version) => return Ok((next, version)),
            Err(ProduceError::Commit(CommitError::UnknownPartition(_))) => {
                Unmade::Pass(format!("topic {} was deleted", schedule.spec.topic))
            }
            Err(error) => error.into(),
        };
        if let Unmade::Pass(reason) = made {
            // A message that can never be created is not due; it is looked at again at the next time.
            let next = Schedule {
                last: schedule.last,
                made: schedule.made,
                ..next
            };
            let (key, expects) = (next.name.to_string(), self.schedule_as_known(&next.name));
            let kept = self.inner.catalogue.write_entry(
                EntryKind::Schedule,
                key,
                Some(&next),
                vec![expects],
            );
            let version = kept
                .await
                .map_err(|error| Unmade::from(ProduceError::from(error)))?;
            self.inner.known.followed.own(version);
            self.know_schedule(next, version, Some(reason.clone()));
            return Err(Unmade::Pass(reason));
        }
        Err(made)
    }

    async fn make_message(
        &self,
        schedule: &Schedule,
        next: &Schedule,
        missed: u64,
    ) -> Result<Version, ProduceError> {
        let due = next.last.unwrap_or_default();
        let headers = evidence(&schedule.name, due, missed);
        self.append_message(next, headers).await
    }

    /// Appends the schedule's message and stores the schedule as it is afterwards, unless another host did, so that it is created once.
    /// Returns the entry's version.
    async fn append_message(
        &self,
        then: &Schedule,
        headers: Vec<Header>,
    ) -> Result<Version, ProduceError> {
        let name = then.name.to_string();
        let transaction = Transaction {
            entries: vec![entry(EntryKind::Schedule, name, Some(then))],
            expects: vec![self.schedule_as_known(&then.name)],
            ..Transaction::default()
        };
        let message = message_of(&then.spec);
        let made =
            self.inner
                .messages
                .produce_with(&then.spec.topic, message, headers, transaction);
        let version = made.await?.versions.first().copied().unwrap_or_default();
        self.inner.known.followed.own(version);
        Ok(version)
    }

    /// Creates a schedule's message now, even while it is paused. Its next time does not change; the commit that appends the message
    /// also stores that it was run, and by whom.
    ///
    /// # Errors
    /// [`ScheduleError`]; no message was created then.
    pub async fn run_schedule(&self, name: &ScheduleName) -> Result<ScheduleStatus, ScheduleError> {
        self.caller.may(Verb::RunSchedule, name.as_str())?;
        self.decide_schedule(|| self.run_schedule_now(name)).await
    }

    async fn run_schedule_now(&self, name: &ScheduleName) -> Result<ScheduleStatus, ScheduleError> {
        let known = self.schedule(name);
        let known = known.ok_or_else(|| ScheduleError::Unknown(name.clone()))?;
        let now = self.inner.clock.wall();
        let mut schedule = known.schedule;
        schedule.made += 1;
        schedule.last_run = Some(ScheduleRun {
            at: now,
            by: self.caller.name().map(str::to_owned),
        });
        let by = self.caller.name().unwrap_or_default();
        let mut headers = evidence(name, now, 0);
        headers.push(header(RUN_BY, by.to_owned()));
        let version = self.append_message(&schedule, headers).await?;
        counter!("millrace_schedule_messages_total", "schedule" => name.to_string()).increment(1);
        tracing::info!(schedule = %name, topic = %schedule.spec.topic, by, "a schedule was run by hand");
        let mut all = self.inner.known.all.write();
        let now_known = all
            .entry(name.clone())
            .or_insert_with(|| Known::new(schedule.clone(), version));
        (now_known.schedule, now_known.version) = (schedule, version);
        Ok(now_known.status(now))
    }

    /// Notes the result of creating a message; returns whether the engine still works.
    fn made(&self, before: Schedule, made: Result<(Schedule, Version), Unmade>) -> bool {
        match made {
            Ok((next, version)) => {
                let name = next.name.to_string();
                counter!("millrace_schedule_messages_total", "schedule" => name).increment(1);
                self.know_schedule(next, version, None);
            }
            Err(Unmade::Elsewhere) => self.read_again(&before.name),
            Err(Unmade::End) => return false,
            Err(Unmade::Pass(reason)) => {
                tracing::warn!(schedule = %before.name, reason, "a schedule's message cannot be created; its time is skipped");
            }
            Err(Unmade::Wait(reason)) => {
                tracing::warn!(schedule = %before.name, reason, "a schedule's message waits; trying again");
                self.waits(&before.name, reason);
            }
        }
        true
    }

    /// Schedules another attempt at its message.
    fn waits(&self, name: &ScheduleName, reason: String) {
        let mut all = self.inner.known.all.write();
        if let Some(known) = all.get_mut(name) {
            known.problem = Some(reason);
            known.again_at = self.inner.clock.monotonic() + AGAIN_AFTER;
        }
    }

    /// The result of its commit is unknown, or another host created the message: reads the schedule
    /// again from the catalogue.
    fn read_again(&self, name: &ScheduleName) {
        let found = self.inner.engine.entry(EntryKind::Schedule, name.as_str());
        let Some(entry) = found else {
            self.inner.known.all.write().remove(name);
            return;
        };
        match serde_json::from_slice(&entry.value) {
            Ok(schedule) => self.know_schedule(schedule, entry.version, None),
            Err(error) => {
                let newer = "another host, perhaps with a newer version, wrote an entry that this one cannot read";
                self.waits(name, format!("{newer}: {error}"));
            }
        }
    }

    fn know_schedule(&self, schedule: Schedule, version: Version, problem: Option<String>) {
        let mut all = self.inner.known.all.write();
        let name = schedule.name.clone();
        let known = Known {
            problem,
            ..Known::new(schedule, version)
        };
        all.insert(name, known);
    }
}

/// A clock that was ahead when the schedule came up leaves a next time in the far future.
fn bring_back(schedule: &mut Schedule, now: Timestamp) {
    if schedule.next <= now.after(CLOCK_AHEAD_MAX) {
        return;
    }
    let next = schedule.spec.cron.next_after(now);
    if schedule.next > next.after(CLOCK_AHEAD_MAX) {
        tracing::warn!(schedule = %schedule.name, was = schedule.next.0, next = next.0, "the clock was ahead when this schedule last came up; it now follows the present clock");
        schedule.next = next;
    }
}

fn say_waiting(known: &mut Known, now: Timestamp) {
    let waiting = waiting(&known.schedule, now);
    if let Some(why) = waiting.as_ref().filter(|_| !known.said_waiting) {
        tracing::warn!(schedule = %known.schedule.name, why, "a schedule waits");
    }
    known.said_waiting = waiting.is_some();
}

/// The schedule after a message for the latest time that has passed, and how many earlier ones the message stands for.
fn after(schedule: &Schedule, now: Timestamp) -> (Schedule, u64) {
    let (mut due, mut missed) = (schedule.next, 0);
    let cron = &schedule.spec.cron;
    let mut next = cron.next_after(due);
    while next <= now && missed < MISSED_COUNTED_MAX {
        (due, next) = (next, cron.next_after(next));
        missed += 1;
    }
    let next = Schedule {
        next: if next <= now {
            cron.next_after(now)
        } else {
            next
        },
        last: Some(due),
        made: schedule.made + 1,
        ..schedule.clone()
    };
    (next, missed)
}

fn header(name: &'static str, value: String) -> Header {
    Header {
        name: name.into(),
        value: Some(value.into()),
    }
}

fn evidence(name: &ScheduleName, due: Timestamp, missed: u64) -> Vec<Header> {
    let mut headers = vec![
        header(SCHEDULE, name.to_string()),
        header(DUE, due.0.to_string()),
    ];
    if missed > 0 {
        headers.push(header(MISSED, missed.to_string()));
    }
    headers
}

#[cfg(test)]
mod tests {
    use millrace_model::{Cron, ScheduleSpec, TopicName};

    use super::*;

    fn schedule(next: u64) -> Schedule {
        Schedule {
            name: ScheduleName::parse("s").unwrap(),
            spec: ScheduleSpec {
                topic: TopicName::parse("t").unwrap(),
                cron: Cron::parse("* * * * * *").unwrap(),
                key: None,
                value: None,
                headers: Vec::new(),
                partition: None,
            },
            paused: false,
            next: Timestamp(next),
            last: None,
            made: 0,
            last_run: None,
        }
    }

    fn times(next: u64, now: u64) -> (u64, u64, u64) {
        let (after, missed) = after(&schedule(next), Timestamp(now));
        (after.last.unwrap().0, after.next.0, missed)
    }

    #[test]
    fn a_message_stands_for_all_times_that_have_passed() {
        assert_eq!(times(5_000, 5_000), (5_000, 6_000, 0));
        assert_eq!(times(5_000, 5_999), (5_000, 6_000, 0));
        assert_eq!(times(5_000, 8_500), (8_000, 9_000, 3));
    }

    #[test]
    fn a_schedule_says_until_when_it_waits_after_the_clock_was_set_back() {
        const NOW: u64 = 1_795_255_445_000;
        let said = |next| waiting(&schedule(next), Timestamp(NOW));
        assert_eq!(said(NOW + 1_000), None);
        assert_eq!(said(NOW + 2_000), None, "clocks are corrected all the time");
        let ahead = said(NOW + 600_000).unwrap();
        assert!(
            ahead.ends_with("continues at 2026-11-21T10:14:05Z"),
            "{ahead}"
        );
        let paused = Schedule {
            paused: true,
            ..schedule(NOW + 600_000)
        };
        assert_eq!(waiting(&paused, Timestamp(NOW)), None);
    }

    #[test]
    fn years_of_missed_seconds_are_not_counted_one_by_one() {
        let (last, next, missed) = times(5_000, 4_000_000_000_500);
        assert_eq!(missed, MISSED_COUNTED_MAX);
        assert_eq!(next, 4_000_000_001_000);
        assert!(last < next);
    }

    #[test]
    fn a_clock_that_was_ahead_once_does_not_silence_a_schedule_and_one_set_back_a_little_changes_nothing()
     {
        const NOW: u64 = 1_000_000;
        let brought_back = |next| {
            let mut schedule = schedule(next);
            bring_back(&mut schedule, Timestamp(NOW));
            schedule.next.0
        };
        assert_eq!(brought_back(NOW + 10 * 365 * 86_400_000), NOW + 1_000);
        for near in [NOW, NOW + 5_000, NOW + 3_600_000] {
            assert_eq!(brought_back(near), near);
        }
    }
}
