//! The layer before every route: requests from foreign web pages are refused, every answer has a request id, and a panic becomes an
//! answer.
//!
//! A request without a certain end (unknown transfer codings, two Host lines, none) is refused before anything else. After any refusal
//! the rest of the body is consumed ([`super::rest`]), and an answer that ends its connection says so. Who sends a request is asked only if
//! it is not refused anyway: to check a password costs the host more than all the rest.
//!
//! [`super::callers`] decides which requests are accepted.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::header::{
    CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HOST, TRANSFER_ENCODING, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use millrace_broker::Standing;
use millrace_model::{Code, Quota};
use tracing::Instrument;

use super::app::App;
use super::bounds::{DISCARD_MS_MAX, REQUEST_ID_CHARS_MAX};
use super::called::RequestId;
use super::error::{ApiError, own};
use super::mount::OfAComponent;
use super::proving::{CHALLENGE, Origin, pass};
use super::record::Asked;
use super::rest;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

pub(super) async fn admit(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let id = app.request_id(request.headers());
    let began = app.clock.monotonic();
    let origin = Origin::of(&request);
    let line = origin.line().cloned();
    let reserved = line.as_ref().is_some_and(|line| line.is_reserved());
    let asks_to_close = names(request.headers(), &CONNECTION).contains(&"close".to_owned());
    let (mut request, rest) = rest::lend(request);
    request.extensions_mut().insert(RequestId(id.clone()));
    let uri = request.uri().clone();
    let framed = framing(request.version(), request.headers());
    let mut ends = framed.is_err() || reserved || app.stopping.is_cancelled();
    let acceptable = framed
        .and_then(|()| app.callers.check(&uri, request.headers()))
        .and_then(|()| match reserved && is_traffic(&request) {
            true => Err(no_place()),
            false => Ok(()),
        });
    let sender = match acceptable {
        Ok(()) => {
            let sender = app.sender_of(uri.path(), request.headers_mut(), &origin);
            sender.await.map(Arc::new)
        }
        Err(refusal) => Err(refusal),
    };
    let standing = match &sender {
        Ok(sender) => sender.standing.clone(),
        Err(_) => Standing::Nobody,
    };
    let caller = app.caller_of(&request, standing);
    let asked = Asked::of(&request, caller.signature());
    let unanswered = app.audited(&caller);
    if let Ok(sender) = &sender {
        request.extensions_mut().insert(Arc::clone(sender));
    }
    request.extensions_mut().insert(caller.clone());
    let admitted = sender.and_then(|sender| {
        let asks = [(Quota::Requests, 1)];
        caller.check_quotas(&[Quota::Requests], began)?;
        caller.take(&asks, began);
        Ok(sender)
    });
    let response = match admitted {
        Ok(sender) => match pass(request, &caller, &sender).await {
            Ok(request) => {
                let answer = sender.while_it_lasts(answer(request, next, &id)).await;
                sender.bounded(answer)
            }
            Err(forbidden) => forbidden.into_response(),
        },
        Err(refusal) => {
            drop(request);
            if refusal.is(Code::CredentialsRefused) {
                ends |= !app.hold_back(&caller, line.as_ref()).await;
            }
            refusal.into_response()
        }
    };
    unanswered.answered(&response).await;
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
    let is_foreign = is_of_a_component(&response);
    let headers = response.headers_mut();
    let own = [
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    for (name, value) in own {
        // A component may decide otherwise for its own answers.
        if !(is_foreign && headers.contains_key(&name)) {
            headers.insert(name, value);
        }
    }
    headers.insert(REQUEST_ID, id);
    if !is_foreign && response.status() == StatusCode::UNAUTHORIZED {
        let (name, value) = CHALLENGE;
        response.headers_mut().insert(name, value);
    }
    response
}

fn is_of_a_component(response: &Response) -> bool {
    response.extensions().get::<OfAComponent>().is_some()
}

/// The refusal for requests other than administration when there is no room for them.
pub(super) fn no_place() -> ApiError {
    let message = "there are too many connections";
    ApiError::of(Code::TooManyConnections, message)
}

/// Whether it is certain where the request ends, and which host it is for.
fn framing(version: Version, headers: &HeaderMap) -> Result<(), ApiError> {
    let codings = names(headers, &TRANSFER_ENCODING);
    if let Some(other) = codings.iter().find(|coding| *coding != "chunked") {
        let message = format!("the transfer coding {other:?} is not supported");
        let hint = "send the body with a Content-Length, or chunked";
        return Err(ApiError::own(&own::UNKNOWN_CODING, message, hint));
    }
    if codings.len() > 1 {
        let hint = "send Transfer-Encoding: chunked once";
        return Err(ApiError::malformed("the body is chunked twice", hint));
    }
    let hint = "send one Host line that names this host";
    let mut hosts = headers.get_all(HOST).iter();
    if hosts.any(|host| host.to_str().is_err()) {
        let message = "the Host line is not ASCII text";
        let hint = "write an international name in its ASCII form, as in xn--bcher-kva.example";
        return Err(ApiError::malformed(message, hint));
    }
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

/// Where the host's own paths begin.
const OWN_PATHS: [&str; 4] = ["/v1/", "/health/", "/metrics", "/openapi.json"];

/// Requests for messages and to components are frequent; requests for administration are rare, and are logged.
fn is_traffic(request: &Request) -> bool {
    let method = request.method();
    let path = request.uri().path();
    if !OWN_PATHS.iter().any(|own| path.starts_with(own)) {
        return true;
    }
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
    if is_of_a_component(&response) {
        return response;
    }
    let status = response.status();
    let json = HeaderValue::from_static("application/json");
    if !(status.is_client_error() || status.is_server_error())
        || response.headers().get(CONTENT_TYPE) == Some(&json)
    {
        return response;
    }
    let reason = status.canonical_reason().unwrap_or("refused");
    let hint = "GET /openapi.json describes what is accepted";
    let refused = ApiError::own(&own::REFUSED, reason, hint);
    refused.with_status(status).into_response()
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
        self.request_ids.next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
