//! A connection's stream, lent to the HTTP library. It is returned when the library has finished
//! with it, also if a request turned it into another kind of session.
//!
//! Anything that the library writes outside a request is a refusal that does not have our shape; it
//! is intercepted, and [`super::connection`] writes it in our shape.

use std::io::{IoSlice, Result};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

use crate::net::{Impatient, Line, Phase};

/// A stream that is returned when it is dropped.
pub(super) struct Lent {
    /// `None` once it was returned.
    stream: Option<Impatient>,
    line: Arc<Line>,
    caught: Option<StatusCode>,
    back: Option<oneshot::Sender<Returned>>,
}

/// The returned stream, and what happened on it.
pub(super) struct Returned {
    pub(super) stream: Impatient,
    /// The status of a refusal by the library itself.
    pub(super) caught: Option<StatusCode>,
}

impl Lent {
    pub(super) fn new(stream: Impatient, line: Arc<Line>) -> (Self, oneshot::Receiver<Returned>) {
        let (back, returned) = oneshot::channel();
        let lent = Self {
            stream: Some(stream),
            line,
            caught: None,
            back: Some(back),
        };
        (lent, returned)
    }

    /// Whether a write now belongs to no request.
    fn is_unasked(&self) -> bool {
        matches!(self.line.phase(), Phase::Waiting | Phase::Head)
    }

    /// Records the status of a refusal that the library writes outside a request.
    fn catch(&mut self, bytes: &[u8]) {
        if self.caught.is_none() {
            self.caught = Some(status_of(bytes).unwrap_or(StatusCode::BAD_REQUEST));
        }
    }

    fn poll<T>(
        &mut self,
        of: impl FnOnce(Pin<&mut Impatient>) -> Poll<Result<T>>,
    ) -> Poll<Result<T>> {
        match &mut self.stream {
            Some(stream) => of(Pin::new(stream)),
            None => Poll::Ready(Err(std::io::ErrorKind::NotConnected.into())),
        }
    }
}

/// The status in the first line of an answer.
fn status_of(bytes: &[u8]) -> Option<StatusCode> {
    StatusCode::from_bytes(bytes.get(9..12)?).ok()
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let (Some(stream), Some(back)) = (self.stream.take(), self.back.take()) {
            let caught = self.caught;
            // The lender, and the connection with it, may be gone.
            let _ = back.send(Returned { stream, caught });
        }
    }
}

impl AsyncRead for Lent {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        self.poll(|stream| stream.poll_read(cx, buffer))
    }
}

impl AsyncWrite for Lent {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<usize>> {
        if self.is_unasked() {
            self.catch(bytes);
            return Poll::Ready(Ok(bytes.len()));
        }
        self.poll(|stream| stream.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        if self.is_unasked() {
            slices.iter().for_each(|slice| self.catch(slice));
            return Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum()));
        }
        self.poll(|stream| stream.poll_write_vectored(cx, slices))
    }

    // Otherwise bodies would be copied into one buffer with their heads, and would no longer count
    // in the budget.
    fn is_write_vectored(&self) -> bool {
        self.stream
            .as_ref()
            .is_some_and(AsyncWrite::is_write_vectored)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.poll(|stream| stream.poll_flush(cx))
    }

    // The connection ends it, after its last bytes.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.poll_flush(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_library_refuses_is_known_by_its_status() {
        let refused = status_of(b"HTTP/1.1 431 Request Header Fields Too Large\r\n");
        assert_eq!(refused, Some(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE));
        assert_eq!(status_of(b"short"), None);
    }
}
