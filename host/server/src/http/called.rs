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
