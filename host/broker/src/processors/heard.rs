//! Starts processors as other hosts have stored them. [`super::following`] makes them known under the catalogue's lock, which takes no
//! time; the components are loaded here, without the lock, so that a slow load of what another host deployed delays no change on this one.
//! Until then the workers continue with what they run.
//!
//! A start is a turn as of any change ([`super::turns`]): it decides on what is known at that moment, and a start that turns out to lack a
//! component loads it and begins again.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::iter;
use millrace_engine::Version;
use millrace_model::ProcessorName;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::processors::error::ProcessorError;
use crate::processors::handle::Processors;
use crate::processors::loaded::Loaded;
use crate::processors::turns::TurnError;

/// How many processors are loaded at the same time, so that one slow load does not hold up all others.
const STARTS_MAX: usize = 4;

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
}

impl Heard {
    /// A processor has changed, and perhaps was resumed.
    pub(super) fn of(&self, name: &ProcessorName, resumed: Option<u64>) {
        let mut waiting = self.waiting.lock();
        let wish = waiting.entry(name.clone()).or_default();
        let accepted = wish.resumed.into_iter().chain(resumed);
        wish.resumed = accepted.reduce(u64::saturating_add);
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

    fn names(&self) -> Vec<ProcessorName> {
        self.waiting.lock().keys().cloned().collect()
    }
}

impl Processors {
    /// Starts what this host has heard of by now.
    pub(crate) async fn start_what_is_heard(&self) {
        let names = self.inner.heard.names();
        let starts = iter(names).map(|name| async move { self.start_heard(&name).await });
        let starts = starts.buffer_unordered(STARTS_MAX);
        starts.collect::<Vec<()>>().await;
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
        if known.is_some_and(|known| is_same(known.version)) {
            self.cannot_run(name, &error).await;
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
        self.is_started(name);
        self.inner.supervisor.stop(name).await;
    }

    fn is_started(&self, name: &ProcessorName) {
        let wish = self.inner.heard.waiting.lock().remove(name);
        self.resume_here(name, wish.and_then(|wish| wish.resumed));
        self.have_sent_what_was_left(name);
    }
}
