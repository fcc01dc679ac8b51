//! An HTTP request and its answer as a component gets and gives them: plain types, bodies as bounded streams. Doors turn their own
//! requests into these, so that the broker knows no HTTP library.

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::{CallError, CallUse};

/// Parts of a body on their way between a door and a component. When they are full, the writer waits.
pub const HTTP_BODY_PARTS_MAX: usize = 4;

/// A part of a body. A stream that closes without [`End`](Self::End) was cut off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HttpPart {
    /// Its next bytes.
    Bytes(Bytes),
    /// There is no more.
    End,
}

/// A body, part by part.
pub type HttpBody = mpsc::Receiver<HttpPart>;

/// Headers in order; names may repeat.
pub type HttpHeaders = Vec<(String, Bytes)>;

/// A request.
#[derive(Debug)]
pub struct HttpRequest {
    /// Its method, such as `GET`.
    pub method: String,
    /// Path and query, such as `/hooks/a?b=c`.
    pub target: String,
    /// The host that it names.
    pub authority: String,
    /// Its headers.
    pub headers: HttpHeaders,
    /// Its body.
    pub body: HttpBody,
}

/// An answer; its body may still be written.
#[derive(Debug)]
pub struct HttpAnswer {
    /// Its status, such as 200.
    pub status: u16,
    /// Its headers.
    pub headers: HttpHeaders,
    /// Its body.
    pub body: HttpBody,
}

/// Answers HTTP requests. Calls may run at once, each on an instance of its own.
#[async_trait]
pub trait HttpHandler: Send + Sync + 'static {
    /// Answers a request: `answer` gets the head as soon as the component has made it, and its body part by part; the call itself ends
    /// with the component's. Dropping the call ends it early and cuts the body off.
    async fn handle(
        &self,
        request: HttpRequest,
        answer: oneshot::Sender<HttpAnswer>,
    ) -> Result<(), CallError>;

    /// Like [`handle`](Self::handle); also returns what the call used, if that is measured.
    async fn handle_measured(
        &self,
        request: HttpRequest,
        answer: oneshot::Sender<HttpAnswer>,
    ) -> (Result<(), CallError>, Option<CallUse>) {
        (self.handle(request, answer).await, None)
    }
}
