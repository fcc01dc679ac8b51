//! The bodies of guests' requests and of the answers to them: bounded in bytes, and answers in time between bytes.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Sleep;
use wasmtime_wasi_http::{Error, WasiBody};

use super::errors::of_hyper;
use super::exchange::Exchange;

/// A request's body, up to a number of bytes.
pub(super) struct BoundedRequest {
    body: WasiBody,
    left: u64,
    max: u64,
}

impl BoundedRequest {
    pub(super) fn new(body: WasiBody, max: u64) -> Self {
        let left = max;
        Self { body, left, max }
    }
}

impl Body for BoundedRequest {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        let frame = ready!(Pin::new(&mut this.body).poll_frame(context));
        let taken = frame.map(|frame| {
            let frame = frame?;
            let too_large = Error::HttpRequestBodySize(Some(this.max));
            take(&mut this.left, &frame, too_large)?;
            Ok(frame)
        });
        Poll::Ready(taken)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer's body, up to a number of bytes, each within a time after the one before. The time only counts while the guest waits.
pub(super) struct BoundedAnswer {
    body: hyper::body::Incoming,
    left: u64,
    max: u64,
    between_bytes_max: Duration,
    alarm: Option<Pin<Box<Sleep>>>,
    /// Ends with the body.
    _exchange: Exchange,
}

impl BoundedAnswer {
    pub(super) fn new(
        body: hyper::body::Incoming,
        bytes_max: u64,
        between_bytes_max: Duration,
        exchange: Exchange,
    ) -> Self {
        Self {
            body,
            left: bytes_max,
            max: bytes_max,
            between_bytes_max,
            alarm: None,
            _exchange: exchange,
        }
    }
}

impl Body for BoundedAnswer {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) else {
            let between_bytes_max = this.between_bytes_max;
            let alarm = this
                .alarm
                .get_or_insert_with(|| Box::pin(tokio::time::sleep(between_bytes_max)));
            ready!(alarm.as_mut().poll(context));
            return Poll::Ready(Some(Err(Error::ConnectionReadTimeout)));
        };
        this.alarm = None;
        let taken = frame.map(|frame| {
            let frame = frame.map_err(|error| of_hyper(&error))?;
            let too_large = Error::HttpResponseBodySize(Some(this.max));
            take(&mut this.left, &frame, too_large)?;
            Ok(frame)
        });
        Poll::Ready(taken)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Counts a frame's bytes.
fn take(left: &mut u64, frame: &Frame<Bytes>, too_large: Error) -> Result<(), Error> {
    let bytes = frame.data_ref().map_or(0, Bytes::len) as u64;
    *left = left.checked_sub(bytes).ok_or(too_large)?;
    Ok(())
}
