//! Turns a guest's stdout and stderr into log lines.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::AsyncWrite;
use wasmtime_wasi::async_trait;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

use crate::logs::{LINE_BYTES_MAX, Line, LogSink, clean};

/// Maximum bytes in one call of `write`.
const WRITE_BYTES_MAX: usize = 64 << 10;

/// Bytes of one call's output that are kept to explain a trap.
const RECENT_BYTES_MAX: usize = 1 << 10;

/// A text stream that becomes log lines of one level.
#[derive(Clone)]
pub(crate) struct LineStream(Arc<Mutex<Lines>>);

struct Lines {
    sink: LogSink,
    level: &'static str,
    /// The line without an end so far; at most [`LINE_BYTES_MAX`].
    open: Vec<u8>,
    /// Further bytes of that line.
    cut: usize,
    /// The last bytes of this call's output: an exception comes at the end.
    recent: Vec<u8>,
    /// Whether there were more before these.
    recent_is_tail: bool,
}

impl LineStream {
    pub(crate) fn new(sink: LogSink, level: &'static str) -> Self {
        let (open, recent) = (Vec::new(), Vec::new());
        Self(Arc::new(Mutex::new(Lines {
            sink,
            level,
            open,
            cut: 0,
            recent,
            recent_is_tail: false,
        })))
    }

    /// Forgets the output of the previous call.
    pub(crate) fn begin_call(&self) {
        let mut lines = self.0.lock();
        lines.recent.clear();
        lines.recent_is_tail = false;
    }

    /// Text without a line end is a line of the call that wrote it.
    pub(crate) fn end_call(&self) {
        self.0.lock().end_line();
    }

    /// The last text of this call's output, on one line; whole lines if possible.
    pub(crate) fn recent(&self) -> String {
        let lines = self.0.lock();
        let end = lines.recent.trim_ascii_end();
        let line_end = end.iter().position(|byte| *byte == b'\n');
        let begin = line_end.filter(|_| lines.recent_is_tail);
        let text = String::from_utf8_lossy(&end[begin.map_or(0, |at| at + 1)..]);
        let text = clean(&text, RECENT_BYTES_MAX);
        // The end of Rust's panic message does not help here.
        let text = text
            .split("note: run with `RUST_BACKTRACE")
            .next()
            .unwrap_or_default();
        text.trim().to_owned()
    }
}

impl Lines {
    fn write(&mut self, bytes: &[u8]) {
        let tail = &bytes[bytes.len().saturating_sub(RECENT_BYTES_MAX)..];
        let over = (self.recent.len() + tail.len()).saturating_sub(RECENT_BYTES_MAX);
        self.recent_is_tail |= over > 0 || tail.len() < bytes.len();
        self.recent.drain(..over.min(self.recent.len()));
        self.recent.extend_from_slice(tail);
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.write_piece(piece);
        }
    }

    /// A piece has at most one line end, as its last byte.
    fn write_piece(&mut self, piece: &[u8]) {
        let text = piece.strip_suffix(b"\n").unwrap_or(piece);
        let (kept, beyond) = text.split_at(text.len().min(LINE_BYTES_MAX - self.open.len()));
        self.open.extend_from_slice(kept);
        self.cut += beyond.len();
        if text.len() < piece.len() {
            self.end_line();
        }
    }

    fn end_line(&mut self) {
        let (open, cut) = (
            std::mem::take(&mut self.open),
            std::mem::take(&mut self.cut),
        );
        let text = open.trim_ascii_end();
        if !text.is_empty() {
            self.sink.write(self.level, || Line {
                text: clean(&String::from_utf8_lossy(text), LINE_BYTES_MAX),
                cut,
            });
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.end_line();
    }
}

impl OutputStream for LineStream {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.0.lock().write(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(WRITE_BYTES_MAX)
    }
}

#[async_trait]
impl Pollable for LineStream {
    async fn ready(&mut self) {}
}

impl IsTerminal for LineStream {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for LineStream {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }

    /// Only WASI 0.3 would use it, and that is not linked.
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(tokio::io::sink())
    }
}
