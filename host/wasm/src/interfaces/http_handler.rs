//! `wasi:http/incoming-handler`: one request in, its answer out, each body part by part.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::{Either, select};
use http::{HeaderName, HeaderValue, Request, Response};
use http_body::{Body, Frame};
use http_body_util::BodyExt as _;
use millrace_broker::handler::{
    CallError, CallUse, HTTP_BODY_PARTS_MAX, HttpAnswer, HttpBody, HttpHandler, HttpPart,
    HttpRequest, Interface,
};
use tokio::sync::{mpsc, oneshot};
use wasmtime::component::Resource;
use wasmtime_wasi_http::p2::bindings::http::types::{ErrorCode, Scheme};
use wasmtime_wasi_http::p2::body::HyperOutgoingBody;
use wasmtime_wasi_http::p2::types::{HostIncomingRequest, HostResponseOutparam};
use wasmtime_wasi_http::{Error, WasiHttpView as _};

use crate::call::{GuestCall, Returned};
use crate::pool::{Guest, Pool};

type Params = (
    Resource<HostIncomingRequest>,
    Resource<HostResponseOutparam>,
);

/// What the guest answers: a response, or that it has none.
type Said = Result<Response<HyperOutgoingBody>, ErrorCode>;

/// One call of `handle`.
pub(crate) struct Serve {
    request: HttpRequest,
    answer: oneshot::Sender<HttpAnswer>,
}

impl GuestCall for Serve {
    type Output = ();
    const INTERFACE: Interface = Interface::HttpHandler;
    const FUNCTION: &'static str = "handle";
    // Nothing of one caller's request may be left for the next.
    const REUSES: bool = false;

    fn check(guest: &Guest) -> wasmtime::Result<()> {
        guest.function.typed::<Params, ()>(&guest.store).map(drop)
    }

    async fn make(self, guest: &mut Guest) -> wasmtime::Result<Returned<()>> {
        let Self { request, answer } = self;
        let request = match incoming(request) {
            Ok(request) => request,
            Err(error) => return Ok(Returned::Bad(error.to_string())),
        };
        let function = guest.function.typed::<Params, ()>(&guest.store)?;
        let bytes_max = guest.store.data().call_limits.answer_bytes_max;
        let (said, heard) = oneshot::channel();
        let mut http = guest.store.data_mut().http();
        let params = (
            http.new_incoming_request(Scheme::Http, request)?,
            http.new_response_outparam(said)?,
        );
        // The guest writes its body while it runs, so both must go on together.
        let has_answered = AtomicBool::new(false);
        let mut passing = pin!(pass(heard, &has_answered, answer, bytes_max));
        let passed = {
            let call = pin!(function.call_async(&mut guest.store, params));
            match select(call, passing.as_mut()).await {
                Either::Left((called, _)) => {
                    called?;
                    None
                }
                Either::Right((Ok(()), call)) => {
                    // What comes after the end of the answer is the guest's own affair, within its time.
                    call.await?;
                    Some(Ok(()))
                }
                Either::Right((failed, _)) => Some(failed),
            }
        };
        let passed = match passed {
            Some(passed) => passed,
            None => {
                // A body that it has not finished will never be: nobody should wait for that.
                guest.store.data_mut().drop_handles();
                finish(passing, &has_answered).await
            }
        };
        Ok(match passed {
            Ok(()) => Returned::Answer(()),
            Err(why) => Returned::Bad(why),
        })
    }
}

/// Passes the rest of the answer on, if the guest that has ended gave one.
async fn finish(
    mut passing: Pin<&mut impl Future<Output = Result<(), String>>>,
    has_answered: &AtomicBool,
) -> Result<(), String> {
    match passing.as_mut().now_or_never() {
        Some(passed) => passed,
        None if has_answered.load(Ordering::Relaxed) => passing.await,
        // It kept the means to answer, and nobody can use them any more.
        None => Err(NO_ANSWER.to_owned()),
    }
}

const NO_ANSWER: &str = "it ended without an answer";

/// Passes the head on when it comes, and then the body.
async fn pass(
    heard: oneshot::Receiver<Said>,
    has_answered: &AtomicBool,
    answer: oneshot::Sender<HttpAnswer>,
    bytes_max: u64,
) -> Result<(), String> {
    let response = match heard.await {
        Ok(Ok(response)) => response,
        Ok(Err(code)) => return Err(format!("it answered with the error {code:?}")),
        Err(_) => return Err(NO_ANSWER.to_owned()),
    };
    has_answered.store(true, Ordering::Relaxed);
    let (head, mut body) = response.into_parts();
    let (parts, receiver) = mpsc::channel(HTTP_BODY_PARTS_MAX);
    let header = |(name, value): (&HeaderName, &HeaderValue)| {
        let value = Bytes::copy_from_slice(value.as_bytes());
        (name.as_str().to_owned(), value)
    };
    // Whoever asked may be gone; the guest need not know.
    let _ = answer.send(HttpAnswer {
        status: head.status.as_u16(),
        headers: head.headers.iter().map(header).collect(),
        body: receiver,
    });
    let mut left = bytes_max;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| format!("it gave its answer up: {error}"))?;
        let Ok(bytes) = frame.into_data() else {
            continue;
        };
        left = left.checked_sub(bytes.len() as u64).ok_or_else(|| {
            format!("its answer exceeds {bytes_max} bytes (limits.answer_bytes_max = {bytes_max})")
        })?;
        let _ = parts.send(HttpPart::Bytes(bytes)).await;
    }
    let _ = parts.send(HttpPart::End).await;
    Ok(())
}

/// The request in the form of `wasmtime-wasi-http`.
fn incoming(request: HttpRequest) -> http::Result<Request<Parts>> {
    let mut builder = Request::builder()
        .method(request.method.as_str())
        .uri(request.target.as_str());
    let is_text = |value: &[u8]| value.iter().all(|byte| matches!(byte, b' '..=b'~'));
    for (name, value) in &request.headers {
        // A guest asks for the authority as text, so one that is none would end its call.
        if !name.eq_ignore_ascii_case("host") || is_text(value) {
            builder = builder.header(name, value.as_ref());
        }
    }
    let is_missing = builder
        .headers_ref()
        .is_some_and(|headers| !headers.contains_key(http::header::HOST));
    if is_missing {
        builder = builder.header(http::header::HOST, request.authority.as_str());
    }
    builder.body(Parts(request.body))
}

/// A request's body.
struct Parts(HttpBody);

impl Body for Parts {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        Poll::Ready(match ready!(self.0.poll_recv(context)) {
            Some(HttpPart::Bytes(bytes)) => Some(Ok(Frame::data(bytes))),
            Some(HttpPart::End) => None,
            None => Some(Err(Error::ConnectionTerminated)),
        })
    }
}

/// A module in the form of the broker's HTTP handler.
pub(crate) struct Handler(pub(crate) Arc<Pool>);

#[async_trait]
impl HttpHandler for Handler {
    async fn handle(
        &self,
        request: HttpRequest,
        answer: oneshot::Sender<HttpAnswer>,
    ) -> Result<(), CallError> {
        self.handle_measured(request, answer).await.0
    }

    async fn handle_measured(
        &self,
        request: HttpRequest,
        answer: oneshot::Sender<HttpAnswer>,
    ) -> (Result<(), CallError>, Option<CallUse>) {
        self.0.measured(Serve { request, answer }, 1).await
    }
}
