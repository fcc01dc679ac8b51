//! Answers requests to paths that the host does not have itself: with the component of the route that covers the path, if there is one.
//!
//! Bodies pass part by part. The component gets the request's body until it answers; what it has not read by then is discarded, as
//! for every other request.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{
    CONNECTION, HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING,
    UPGRADE,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::future::{Either, select};
use futures_util::{StreamExt, stream};
use metrics::{counter, histogram};
use millrace_broker::{
    HTTP_BODY_PARTS_MAX, HttpAnswer, HttpBody, HttpHeaders, HttpPart, HttpRequest, ServeError,
    Served,
};
use millrace_model::{Code, RoutePath};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::bounds::{BODY_MS_MAX, BODY_SILENCE_MS_MAX, ROUTE_BODY_BYTES_MAX};
use super::called::Called;
use super::error::{self, ApiError, own};
use super::proving::Sender;

/// Headers about one connection, which are not passed on.
const OF_A_CONNECTION: [HeaderName; 9] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    HeaderName::from_static("proxy-connection"),
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Counts the requests to routes. Series of revisions that are no longer kept are removed.
pub(super) const REQUESTS_TOTAL: &str = "millrace_route_requests_total";

/// When a route that cannot answer now should be asked again.
const RETRY_AFTER_S: u32 = 1;

/// Marks an answer as a component's: it is passed on as it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct OfAComponent;

/// Answers a request to a path that is not the host's own.
pub(super) async fn answer(app: Called, request: Request) -> Response {
    let found = app.session.routes().found(request.uri().path()).await;
    let Some(path) = found else {
        let (parts, _) = request.into_parts();
        return error::unknown_route(parts.method, parts.uri)
            .await
            .into_response();
    };
    let began = app.clock.monotonic();
    let sender = request.extensions().get::<Arc<Sender>>().cloned();
    let (revision, answered) = ask(&app, &path, request).await;
    let took = app.clock.monotonic().saturating_sub(began);
    // None answered if the route was deleted meanwhile.
    let revision = revision.unwrap_or_default();
    let (outcome, answer) = match answered {
        Ok(answer) => ("answered", answer),
        Err(error) => {
            let word = word(&error);
            let refusal = match (error, sender) {
                (ServeError::Forbidden(error), Some(sender)) => sender.refused(error),
                (error, _) => refusal(error, revision),
            };
            (word, refusal.into_response())
        }
    };
    let route = path.to_string();
    let number = revision.to_string();
    counter!(REQUESTS_TOTAL, "route" => route.clone(), "revision" => number, "outcome" => outcome)
        .increment(1);
    histogram!("millrace_route_seconds", "route" => route).record(took.as_secs_f64());
    answer
}

/// The revision that was asked, and what became of the request.
async fn ask(
    app: &Called,
    path: &RoutePath,
    request: Request,
) -> (Option<u32>, Result<Response, ServeError>) {
    let (parts, body) = request.into_parts();
    let (sender, receiver) = mpsc::channel(HTTP_BODY_PARTS_MAX);
    let host = parts.headers.get(HOST).and_then(|host| host.to_str().ok());
    let target = parts.uri.path_and_query();
    let asked = HttpRequest {
        method: parts.method.to_string(),
        target: target.map_or_else(|| "/".to_owned(), ToString::to_string),
        authority: host.unwrap_or("localhost").to_owned(),
        headers: passed_on(&parts.headers),
        body: receiver,
    };
    let routes = app.session.routes();
    let serving = Box::pin(routes.serve(path, asked));
    let sending = Box::pin(send(body, sender));
    let Served { revision, answer } = match select(serving, sending).await {
        Either::Left((served, _)) => served,
        Either::Right(((), serving)) => serving.await,
    };
    let response = answer.and_then(|answer| {
        answered(answer).ok_or_else(|| ServeError::Failed {
            path: path.clone(),
            why: "its answer is not valid HTTP".to_owned(),
        })
    });
    (revision, response)
}

/// Passes the request's body on. Whatever is wrong with it cuts it off: the component sees that it is not whole.
async fn send(body: Body, parts: mpsc::Sender<HttpPart>) {
    let mut chunks = body.into_data_stream();
    let silence = Duration::from_millis(BODY_SILENCE_MS_MAX);
    let passing = async {
        let mut left = ROUTE_BODY_BYTES_MAX;
        loop {
            let part = match timeout(silence, chunks.next()).await {
                Ok(Some(Ok(bytes))) => {
                    left = left.checked_sub(bytes.len() as u64)?;
                    HttpPart::Bytes(bytes)
                }
                Ok(None) => HttpPart::End,
                Ok(Some(Err(_))) | Err(_) => return None,
            };
            let is_last = part == HttpPart::End;
            parts.send(part).await.ok()?;
            if is_last {
                return Some(());
            }
        }
    };
    let _ = timeout(Duration::from_millis(BODY_MS_MAX), passing).await;
}

/// The component's answer, if its status can be one.
fn answered(answer: HttpAnswer) -> Option<Response> {
    let status = StatusCode::from_u16(answer.status).ok()?;
    if status.is_informational() {
        return None;
    }
    let mut response = Response::new(Body::from_stream(parts_of(answer.body)));
    *response.status_mut() = status;
    for (name, value) in answer.headers {
        let name = HeaderName::try_from(name).ok()?;
        let value = HeaderValue::from_maybe_shared(value).ok()?;
        if !OF_A_CONNECTION.contains(&name) {
            response.headers_mut().append(name, value);
        }
    }
    response.extensions_mut().insert(OfAComponent);
    Some(response)
}

/// The body's bytes; an error if it was cut off, which ends the connection, so that nobody takes the part for the whole.
fn parts_of(body: HttpBody) -> impl futures_util::Stream<Item = io::Result<Bytes>> {
    stream::unfold(Some(body), |body| async move {
        let mut body = body?;
        match body.recv().await {
            Some(HttpPart::Bytes(bytes)) => Some((Ok(bytes), Some(body))),
            Some(HttpPart::End) => None,
            None => Some((Err(io::ErrorKind::UnexpectedEof.into()), None)),
        }
    })
}

fn passed_on(headers: &HeaderMap) -> HttpHeaders {
    let headers = headers.iter();
    headers
        .filter(|(name, _)| !OF_A_CONNECTION.contains(name))
        .map(|(name, value)| {
            let value = Bytes::copy_from_slice(value.as_bytes());
            (name.as_str().to_owned(), value)
        })
        .collect()
}

/// The error's word in metrics.
fn word(error: &ServeError) -> &'static str {
    match error {
        ServeError::Forbidden(_) => "forbidden",
        ServeError::Busy { .. } => "busy",
        ServeError::Unavailable { .. } => "unavailable",
        ServeError::Failed { .. } => "failed",
        ServeError::Late { .. } => "late",
    }
}

/// Whoever called learns which route failed, and no more: the rest is for its operator, in the log.
fn refusal(error: ServeError, revision: u32) -> ApiError {
    match error {
        ServeError::Forbidden(error) => error.into(),
        ServeError::Busy { .. } => {
            ApiError::of(Code::RouteBusy, error.to_string()).after_s(RETRY_AFTER_S)
        }
        ServeError::Unavailable { path, why } => {
            tracing::warn!(route = %path, revision, why, "a route cannot answer");
            ApiError::of(
                Code::RouteUnavailable,
                format!("route {path} cannot answer now"),
            )
            .after_s(RETRY_AFTER_S)
        }
        ServeError::Failed { path, why } => {
            tracing::info!(route = %path, revision, why, "the component of a route failed");
            let hint =
                "GET /v1/routes/{path} or `millrace route show` shows what its component logged";
            ApiError::own(&own::ROUTE_FAILED, format!("route {path} failed"), hint)
        }
        ServeError::Late { path } => {
            let hint = "try again later; the operator can raise limits.call_ms_max of the route";
            let message = format!("route {path} did not answer in time");
            tracing::info!(route = %path, revision, "a route did not answer in time");
            ApiError::own(&own::ROUTE_LATE, message, hint)
        }
    }
}

#[cfg(test)]
mod fuzz_tests;
