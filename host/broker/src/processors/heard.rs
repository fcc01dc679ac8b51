//! Starts processors as other hosts have stored them. [`super::following`] makes them known under the catalogue's lock, which takes no
//! time; the components are loaded here, without the lock, so that a slow load of what another host deployed delays no change on this one.
//! Until then the workers continue with what they run.
//!
//! Loads that fail because of the host or its store are tried again, later each time; meanwhile the workers continue, too.
//!
//! A start is a turn as of any change ([`super::turns`]): it decides on what is known at that moment, and a start that turns out to lack a
//! component loads it and begins again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use millrace_engine::Version;
use millrace_model::ProcessorName;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::catalogue::deciding::DecisionError as _;
use crate::ground::backoff::{LOAD_AGAIN_MAX, load_again_after, may_pass};
use crate::processors::error::ProcessorError;
use crate::processors::handle::Processors;
use crate::processors::loaded::Loaded;
use crate::processors::turns::TurnError;

/// How many processors are loaded at the same time, so that slow loads do not hold up the others. What is more waits for one to end.
const STARTS_MAX: usize = 4;

/// After so many failed starts the workers do not continue with what is no longer wanted, though the start is still tried.
const FAILURES_PATIENT_MAX: u32 = 6;

/// Processors that this host knows as they are stored and does not run like that yet.
#[derive(Default)]
pub(crate) struct Heard {
    waiting: Mutex<BTreeMap<ProcessorName, Wish>>,
    more: Notify,
}

/// What is to happen with a processor besides its start.
#[derive(Clone, Copy, Default)]
struct Wish {
    /// It was resumed on another host, with this many dead letters accepted.
    resumed: Option<u64>,
    /// Starts that failed for a passing reason, since it last changed.
    failures: u32,
    /// When it is to be started, by the monotonic clock.
    due: Duration,
    /// Whether it is being started.
    is_under_way: bool,
}

impl Heard {
    /// A processor has changed, and perhaps was resumed.
    pub(super) fn of(&self, name: &ProcessorName, resumed: Option<u64>) {
        let mut waiting = self.waiting.lock();
        let wish = waiting.entry(name.clone()).or_default();
        let accepted = wish.resumed.into_iter().chain(resumed);
        wish.resumed = accepted.reduce(u64::saturating_add);
        // If it is being started, that may be as it was before.
        (wish.failures, wish.due) = (0, Duration::ZERO);
        drop(waiting);
        self.more.notify_one();
    }

    /// Whether it is known here and not started yet.
    pub(super) fn waits(&self, name: &ProcessorName) -> bool {
        self.waiting.lock().contains_key(name)
    }

    /// It was deleted.
    pub(super) fn forget(&self, name: &ProcessorName) {
        self.waiting.lock().remove(name);
    }

    /// Returns when there is more to start.
    pub(crate) async fn more(&self) {
        self.more.notified().await;
    }

    /// The next one to start.
    fn begin(&self, now: Duration) -> Option<ProcessorName> {
        let mut waiting = self.waiting.lock();
        let mut all = waiting.iter_mut();
        let (name, wish) = all.find(|(_, wish)| !wish.is_under_way && wish.due <= now)?;
        wish.is_under_way = true;
        Some(name.clone())
    }

    /// Its start has ended. If it still waits, it is started again when that is due.
    fn end(&self, name: &ProcessorName) {
        if let Some(wish) = self.waiting.lock().get_mut(name) {
            wish.is_under_way = false;
        }
    }

    /// How long until the next one is due.
    fn next_due(&self, now: Duration) -> Duration {
        let waiting = self.waiting.lock();
        let idle = waiting.values().filter(|wish| !wish.is_under_way);
        let waits = idle.map(|wish| wish.due.saturating_sub(now));
        waits.fold(LOAD_AGAIN_MAX, Duration::min)
    }

    /// A start has failed and is tried again; returns how many have failed.
    fn again(&self, name: &ProcessorName, now: Duration) -> Option<u32> {
        let mut waiting = self.waiting.lock();
        let wish = waiting.get_mut(name)?;
        wish.failures = wish.failures.saturating_add(1);
        let wait = load_again_after(wish.failures);
        wish.due = now.saturating_add(wait);
        Some(wish.failures)
    }
}

/// A start under way; it ends when this is dropped, however that happens.
struct Start {
    heard: Arc<Heard>,
    name: ProcessorName,
}

impl Drop for Start {
    fn drop(&mut self) {
        self.heard.end(&self.name);
        // What waits for a place has one.
        self.heard.more.notify_one();
    }
}

impl Processors {
    /// Begins to start what this host has heard of by now, and what is to be tried again; returns when that is next.
    pub(crate) fn start_what_is_heard(&self, under_way: &mut JoinSet<()>) -> Duration {
        while under_way.try_join_next().is_some() {}
        let heard = &self.inner.heard;
        let now = self.inner.clock.monotonic();
        while under_way.len() < STARTS_MAX {
            let Some(name) = heard.begin(now) else {
                return heard.next_due(now);
            };
            let heard = Arc::clone(heard);
            let (processors, start) = (self.clone(), Start { heard, name });
            under_way.spawn(async move { processors.start_heard(&start.name).await });
        }
        // Whatever ends gives the next one its place.
        LOAD_AGAIN_MAX
    }

    async fn start_heard(&self, name: &ProcessorName) {
        // A stop waits for this as for any change.
        let _under_way = self.inner.changes_under_way.read().await;
        let tried = Mutex::new(None);
        let turn = |loaded: Arc<Loaded>| self.start_as_known(name, loaded, &tried);
        let Err(error) = self.load_between(name, turn).await else {
            return;
        };
        let _change = self.inner.catalogue.change().await;
        // If it has changed meanwhile, its next start is still to come.
        let is_same = |version| Some(version) == *tried.lock();
        let known = self.inner.catalogue.deployed(name);
        if !known.is_some_and(|known| is_same(known.version)) {
            return;
        }
        let failures = match may_pass(&error) || error.is_conflict() {
            true => self.inner.heard.again(name, self.inner.clock.monotonic()),
            false => None,
        };
        if failures.is_none() {
            self.is_started(name);
        }
        match failures {
            Some(failures) if failures < FAILURES_PATIENT_MAX => {
                tracing::warn!(processor = %name, %error, failures, "a processor cannot be started now; it is tried again");
            }
            _ => self.cannot_run(name, &error).await,
        }
    }

    /// One turn: starts the processor as it is known now.
    async fn start_as_known(
        &self,
        name: &ProcessorName,
        loaded: Arc<Loaded>,
        tried: &Mutex<Option<Version>>,
    ) -> Result<(), TurnError> {
        let _change = self.inner.catalogue.change().await;
        let known = self.inner.catalogue.deployed(name);
        let Some(known) = known.filter(|_| self.inner.heard.waits(name)) else {
            return Ok(());
        };
        *tried.lock() = Some(known.version);
        let (prepared, trial_problem) = self
            .prepare_alone_if_need_be(&known.processor, &loaded)
            .await?;
        self.run(&known.processor, prepared).await;
        self.know_with(known.processor, known.version, None, trial_problem);
        self.is_started(name);
        Ok(())
    }

    /// This host cannot run what another one has stored, and what it ran before is no longer wanted.
    async fn cannot_run(&self, name: &ProcessorName, error: &ProcessorError) {
        tracing::error!(processor = %name, %error, "a processor cannot be started; the others run");
        self.inner.catalogue.amend(name, |known| {
            known.problem = Some(error.to_string());
        });
        self.inner.supervisor.stop(name).await;
    }

    fn is_started(&self, name: &ProcessorName) {
        let wish = self.inner.heard.waiting.lock().remove(name);
        self.resume_here(name, wish.and_then(|wish| wish.resumed));
        self.have_sent_what_was_left(name);
    }
}
