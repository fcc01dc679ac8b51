//! One HTTP connection: requests and answers one after the other, a timeout for slow heads, and
//! refusals in our own shape for malformed requests.
//!
//! A request may make its connection a session of something else (an upgrade); then the connection keeps its place until that has
//! ended. A session ends by itself when its door is stopping.

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
use futures_util::future::BoxFuture;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use millrace_model::Clock;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::app::App;
use super::bounds::{HALF_CLOSED_MS_MAX, HEAD_BYTES_MAX, HEAD_LINES_MAX};
use super::error::{ApiError, own};
use super::guard::{finished, no_place};
use super::modules::Peer;
use super::request_ids::RequestIds;
use super::stream::{Lent, Returned};
use crate::net::{Connection, Impatient, Line, Phase, Seat};

/// A connection being served.
pub(super) type Served = BoxFuture<'static, ()>;

/// What every connection needs.
#[derive(Clone)]
pub(super) struct Door {
    router: Router,
    clock: Arc<dyn Clock>,
    stopping: CancellationToken,
    request_ids: Arc<RequestIds>,
}

impl Door {
    pub(super) fn new(router: Router, app: &App) -> Self {
        Self {
            router,
            clock: app.clock.clone(),
            stopping: app.stopping.clone(),
            request_ids: app.request_ids.clone(),
        }
    }

    fn now(&self) -> Duration {
        self.clock.monotonic()
    }

    pub(super) fn converse(self, connection: Connection) -> Served {
        Box::pin(async move {
            if connection.seat.is_refused() {
                return connection.end(Some(&self.words(no_place()).await)).await;
            }
            let Connection { stream, seat } = connection;
            let Some((stream, refusal)) = self.answer_requests(stream, &seat).await else {
                return;
            };
            let connection = Connection { stream, seat };
            match refusal {
                Some(refusal) => connection.end(Some(&self.words(refusal).await)).await,
                None => connection.end(None).await,
            }
        })
    }

    /// The bytes of a refusal that comes before any route.
    async fn words(&self, refusal: ApiError) -> Vec<u8> {
        as_bytes(finished(refusal.into_response(), self.request_ids.next())).await
    }

    /// Answers requests until either side ends the connection. Returns the stream and the bytes
    /// still to be written to it.
    async fn answer_requests(
        &self,
        stream: Impatient,
        seat: &Seat,
    ) -> Option<(Impatient, Option<ApiError>)> {
        let line = seat.line();
        let router = TowerToHyperService::new(self.router.clone());
        let service = service_fn(|mut request: Request<Incoming>| {
            line.enter(Phase::Busy, self.now());
            request.extensions_mut().insert(Peer(seat.peer().address));
            request
                .extensions_mut()
                .insert(seat.peer().presented.clone());
            request.extensions_mut().insert(line.clone());
            // Whether the work is useful only to a caller who waits for it.
            let for_its_caller = request.uri().path().ends_with("/redrive")
                || request.uri().path().ends_with("/dry-run");
            let answer = router.call(request);
            let (line, clock) = (line.clone(), self.clock.clone());
            Box::pin(async move {
                let answer = tokio::select! {
                    biased;
                    answer = answer => answer?,
                    () = given_up(&line, for_its_caller) => hung_up(),
                };
                if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
                    // Before the session can say anything.
                    line.enter(Phase::Session, clock.monotonic());
                }
                Ok::<_, Infallible>(answer.map(|body| Sent { body, line, clock }))
            })
        });
        let (lent, returned) = Lent::new(stream, line.clone());
        let mut connection = Box::pin(
            http1::Builder::new()
                .max_headers(HEAD_LINES_MAX)
                .max_header_size(HEAD_BYTES_MAX)
                .max_buf_size(HEAD_BYTES_MAX)
                .serve_connection(TokioIo::new(lent), service)
                .with_upgrades(),
        );
        let mut leaving = pin!(async {
            tokio::select! {
                () = self.stopping.cancelled() => {}
                () = line.closing().cancelled() => {}
            }
        });
        let mut asked = false;
        let mut closed = pin!(line.closing().cancelled());
        let ended = poll_fn(|cx| {
            if !asked && leaving.as_mut().poll(cx).is_ready() {
                asked = true;
                connection.as_mut().graceful_shutdown();
            }
            let ended = connection.as_mut().poll(cx);
            let may_end = !line.is_busy() || line.is_reserved();
            if ended.is_pending() && may_end && closed.as_mut().poll(cx).is_ready() {
                return Poll::Ready(None);
            }
            ended.map(Some)
        })
        .await;
        let was_in_head = line.phase() == Phase::Head;
        drop(connection);
        // At once, unless it has become a session.
        let Returned { stream, caught } = returned.await.ok()?;
        let refusal = match ended {
            Some(Ok(())) => None,
            Some(Err(error)) if error.is_parse() && !line.is_busy() => {
                let status = caught.unwrap_or(StatusCode::BAD_REQUEST);
                Some(of_a_head(status, &error.to_string()))
            }
            Some(Err(error)) => {
                tracing::debug!(%error, "a connection ended early");
                None
            }
            None if was_in_head => Some(slow_head()),
            None => None,
        };
        Some((stream, refusal))
    }
}

/// Returns when a caller that closed its sending side has waited long enough: most such callers
/// have disconnected, and the two cases look alike.
async fn given_up(line: &Line, for_its_caller: bool) {
    line.gone().cancelled().await;
    if !for_its_caller {
        sleep(Duration::from_millis(HALF_CLOSED_MS_MAX)).await;
    }
}

/// The bytes of a whole answer that comes before any route and ends its connection.
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

/// The error for a head that the HTTP library refuses.
fn of_a_head(status: StatusCode, why: &str) -> ApiError {
    match status {
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
            let message = format!(
                "the head is larger than {HEAD_BYTES_MAX} bytes, or has more than {HEAD_LINES_MAX} header lines"
            );
            ApiError::own(
                &own::HEAD_TOO_LARGE,
                message,
                "send fewer or shorter headers",
            )
        }
        StatusCode::URI_TOO_LONG => {
            let message = "the path and its query are too long";
            let refused = ApiError::own(&own::HEAD_TOO_LARGE, message, "ask for less at once");
            refused.with_status(status)
        }
        _ => {
            let message = format!("this is no HTTP/1.1 request: {why}");
            let refused = ApiError::malformed(message, "speak HTTP/1.1, without TLS");
            refused.with_status(status)
        }
    }
}

fn hung_up() -> Response<Body> {
    let message = "the caller closed its side of the connection while this was being done, and it was stopped";
    let hint = "keep the connection open until the answer comes";
    ApiError::own(&own::HUNG_UP, message, hint).into_response()
}

fn slow_head() -> ApiError {
    let message = "the request did not come whole in time";
    let hint = "send its head at once";
    ApiError::own(&own::TOO_SLOW, message, hint)
}

/// An answer's body, which reports to its connection when it has been sent.
struct Sent {
    body: Body,
    line: Arc<Line>,
    clock: Arc<dyn Clock>,
}

impl Drop for Sent {
    fn drop(&mut self) {
        if self.line.phase() == Phase::Busy {
            self.line.enter(Phase::Answered, self.clock.monotonic());
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

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use hyper::upgrade::OnUpgrade;
    use millrace_model::SystemClock;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::net::{Budgets, DoorLimits, Doors, Listener};

    /// Makes the connection a session that says everything back, with a mark before it.
    async fn echo(mut request: axum::extract::Request) -> Response<Body> {
        let Some(upgrade) = request.extensions_mut().remove::<OnUpgrade>() else {
            return StatusCode::UPGRADE_REQUIRED.into_response();
        };
        tokio::spawn(async move {
            let mut session = TokioIo::new(upgrade.await.expect("a session"));
            let mut buffer = [0; 64];
            while let Ok(count @ 1..) = session.read(&mut buffer).await {
                let said = [b"> ", &buffer[..count]].concat();
                session.write_all(&said).await.expect("heard");
            }
            session.shutdown().await.expect("an orderly end");
        });
        let mut answer = StatusCode::SWITCHING_PROTOCOLS.into_response();
        let upgrade = HeaderValue::from_static("upgrade");
        answer.headers_mut().insert(CONNECTION, upgrade);
        let name = HeaderValue::from_static("echo");
        answer.headers_mut().insert("upgrade", name);
        answer
    }

    async fn opened() -> (Doors, TcpStream) {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let socket = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let limits = DoorLimits {
            regular_max: 1,
            reserved_max: 0,
            idle: Duration::from_secs(10),
        };
        let listener = Listener::new(socket, limits, None, clock.clone()).expect("a door");
        let door = Door {
            router: Router::new().route("/echo", get(echo)),
            clock,
            stopping: listener.stopping(),
            request_ids: Arc::new(RequestIds::new()),
        };
        let address = listener.address().expect("a port");
        let mut doors = Doors::new(Budgets::new(1 << 10, 1 << 10));
        doors.open("http", listener, move |connection| {
            door.clone().converse(connection)
        });
        let stream = TcpStream::connect(address).await.expect("a connection");
        (doors, stream)
    }

    /// All that comes until it ends so.
    async fn until(stream: &mut TcpStream, end: &str) -> String {
        let mut text = String::new();
        while !text.ends_with(end) {
            let mut buffer = [0; 1 << 10];
            let read = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut buffer));
            let count = read.await.expect("in time").expect("a connection");
            assert!(count > 0, "it ended after {text:?}");
            text.push_str(str::from_utf8(&buffer[..count]).expect("text"));
        }
        text
    }

    #[tokio::test]
    async fn a_request_makes_its_connection_a_session_that_keeps_its_place() {
        let (doors, mut stream) = opened().await;
        // An ordinary request first: the connection is kept.
        let plain = b"GET /echo HTTP/1.1\r\nhost: localhost\r\n\r\n";
        stream.write_all(plain).await.expect("sent");
        let head = until(&mut stream, "\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 426 "), "{head}");
        // What follows the head at once is the session's.
        let request = b"GET /echo HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\na\n";
        stream.write_all(request).await.expect("sent");
        let head = until(&mut stream, "> a\n").await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let mut beyond = TcpStream::connect(doors.address("http").expect("a door"))
            .await
            .expect("a connection");
        let refused = until(&mut beyond, "}").await;
        assert!(refused.contains("too-many-connections"), "{refused}");
        stream.write_all(b"b\n").await.expect("sent");
        assert_eq!(until(&mut stream, "\n").await, "> b\n");
        // The session sees the end of what the other side sends, and the connection ends with it.
        stream.shutdown().await.expect("closed");
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.expect("an orderly end");
        assert_eq!(rest, b"");
        doors.stop(Duration::from_secs(10)).await;
    }
}
