//! The routes of the catalogue: set, tried, rolled back, shown, deleted, and followed when another host changes them.
//!
//! A change is made in turns. A turn decides under the lock of changes, on the stored entry, and commits. If the decision needs a
//! component that is not loaded, the lock is released while it loads, and the next turn decides again: a slow load delays no other
//! change.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use metrics::counter;
use millrace_engine::{CommitError, Entry, EntryKind, Expectation, Transaction, Version};
use millrace_model::bounds::{ANSWER_OUTPUT_BYTES_MAX, ROUTE_WINDOW_REQUESTS_MAX, ROUTES_MAX};
use millrace_model::{Durability, Route, RouteCanary, RoutePath, RouteRevision, RouteSpec};

use super::canary::RouteSideStatus;
use super::error::RouteError;
use super::handle::{Known, Routes};
use super::loading::Running;
use super::revisions::{self, Asked, Asks};
use crate::catalogue::deciding::decided;
use crate::ground::caller::Caller;
use crate::ground::standing::Forbidden;
use crate::ground::verbs::Verb;
use crate::handler::GuestLine;

/// Maximum number of turns of a change. If the loaded component still does not fit, it fails with a conflict.
const TURNS_MAX: usize = 16;

/// How long a withdrawal that the engine refused waits before it is tried again.
const WITHDRAW_AGAIN: Duration = Duration::from_secs(1);

/// A route and whether it can answer.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteStatus {
    /// The route as it is stored.
    pub route: Arc<Route>,
    /// Why the current revision's component cannot be called on this host; `None` if it can.
    pub problem: Option<String>,
    /// How its canary does; `None` without one.
    pub canary: Option<RouteCanaryStatus>,
    /// The revision that a rollback would return to, besides withdrawing a canary.
    pub way_back: Option<u32>,
}

/// How a route's canary compares with the current revision, on this host.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteCanaryStatus {
    /// Its number, its share, and since when.
    pub canary: RouteCanary,
    /// Its requests.
    pub requests: RouteSideStatus,
    /// Those of the current revision, in the same time.
    pub current: RouteSideStatus,
    /// Why it gets no more requests and is about to be withdrawn; `None` otherwise.
    pub trouble: Option<String>,
    /// Why its component cannot be called on this host, so that the current revision answers all requests; `None` if it can.
    pub problem: Option<String>,
}

/// What a turn decides.
struct Decided {
    /// The route as it should be; the same as before if nothing changes.
    route: Route,
    /// A revision whose component must be loaded first.
    must_run: Option<u32>,
}

/// How a turn ended.
enum Turn {
    Made(RouteStatus),
    /// This component must be loaded first.
    Lacks(Box<Lacking>),
}

/// A changed route, and the revision of it that is not loaded.
struct Lacking {
    route: Route,
    revision: RouteRevision,
}

impl Routes {
    /// Takes over other hosts' changes: what was deleted is gone on return, and the task of routes loads the rest.
    pub(crate) async fn follow(&self) {
        {
            let _change = self.inner.changes.lock().await;
            let entries = self.inner.engine.entries(EntryKind::Route);
            let kept: HashSet<&str> = entries.iter().map(|(key, _)| key.as_str()).collect();
            let mut all = self.inner.all.write();
            all.retain(|path, _| {
                let is_kept = kept.contains(path.as_str());
                if !is_kept {
                    self.inner.modules.forget_route_logs(path);
                }
                is_kept
            });
        }
        self.inner.news.notify_one();
    }

    /// All routes, by path.
    #[must_use]
    pub fn routes(&self) -> Vec<RouteStatus> {
        let all: Vec<Arc<Known>> = self.inner.all.read().values().cloned().collect();
        let seen = all.iter().filter(|known| self.sees(&known.route.path));
        seen.map(|known| self.status(known)).collect()
    }

    /// Whether the caller may see a route.
    fn sees(&self, path: &RoutePath) -> bool {
        self.caller.sees(Verb::SeeRoute, path.as_str())
    }

    /// One route.
    #[must_use]
    pub fn route(&self, path: &RoutePath) -> Option<RouteStatus> {
        let known = self.inner.all.read().get(path).cloned();
        let seen = known.filter(|_| self.sees(path));
        seen.map(|known| self.status(&known))
    }

    /// Whether the route exists and no longer keeps this revision.
    #[must_use]
    pub fn has_dropped(&self, path: &str, revision: u32) -> bool {
        let all = self.inner.all.read();
        let path = RoutePath::parse(path).ok();
        let known = path.and_then(|path| all.get(&path));
        known.is_some_and(|known| known.route.revision(revision).is_none())
    }

    /// The last lines that a route's components logged on this host, newest last.
    ///
    /// # Errors
    /// [`Forbidden`].
    pub fn logs(&self, path: &RoutePath) -> Result<Vec<GuestLine>, Forbidden> {
        self.caller.may(Verb::ReadRouteLogs, path.as_str())?;
        Ok(self.inner.modules.route_logs(path))
    }

    fn status(&self, known: &Known) -> RouteStatus {
        let route = &known.route;
        let problem = |number| {
            let running = known.running(number)?;
            let problem = running.handler.as_ref().err()?;
            Some(problem.why.clone())
        };
        let canary = known.trial.as_ref().map(|trial| {
            let watch = trial.watch.lock();
            let [requests, current] = watch.sides();
            RouteCanaryStatus {
                canary: trial.canary,
                requests,
                current,
                trouble: watch.trouble().map(ToOwned::to_owned),
                problem: problem(trial.canary.revision),
            }
        });
        RouteStatus {
            problem: problem(route.current),
            canary,
            way_back: route.way_back(|r| self.can_run(r)).map(|r| r.number),
            route: Arc::clone(route),
        }
    }

    /// Creates a route or makes a definition current; repeating it changes nothing. Requests that are being answered end as they began.
    ///
    /// # Errors
    /// [`RouteError`]; nothing changed.
    pub async fn set_route(
        &self,
        path: &RoutePath,
        spec: RouteSpec,
    ) -> Result<RouteStatus, RouteError> {
        self.caller.may(Verb::SetRoute, path.as_str())?;
        self.check(&spec).await?;
        let trouble = self.trouble(path);
        self.change(path, |route, asked| {
            let route = match route {
                Some(mut route) => {
                    revisions::set(&mut route, asked, trouble.as_deref(), spec.clone())?;
                    route
                }
                None => revisions::create(path, spec.clone(), asked),
            };
            Ok(Decided {
                must_run: Some(route.current),
                route,
            })
        })
        .await
    }

    /// Puts a definition on trial: it answers `percent` of the requests, and the current revision the others. An existing canary with
    /// the same definition continues with the new share.
    ///
    /// # Errors
    /// [`RouteError`]; nothing changed.
    pub async fn set_canary(
        &self,
        path: &RoutePath,
        spec: RouteSpec,
        percent: u32,
    ) -> Result<RouteStatus, RouteError> {
        self.caller.may(Verb::SetRoute, path.as_str())?;
        self.check(&spec).await?;
        self.change_existing(path, |route, asked| {
            revisions::begin_canary(route, asked, spec.clone(), percent)?;
            Ok(route.on_trial())
        })
        .await
    }

    /// Changes the canary's share; 0 withdraws it.
    ///
    /// # Errors
    /// [`RouteError`]; nothing changed.
    pub async fn share_canary(
        &self,
        path: &RoutePath,
        percent: u32,
    ) -> Result<RouteStatus, RouteError> {
        self.caller.may(Verb::SetRoute, path.as_str())?;
        self.change_existing(path, |route, asked| {
            revisions::change_share(route, asked, percent)?;
            Ok(None)
        })
        .await
    }

    /// Makes the canary current; one that is about to be withdrawn only if `anyway`.
    ///
    /// # Errors
    /// [`RouteError`]; nothing changed.
    pub async fn promote_canary(
        &self,
        path: &RoutePath,
        anyway: bool,
    ) -> Result<RouteStatus, RouteError> {
        self.caller.may(Verb::SetRoute, path.as_str())?;
        let trouble = self.trouble(path);
        self.change_existing(path, |route, asked| {
            let before = route.current().map(|before| before.spec.clone());
            revisions::promote(route, asked, trouble.as_deref(), anyway)?;
            let now = route.current().map(|now| &now.spec);
            self.check_further_rights(path, before.as_ref(), now)?;
            Ok(Some(route.current))
        })
        .await
    }

    /// Rolls back to a revision, or to the last one before the current one. Without a number, or with that of the current one, it
    /// withdraws a canary, and the current one stays. Refused unless the revision that is taken back is the `expected` one, if given:
    /// so a repeated request rolls back only once.
    ///
    /// # Errors
    /// [`RouteError`]; nothing changed.
    pub async fn roll_back_route(
        &self,
        path: &RoutePath,
        revision: Option<u32>,
        expected: Option<u32>,
    ) -> Result<RouteStatus, RouteError> {
        self.caller.may(Verb::RollBackRoute, path.as_str())?;
        let asks = Asks {
            to: revision,
            from: expected,
        };
        self.change_existing(path, |route, asked| {
            let (before, spec) = (route.current, route.current().map(|it| it.spec.clone()));
            revisions::roll_back(route, asked, asks, &|revision| self.can_run(revision))?;
            let now = route.current().map(|now| &now.spec);
            self.check_further_rights(path, spec.as_ref(), now)?;
            Ok((route.current != before).then_some(route.current))
        })
        .await
    }

    /// Withdraws a failing canary on behalf of the host, if it is still on trial.
    pub(super) async fn withdraw_by_itself(&self, path: &RoutePath, revision: u32, why: &str) {
        let was_on_trial = AtomicBool::new(false);
        let withdrawn = self
            .change_existing(path, |route, asked| {
                let was = revisions::withdraw_failing(route, asked, revision, why);
                was_on_trial.store(was, Ordering::Relaxed);
                Ok(None)
            })
            .await;
        match withdrawn {
            // Another host was quicker, or someone has promoted it.
            Ok(_) if !was_on_trial.load(Ordering::Relaxed) => {}
            Ok(_) => {
                counter!("millrace_canaries_withdrawn_total", "route" => path.to_string())
                    .increment(1);
                tracing::error!(route = %path, revision, why, "a canary was withdrawn; the current revision answers its requests");
            }
            // It was deleted meanwhile.
            Err(RouteError::Unknown(_)) => {}
            Err(error) => {
                tracing::error!(route = %path, revision, %error, "a failing canary could not be withdrawn; trying again");
                tokio::time::sleep(WITHDRAW_AGAIN).await;
            }
        }
    }

    /// Why the canary is about to be withdrawn.
    fn trouble(&self, path: &RoutePath) -> Option<String> {
        let known = self.inner.all.read().get(path).cloned();
        let trial = known?.trial.clone()?;
        let watch = trial.watch.lock();
        watch.trouble().map(ToOwned::to_owned)
    }

    /// The same handle for the host itself.
    pub(super) fn by_itself(&self) -> Self {
        self.called_by(&Caller::host())
    }

    fn can_run(&self, revision: &RouteRevision) -> bool {
        let module = self.inner.catalogue.module_of(revision.spec.module);
        module.is_some()
    }

    async fn check(&self, spec: &RouteSpec) -> Result<(), RouteError> {
        self.check_rights(spec)?;
        self.check_ranges(spec)?;
        Ok(self.inner.catalogue.check_trusted(spec.module).await?)
    }

    /// Like those of a processor: in range, and allowed by this host.
    fn check_ranges(&self, spec: &RouteSpec) -> Result<(), RouteError> {
        let RouteSpec {
            limits, breaker, ..
        } = spec;
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
            (
                "breaker.failures_min",
                breaker.failures_min.into(),
                2,
                ROUTE_WINDOW_REQUESTS_MAX,
            ),
            (
                "breaker.failed_percent",
                breaker.failed_percent.into(),
                1,
                100,
            ),
            (
                "breaker.window_requests",
                breaker.window_requests.into(),
                breaker.failures_min.into(),
                ROUTE_WINDOW_REQUESTS_MAX,
            ),
        ];
        let all = limits.ranges().into_iter().chain(host);
        for (field, value, from, to) in all {
            if !(from..=to).contains(&value) {
                let why = format!("{field} is {value}; it must be {from} to {to}");
                return Err(RouteError::Invalid(why));
            }
        }
        let lengths = spec.grants.lengths();
        match lengths.into_iter().find(|(_, count, max)| count > max) {
            None => Ok(()),
            Some((field, count, max)) => Err(RouteError::Invalid(format!(
                "{field} has {count} entries; the maximum is {max}"
            ))),
        }
    }

    async fn change_existing(
        &self,
        path: &RoutePath,
        decision: impl Fn(&mut Route, Asked) -> Result<Option<u32>, RouteError>,
    ) -> Result<RouteStatus, RouteError> {
        self.change(path, |route, asked| {
            let mut route = route.ok_or_else(|| RouteError::Unknown(path.clone()))?;
            let must_run = decision(&mut route, asked)?;
            Ok(Decided { route, must_run })
        })
        .await
    }

    /// Decides about a route and commits it, in turns.
    async fn change(
        &self,
        path: &RoutePath,
        decision: impl Fn(Option<Route>, Asked) -> Result<Decided, RouteError>,
    ) -> Result<RouteStatus, RouteError> {
        let mut loaded: Vec<Running> = Vec::new();
        for _ in 0..TURNS_MAX {
            let turn = {
                let _change = self.inner.changes.lock().await;
                decided(&*self.inner.engine, || self.turn(path, &decision, &loaded)).await?
            };
            match turn {
                Turn::Made(status) => return Ok(status),
                Turn::Lacks(lacking) => {
                    let Lacking { route, revision } = *lacking;
                    let handler = self.load(&route, &revision).await?;
                    loaded = vec![Running {
                        revision,
                        handler: Ok(handler),
                    }];
                }
            }
        }
        let entry = self.inner.engine.entry(EntryKind::Route, path.as_str());
        let changed = Expectation::entry(EntryKind::Route, path.to_string(), entry.as_ref());
        Err(CommitError::Conflict(Arc::new(changed)).into())
    }

    async fn turn(
        &self,
        path: &RoutePath,
        decision: &impl Fn(Option<Route>, Asked) -> Result<Decided, RouteError>,
        loaded: &[Running],
    ) -> Result<Turn, RouteError> {
        let (kind, key) = (EntryKind::Route, path.to_string());
        // The bound covers all routes, and nothing may have changed since it was read.
        let all = Expectation::Kind {
            kind,
            version: self.inner.engine.version(kind),
        };
        let entry = self.inner.engine.entry(kind, &key);
        let before = entry.as_ref().map(|entry| {
            let unreadable = || RouteError::Unreadable(path.clone());
            read(&key, entry).ok_or_else(unreadable)
        });
        let before = before.transpose()?;
        if before.is_none() && self.inner.engine.entries(kind).len() >= ROUTES_MAX {
            return Err(RouteError::TooMany);
        }
        let asked = Asked {
            by: self.caller.name(),
            now: self.inner.clock.wall(),
        };
        let Decided { route, must_run } = decision(before.clone(), asked)?;
        let running = self.running_now(&route, loaded);
        let lacking = running
            .iter()
            .find(|one| Some(one.revision.number) == must_run && one.handler.is_err());
        if let Some(lacking) = lacking {
            let revision = lacking.revision.clone();
            return Ok(Turn::Lacks(Box::new(Lacking { route, revision })));
        }
        let mut expects = vec![all];
        // Whoever deletes a module expects the routes to be as they were.
        for revision in route.running() {
            expects.push(self.inner.catalogue.module_as_now(revision.spec.module));
        }
        let version = match (before, entry) {
            // Another host may have changed it, and this one not heard of it: a commit that changes nothing finds out.
            (Some(before), Some(entry)) if before == route => {
                self.confirm(expects).await?;
                entry.version
            }
            _ => {
                let write = self
                    .inner
                    .catalogue
                    .write_entry(kind, key, Some(&route), expects);
                write.await?
            }
        };
        let known = self.know(route, version, running);
        Ok(Turn::Made(self.status(&known)))
    }

    /// Commits nothing, if the expectations hold.
    async fn confirm(&self, expects: Vec<Expectation>) -> Result<(), CommitError> {
        let nothing = Transaction {
            expects,
            durability: Some(Durability::Os),
            ..Transaction::default()
        };
        self.inner.engine.commit(nothing).await.map(drop)
    }

    /// Lets a route answer in this form. The caller holds the lock of changes.
    pub(super) fn know(&self, route: Route, version: Version, running: Vec<Running>) -> Arc<Known> {
        let is_lacking = running.iter().any(|one| one.handler.is_err());
        let mut all = self.inner.all.write();
        let path = route.path.clone();
        let before = all.get(&path).map(|known| &**known);
        let known = Arc::new(Known::new(route, version, running, before));
        all.insert(path, Arc::clone(&known));
        drop(all);
        self.inner.finding.learned.notify_waiters();
        if is_lacking {
            self.inner.news.notify_one();
        }
        known
    }

    /// Deletes a route: its requests are unknown paths again.
    ///
    /// # Errors
    /// [`RouteError`]; it still exists.
    pub async fn delete_route(&self, path: &RoutePath) -> Result<(), RouteError> {
        self.caller.may(Verb::DeleteRoute, path.as_str())?;
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
        write.await?;
        self.inner.all.write().remove(path);
        self.inner.modules.forget_route_logs(path);
        Ok(())
    }
}

/// A stored route.
pub(super) fn read(key: &str, entry: &Entry) -> Option<Route> {
    match serde_json::from_slice(&entry.value) {
        Ok(route) => Some(route),
        Err(error) => {
            tracing::error!(route = key, %error, "the catalogue's entry of a route cannot be read");
            None
        }
    }
}
