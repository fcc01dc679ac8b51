//! Who sends a request: the token or the password in its Authorization line, and what the host asks of those without one.
//!
//! A token never goes further than this file: components, which get the headers of requests to routes, do not see it. A password (RFC
//! 7617) counts on the host's own paths only; on a route's it is for the component.

use std::sync::Arc;

use axum::extract::rejection::RawPathParamsRejection;
use axum::extract::{RawPathParams, Request, State};
use axum::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use millrace_broker::{Caller, Standing, Verb};
use millrace_model::{Code, ResourceKind};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::app::App;
use super::by::by_of;
use super::called::RequestId;
use super::error::ApiError;
use super::modules::Peer;
use crate::net::Line;

/// How tokens of this host begin. Other credentials in the line are for whoever is in front of the host, or for a component.
const OF_A_TOKEN: &str = "mr_";
const SCHEME: &str = "bearer";
const SCHEME_OF_PASSWORDS: &str = "basic";
/// What answers without credentials name. Not Basic: a browser would ask its user for a password, keep it, and send it with whatever a
/// page asks of this host.
pub(super) const CHALLENGE: (axum::http::HeaderName, HeaderValue) =
    (WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));

/// Who sends a request.
#[derive(Clone, Debug)]
pub(super) struct Sender {
    pub(super) standing: Standing,
    /// Cancelled when it is no longer so.
    ended: Option<CancellationToken>,
    /// The line of the token or the password, for the same question to another host of the store.
    pub(super) line: Option<HeaderValue>,
}

impl App {
    /// Who sends a request to this path with these headers. The token or the password is taken out of them.
    pub(super) async fn sender_of(
        &self,
        path: &str,
        headers: &mut HeaderMap,
    ) -> Result<Sender, ApiError> {
        let lines = headers.get_all(AUTHORIZATION).iter();
        let mut ours = lines.filter_map(|line| Some((line, self.credentials_in(path, line)?)));
        let Some((line, credentials)) = ours.next() else {
            let standing = match self.requires_credentials {
                true => Standing::Nobody,
                false => Standing::Everything,
            };
            return Ok(Sender {
                standing,
                ended: None,
                line: None,
            });
        };
        if ours.next().is_some() {
            let hint = "send one Authorization line";
            let message = "the request has several tokens or passwords";
            return Err(ApiError::malformed(message, hint));
        }
        let proved = match credentials {
            Credentials::Token(token) => self.access.prove(token)?,
            Credentials::Password(both) => {
                let (name, password) = both.split_once(':').unwrap_or_default();
                self.access.prove_password(name, password).await?
            }
        };
        let mut line = line.clone();
        line.set_sensitive(true);
        headers.remove(AUTHORIZATION);
        Ok(Sender {
            standing: proved.standing,
            ended: Some(proved.ended),
            line: Some(line),
        })
    }

    /// What an Authorization line has for this host.
    fn credentials_in<'a>(&self, path: &str, line: &'a HeaderValue) -> Option<Credentials<'a>> {
        if let Some(token) = token_in(line) {
            return Some(Credentials::Token(token));
        }
        let both = is_own(path).then(|| password_in(line)).flatten()?;
        let (name, _) = both.split_once(':')?;
        // Where everyone may do everything, a password of nobody is for whoever is in front of the host.
        let is_ours = self.requires_credentials || self.access.has_password(name);
        is_ours.then_some(Credentials::Password(both))
    }
}

/// What a line says that is for this host.
enum Credentials<'a> {
    Token(&'a str),
    /// A principal's name and its password, with a colon between them.
    Password(Zeroizing<String>),
}

impl App {
    /// The caller of a request.
    pub(super) fn caller_of(&self, request: &Request, standing: Standing) -> Caller {
        let mut caller = Caller::unnamed().named(&by_of(request.headers()));
        let extensions = request.extensions();
        if let Some(RequestId(id)) = extensions.get()
            && let Ok(id) = id.to_str()
        {
            caller = caller.asking(id);
        }
        if let Some(&Peer(Some(address))) = extensions.get() {
            caller = caller.at(address);
        }
        self.noting(caller.standing(standing))
    }

    /// Holds the refusal of credentials back, the longer the more attempts from the same address have failed. Returns whether its
    /// connection may go on.
    pub(super) async fn hold_back(&self, caller: &Caller, line: Option<&Arc<Line>>) -> bool {
        let now = self.clock.monotonic();
        let delay = self.attempts.lock().failed(caller.address(), now);
        if delay.is_zero() {
            return true;
        }
        metrics::counter!("millrace_refusals_held_back_total").increment(1);
        let Ok(_place) = self.held_back.try_acquire() else {
            return false;
        };
        let gone = async {
            match line {
                Some(line) => line.closing().cancelled().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = tokio::time::sleep(delay) => true,
            () = gone => false,
            () = self.stopping.cancelled() => false,
        }
    }
}

impl Sender {
    /// The answer, unless the sender's token ends before it.
    pub(super) async fn while_it_lasts(&self, answer: impl Future<Output = Response>) -> Response {
        let Some(ended) = &self.ended else {
            return answer.await;
        };
        tokio::select! {
            biased;
            answer = answer => answer,
            () = ended.cancelled() => ended_meanwhile().into_response(),
        }
    }

    /// The body, which breaks off when the sender's token ends. Bodies that are there as a whole stay as they are.
    pub(super) fn bounded(&self, response: Response) -> Response {
        use futures_util::StreamExt as _;
        use http_body::Body as _;
        let Some(ended) = self.ended.clone() else {
            return response;
        };
        if response.body().size_hint().exact().is_some() {
            return response;
        }
        response.map(|body| {
            let until = ended.cancelled_owned();
            axum::body::Body::from_stream(body.into_data_stream().take_until(until))
        })
    }
}

/// Whether no route can have this path, so that what is sent to it is for no component.
fn is_own(path: &str) -> bool {
    path.starts_with("/v1/") || path == "/metrics"
}

/// The name and the password in an Authorization line.
fn password_in(line: &HeaderValue) -> Option<Zeroizing<String>> {
    let (scheme, both) = line.to_str().ok()?.split_once(' ')?;
    let both = scheme
        .eq_ignore_ascii_case(SCHEME_OF_PASSWORDS)
        .then_some(both)?;
    let both = Zeroizing::new(STANDARD.decode(both.trim()).ok()?);
    str::from_utf8(&both)
        .ok()
        .map(|both| Zeroizing::new(both.to_owned()))
}

/// The token in an Authorization line, if it can be one of this host.
fn token_in(line: &HeaderValue) -> Option<&str> {
    let (scheme, token) = line.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case(SCHEME) && token.starts_with(OF_A_TOKEN)).then_some(token)
}

fn ended_meanwhile() -> ApiError {
    let message = "the token or the password was revoked, has expired, or has other rights now";
    ApiError::of(Code::CredentialsRefused, message)
}

/// What a route asks for before its handler is called, and before the body is read: whether the sender may do what the route does with the
/// thing in its path; if the path does not say which, with anything. The verbs themselves ask again, about the thing as they know it.
pub(super) async fn pass(
    State(verb): State<Option<Verb>>,
    in_path: Result<RawPathParams, RawPathParamsRejection>,
    request: Request,
    next: Next,
) -> Response {
    let Some(verb) = verb else {
        return next.run(request).await;
    };
    // Whoever passed no guard may do nothing.
    let caller = request.extensions().get::<Caller>().cloned();
    let caller = caller.unwrap_or_else(|| Caller::unnamed().standing(Standing::Nobody));
    let named = in_path
        .iter()
        .flatten()
        .find(|(parameter, _)| named_by(verb.kind()) == Some(*parameter));
    let asked = match named {
        Some((_, name)) => caller.may(verb, name),
        None => caller.may_with_some(verb),
    };
    match asked {
        Ok(()) => next.run(request).await,
        Err(forbidden) => ApiError::from(forbidden).into_response(),
    }
}

/// The parameter of a path that names a thing of this kind. Only the verbs know which route or module is meant: a path of routes may end
/// with what to do, and modules have several names.
fn named_by(kind: ResourceKind) -> Option<&'static str> {
    match kind {
        ResourceKind::Topic => Some("topic"),
        ResourceKind::Processor | ResourceKind::Schedule | ResourceKind::Principal => Some("name"),
        ResourceKind::Module | ResourceKind::Route | ResourceKind::Secret | ResourceKind::Host => {
            None
        }
    }
}

#[cfg(test)]
mod tests;
