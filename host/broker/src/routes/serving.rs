//! Answers a request with the component of the route that covers its path.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use millrace_engine::EntryKind;
use millrace_model::RoutePath;
use millrace_model::bounds::ROUTE_REQUESTS_MAX;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use super::canary::{Side, side_of};
use super::handle::{Known, Routes};
use super::loading::IS_BEING_LOADED;
use crate::ground::standing::Forbidden;
use crate::ground::verbs::Verb;
use crate::handler::{CallError, HttpAnswer, HttpRequest};

/// How long an answer's head may take besides the call's own time: for other requests of the route, and for a core.
const QUEUE_MS_MAX: u64 = 30_000;

/// Why a route did not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServeError {
    /// The caller may not call it.
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
    /// It has as many requests as it may have.
    #[error("route {path} has {ROUTE_REQUESTS_MAX} requests at once, the maximum")]
    Busy {
        /// The route.
        path: RoutePath,
    },
    /// Its component cannot be called on this host now.
    #[error("route {path} cannot answer now: {why}")]
    Unavailable {
        /// The route.
        path: RoutePath,
        /// Why.
        why: String,
    },
    /// Its component failed.
    #[error("route {path} failed: {why}")]
    Failed {
        /// The route.
        path: RoutePath,
        /// How.
        why: String,
    },
    /// Its component did not answer in time.
    #[error("route {path} did not answer in time")]
    Late {
        /// The route.
        path: RoutePath,
    },
}

/// What became of a request.
#[derive(Debug)]
pub struct Served {
    /// The revision that was asked; `None` if the route was deleted meanwhile.
    pub revision: Option<u32>,
    /// Its answer.
    pub answer: Result<HttpAnswer, ServeError>,
}

impl Routes {
    /// Answers a request with the current revision or the canary. The call continues behind the answer while its body is read, and
    /// ends with it.
    pub async fn serve(&self, path: &RoutePath, request: HttpRequest) -> Served {
        let known = self.inner.all.read().get(path).cloned();
        let Some(known) = known else {
            let stored = self.inner.engine.entry(EntryKind::Route, path.as_str());
            let why = match stored {
                Some(_) => IS_BEING_LOADED,
                None => "it was deleted",
            };
            let why = why.to_owned();
            let path = path.clone();
            return Served {
                revision: None,
                answer: Err(ServeError::Unavailable { path, why }),
            };
        };
        let (number, side) = known.next();
        if !known.is_public(number)
            && let Err(error) = self.caller.may(Verb::CallRoute, path.as_str())
        {
            return Served {
                revision: None,
                answer: Err(ServeError::Forbidden(error)),
            };
        }
        Served {
            revision: Some(number),
            answer: self.serve_with(&known, number, side, request).await,
        }
    }

    async fn serve_with(
        &self,
        known: &Known,
        number: u32,
        side: Side,
        request: HttpRequest,
    ) -> Result<HttpAnswer, ServeError> {
        let path = &known.route.path;
        let unavailable = |why: String| ServeError::Unavailable {
            path: path.clone(),
            why,
        };
        let running = known.running(number);
        let running = running.ok_or_else(|| unavailable(IS_BEING_LOADED.to_owned()))?;
        let handler = running.handler.clone();
        let handler = handler.map_err(|problem| unavailable(problem.why))?;
        let place = Arc::clone(&known.places).try_acquire_owned();
        let place = place.map_err(|_| ServeError::Busy { path: path.clone() })?;
        let (sender, head) = oneshot::channel();
        let (watch, news) = (
            known.trial.as_ref().map(|trial| Arc::clone(&trial.watch)),
            self.news(),
        );
        // On its own, because it outlives the head of its answer; it ends within the call's limits.
        let call = tokio::spawn(async move {
            let _place = place;
            let ended = handler.handle(request, sender).await;
            if let Some(watch) = watch
                && let Some(failure) = failure_of(&ended)
                && watch.lock().ended(side, failure.as_deref())
            {
                news.notify_one();
            }
            ended
        });
        let mut unless_answered = Abort(Some(call.abort_handle()));
        let call_ms_max = running.revision.spec.limits.call_ms_max;
        let patience = Duration::from_millis(call_ms_max.saturating_add(QUEUE_MS_MAX));
        let ended = async {
            match head.await {
                Ok(answer) => Ok(answer),
                // It ended without one.
                Err(_) => Err(call.await),
            }
        };
        match tokio::time::timeout(patience, ended).await {
            Ok(Ok(answer)) => {
                unless_answered.0 = None;
                Ok(answer)
            }
            Ok(Err(joined)) => {
                let error = match joined {
                    Ok(Err(error)) => error,
                    Ok(Ok(())) => CallError::BadAnswer("it ended without an answer".to_owned()),
                    Err(error) => CallError::Host(error.to_string()),
                };
                tracing::debug!(route = %path, revision = number, %error, "a route failed");
                Err(failed(path.clone(), error))
            }
            Err(_) => Err(ServeError::Late { path: path.clone() }),
        }
    }
}

impl Known {
    /// The revision that answers the next request. A canary that cannot is passed over.
    fn next(&self) -> (u32, Side) {
        let current = (self.route.current, Side::Current);
        let Some(trial) = &self.trial else {
            return current;
        };
        let number = trial.canary.revision;
        let request = trial.requests.fetch_add(1, Ordering::Relaxed);
        let can_answer = || {
            let running = self.running(number);
            running.is_some_and(|one| one.handler.is_ok()) && trial.watch.lock().trouble().is_none()
        };
        match side_of(request, trial.seed, trial.canary.percent) {
            Side::Canary if can_answer() => (number, Side::Canary),
            _ => current,
        }
    }
}

/// What a call that has ended says about its revision: that it failed, and how, that it did not, or (`None`) nothing.
fn failure_of(ended: &Result<(), CallError>) -> Option<Option<String>> {
    match ended {
        Ok(()) => Some(None),
        Err(CallError::Interrupted | CallError::Host(_) | CallError::Unavailable(_)) => None,
        Err(error) => Some(Some(error.to_string())),
    }
}

fn failed(path: RoutePath, error: CallError) -> ServeError {
    match error {
        CallError::Timeout(_) => ServeError::Late { path },
        CallError::Interrupted | CallError::Host(_) | CallError::Unavailable(_) => {
            let why = error.to_string();
            ServeError::Unavailable { path, why }
        }
        CallError::Trap { .. } | CallError::Memory(_) | CallError::BadAnswer(_) => {
            let why = error.to_string();
            ServeError::Failed { path, why }
        }
    }
}

/// Ends a call for whose answer nobody waits any more.
struct Abort(Option<AbortHandle>);

impl Drop for Abort {
    fn drop(&mut self) {
        if let Some(call) = &self.0 {
            call.abort();
        }
    }
}
