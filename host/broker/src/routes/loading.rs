//! Loads the components of routes: those that another host has set, and those that could not be loaded before.
//!
//! The task of routes loads up to [`ROUTE_LOADS_MAX`] routes at once, outside of every lock, so a slow load delays neither a change nor
//! another route. A route answers as before until the load of its new form has ended.

use std::collections::HashSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::{BoxFuture, join_all};
use futures_util::stream::FuturesUnordered;
use millrace_engine::{EntryKind, Version};
use millrace_model::bounds::ROUTE_LOADS_MAX;
use millrace_model::{Route, RoutePath, RouteRevision};
use tokio::sync::{Notify, watch};

use super::access::Access;
use super::error::RouteError;
use super::handle::{Inner, Known, Routes};
use super::keeping::read;
use crate::ground::backoff::{LOAD_AGAIN_MAX, load_again_after, may_pass};
use crate::handler::{HttpHandler, Interface, LiveConfig, LoadRequest};

/// Why a route cannot answer yet.
pub(super) const IS_BEING_LOADED: &str = "it is being loaded";

/// A revision that answers requests, and its component.
#[derive(Clone)]
pub(super) struct Running {
    pub(super) revision: RouteRevision,
    pub(super) handler: Result<Arc<dyn HttpHandler>, Problem>,
}

/// Why a component is not loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) why: String,
    /// Whether it may pass by itself: the engine could not read, the host was busy.
    is_passing: bool,
    /// Attempts so far.
    attempts: u32,
    /// When a passing problem is due again.
    again_at: Duration,
    /// The catalogue's modules at the time: a module that comes later may be the missing one.
    modules: Version,
}

impl Problem {
    /// A component that nobody has tried to load yet.
    fn not_loaded() -> Self {
        Self {
            why: IS_BEING_LOADED.to_owned(),
            is_passing: true,
            attempts: 0,
            again_at: Duration::ZERO,
            modules: Version::default(),
        }
    }

    fn of(error: &RouteError, before: Option<&Self>, now: Duration, modules: Version) -> Self {
        let attempts = before.map_or(0, |before| before.attempts).saturating_add(1);
        Self {
            why: error.to_string(),
            is_passing: may_pass(error),
            attempts,
            again_at: now.saturating_add(load_again_after(attempts)),
            modules,
        }
    }

    /// Whether to load it again now. `has_news`: the catalogue has changed.
    fn is_due(&self, now: Duration, has_news: bool, modules: Version) -> bool {
        match self.is_passing {
            true => has_news || now >= self.again_at,
            false => modules != self.modules,
        }
    }
}

/// What is looked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    /// Routes that nobody has tried to load.
    First,
    /// Also those whose time has come.
    Again,
    /// Also those that may load now because the catalogue has changed.
    News,
}

/// What the task has finished.
enum Done {
    Brought(RoutePath),
    Withdrew(RoutePath),
}

type UnderWay = FuturesUnordered<BoxFuture<'static, Done>>;

/// What the task has begun and not finished.
#[derive(Default)]
struct Begun {
    loads: HashSet<RoutePath>,
    withdrawals: HashSet<RoutePath>,
}

/// Loads and withdraws until told to stop, or until the broker is gone.
pub(crate) async fn run(routes: Weak<Inner>, news: Arc<Notify>, mut stop: watch::Receiver<bool>) {
    let (mut under_way, mut begun) = (UnderWay::new(), Begun::default());
    let mut look = Look::Again;
    loop {
        let Some(inner) = routes.upgrade() else {
            return;
        };
        let next = Routes::of(inner).begin(&mut under_way, &mut begun, look);
        look = Look::Again;
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = news.notified() => look = Look::News,
            Some(done) = under_way.next() => begun.end(&done),
            () = tokio::time::sleep(next) => {}
        }
    }
}

impl Begun {
    fn end(&mut self, done: &Done) {
        match done {
            Done::Brought(path) => self.loads.remove(path),
            Done::Withdrew(path) => self.withdrawals.remove(path),
        };
    }
}

impl Routes {
    /// Reads the catalogue's routes and loads their components. Those that cannot be loaded say why; the others answer.
    pub(crate) async fn start(&self) {
        let (mut under_way, mut begun) = (UnderWay::new(), Begun::default());
        self.begin(&mut under_way, &mut begun, Look::First);
        while let Some(done) = under_way.next().await {
            begun.end(&done);
            self.begin(&mut under_way, &mut begun, Look::First);
        }
    }

    /// Begins what is due and has a place; returns when something is due next.
    fn begin(&self, under_way: &mut UnderWay, begun: &mut Begun, look: Look) -> Duration {
        let (now, modules) = (self.inner.clock.monotonic(), self.modules_version());
        let mut next = LOAD_AGAIN_MAX;
        for (key, entry) in self.inner.engine.entries(EntryKind::Route) {
            let Ok(path) = RoutePath::parse(&key) else {
                continue;
            };
            let known = self.inner.all.read().get(&path).cloned();
            let as_stored = known
                .as_ref()
                .filter(|known| known.version == entry.version);
            if let Some(known) = as_stored {
                self.begin_withdrawal(known, under_way, begun);
                let problems = known
                    .running
                    .iter()
                    .filter_map(|one| one.handler.as_ref().err());
                let problems: Vec<&Problem> = problems.collect();
                let is_due = |problem: &&Problem| problem.is_due(now, look == Look::News, modules);
                if look == Look::First || !problems.iter().any(is_due) {
                    let passing = problems.iter().filter(|problem| problem.is_passing);
                    let waits = passing.map(|problem| problem.again_at.saturating_sub(now));
                    next = waits.fold(next, Duration::min);
                    continue;
                }
            }
            let is_under_way = begun.loads.contains(&path);
            if is_under_way || begun.loads.len() >= ROUTE_LOADS_MAX {
                // Whatever ends gives the next one its place.
                continue;
            }
            let Some(route) = read(&key, &entry) else {
                continue;
            };
            begun.loads.insert(path.clone());
            let routes = self.clone();
            under_way.push(Box::pin(async move {
                routes.bring(route, entry.version, known).await;
                Done::Brought(path)
            }));
        }
        next.max(Duration::from_millis(1))
    }

    fn begin_withdrawal(&self, known: &Known, under_way: &mut UnderWay, begun: &mut Begun) {
        let Some(trial) = &known.trial else {
            return;
        };
        let why = trial.watch.lock().trouble().map(ToOwned::to_owned);
        let (path, revision) = (known.route.path.clone(), trial.canary.revision);
        let Some(why) = why.filter(|_| !begun.withdrawals.contains(&path)) else {
            return;
        };
        begun.withdrawals.insert(path.clone());
        let routes = self.by_itself();
        under_way.push(Box::pin(async move {
            routes.withdraw_by_itself(&path, revision, &why).await;
            Done::Withdrew(path)
        }));
    }

    /// Loads a route as it is stored, and lets it answer if it still is.
    async fn bring(&self, route: Route, version: Version, known: Option<Arc<Known>>) {
        let earlier = known.as_ref().map_or(&[][..], |known| &known.running);
        let running = self.load_running(&route, earlier).await;
        let _change = self.inner.changes.lock().await;
        let entry = self
            .inner
            .engine
            .entry(EntryKind::Route, route.path.as_str());
        // It changed once more while it was loaded, or was deleted.
        if entry.is_none_or(|entry| entry.version != version) {
            return;
        }
        self.know(route, version, running);
    }

    /// The revisions of a route that answer requests, with their components: those in `earlier` as they are if they are loaded.
    async fn load_running(&self, route: &Route, earlier: &[Running]) -> Vec<Running> {
        let load = |revision| {
            let same = earlier.iter().find(|one| one.is_of(revision));
            self.load_one(route, revision, same)
        };
        join_all(route.running().map(load)).await
    }

    async fn load_one(
        &self,
        route: &Route,
        revision: &RouteRevision,
        same: Option<&Running>,
    ) -> Running {
        if let Some(loaded) = same.filter(|one| one.handler.is_ok()) {
            return loaded.clone();
        }
        let modules = self.modules_version();
        let loaded = self.load(route, revision).await;
        let handler = loaded.map_err(|error| {
            let number = revision.number;
            tracing::warn!(route = %route.path, revision = number, %error, "the component of a route cannot be loaded");
            let before = same.and_then(|one| one.handler.as_ref().err());
            Problem::of(&error, before, self.inner.clock.monotonic(), modules)
        });
        Running {
            revision: revision.clone(),
            handler,
        }
    }

    /// Those revisions without loading any: from `loaded` and from what is known; what is missing is loaded later.
    pub(super) fn running_now(&self, route: &Route, loaded: &[Running]) -> Vec<Running> {
        let known = self.inner.all.read().get(&route.path).cloned();
        let known = known.as_deref().map_or(&[][..], |known| &known.running);
        let all = || loaded.iter().chain(known);
        let running = route.running().map(|revision| {
            let fitting = || all().filter(|one| one.is_of(revision));
            let found = fitting().find(|one| one.handler.is_ok());
            found
                .or_else(|| fitting().next())
                .cloned()
                .unwrap_or(Running {
                    revision: revision.clone(),
                    handler: Err(Problem::not_loaded()),
                })
        });
        running.collect()
    }

    /// Loads a revision's component.
    pub(super) async fn load(
        &self,
        route: &Route,
        revision: &RouteRevision,
    ) -> Result<Arc<dyn HttpHandler>, RouteError> {
        let spec = &revision.spec;
        let digest = spec.module;
        let module = self.inner.catalogue.module_of(digest);
        let module = module.ok_or(RouteError::UnknownModule(digest))?;
        if !module.facts.exports.contains(&Interface::HttpHandler) {
            return Err(RouteError::WrongInterface(digest));
        }
        let bytes = self.inner.engine.module(digest).await?;
        let config = LiveConfig::default();
        config.set(&spec.config);
        let request = LoadRequest {
            digest,
            bytes: bytes.ok_or(RouteError::UnknownModule(digest))?,
            owner: route.path.to_string(),
            revision: revision.number,
            limits: spec.limits.clone(),
            grants: spec.grants.clone(),
            config,
            access: Some(Arc::new(Access {
                path: route.path.clone(),
                grants: spec.grants.clone(),
                call_ms_max: spec.limits.call_ms_max,
                messages: self.inner.messages.clone(),
                processors: self.inner.processors.clone(),
            })),
        };
        Ok(self.inner.modules.http_handler(request).await?)
    }

    fn modules_version(&self) -> Version {
        self.inner.engine.version(EntryKind::Module)
    }
}

impl Running {
    /// Whether it is this revision: one of the same number may belong to a deleted route.
    pub(super) fn is_of(&self, revision: &RouteRevision) -> bool {
        self.revision.number == revision.number && self.revision.spec == revision.spec
    }
}

#[cfg(test)]
mod tests {
    use millrace_engine::ReadError;
    use millrace_model::Digest;

    use super::*;
    use crate::handler::AdmitError;

    fn problem(error: &RouteError, before: Option<&Problem>) -> Problem {
        Problem::of(error, before, Duration::from_secs(100), Version(7))
    }

    #[test]
    fn what_may_pass_is_tried_again_later_and_later_and_at_every_change_of_the_catalogue() {
        let busy = AdmitError::Busy {
            reason: "others".to_owned(),
            retry_after_s: 1,
        };
        let error = RouteError::Admit(busy);
        let first = problem(&error, None);
        let at = |ms: u64| Duration::from_millis(100_000 + ms);
        assert!(!first.is_due(at(249), false, Version(7)));
        assert!(first.is_due(at(250), false, Version(7)));
        assert!(first.is_due(at(0), true, Version(7)));
        let second = problem(&error, Some(&first));
        assert!(!second.is_due(at(499), false, Version(8)));
        assert!(second.is_due(at(500), false, Version(7)));
        let waits: Vec<Duration> = (1..100).map(load_again_after).collect();
        assert!(waits.is_sorted());
        assert_eq!(waits.last(), Some(&LOAD_AGAIN_MAX));
    }

    #[test]
    fn what_does_not_pass_is_tried_again_only_when_there_are_other_modules() {
        let gone = problem(&RouteError::UnknownModule(Digest([1; 32])), None);
        assert!(!gone.is_due(Duration::from_secs(1_000), true, Version(7)));
        assert!(gone.is_due(Duration::ZERO, false, Version(8)));
        let read = ReadError::Unavailable("cut off".into());
        assert!(problem(&RouteError::Read(read), None).is_passing);
    }
}
