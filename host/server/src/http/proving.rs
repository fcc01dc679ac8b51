//! Who sends a request: the token, the JWT or the password in its Authorization line, or else what its connection proves, and what the host
//! asks of those of whom nothing says who they are.
//!
//! A token never goes further than this file: components, which get the headers of requests to routes, do not see it. JWTs are for them
//! as well, so they see those, unless the provider's settings say otherwise. What a component might take for a JWT that this host has
//! checked, and is none for certain, goes no further either, and neither does a second Authorization line. A password (RFC 7617) counts on
//! the host's own paths only; on a route's it is for the component.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRequestParts as _, MatchedPath, RawPathParams, Request};
use axum::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use millrace_broker::{Caller, Forbidden, Proved, Standing, Unproved};
use millrace_model::{Advised as _, Code, Identity, ResourceKind};
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;
use zeroize::Zeroizing;

use super::app::App;
use super::by::by_of;
use super::called::RequestId;
use super::error::ApiError;
use super::modules::Peer;
use super::verb_of;
use crate::identity::Identified;
use crate::net::{Line, Presented};

/// How tokens of this host begin. Other credentials in the line are JWTs of an identity provider, or for whoever is in front of the host,
/// or for a component.
const OF_A_TOKEN: &str = "mr_";
const SCHEME: &str = "bearer";
const SCHEME_OF_PASSWORDS: &str = "basic";
/// What answers without credentials name. Not Basic: a browser would ask its user for a password, keep it, and send it with whatever a
/// page asks of this host.
pub(super) const CHALLENGE: (axum::http::HeaderName, HeaderValue) =
    (WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));

/// Root may do what the host's own user may: it could become that one.
const ROOT: u32 = 0;

/// What says who sends a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Credentials {
    /// The token in the request.
    Token,
    /// The JWT of an identity provider in the request.
    Jwt,
    /// The name and the password in the request.
    Password,
    /// The client's certificate.
    Certificate,
    /// The user of this machine at the other end of the Unix socket.
    User,
}

/// Who sends a request.
#[derive(Clone, Debug)]
pub(super) struct Sender {
    pub(super) standing: Standing,
    /// Cancelled when it is no longer so.
    ended: Option<CancellationToken>,
    /// The line of the token or the password, for the same question to another host of the store.
    pub(super) line: Option<HeaderValue>,
    /// What says so; `None` if nothing does.
    pub(super) credentials: Option<Credentials>,
    /// Who the connection says that it is.
    pub(super) identities: Vec<Identity>,
}

/// Where a request comes from.
pub(super) struct Origin {
    address: Option<IpAddr>,
    line: Option<Arc<Line>>,
    presented: Presented,
}

impl Origin {
    pub(super) fn of(request: &Request) -> Self {
        let extensions = request.extensions();
        let peer: Option<&Peer> = extensions.get();
        Self {
            address: peer.and_then(|&Peer(address)| address),
            line: extensions.get().cloned(),
            presented: extensions.get().cloned().unwrap_or_default(),
        }
    }

    /// The connection.
    pub(super) fn line(&self) -> Option<&Arc<Line>> {
        self.line.as_ref()
    }
}

impl App {
    /// Who sends a request to this path with these headers, on a connection that proves something, too. What the headers have for the host
    /// is taken out of them, and counts before the connection.
    pub(super) async fn sender_of(
        &self,
        path: &str,
        headers: &mut HeaderMap,
        origin: &Origin,
    ) -> Result<Sender, ApiError> {
        let presented = &origin.presented;
        // Most requests have none, or a token; what others need is too large for the way of all.
        if !headers.contains_key(AUTHORIZATION) {
            return self.sender_at(presented);
        }
        let lines = headers.get_all(AUTHORIZATION);
        // The host would check one, and the component might take another.
        if !is_own(path) && self.identity.has_providers() && lines.iter().count() > 1 {
            let message = "the request has several Authorization lines";
            return Err(ApiError::malformed(message, ONE_LINE));
        }
        let mut ours = lines
            .iter()
            .filter_map(|line| Some((line, self.credentials_in(path, line)?)));
        let Some((line, in_line)) = ours.next() else {
            return match Box::pin(self.identified(headers, is_own(path))).await? {
                Some(sender) => Ok(sender),
                None => self.sender_at(presented),
            };
        };
        if ours.next().is_some() {
            return Err(several());
        }
        let (proved, credentials) = match in_line {
            InLine::Token(token) => (self.access.prove(token)?, Credentials::Token),
            InLine::Password(both) => {
                let (name, password) = both.split_once(':').unwrap_or_default();
                let proved = Box::pin(self.by_password(name, password, origin)).await?;
                (proved, Credentials::Password)
            }
        };
        let mut line = line.clone();
        line.set_sensitive(true);
        headers.remove(AUTHORIZATION);
        Ok(Sender {
            standing: proved.standing,
            ended: Some(proved.ended),
            line: Some(line),
            credentials: Some(credentials),
            identities: Vec::new(),
        })
    }

    /// Who has this name and this password. Where many attempts failed, one that takes the host a derivation waits before it.
    async fn by_password(
        &self,
        name: &str,
        password: &str,
        origin: &Origin,
    ) -> Result<Proved, Unproved> {
        let delay = self
            .attempts
            .lock()
            .next_delay(origin.address, self.clock.monotonic());
        // One that was right before is known again at once.
        let waits = !delay.is_zero() && !self.access.remembers_password(name, password);
        if waits && !self.wait(delay, origin.line()).await {
            return Err(Unproved::Busy);
        }
        self.access.prove_password(name, password).await
    }

    /// Who sends what comes without a token on a connection that proves this.
    fn sender_at(&self, presented: &Presented) -> Result<Sender, ApiError> {
        let (credentials, identities) = match presented {
            // The way of nearly all requests.
            Presented::Nothing => {
                return Ok(Sender {
                    standing: match self.requires_credentials {
                        true => Standing::Nobody,
                        false => Standing::Everything,
                    },
                    ended: None,
                    line: None,
                    credentials: None,
                    identities: Vec::new(),
                });
            }
            Presented::Certificate(certificate) => {
                // TLS has checked it when the connection began, which may be long ago.
                if certificate.expires_at <= self.clock.wall() {
                    let message = "the client's certificate has expired";
                    let hint = "connect again with a new certificate";
                    return Err(ApiError::new(Code::CredentialsRefused, message, hint));
                }
                (
                    Some(Credentials::Certificate),
                    certificate.identities.clone(),
                )
            }
            Presented::User(uid) => (Some(Credentials::User), vec![Identity::of_user(*uid)]),
        };
        let proved = self.access.prove_identity(&identities).ok();
        let is_own = matches!(presented, Presented::User(uid) if is_own_user(*uid, self.own_user));
        let (standing, ended) = match proved {
            _ if is_own => (Standing::Everything, None),
            Some(proved) => (proved.standing, Some(proved.ended)),
            None if self.requires_credentials => (Standing::Nobody, None),
            None => (Standing::Everything, None),
        };
        let counts = is_own || ended.is_some();
        Ok(Sender {
            standing,
            ended,
            line: None,
            credentials: credentials.filter(|_| counts),
            identities,
        })
    }

    /// What an Authorization line has for this host.
    fn credentials_in<'a>(&self, path: &str, line: &'a HeaderValue) -> Option<InLine<'a>> {
        if let Some(token) = token_in(line) {
            return Some(InLine::Token(token));
        }
        let both = is_own(path).then(|| password_in(line)).flatten()?;
        let (name, _) = both.split_once(':')?;
        // Where everyone may do everything, a password of nobody is for whoever is in front of the host.
        let is_ours = self.requires_credentials || self.access.has_password(name);
        is_ours.then_some(InLine::Password(both))
    }

    /// Who sends a request by a JWT of an identity provider; `None` without one. On the host's own paths a JWT of another provider is
    /// refused; on others it is the component's, and what may be a JWT and cannot be read as one is refused.
    async fn identified(
        &self,
        headers: &mut HeaderMap,
        is_own: bool,
    ) -> Result<Option<Sender>, ApiError> {
        let lines: Vec<HeaderValue> = headers.get_all(AUTHORIZATION).iter().cloned().collect();
        let mut found: Option<(usize, Identified)> = None;
        for (at, line) in lines.iter().enumerate() {
            let Some(presented) = bearer_in(line) else {
                continue;
            };
            // A line that is not ASCII has no JWT, whatever a lenient reader finds in it.
            let presented = match line.as_bytes().is_ascii() {
                true => presented,
                false => line.as_bytes(),
            };
            let presented = String::from_utf8_lossy(presented);
            let Some(identified) = self.identity.prove(&presented, is_own).await? else {
                continue;
            };
            if found.replace((at, identified)).is_some() {
                return Err(several());
            }
        }
        let Some((at, Identified { proved, strip })) = found else {
            return Ok(None);
        };
        if is_own || strip {
            headers.remove(AUTHORIZATION);
            let others = lines.iter().enumerate().filter(|(other, _)| *other != at);
            for (_, line) in others {
                headers.append(AUTHORIZATION, line.clone());
            }
        }
        let mut line = lines[at].clone();
        line.set_sensitive(true);
        Ok(Some(Sender {
            standing: proved.standing,
            ended: Some(proved.ended),
            line: Some(line),
            credentials: Some(Credentials::Jwt),
            identities: Vec::new(),
        }))
    }
}

/// What a line says that is for this host.
enum InLine<'a> {
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
        self.wait(delay, line).await
    }

    /// Waits in one of the places for that. Returns whether the time is over, and not that there is no place, the connection has ended, or
    /// the host stops.
    async fn wait(&self, delay: Duration, line: Option<&Arc<Line>>) -> bool {
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

/// Whether a user of the machine may do everything at a host that runs as `own`.
fn is_own_user(uid: u32, own: u32) -> bool {
    uid == own || uid == ROOT
}

impl Sender {
    /// A refusal of the sender. One of whom nothing says who it is learns by which identities it could be known.
    pub(super) fn refused(&self, error: Forbidden) -> ApiError {
        if self.identities.is_empty() || error.advice().code != Code::CredentialsMissing {
            return error.into();
        }
        let stranger = Unproved::NoIdentity(self.identities.clone());
        let hint = stranger.advice().hint.into_owned();
        ApiError::new(
            Code::CredentialsMissing,
            format!("{error}; {stranger}"),
            hint,
        )
    }

    /// The answer, unless what says who the sender is ends before it.
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

    /// The body, which breaks off when what says who the sender is ends. Bodies that are there as a whole stay as they are.
    pub(super) fn bounded(&self, response: Response) -> Response {
        use futures_util::StreamExt as _;
        use http_body::Body as _;
        let Some(ended) = self.ended.clone() else {
            return response;
        };
        if response.body().size_hint().exact().is_some() {
            return response;
        }
        // What it may do is held as well: whoever ends it looks for those that somebody holds.
        let standing = self.standing.clone();
        response.map(|body| {
            let until = async move {
                ended.cancelled_owned().await;
                drop(standing);
            };
            let until = Box::pin(until);
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
    let token = str::from_utf8(bearer_in(line)?).ok()?;
    token.starts_with(OF_A_TOKEN).then_some(token)
}

/// What an Authorization line has for whoever bears it, without the white space around it. As lenient as any reader: what is before and
/// behind the scheme may be any white space, also some that is not ASCII.
fn bearer_in(line: &HeaderValue) -> Option<&[u8]> {
    let line = line.as_bytes();
    let begins = line.iter().position(u8::is_ascii_graphic)?;
    let (scheme, rest) = line[begins..].split_at_checked(SCHEME.len())?;
    let is_apart = |byte: &u8| byte.is_ascii_whitespace() || !byte.is_ascii();
    let is_bearer = scheme.eq_ignore_ascii_case(SCHEME.as_bytes());
    (is_bearer && rest.first().is_some_and(is_apart)).then(|| rest.trim_ascii())
}

const ONE_LINE: &str = "send one Authorization line";

fn several() -> ApiError {
    ApiError::malformed("the request has several tokens", ONE_LINE)
}

fn ended_meanwhile() -> ApiError {
    let message = "the token or the password was revoked or has expired, the identity was removed, or the rights are others now";
    ApiError::of(Code::CredentialsRefused, message)
}

/// What a route asks for before its handler is called, and before the body is read: whether the caller may do what the route does with the
/// thing in its path; if the path does not say which, with anything. The verbs themselves ask again, about the thing as they know it.
///
/// Here and not in a layer of each route, which costs as much as all the rest of a request's way to its handler.
pub(super) async fn pass(
    request: Request,
    caller: &Caller,
    sender: &Sender,
) -> Result<Request, ApiError> {
    let Some(verb) = verb_of(request.method(), path_of(&request)) else {
        return Ok(request);
    };
    let Some(parameter) = named_by(verb.kind()) else {
        let asked = caller.may_with_some(verb);
        return asked
            .map(|()| request)
            .map_err(|forbidden| sender.refused(forbidden));
    };
    // As most names are written, without looking for parameters again and a copy of each.
    if !request.uri().path().contains('%') {
        let pattern = path_of(&request);
        let segments = pattern.split('/').zip(request.uri().path().split('/'));
        let mut segments = segments;
        let named = segments.find(|(segment, _)| is_parameter(segment, parameter));
        let asked = match named {
            Some((_, name)) => caller.may(verb, name),
            None => caller.may_with_some(verb),
        };
        asked.map_err(|forbidden| sender.refused(forbidden))?;
        return Ok(request);
    }
    let (mut parts, body) = request.into_parts();
    let in_path = RawPathParams::from_request_parts(&mut parts, &()).await;
    let mut named = in_path.iter().flatten();
    let asked = match named.find(|(name, _)| *name == parameter) {
        Some((_, name)) => caller.may(verb, name),
        None => caller.may_with_some(verb),
    };
    asked.map_err(|forbidden| sender.refused(forbidden))?;
    Ok(Request::from_parts(parts, body))
}

/// The pattern of a request's path; empty if nothing answers it.
fn path_of(request: &Request) -> &str {
    let path: Option<&MatchedPath> = request.extensions().get();
    path.map_or("", MatchedPath::as_str)
}

/// Whether a segment of a pattern is this parameter.
fn is_parameter(segment: &str, parameter: &str) -> bool {
    let name = segment
        .strip_prefix('{')
        .and_then(|rest| rest.strip_suffix('}'));
    name == Some(parameter)
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
