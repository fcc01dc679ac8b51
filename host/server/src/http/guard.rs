//! The layer before every route: requests from foreign web pages are refused, every answer has a request id, and a panic becomes an
//! answer.
//!
//! A request without a certain end (unknown transfer codings, two Host lines, none) is refused before anything else. After any refusal
//! the rest of the body is consumed ([`super::rest`]), and an answer that ends its connection says so.
//!
//! The host trusts everyone who can connect, and a browser on this machine can. So a request sent by a page of another site (Origin,
//! Sec-Fetch-Site) is refused, and so is one with a foreign Host name, which is a sign of DNS rebinding.

use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::header::{
    CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HOST, ORIGIN, TRANSFER_ENCODING,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use tracing::Instrument;

use super::App;
use super::bounds::{DISCARD_MS_MAX, REQUEST_ID_CHARS_MAX};
use super::called::RequestId;
use super::error::ApiError;
use super::line::Line;
use super::record::Asked;
use super::rest;
use crate::config::Config;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

pub(super) async fn admit(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let id = app.request_id(request.headers());
    let (asked, began) = (Asked::of(&request), app.clock.monotonic());
    let line = request.extensions().get::<Arc<Line>>().cloned();
    let reserved = line.as_ref().is_some_and(|line| line.is_reserved());
    let asks_to_close = names(request.headers(), &CONNECTION).contains(&"close".to_owned());
    let (mut request, rest) = rest::lend(request);
    request.extensions_mut().insert(RequestId(id.clone()));
    let framed = framing(request.version(), request.headers());
    let mut ends = framed.is_err() || reserved || app.stopping.is_cancelled();
    let admitted = framed
        .and_then(|()| app.callers.check(request.uri(), request.headers()))
        .and_then(|()| match reserved && is_traffic(&request) {
            true => Err(super::listener::no_place()),
            false => Ok(()),
        });
    let response = match admitted {
        Ok(()) => answer(request, next, &id).await,
        Err(refusal) => {
            drop(request);
            refusal.into_response()
        }
    };
    let took = app.clock.monotonic().saturating_sub(began);
    asked.answered(&response, &id, took);
    // The reserve is for clients that are served; others are told at once.
    let patience = match reserved {
        true => Duration::ZERO,
        false => Duration::from_millis(DISCARD_MS_MAX),
    };
    if !rest.take(patience).await {
        ends = true;
        if let Some(line) = &line {
            line.leaves_unfinished();
        }
    }
    let mut response = finished(response, id);
    let headers = response.headers_mut();
    if ends {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    } else if !asks_to_close {
        headers.insert(KEEP_ALIVE, app.keep_alive.clone());
    }
    response
}

/// Headers of every answer, of a route or not.
pub(super) fn finished(mut response: Response, id: HeaderValue) -> Response {
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(REQUEST_ID, id);
    response
}

/// Whether it is certain where the request ends, and which host it is for.
fn framing(version: Version, headers: &HeaderMap) -> Result<(), ApiError> {
    let codings = names(headers, &TRANSFER_ENCODING);
    if let Some(other) = codings.iter().find(|coding| *coding != "chunked") {
        let message = format!("the transfer coding {other:?} is not supported");
        let hint = "send the body with a Content-Length, or chunked";
        let status = StatusCode::NOT_IMPLEMENTED;
        return Err(ApiError::new(status, "unknown-coding", message, hint));
    }
    if codings.len() > 1 {
        let hint = "send Transfer-Encoding: chunked once";
        return Err(ApiError::malformed("the body is chunked twice", hint));
    }
    let hint = "send one Host line that names this host";
    match headers.get_all(HOST).iter().count() {
        0 if version >= Version::HTTP_11 => {
            Err(ApiError::malformed("the request has no Host line", hint))
        }
        0 | 1 => Ok(()),
        _ => Err(ApiError::malformed(
            "the request has several Host lines",
            hint,
        )),
    }
}

/// The names in a list header, in lower case.
fn names(headers: &HeaderMap, name: &HeaderName) -> Vec<String> {
    let lines = headers.get_all(name).iter();
    let names = lines.flat_map(|line| line.as_bytes().split(|&byte| byte == b','));
    let names = names.map(|name| String::from_utf8_lossy(name.trim_ascii()).to_ascii_lowercase());
    names.filter(|name| !name.is_empty()).collect()
}

/// Requests for messages are frequent; requests for administration are rare, and are logged.
fn is_traffic(request: &Request) -> bool {
    let method = request.method();
    let path = request.uri().path();
    let messages = path.starts_with("/v1/topics/") && path.contains("/messages");
    messages && (method == Method::POST || method == Method::GET || method == Method::HEAD)
}

async fn answer(request: Request, next: Next, id: &HeaderValue) -> Response {
    let span = tracing::debug_span!(
        "request", id = id.to_str().unwrap_or_default(), method = %request.method(), path = request.uri().path()
    );
    shaped(unharmed(next.run(request)).instrument(span).await)
}

/// A panic is our bug; it costs only this request its answer.
async fn unharmed(call: impl Future<Output = Response>) -> Response {
    let answered = AssertUnwindSafe(call).catch_unwind().await;
    answered
        .unwrap_or_else(|_| ApiError::internal("the request hit a bug in the host").into_response())
}

/// Some refusals come from the framework, in plain text; they get our shape.
fn shaped(response: Response) -> Response {
    let status = response.status();
    let json = HeaderValue::from_static("application/json");
    if !(status.is_client_error() || status.is_server_error())
        || response.headers().get(CONTENT_TYPE) == Some(&json)
    {
        return response;
    }
    let reason = status.canonical_reason().unwrap_or("refused");
    let hint = "GET /openapi.json describes what is accepted";
    ApiError::new(status, "refused", reason, hint).into_response()
}

impl App {
    fn request_id(&self, headers: &HeaderMap) -> HeaderValue {
        let fits = |id: &&HeaderValue| {
            !id.is_empty()
                && id.len() <= REQUEST_ID_CHARS_MAX
                && id.as_bytes().iter().all(u8::is_ascii_graphic)
        };
        if let Some(id) = headers.get(REQUEST_ID).filter(fits) {
            return id.clone();
        }
        self.next_request_id()
    }

    pub(super) fn next_request_id(&self) -> HeaderValue {
        let number = self.requests.fetch_add(1, Relaxed);
        let id = format!("{:08x}-{number}", self.run);
        HeaderValue::from_str(&id).unwrap_or_else(|_| HeaderValue::from_static("none"))
    }
}

/// The names by which this host may be called.
pub(super) struct Callers {
    names: Vec<String>,
    /// A host that listens for other machines has addresses that it does not know. Rebinding needs a name, so addresses are safe to
    /// accept.
    any_address: bool,
}

impl Callers {
    pub(super) fn new(config: &Config) -> Self {
        let mut names = config.allowed_hosts.clone();
        names.push(name_of(&config.listen).to_owned());
        names
            .iter_mut()
            .for_each(|name| name.make_ascii_lowercase());
        Self {
            names,
            any_address: config.insecure_no_auth,
        }
    }

    fn check(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), ApiError> {
        // All of them: others might choose a different one of several.
        let mut hosts = headers.get_all(HOST).iter();
        if !hosts.all(|host| self.is_ours(name_of_bytes(host.as_bytes()))) {
            return Err(foreign("the Host header names another host"));
        }
        if !uri.host().is_none_or(|host| self.is_ours(host)) {
            return Err(foreign("the request names another host"));
        }
        let mut origins = headers.get_all(ORIGIN).iter();
        if !origins.all(|origin| self.is_our_origin(origin.as_bytes())) {
            return Err(foreign("the request comes from a page of another site"));
        }
        if headers
            .get(FETCH_SITE)
            .is_some_and(|site| site == "cross-site")
        {
            return Err(foreign("the request comes from a page of another site"));
        }
        Ok(())
    }

    fn is_our_origin(&self, origin: &[u8]) -> bool {
        let text = str::from_utf8(origin).unwrap_or_default();
        let rest = text.strip_prefix("http://");
        rest.or_else(|| text.strip_prefix("https://"))
            .is_some_and(|authority| self.is_ours(name_of(authority)))
    }

    fn is_ours(&self, name: &str) -> bool {
        let bare = name.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = bare.parse::<IpAddr>()
            && (address.is_loopback() || self.any_address)
        {
            return true;
        }
        let name = name.to_ascii_lowercase();
        name == "localhost" || self.names.contains(&name)
    }
}

/// The name in `name:port`, `[::1]:port` or `name`.
fn name_of(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => authority,
    }
}

fn name_of_bytes(authority: &[u8]) -> &str {
    str::from_utf8(authority).map_or("", name_of)
}

fn foreign(message: &str) -> ApiError {
    let hint = "call the host by the address that it listens on, from outside a browser; add further names of it with \
                --allowed-host";
    ApiError::new(StatusCode::FORBIDDEN, "foreign-caller", message, hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn callers(listen: &str) -> Callers {
        Callers::new(&Config {
            listen: listen.to_owned(),
            allowed_hosts: vec!["Broker.example".to_owned()],
            ..Config::default()
        })
    }

    fn check(name: HeaderName, value: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_str(value).expect("a header"));
        let uri = Uri::from_static("/v1/topics");
        callers("127.0.0.1:7400").check(&uri, &headers).is_ok()
    }

    #[test]
    fn a_host_header_that_names_somebody_else_is_refused() {
        for ours in [
            "127.0.0.1:7400",
            "localhost",
            "LOCALHOST:80",
            "[::1]:7400",
            "broker.example:1",
        ] {
            assert!(check(HOST, ours), "{ours}");
        }
        for foreign in [
            "evil.example:7400",
            "10.0.0.1",
            "localhost.evil.example",
            "",
            "::",
        ] {
            assert!(!check(HOST, foreign), "{foreign}");
        }
    }

    #[test]
    fn a_page_of_another_site_is_refused() {
        assert!(check(ORIGIN, "http://localhost:3000"));
        assert!(check(ORIGIN, "https://127.0.0.1"));
        for foreign in [
            "https://evil.example",
            "null",
            "http://127.0.0.1.evil.example",
            "localhost",
        ] {
            assert!(!check(ORIGIN, foreign), "{foreign}");
        }
        assert!(check(FETCH_SITE, "same-origin"));
        assert!(!check(FETCH_SITE, "cross-site"));
    }

    #[tokio::test]
    async fn a_panic_becomes_an_answer() {
        let answer = unharmed(async { panic!("a bug") }).await;
        assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(answer.headers()[CONTENT_TYPE], "application/json");
    }

    #[tokio::test]
    async fn a_refusal_of_the_framework_gets_our_shape() {
        let plain = (StatusCode::UNSUPPORTED_MEDIA_TYPE, "no").into_response();
        let answer = shaped(plain);
        assert_eq!(answer.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
        assert_eq!(answer.headers()[CONTENT_TYPE], "application/json");
    }

    #[test]
    fn an_absolute_request_target_is_checked_too() {
        let uri = Uri::from_static("http://evil.example/v1/topics");
        assert!(
            callers("127.0.0.1:1")
                .check(&uri, &HeaderMap::new())
                .is_err()
        );
    }
}
