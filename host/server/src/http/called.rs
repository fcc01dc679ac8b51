//! The caller: each handler gets the broker's verbs for the caller of its request, and nothing else
//! of the broker.

use std::convert::Infallible;
use std::ops::Deref;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::HeaderValue;
use axum::http::request::Parts;
use millrace_broker::{Caller, Session, Standing};
use millrace_model::Identity;

use super::app::App;
use super::proving::{Credentials, Sender};

/// The id of a request in logs and answers, once it has one.
#[derive(Clone)]
pub(super) struct RequestId(pub(super) HeaderValue);

/// The host, and the broker's verbs for the caller of this request.
#[derive(Clone)]
pub(crate) struct Called {
    pub(super) app: Arc<App>,
    pub(super) session: Session,
    /// The token's line, for the same question to another host.
    pub(super) token: Option<HeaderValue>,
    /// What says who the caller is, and who its connection says that it is.
    pub(super) proof: (Option<Credentials>, Vec<Identity>),
}

impl Called {
    /// For the host itself, without a caller.
    pub(crate) fn of_host(app: &Arc<App>) -> Self {
        Self {
            app: Arc::clone(app),
            session: app.broker.session(Caller::host()),
            token: None,
            proof: Default::default(),
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
        let is_asked_by_another = is_of_this(parts.uri.query().unwrap_or_default());
        if !is_asked_by_another && is_about_catalogue(parts.uri.path()) {
            app.broker.hear().await;
        }
        // Whoever passed no guard may do nothing.
        let caller = parts.extensions.get::<Caller>().cloned();
        let caller = caller.unwrap_or_else(|| Caller::unnamed().standing(Standing::Nobody));
        let sender: Option<&Arc<Sender>> = parts.extensions.get();
        Ok(Self {
            app: Arc::clone(app),
            session: app.broker.session(caller),
            token: sender.and_then(|sender| sender.line.clone()),
            proof: sender.map_or_else(Default::default, |sender| {
                (sender.credentials, sender.identities.clone())
            }),
        })
    }
}

/// Whether a request asks only for what this host counts, as a host does that gathers what all count: it has asked for news itself.
fn is_of_this(query: &str) -> bool {
    query.split('&').any(|pair| pair == "hosts=this")
}

/// Whether a request is about what exists. Others send and read messages, and ask other hosts only for what they do not know. Names are
/// whatever people choose, such as a topic `state`, so a word counts only at its place.
fn is_about_catalogue(path: &str) -> bool {
    let Some(path) = path.strip_prefix("/v1/") else {
        return false;
    };
    let parts: Vec<&str> = path.split('/').collect();
    !matches!(
        parts[..],
        ["hosts" | "consumers", ..]
            | ["topics", _, "messages" | "consumers", ..]
            | ["topics", _, "partitions", _, "messages", ..]
            | ["processors", _, "state", ..]
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_for_messages_do_not_wait_for_news_of_other_hosts() {
        for path in [
            "/v1/topics/t/messages",
            "/v1/topics/t/partitions/0/messages",
            "/v1/topics/t/consumers/c/commit",
            "/v1/processors/p/state/key",
            "/v1/hosts",
            "/v1/consumers",
            "/metrics",
            "/health/live",
            "/hooks/v1/",
        ] {
            assert!(!is_about_catalogue(path), "{path}");
        }
    }

    #[test]
    fn requests_for_what_exists_wait_whatever_its_name() {
        for path in [
            "/v1/processors/p",
            "/v1/topics",
            "/v1/modules/m",
            "/v1/topics/t/trim",
            "/v1/topics/state",
            "/v1/topics/messages",
            "/v1/topics/consumers/trim",
            "/v1/processors/messages",
            "/v1/processors/state/pause",
            "/v1/processors/hosts",
            "/v1/schedules/hosts/run",
            "/v1/routes/orders/state",
        ] {
            assert!(is_about_catalogue(path), "{path}");
        }
    }

    #[test]
    fn a_host_that_gathers_counts_is_answered_at_once() {
        assert!(is_of_this("hosts=this"));
        assert!(is_of_this("max=3&hosts=this"));
        assert!(!is_of_this("hosts=all"));
        assert!(!is_of_this("key=hosts=this"));
        assert!(!is_of_this(""));
    }
}
