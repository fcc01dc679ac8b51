//! Connections: so many at once, no patience for slow heads or readers that do not read, no waiting for small packets, and a polite end.
//!
//! [`super::places`] says who may have one. A connection ends so that its other side reads the last answer: whatever is still being sent
//! is taken and thrown away for a while, because closing on unread bytes would tear the answer up.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::http::header::{CONNECTION, CONTENT_LENGTH};
use axum::http::{HeaderValue, Request, Response, StatusCode};
use axum::response::IntoResponse;
use bytes::Bytes;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use super::bounds::{
    HALF_CLOSED_MS_MAX, HEAD_BYTES_MAX, HEAD_LINES_MAX, LINGER_MS_MAX, LINGER_SILENCE_MS_MAX,
    STOPPING_LINGER_MS_MAX, WRITE_SILENCE_MS_MAX,
};
use super::error::ApiError;
use super::line::{Line, Phase};
use super::modules::Peer;
use super::places::{Place, Places};
use super::stream::Impatient;
use super::{App, router};

/// After an accept that failed (too many open files, say): long enough to let some close.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Failed accepts are said so often, and counted in between.
const ACCEPT_SAID_EVERY: Duration = Duration::from_secs(10);
/// How often silent connections are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_millis(500);
/// What is read at once of what is thrown away.
const THROWN_AWAY_BYTES: usize = 64 << 10;

/// Answers until the host stops; returns when the last connection is closed. Dropping it cuts them off.
pub(crate) async fn serve(listener: TcpListener, app: Arc<App>) {
    let stopping = app.stopping.clone();
    let door = Door {
        router: router(app.clone()),
        places: app.places.clone(),
        app,
    };
    let mut connections = tokio::task::JoinSet::new();
    let mut failures = Failures::default();
    let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = sweep.tick() => {
                door.places.sweep(door.now());
                continue;
            }
            () = stopping.cancelled() => break,
        };
        // Finished connections are taken out, so that the set stays as small as the places say.
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, _)) => {
                if let Some(place) = door.places.take(door.now()) {
                    connections.spawn(door.clone().converse(stream, place));
                }
            }
            Err(error) => {
                failures.met(&error, door.now());
                door.places.shrink(door.now());
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    door.places.stop();
    loop {
        tokio::select! {
            ended = connections.join_next() => if ended.is_none() { break },
            _ = sweep.tick() => door.places.sweep(door.now()),
        }
    }
}

/// Accepts that failed, said now and then: while files are short there are twenty a second.
#[derive(Default)]
struct Failures {
    count: u64,
    said_at: Option<Duration>,
}

impl Failures {
    fn met(&mut self, error: &std::io::Error, now: Duration) {
        self.count += 1;
        metrics::counter!("millrace_accept_failures_total").increment(1);
        if self
            .said_at
            .is_none_or(|at| now.saturating_sub(at) >= ACCEPT_SAID_EVERY)
        {
            let count = std::mem::take(&mut self.count);
            self.said_at = Some(now);
            tracing::warn!(%error, count, "connections were not accepted");
        }
    }
}

/// What every connection needs.
#[derive(Clone)]
struct Door {
    app: Arc<App>,
    router: Router,
    places: Arc<Places>,
}

impl Door {
    fn now(&self) -> Duration {
        self.app.clock.monotonic()
    }

    async fn converse(self, stream: TcpStream, place: Place) {
        // Answers are written whole; waiting for more to send would only add delay.
        if stream.set_nodelay(true).is_err() {
            return;
        }
        let line = place.line.clone();
        let peer = Peer(stream.peer_addr().ok().map(|address| address.ip()));
        let patience = Duration::from_millis(WRITE_SILENCE_MS_MAX);
        let stream = Impatient::new(stream, patience, self.app.clock.clone(), line.clone());
        if place.refused {
            let refusal = Some(no_place());
            return self.end(stream, &line, refusal).await;
        }
        let (stream, refusal) = self.answer_requests(stream, peer, &line).await;
        self.end(stream, &line, refusal).await;
    }

    /// Answers requests until either side has had enough. Gives the stream back, and what is still to be said on it.
    async fn answer_requests(
        &self,
        stream: Impatient,
        peer: Peer,
        line: &Arc<Line>,
    ) -> (Impatient, Option<ApiError>) {
        let router = TowerToHyperService::new(self.router.clone());
        let service = service_fn(|mut request: Request<Incoming>| {
            line.enter(Phase::Busy, self.now());
            request.extensions_mut().insert(peer);
            request.extensions_mut().insert(line.clone());
            // Which work is done for those only who wait for it.
            let for_its_caller = request.uri().path().ends_with("/redrive")
                || request.uri().path().ends_with("/dry-run");
            let answer = router.call(request);
            let (line, app) = (line.clone(), self.app.clone());
            Box::pin(async move {
                let answer = tokio::select! {
                    biased;
                    answer = answer => answer?,
                    () = given_up(&line, for_its_caller) => hung_up(),
                };
                Ok::<_, Infallible>(answer.map(|body| Sent { body, line, app }))
            })
        });
        let mut connection = http1::Builder::new()
            .max_headers(HEAD_LINES_MAX)
            .max_header_size(HEAD_BYTES_MAX)
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service);
        let mut leaving = pin!(async {
            tokio::select! {
                () = self.app.stopping.cancelled() => {}
                () = line.closing().cancelled() => {}
            }
        });
        let mut asked = false;
        let mut closed = pin!(line.closing().cancelled());
        let ended = poll_fn(|cx| {
            if !asked && leaving.as_mut().poll(cx).is_ready() {
                asked = true;
                Pin::new(&mut connection).graceful_shutdown();
            }
            let ended = connection.poll_without_shutdown(cx);
            let may_end = !line.is_busy() || line.is_reserved();
            if ended.is_pending() && may_end && closed.as_mut().poll(cx).is_ready() {
                return Poll::Ready(None);
            }
            ended.map(Some)
        })
        .await;
        let was_in_head = line.phase() == Phase::Head;
        let stream = connection.into_parts().io.into_inner();
        match ended {
            Some(Ok(())) => (stream, None),
            Some(Err(error)) if error.is_parse() && !line.is_busy() => {
                let status = line.caught().unwrap_or(StatusCode::BAD_REQUEST);
                (stream, Some(of_a_head(status, &error.to_string())))
            }
            Some(Err(error)) => {
                tracing::debug!(%error, "a connection ended early");
                (stream, None)
            }
            None if was_in_head => (stream, Some(slow_head())),
            None => (stream, None),
        }
    }

    /// Says what is still to be said, and closes so that it is read.
    async fn end(&self, mut stream: Impatient, line: &Line, refusal: Option<ApiError>) {
        let lingers = refusal.is_some() || line.is_unfinished();
        line.enter(Phase::Ending, self.now());
        if let Some(refusal) = refusal {
            let answer =
                super::guard::finished(refusal.into_response(), self.app.next_request_id());
            if stream.write_all(&as_bytes(answer).await).await.is_err() {
                return;
            }
        }
        if stream.shutdown().await.is_err() || !lingers || line.gone().is_cancelled() {
            return;
        }
        let most = Duration::from_millis(LINGER_MS_MAX);
        tokio::select! {
            _ = timeout(most, throw_away(&mut stream)) => {}
            () = line.closing().cancelled() => {}
            () = self.stops() => {}
        }
    }

    async fn stops(&self) {
        self.app.stopping.cancelled().await;
        sleep(Duration::from_millis(STOPPING_LINGER_MS_MAX)).await;
    }
}

/// Takes what still comes until nothing does.
async fn throw_away(stream: &mut Impatient) {
    let mut buffer = vec![0; THROWN_AWAY_BYTES];
    let silence = Duration::from_millis(LINGER_SILENCE_MS_MAX);
    while let Ok(Ok(1..)) = timeout(silence, stream.read(&mut buffer)).await {}
}

/// Returns when a caller who sends no more has waited long enough: most have gone altogether, and the two look alike.
async fn given_up(line: &Line, for_its_caller: bool) {
    line.gone().cancelled().await;
    if !for_its_caller {
        sleep(Duration::from_millis(HALF_CLOSED_MS_MAX)).await;
    }
}

/// A whole answer as it goes over a connection that ends with it, for what no route has seen.
async fn as_bytes(answer: Response<Body>) -> Vec<u8> {
    let (parts, body) = answer.into_parts();
    // It is in memory already.
    let body = axum::body::to_bytes(body, usize::MAX)
        .await
        .unwrap_or_default();
    let reason = parts.status.canonical_reason().unwrap_or("Refused");
    let mut bytes = format!("HTTP/1.1 {} {reason}\r\n", parts.status.as_str()).into_bytes();
    let length = HeaderValue::from(body.len());
    let close = HeaderValue::from_static("close");
    let added = [(&CONTENT_LENGTH, &length), (&CONNECTION, &close)];
    let headers = parts
        .headers
        .iter()
        .filter(|(name, _)| **name != CONTENT_LENGTH);
    for (name, value) in headers.chain(added) {
        bytes.extend_from_slice(name.as_str().as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(&body);
    bytes
}

/// Of a head that the HTTP library refuses.
fn of_a_head(status: StatusCode, why: &str) -> ApiError {
    let (code, message, hint) = match status {
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
            let message = format!(
                "the head is larger than {HEAD_BYTES_MAX} bytes, or has more than {HEAD_LINES_MAX} header lines"
            );
            ("head-too-large", message, "send fewer or shorter headers")
        }
        StatusCode::URI_TOO_LONG => {
            let message = "the path and its query are too long".to_owned();
            ("head-too-large", message, "ask for less at once")
        }
        _ => {
            let message = format!("this is no HTTP/1.1 request: {why}");
            ("malformed", message, "speak HTTP/1.1, without TLS")
        }
    };
    ApiError::new(status, code, message, hint)
}

fn hung_up() -> Response<Body> {
    let message = "the caller closed its side of the connection while this was being done, and it was stopped";
    let hint = "keep the connection open until the answer comes";
    ApiError::new(StatusCode::REQUEST_TIMEOUT, "hung-up", message, hint).into_response()
}

/// Said to whom there is no room for; there is for administration.
pub(super) fn no_place() -> ApiError {
    let message = "there are too many connections";
    let hint =
        "try again; use fewer connections, or have the host take more with --connections-max";
    ApiError::unavailable("too-many-connections", message, hint, 1)
}

fn slow_head() -> ApiError {
    let message = "the request did not come whole in time";
    let hint = "send its head at once";
    ApiError::new(StatusCode::REQUEST_TIMEOUT, "too-slow", message, hint)
}

/// An answer's body, which tells its connection when it has left.
struct Sent {
    body: Body,
    line: Arc<Line>,
    app: Arc<App>,
}

impl Drop for Sent {
    fn drop(&mut self) {
        if self.line.phase() == Phase::Busy {
            self.line.enter(Phase::Answered, self.app.clock.monotonic());
        }
    }
}

impl HttpBody for Sent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
