//! Schedules: each creates a message for a topic repeatedly. The catalogue has each schedule with
//! its next time; [`firing`] appends a message and advances that time in one transaction, so that
//! each time creates one message, even through crashes.
//!
//! Times missed while the host was down (but not those missed during a pause) get one message
//! together, which tells how many it stands for.

use std::collections::BTreeMap;

use millrace_engine::{CommitError, Entry, EntryKind, Expectation};
use millrace_model::bounds::{SCHEDULE_MESSAGE_BYTES_MAX, SCHEDULES_BYTES_MAX, SCHEDULES_MAX};
use millrace_model::{
    Advice, Advised, Code, Header, Message, Schedule, ScheduleName, ScheduleSpec, Timestamp,
};

use crate::catalogue::deciding::{decided, decision_errors};
use crate::ground::standing::Forbidden;
use crate::ground::verbs::Verb;
use crate::messages::call::NewMessage;
use crate::messages::produce_error::ProduceError;
use crate::processors::error::ProcessorError;
use crate::schedules::handle::Schedules;
use crate::schedules::known::{Known, ScheduleStatus};

/// Why a schedule did not change. It is unchanged.
#[derive(Debug, thiserror::Error)]
pub enum ScheduleError {
    /// The caller may not do it.
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
    /// No such schedule.
    #[error("schedule {0} does not exist")]
    Unknown(ScheduleName),
    /// The topic would refuse its message.
    #[error(transparent)]
    Message(#[from] ProduceError),
    /// Its message exceeds the bound.
    #[error(
        "the message has {bytes} bytes; the maximum for a schedule is {SCHEDULE_MESSAGE_BYTES_MAX}: store the payload elsewhere and send a reference"
    )]
    TooLarge {
        /// Its size, counting ten bytes for each header.
        bytes: usize,
    },
    /// The maximum number of schedules exists.
    #[error("there are already {SCHEDULES_MAX} schedules, the maximum; delete one first")]
    TooMany,
    /// All messages together would exceed the bound.
    #[error(
        "the messages of all schedules would have {bytes} bytes; the maximum is {SCHEDULES_BYTES_MAX}: store payloads elsewhere and send references"
    )]
    TooMuch {
        /// Their total size.
        bytes: usize,
    },
    /// It could not be made durable.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

decision_errors! {
    ScheduleError: ScheduleError::Commit, ScheduleError::Message;
}

impl Advised for ScheduleError {
    fn advice(&self) -> Advice {
        match self {
            Self::Forbidden(error) => error.advice(),
            Self::Unknown(_) => Code::UnknownSchedule.advice(),
            Self::TooLarge { .. } => Code::TooLarge.hint("make the message smaller"),
            Self::TooMuch { .. } => Code::TooManySchedules.hint("make messages smaller"),
            Self::TooMany => Code::TooManySchedules.advice(),
            Self::Message(error) => error.advice(),
            Self::Commit(error) => error.advice(),
        }
    }
}

impl Schedules {
    /// Reads the catalogue's schedules.
    pub(crate) fn read_schedules(&self) -> Result<(), ProcessorError> {
        let newest = self.inner.engine.version(EntryKind::Schedule);
        self.inner.known.followed.up_to(newest);
        let mut all = self.inner.known.all.write();
        for (key, entry) in self.inner.engine.entries(EntryKind::Schedule) {
            let schedule: Schedule = serde_json::from_slice(&entry.value).map_err(|error| {
                let what = format!("the catalogue's entry of schedule {key}: {error}");
                ProcessorError::Catalogue(what)
            })?;
            let known = Known::new(schedule, entry.version);
            all.insert(known.schedule.name.clone(), known);
        }
        Ok(())
    }

    /// Takes over other hosts' changes, once no change of this host is under way.
    pub(crate) async fn follow_schedules(&self) {
        if !self.are_schedules_followed() {
            let _change = self.inner.known.changes.lock().await;
            if self.catch_up_schedules() {
                self.inner.known.changed.notify_one();
            }
        }
    }

    fn are_schedules_followed(&self) -> bool {
        let newest = self.inner.engine.version(EntryKind::Schedule);
        self.inner.known.followed.version() == newest
    }

    /// Like `follow_schedules`, for a caller that holds `changes`; returns whether anything had
    /// changed.
    pub(super) fn catch_up_schedules(&self) -> bool {
        let newest = self.inner.engine.version(EntryKind::Schedule);
        if self.inner.known.followed.version() == newest {
            return false;
        }
        let entries = self.inner.engine.entries(EntryKind::Schedule);
        let entries: BTreeMap<String, Entry> = entries.into_iter().collect();
        let mut all = self.inner.known.all.write();
        let before = all.len();
        all.retain(|name, _| entries.contains_key(name.as_str()));
        let mut is_new = all.len() < before;
        for (key, entry) in entries {
            let known = ScheduleName::parse(&key).ok();
            let known = known.and_then(|name| all.get(&name));
            if known.is_some_and(|known| known.version == entry.version) {
                continue;
            }
            is_new = true;
            match serde_json::from_slice::<Schedule>(&entry.value) {
                Ok(schedule) => {
                    let known = Known::new(schedule, entry.version);
                    all.insert(known.schedule.name.clone(), known);
                }
                Err(error) => {
                    tracing::error!(schedule = key, %error, "the catalogue's entry of a schedule cannot be read; the known version stays in effect");
                }
            }
        }
        self.inner.known.followed.up_to(newest);
        is_new
    }

    /// Decides something about schedules and commits it, one decision of this host at a time, and again if another host was quicker.
    pub(super) async fn decide_schedule<T, F>(
        &self,
        decision: impl Fn() -> F,
    ) -> Result<T, ScheduleError>
    where
        F: Future<Output = Result<T, ScheduleError>>,
    {
        let _change = self.inner.known.changes.lock().await;
        decided(&*self.inner.engine, || async {
            self.catch_up_schedules();
            decision().await
        })
        .await
    }

    /// Expects a schedule's entry to be as this host knows it, or absent if this host knows none.
    pub(super) fn schedule_as_known(&self, name: &ScheduleName) -> Expectation {
        let all = self.inner.known.all.read();
        Expectation::Entry {
            kind: EntryKind::Schedule,
            key: name.to_string(),
            version: all.get(name).map(|known| known.version),
        }
    }

    /// Expects that there are no schedules besides those that this host knows.
    fn all_schedules_as_known(&self) -> Expectation {
        Expectation::Kind {
            kind: EntryKind::Schedule,
            version: self.inner.known.followed.version(),
        }
    }

    /// All schedules, by name.
    #[must_use]
    pub fn schedules(&self) -> Vec<ScheduleStatus> {
        let all = self.inner.known.all.read();
        let now = self.inner.clock.wall();
        let seen = all.values().filter(|known| self.sees(&known.schedule.name));
        seen.map(|known| known.status(now)).collect()
    }

    /// Whether the caller may see a schedule.
    fn sees(&self, name: &ScheduleName) -> bool {
        self.caller.sees(Verb::SeeSchedule, name.as_str())
    }

    /// One schedule.
    #[must_use]
    pub fn schedule(&self, name: &ScheduleName) -> Option<ScheduleStatus> {
        let all = self.inner.known.all.read();
        let seen = all.get(name).filter(|_| self.sees(name));
        seen.map(|known| known.status(self.inner.clock.wall()))
    }

    /// Creates or changes a schedule; repeating it changes nothing. Its first message is for the next due time from now on.
    ///
    /// # Errors
    /// [`ScheduleError`].
    pub async fn put_schedule(
        &self,
        name: &ScheduleName,
        spec: ScheduleSpec,
    ) -> Result<ScheduleStatus, ScheduleError> {
        self.caller.may(Verb::SetSchedule, name.as_str())?;
        self.caller.may(Verb::Produce, spec.topic.as_str())?;
        self.check_schedule(&spec)?;
        self.decide_schedule(|| self.put_schedule_now(name, spec.clone()))
            .await
    }

    async fn put_schedule_now(
        &self,
        name: &ScheduleName,
        spec: ScheduleSpec,
    ) -> Result<ScheduleStatus, ScheduleError> {
        // The bounds cover all of them.
        let expects = vec![self.schedule_as_known(name), self.all_schedules_as_known()];
        let before = self.schedule(name);
        if let Some(same) = before.clone().filter(|b| b.schedule.spec == spec) {
            return Ok(same);
        }
        if before.is_none() && self.inner.known.all.read().len() >= SCHEDULES_MAX {
            return Err(ScheduleError::TooMany);
        }
        self.check_all_schedules(name, &spec)?;
        let before = before.map(|before| before.schedule);
        let schedule = Schedule {
            name: name.clone(),
            paused: before.as_ref().is_some_and(|before| before.paused),
            next: spec.cron.next_after(self.inner.clock.wall()),
            last: before.as_ref().and_then(|before| before.last),
            made: before.as_ref().map_or(0, |before| before.made),
            last_run: before.and_then(|before| before.last_run),
            spec,
        };
        self.keep_schedule(schedule, expects).await
    }

    /// Creates no messages until it is resumed; times missed by then are skipped.
    ///
    /// # Errors
    /// [`ScheduleError`].
    pub async fn pause_schedule(
        &self,
        name: &ScheduleName,
        paused: bool,
    ) -> Result<ScheduleStatus, ScheduleError> {
        self.caller.may(Verb::PauseSchedule, name.as_str())?;
        self.decide_schedule(|| self.pause_schedule_now(name, paused))
            .await
    }

    async fn pause_schedule_now(
        &self,
        name: &ScheduleName,
        paused: bool,
    ) -> Result<ScheduleStatus, ScheduleError> {
        let expects = vec![self.schedule_as_known(name)];
        let known = self.schedule(name);
        let known = known.ok_or_else(|| ScheduleError::Unknown(name.clone()))?;
        let mut schedule = known.schedule;
        if schedule.paused && !paused {
            schedule.next = schedule.spec.cron.next_after(self.inner.clock.wall());
        }
        schedule.paused = paused;
        self.keep_schedule(schedule, expects).await
    }

    /// Deletes a schedule; messages that it created stay.
    ///
    /// # Errors
    /// [`ScheduleError`].
    pub async fn delete_schedule(&self, name: &ScheduleName) -> Result<(), ScheduleError> {
        self.caller.may(Verb::DeleteSchedule, name.as_str())?;
        self.decide_schedule(|| self.delete_schedule_now(name))
            .await
    }

    async fn delete_schedule_now(&self, name: &ScheduleName) -> Result<(), ScheduleError> {
        let expects = vec![self.schedule_as_known(name)];
        if self.schedule(name).is_none() {
            return Err(ScheduleError::Unknown(name.clone()));
        }
        let key = name.to_string();
        let write =
            self.inner
                .catalogue
                .write_entry::<Schedule>(EntryKind::Schedule, key, None, expects);
        self.inner.known.followed.own(write.await?);
        self.inner.known.all.write().remove(name);
        Ok(())
    }

    async fn keep_schedule(
        &self,
        schedule: Schedule,
        expects: Vec<Expectation>,
    ) -> Result<ScheduleStatus, ScheduleError> {
        let name = schedule.name.clone();
        let key = name.to_string();
        let write =
            self.inner
                .catalogue
                .write_entry(EntryKind::Schedule, key, Some(&schedule), expects);
        let version = write.await?;
        self.inner.known.followed.own(version);
        let known = Known::new(schedule, version);
        let status = known.status(self.inner.clock.wall());
        let schedules = &self.inner.known;
        schedules.all.write().insert(name, known);
        schedules.changed.notify_one();
        Ok(status)
    }

    /// Whether the schedules stay within their common bound with this one. Making a message smaller
    /// is always allowed.
    fn check_all_schedules(
        &self,
        name: &ScheduleName,
        spec: &ScheduleSpec,
    ) -> Result<(), ScheduleError> {
        let (mut others, mut before) = (0, 0);
        for known in self.inner.known.all.read().values() {
            let bytes = bytes_of(&known.schedule.spec);
            match known.schedule.name == *name {
                true => before = bytes,
                false => others += bytes,
            }
        }
        let own = bytes_of(spec);
        let bytes = others + own;
        match bytes > SCHEDULES_BYTES_MAX && own > before {
            true => Err(ScheduleError::TooMuch { bytes }),
            false => Ok(()),
        }
    }

    fn check_schedule(&self, spec: &ScheduleSpec) -> Result<(), ScheduleError> {
        let message = message_of(spec);
        let bytes = bytes_of(spec);
        if bytes > SCHEDULE_MESSAGE_BYTES_MAX {
            return Err(ScheduleError::TooLarge { bytes });
        }
        Ok(self.inner.messages.check_produce(&spec.topic, &[message])?)
    }
}

/// The bytes that count towards the bounds.
fn bytes_of(spec: &ScheduleSpec) -> usize {
    let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    let header = |(name, value): &(String, String)| name.len() + value.len() + 10;
    text(&spec.key) + text(&spec.value) + spec.headers.iter().map(header).sum::<usize>()
}

/// Its message, without the host's headers.
pub(super) fn message_of(spec: &ScheduleSpec) -> NewMessage {
    let bytes = |text: &Option<String>| text.as_ref().map(|text| text.clone().into());
    let header = |(name, value): &(String, String)| Header {
        name: name.clone().into(),
        value: Some(value.clone().into()),
    };
    NewMessage {
        partition: spec.partition,
        message: Message {
            key: bytes(&spec.key),
            value: bytes(&spec.value),
            headers: spec.headers.iter().map(header).collect(),
            timestamp: Timestamp::default(),
        },
        deliver_at: None,
    }
}
