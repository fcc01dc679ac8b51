//! The caller: each handler gets the broker's verbs for the caller of its request, and nothing else
//! of the broker.

use std::convert::Infallible;
use std::ops::Deref;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::HeaderValue;
use axum::http::request::Parts;
use millrace_broker::{Caller, Session};

use super::app::App;
use super::by::by_of;
use super::modules::Peer;

/// The id of a request in logs and answers, once it has one.
#[derive(Clone)]
pub(super) struct RequestId(pub(super) HeaderValue);

/// The host, and the broker's verbs for the caller of this request.
#[derive(Clone)]
pub(crate) struct Called {
    pub(super) app: Arc<App>,
    pub(super) session: Session,
}

impl Called {
    /// For the host itself, without a caller.
    pub(crate) fn of_host(app: &Arc<App>) -> Self {
        Self {
            app: Arc::clone(app),
            session: app.broker.session(Caller::host()),
        }
    }
}

impl Deref for Called {
    type Target = App;

    fn deref(&self) -> &App {
        &self.app
    }
}

impl FromRequestParts<Arc<App>> for Called {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Infallible> {
        if is_about_catalogue(parts.uri.path()) {
            app.broker.hear().await;
        }
        let mut caller = Caller::unnamed().named(&by_of(&parts.headers));
        if let Some(RequestId(id)) = parts.extensions.get()
            && let Ok(id) = id.to_str()
        {
            caller = caller.asking(id);
        }
        if let Some(&Peer(Some(address))) = parts.extensions.get() {
            caller = caller.at(address);
        }
        Ok(Self {
            app: Arc::clone(app),
            session: app.broker.session(caller),
        })
    }
}

/// Whether a request is about what exists; others send and read messages, and ask other hosts only for what they do not know.
fn is_about_catalogue(path: &str) -> bool {
    const OF_MESSAGES: [&str; 4] = ["messages", "consumers", "state", "hosts"];
    let Some(path) = path.strip_prefix("/v1/") else {
        return false;
    };
    !path.split('/').any(|part| OF_MESSAGES.contains(&part))
}

#[cfg(test)]
mod tests {
    use super::is_about_catalogue;

    #[test]
    fn requests_for_messages_do_not_wait_for_news_of_other_hosts() {
        for path in [
            "/v1/processors/p",
            "/v1/topics",
            "/v1/modules/m",
            "/v1/topics/t/trim",
        ] {
            assert!(is_about_catalogue(path), "{path}");
        }
        for path in [
            "/v1/topics/t/messages",
            "/v1/topics/t/partitions/0/messages",
            "/metrics",
            "/health/live",
            "/hooks/v1/",
        ] {
            assert!(!is_about_catalogue(path), "{path}");
        }
    }
}
