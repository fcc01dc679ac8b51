//! Answers a request with the component of the route that covers its path.

use std::time::Duration;

use millrace_model::RoutePath;
use millrace_model::bounds::ROUTE_REQUESTS_MAX;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use super::handle::{Known, Routes};
use crate::handler::{CallError, HttpAnswer, HttpRequest};

/// How long an answer's head may take besides the call's own time: for other requests of the route, and for a core.
const QUEUE_MS_MAX: u64 = 30_000;

/// Why a route did not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServeError {
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

impl Routes {
    /// The route that answers this path: the longest that covers it.
    #[must_use]
    pub fn covering(&self, path: &str) -> Option<RoutePath> {
        let all = self.inner.all.read();
        let covering = all.keys().filter(|route| route.covers(path));
        covering.max_by_key(|route| route.as_str().len()).cloned()
    }

    /// Answers a request. The call continues behind the answer while its body is read, and ends with it.
    ///
    /// # Errors
    /// [`ServeError`]; there is no answer.
    pub async fn serve(
        &self,
        path: &RoutePath,
        request: HttpRequest,
    ) -> Result<HttpAnswer, ServeError> {
        let known = self.inner.all.read().get(path).cloned();
        let unavailable = |why: String| ServeError::Unavailable {
            path: path.clone(),
            why,
        };
        let known = known.ok_or_else(|| unavailable("it was deleted".to_owned()))?;
        let Known {
            route,
            handler,
            places,
            ..
        } = known;
        let handler = handler.map_err(unavailable)?;
        let place = places.try_acquire_owned();
        let place = place.map_err(|_| ServeError::Busy { path: path.clone() })?;
        let (sender, head) = oneshot::channel();
        // On its own, because it outlives the head of its answer; it ends within the call's limits.
        let call = tokio::spawn(async move {
            let _place = place;
            handler.handle(request, sender).await
        });
        let mut unless_answered = Abort(Some(call.abort_handle()));
        let patience =
            Duration::from_millis(route.spec.limits.call_ms_max.saturating_add(QUEUE_MS_MAX));
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
                tracing::debug!(route = %path, %error, "a route failed");
                Err(failed(path.clone(), error))
            }
            Err(_) => Err(ServeError::Late { path: path.clone() }),
        }
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
