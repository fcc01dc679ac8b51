//! The routes of the catalogue: set, shown, deleted, and followed when another host changes them.
//!
//! A component is loaded before the decision about its route, and outside of its lock: a slow load delays no other change.

use std::collections::BTreeMap;
use std::sync::Arc;

use millrace_engine::{CommitError, Entry, EntryKind, Expectation, ReadError, Version};
use millrace_model::bounds::{ANSWER_OUTPUT_BYTES_MAX, ROUTE_REQUESTS_MAX, ROUTES_MAX};
use millrace_model::processor::{Grants, Limits};
use millrace_model::{Advice, Advised, Code, Digest, Route, RoutePath, RouteSpec};
use serde::Serialize;
use tokio::sync::Semaphore;

use super::access::Access;
use super::handle::{Known, Routes};
use crate::catalogue::deciding::{decided, decision_errors};
use crate::catalogue::signatures::DistrustError;
use crate::handler::{AdmitError, GuestLine, HttpHandler, Interface, LiveConfig, LoadRequest};

/// A route and whether it can answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RouteStatus {
    /// The route as it is stored.
    #[serde(flatten)]
    pub route: Arc<Route>,
    /// Why its component cannot be called on this host; `None` if it can.
    pub problem: Option<String>,
}

/// Why a route did not change. It is unchanged.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// No such route.
    #[error("route {0} does not exist")]
    Unknown(RoutePath),
    /// The maximum number of routes exists.
    #[error("there are already {ROUTES_MAX} routes, the maximum; delete one first")]
    TooMany,
    /// No such module.
    #[error("module {0} does not exist; `module list` shows the modules that do")]
    UnknownModule(Digest),
    /// The module does not answer HTTP requests.
    #[error(
        "module {} does not export wasi:http/incoming-handler, so it cannot answer requests", .0.short()
    )]
    WrongInterface(Digest),
    /// A limit is out of range.
    #[error("the route cannot be set like this: {0}")]
    Limits(String),
    /// Its signature does not permit it.
    #[error(transparent)]
    Distrust(#[from] DistrustError),
    /// The component could not be loaded.
    #[error(transparent)]
    Admit(#[from] AdmitError),
    /// Its bytes could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// It could not be made durable.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

decision_errors! {
    RouteError: RouteError::Commit;
}

impl Advised for RouteError {
    fn advice(&self) -> Advice {
        match self {
            Self::Unknown(_) => Code::NoSuchRoute.advice(),
            Self::TooMany => Code::TooManyRoutes.advice(),
            Self::UnknownModule(_) => Code::UnknownModule.advice(),
            Self::WrongInterface(_) => Code::WrongInterface.advice(),
            Self::Limits(_) => Code::InvalidSpec.advice(),
            Self::Distrust(error) => error.advice(),
            Self::Admit(error) => error.advice(),
            Self::Read(error) => error.advice(),
            Self::Commit(error) => error.advice(),
        }
    }
}

type Loaded = Arc<dyn HttpHandler>;

impl Routes {
    /// Reads the catalogue's routes and loads their components. Those that cannot be loaded say why; the others answer.
    pub(crate) async fn start(&self) {
        self.follow().await;
    }

    /// Takes over other hosts' changes, once no change of this host is under way.
    pub(crate) async fn follow(&self) {
        if self.inner.followed.version() == self.newest() {
            return;
        }
        // Loaded before the lock; what changes meanwhile is loaded the next time.
        let mut loaded = BTreeMap::new();
        for (key, entry) in self.inner.engine.entries(EntryKind::Route) {
            let Some(route) = read(&key, &entry) else {
                continue;
            };
            if self.known_as(&route.path, entry.version) {
                continue;
            }
            let handler = self.load(&route).await;
            if let Err(error) = &handler {
                tracing::warn!(route = %route.path, %error, "the component of a route cannot be loaded");
            }
            let handler = handler.map_err(|error| error.to_string());
            loaded.insert(key, (entry.version, handler));
        }
        let _change = self.inner.changes.lock().await;
        self.catch_up(loaded);
    }

    fn newest(&self) -> Version {
        self.inner.engine.version(EntryKind::Route)
    }

    fn known_as(&self, path: &RoutePath, version: Version) -> bool {
        let all = self.inner.all.read();
        all.get(path).is_some_and(|known| known.version == version)
    }

    /// Takes the catalogue's routes over; `loaded` are components by key, for the entries' versions.
    fn catch_up(&self, mut loaded: BTreeMap<String, (Version, Result<Loaded, String>)>) {
        let newest = self.newest();
        if self.inner.followed.version() == newest {
            return;
        }
        let entries: BTreeMap<String, Entry> = self
            .inner
            .engine
            .entries(EntryKind::Route)
            .into_iter()
            .collect();
        let mut all = self.inner.all.write();
        all.retain(|path, _| entries.contains_key(path.as_str()));
        let mut is_complete = true;
        for (key, entry) in entries {
            let Some(route) = read(&key, &entry) else {
                continue;
            };
            let is_known = all.get(&route.path);
            if is_known.is_some_and(|known| known.version == entry.version) {
                continue;
            }
            match loaded.remove(&key) {
                Some((version, handler)) if version == entry.version => {
                    all.insert(route.path.clone(), Known::new(route, version, handler));
                }
                // It changed once more while its predecessor was loaded.
                _ => is_complete = false,
            }
        }
        if is_complete {
            self.inner.followed.up_to(newest);
        }
    }

    async fn load(&self, route: &Route) -> Result<Loaded, RouteError> {
        let digest = route.spec.module;
        let module = self.inner.catalogue.module_of(digest);
        let module = module.ok_or(RouteError::UnknownModule(digest))?;
        if !module.facts.exports.contains(&Interface::HttpHandler) {
            return Err(RouteError::WrongInterface(digest));
        }
        let bytes = self.inner.engine.module(digest).await?;
        let config = LiveConfig::default();
        config.set(&route.spec.config);
        let request = LoadRequest {
            digest,
            bytes: bytes.ok_or(RouteError::UnknownModule(digest))?,
            owner: route.path.to_string(),
            revision: route.revision,
            limits: route.spec.limits.clone(),
            grants: route.spec.grants.clone(),
            config,
            access: Some(Arc::new(self.access(route))),
        };
        Ok(self.inner.modules.http_handler(request).await?)
    }

    fn access(&self, route: &Route) -> Access {
        Access {
            path: route.path.clone(),
            grants: route.spec.grants.clone(),
            call_ms_max: route.spec.limits.call_ms_max,
            messages: self.inner.messages.clone(),
            processors: self.inner.processors.clone(),
        }
    }

    /// All routes, by path.
    #[must_use]
    pub fn routes(&self) -> Vec<RouteStatus> {
        self.inner.all.read().values().map(Known::status).collect()
    }

    /// One route.
    #[must_use]
    pub fn route(&self, path: &RoutePath) -> Option<RouteStatus> {
        self.inner.all.read().get(path).map(Known::status)
    }

    /// The last lines that a route's component logged on this host, newest last.
    #[must_use]
    pub fn logs(&self, path: &RoutePath) -> Vec<GuestLine> {
        self.inner.modules.route_logs(path)
    }

    /// Creates or changes a route; repeating it changes nothing. Requests that are being answered end as they began.
    ///
    /// # Errors
    /// [`RouteError`]; nothing changed.
    pub async fn set_route(
        &self,
        path: &RoutePath,
        spec: RouteSpec,
    ) -> Result<RouteStatus, RouteError> {
        let before = self.inner.all.read().get(path).cloned();
        if let Some(known) =
            before.filter(|known| known.route.spec == spec && known.handler.is_ok())
        {
            return Ok(known.status());
        }
        self.check_limits(&spec.limits)?;
        check_grants(&spec.grants)?;
        self.inner.catalogue.check_trusted(spec.module).await?;
        let route = Route {
            path: path.clone(),
            spec,
            revision: self.revision_of(path) + 1,
            set_at: self.inner.clock.wall(),
            set_by: self.caller.name().map(ToOwned::to_owned),
        };
        let handler = self.load(&route).await?;
        let _change = self.inner.changes.lock().await;
        decided(&*self.inner.engine, || {
            self.set_route_now(route.clone(), Arc::clone(&handler))
        })
        .await
    }

    /// Like those of a processor: in range, and allowed by this host.
    fn check_limits(&self, limits: &Limits) -> Result<(), RouteError> {
        let memory_max = self.inner.catalogue.guest_limits().guest_memory_bytes_max;
        let host = [
            (
                "limits.memory_bytes_max",
                limits.memory_bytes_max,
                1,
                memory_max,
            ),
            (
                "limits.answer_bytes_max",
                limits.answer_bytes_max,
                1,
                ANSWER_OUTPUT_BYTES_MAX as u64,
            ),
        ];
        let all = limits.ranges().into_iter().chain(host);
        for (field, value, from, to) in all {
            if !(from..=to).contains(&value) {
                let why = format!("{field} is {value}; it must be {from} to {to}");
                return Err(RouteError::Limits(why));
            }
        }
        Ok(())
    }

    async fn set_route_now(
        &self,
        mut route: Route,
        handler: Loaded,
    ) -> Result<RouteStatus, RouteError> {
        self.catch_up(BTreeMap::new());
        // The bound covers all of them, and the module must still be there.
        let kind = EntryKind::Route;
        let digest = route.spec.module;
        let expects = vec![
            Expectation::Kind {
                kind,
                version: self.newest(),
            },
            self.inner.catalogue.module_as_now(digest),
        ];
        if self.inner.catalogue.module_of(digest).is_none() {
            return Err(RouteError::UnknownModule(digest));
        }
        let stored = self.inner.engine.entries(kind);
        let is_new = stored.iter().all(|(key, _)| key != route.path.as_str());
        if is_new && stored.len() >= ROUTES_MAX {
            return Err(RouteError::TooMany);
        }
        route.revision = self.revision_of(&route.path) + 1;
        let key = route.path.to_string();
        let write = self
            .inner
            .catalogue
            .write_entry(kind, key, Some(&route), expects);
        let version = write.await?;
        self.inner.followed.own(version);
        let known = Known::new(route, version, Ok(handler));
        let status = known.status();
        let path = known.route.path.clone();
        self.inner.all.write().insert(path, known);
        Ok(status)
    }

    /// The revision that is stored; 0 if there is none.
    fn revision_of(&self, path: &RoutePath) -> u32 {
        let entry = self.inner.engine.entry(EntryKind::Route, path.as_str());
        let route = entry.and_then(|entry| read(path.as_str(), &entry));
        route.map_or(0, |route| route.revision)
    }

    /// Deletes a route: its requests are unknown paths again.
    ///
    /// # Errors
    /// [`RouteError`]; it still exists.
    pub async fn delete_route(&self, path: &RoutePath) -> Result<(), RouteError> {
        let _change = self.inner.changes.lock().await;
        decided(&*self.inner.engine, || self.delete_route_now(path)).await
    }

    async fn delete_route_now(&self, path: &RoutePath) -> Result<(), RouteError> {
        let (kind, key) = (EntryKind::Route, path.to_string());
        let entry = self.inner.engine.entry(kind, &key);
        let entry = entry.ok_or_else(|| RouteError::Unknown(path.clone()))?;
        let expects = vec![Expectation::entry(kind, key.clone(), Some(&entry))];
        let write = self
            .inner
            .catalogue
            .write_entry::<Route>(kind, key, None, expects);
        self.inner.followed.own(write.await?);
        self.inner.all.write().remove(path);
        self.inner.modules.forget_route_logs(path);
        Ok(())
    }
}

impl Known {
    fn new(route: Route, version: Version, handler: Result<Loaded, String>) -> Self {
        Self {
            route: Arc::new(route),
            version,
            handler,
            places: Arc::new(Semaphore::new(ROUTE_REQUESTS_MAX)),
        }
    }

    fn status(&self) -> RouteStatus {
        RouteStatus {
            route: Arc::clone(&self.route),
            problem: self.handler.as_ref().err().cloned(),
        }
    }
}

fn check_grants(grants: &Grants) -> Result<(), RouteError> {
    let lengths = grants.lengths();
    match lengths.into_iter().find(|(_, count, max)| count > max) {
        None => Ok(()),
        Some((field, count, max)) => Err(RouteError::Limits(format!(
            "{field} has {count} entries; the maximum is {max}"
        ))),
    }
}

/// A stored route.
fn read(key: &str, entry: &Entry) -> Option<Route> {
    match serde_json::from_slice(&entry.value) {
        Ok(route) => Some(route),
        Err(error) => {
            tracing::error!(route = key, %error, "the catalogue's entry of a route cannot be read");
            None
        }
    }
}
