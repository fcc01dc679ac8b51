//! The handle of routes.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Weak};

use millrace_engine::{Engine, Version};
use millrace_model::bounds::ROUTE_REQUESTS_MAX;
use millrace_model::{Clock, Route, RouteCanary, RoutePath, RouteRevision};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, Semaphore};

use super::canary::Watch;
use super::finding::Finding;
use super::loading::Running;
use crate::catalogue::handle::Catalogue;
use crate::ground::caller::Caller;
use crate::handler::ModuleHost;
use crate::hosts::base::Base;
use crate::messages::handle::Messages;
use crate::processors::handle::Processors;

/// Routes, which answer HTTP requests. Cheap to clone.
#[derive(Clone)]
pub struct Routes {
    pub(super) inner: Arc<Inner>,
    pub(super) caller: Caller,
}

pub(crate) struct Inner {
    pub(super) clock: Arc<dyn Clock>,
    pub(super) engine: Arc<dyn Engine>,
    pub(super) modules: Arc<dyn ModuleHost>,
    pub(super) catalogue: Catalogue,
    /// What components send goes here.
    pub(super) messages: Messages,
    /// Whose state components read.
    pub(super) processors: Processors,
    pub(super) all: RwLock<BTreeMap<RoutePath, Arc<Known>>>,
    /// Locked while a route is changed.
    pub(super) changes: tokio::sync::Mutex<()>,
    /// Tells the task of routes that there may be something to load or to withdraw.
    pub(super) news: Arc<Notify>,
    pub(super) finding: Finding,
}

/// A route as the host knows it.
#[derive(Clone)]
pub(super) struct Known {
    pub(super) route: Arc<Route>,
    /// The version of its entry.
    pub(super) version: Version,
    /// The components of its revisions that answer requests.
    pub(super) running: Vec<Running>,
    /// The canary at work.
    pub(super) trial: Option<Arc<Trial>>,
    /// Requests that it may have at a time.
    pub(super) places: Arc<Semaphore>,
}

/// A canary at work on this host.
pub(super) struct Trial {
    pub(super) canary: RouteCanary,
    /// Where its places among the requests lie.
    pub(super) seed: u64,
    /// Requests so far, of both sides.
    pub(super) requests: AtomicU64,
    pub(super) watch: Arc<Mutex<Watch>>,
}

impl Known {
    /// A route in its stored form. What goes on as in `before` is taken over from there.
    pub(super) fn new(
        route: Route,
        version: Version,
        running: Vec<Running>,
        before: Option<&Self>,
    ) -> Self {
        let places = before.map(|before| Arc::clone(&before.places));
        let trial = route.canary.and_then(|canary| {
            let revision = route.revision(canary.revision)?;
            let trial = before.and_then(|before| before.trial.as_ref());
            Some(Arc::new(Trial::new(canary, revision, trial)))
        });
        Self {
            route: Arc::new(route),
            version,
            running,
            trial,
            places: places.unwrap_or_else(|| Arc::new(Semaphore::new(ROUTE_REQUESTS_MAX))),
        }
    }

    /// Whether everyone may call this revision.
    pub(super) fn is_public(&self, number: u32) -> bool {
        let revision = self.route.revision(number);
        revision.is_some_and(|revision| revision.spec.public)
    }

    /// The component of a revision that answers requests.
    pub(super) fn running(&self, number: u32) -> Option<&Running> {
        self.running
            .iter()
            .find(|one| one.revision.number == number)
    }
}

impl Trial {
    /// Goes on counting if only the share differs.
    fn new(canary: RouteCanary, revision: &RouteRevision, before: Option<&Arc<Self>>) -> Self {
        let before = before.filter(|before| before.canary.revision == canary.revision);
        let new = || Arc::new(Mutex::new(Watch::new(revision.spec.breaker.clone())));
        Self {
            canary,
            seed: fastrand::u64(..),
            requests: AtomicU64::new(0),
            watch: before.map_or_else(new, |before| Arc::clone(&before.watch)),
        }
    }
}

impl Routes {
    pub(crate) fn new(
        base: &Base,
        catalogue: Catalogue,
        messages: Messages,
        processors: Processors,
    ) -> Self {
        let Base {
            clock,
            engine,
            modules,
            ..
        } = base.clone();
        Self::of(Arc::new(Inner {
            clock,
            engine,
            modules,
            catalogue,
            messages,
            processors,
            all: RwLock::default(),
            changes: tokio::sync::Mutex::default(),
            news: Arc::default(),
            finding: Finding::default(),
        }))
    }

    /// The same handle for a caller.
    #[must_use]
    pub(crate) fn called_by(&self, caller: &Caller) -> Self {
        Self {
            caller: caller.clone(),
            ..self.clone()
        }
    }

    pub(super) fn of(inner: Arc<Inner>) -> Self {
        Self {
            inner,
            caller: Caller::default(),
        }
    }

    pub(crate) fn downgrade(&self) -> Weak<Inner> {
        Arc::downgrade(&self.inner)
    }

    pub(crate) fn news(&self) -> Arc<Notify> {
        Arc::clone(&self.inner.news)
    }
}
