//! A connection whose other side must read what it is sent: if it reads nothing for too long, the
//! connection ends, and what it holds is freed.
//!
//! It reports incoming and outgoing data to its [`Line`]. While a request is running, the door does
//! not see that the other side has closed its sending side: a client may do that and wait for the
//! answer.

use std::future::Future;
use std::io::{Error, ErrorKind, IoSlice, Result};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use millrace_model::Clock;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::line::{Line, Phase};

/// Both directions of a connection: a socket, or a stream on top of one.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A stream whose writes fail if the other side reads nothing for some time.
pub(crate) struct Impatient {
    stream: Box<dyn Duplex>,
    patience: Duration,
    /// Set while a write waits.
    waiting: Option<Pin<Box<Sleep>>>,
    clock: Arc<dyn Clock>,
    line: Arc<Line>,
}

impl Impatient {
    pub(super) fn new(
        stream: Box<dyn Duplex>,
        patience: Duration,
        clock: Arc<dyn Clock>,
        line: Arc<Line>,
    ) -> Self {
        Self {
            stream,
            patience,
            waiting: None,
            clock,
            line,
        }
    }

    /// Passes on the result of a write; a write that waits too long fails.
    fn timed(&mut self, written: Poll<Result<usize>>, cx: &mut Context<'_>) -> Poll<Result<usize>> {
        if written.is_ready() {
            self.waiting = None;
            return written;
        }
        let patience = self.patience;
        let waiting = self
            .waiting
            .get_or_insert_with(|| Box::pin(sleep(patience)));
        waiting.as_mut().poll(cx).map(|()| {
            let message = "the other side takes nothing";
            Err(Error::new(ErrorKind::TimedOut, message))
        })
    }
}

impl AsyncRead for Impatient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        let came = buffer.filled().len() > before;
        match self.line.phase() {
            Phase::Waiting if came => self.line.enter(Phase::Head, self.clock.monotonic()),
            Phase::Busy | Phase::Answered if !came && buffer.remaining() > 0 => {
                self.line.hears_no_more();
                return Poll::Pending;
            }
            _ => {}
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Impatient {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.timed(written, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.timed(written, cx)
    }

    // Otherwise bodies would be copied into one buffer with their heads, and would no longer count
    // in the budget.
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        if self.line.phase() == Phase::Answered {
            self.line.enter(Phase::Waiting, self.clock.monotonic());
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use millrace_model::SystemClock;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// More than the buffers of a connection take.
    const BYTES: usize = 32 << 20;

    async fn pair(patience: Duration) -> (Impatient, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let address = listener.local_addr().expect("an address");
        let reader = TcpStream::connect(address).await.expect("a connection");
        let (stream, _) = listener.accept().await.expect("a connection");
        let line = Arc::new(Line::new(false, Duration::ZERO));
        line.enter(Phase::Busy, Duration::ZERO);
        let clock = Arc::new(SystemClock::new());
        (
            Impatient::new(Box::new(stream), patience, clock, line),
            reader,
        )
    }

    #[tokio::test]
    async fn a_reader_that_takes_nothing_is_given_up() {
        let (mut writer, _reader) = pair(Duration::from_millis(50)).await;
        let written = writer.write_all(&vec![0; BYTES]).await;
        let error = written.expect_err("nobody reads");
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_reader_that_takes_a_little_at_a_time_gets_everything() {
        let (mut writer, mut reader) = pair(Duration::from_secs(1)).await;
        let reading = tokio::spawn(async move {
            let mut buffer = vec![0; 256 << 10];
            let mut total = 0;
            while let Ok(count @ 1..) = reader.read(&mut buffer).await {
                total += count;
                sleep(Duration::from_millis(10)).await;
            }
            total
        });
        let written = writer.write_all(&vec![0; BYTES]).await;
        written.expect("it was read");
        drop(writer);
        assert_eq!(reading.await.expect("a reader"), BYTES);
    }

    /// Whether the end of what the other side sends is told within a moment.
    async fn is_told_of_the_end(phase: Phase) -> (bool, bool) {
        let (mut stream, mut other) = pair(Duration::from_secs(1)).await;
        stream.line.enter(phase, Duration::ZERO);
        other.shutdown().await.expect("closed");
        let mut buffer = [0; 8];
        let read = tokio::time::timeout(Duration::from_millis(200), stream.read(&mut buffer));
        let told = matches!(read.await, Ok(Ok(0)));
        (told, stream.line.gone().is_cancelled())
    }

    #[tokio::test]
    async fn who_stops_sending_still_gets_the_answer_and_a_session_hears_of_it() {
        assert_eq!(is_told_of_the_end(Phase::Busy).await, (false, true));
        assert_eq!(is_told_of_the_end(Phase::Waiting).await, (true, false));
        assert_eq!(is_told_of_the_end(Phase::Session).await, (true, false));
    }
}
