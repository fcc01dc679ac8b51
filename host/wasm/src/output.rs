//! Turns a guest's stdout and stderr into log lines.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::AsyncWrite;
use wasmtime_wasi::async_trait;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

use crate::logs::{LINE_BYTES_MAX, LogSink, clean};

/// Bytes that a guest may write in one call of `write`.
const WRITE_BYTES_MAX: usize = 64 << 10;

/// Bytes of the output of one call that are kept to explain a trap.
const RECENT_BYTES_MAX: usize = 1 << 10;

/// A stream of text that becomes log lines of one level.
#[derive(Clone)]
pub(crate) struct LineStream(Arc<Mutex<Lines>>);

struct Lines {
    sink: LogSink,
    level: &'static str,
    /// The line that has no end yet; at most [`LINE_BYTES_MAX`], then it counts as ended.
    open: Vec<u8>,
    /// The first bytes of this call's output.
    recent: Vec<u8>,
}

impl LineStream {
    pub(crate) fn new(sink: LogSink, level: &'static str) -> Self {
        let (open, recent) = (Vec::new(), Vec::new());
        Self(Arc::new(Mutex::new(Lines {
            sink,
            level,
            open,
            recent,
        })))
    }

    /// Forgets the output of the call before.
    pub(crate) fn begin_call(&self) {
        self.0.lock().recent.clear();
    }

    /// The first text of this call's output, on one line.
    pub(crate) fn recent(&self) -> String {
        let lines = self.0.lock();
        let text = String::from_utf8_lossy(&lines.recent);
        let text = clean(&text, RECENT_BYTES_MAX);
        // What Rust's panic message ends with helps nobody here.
        let text = text
            .split("note: run with `RUST_BACKTRACE")
            .next()
            .unwrap_or_default();
        text.trim().to_owned()
    }
}

impl Lines {
    fn write(&mut self, bytes: &[u8]) {
        let room = RECENT_BYTES_MAX.saturating_sub(self.recent.len());
        self.recent
            .extend_from_slice(&bytes[..room.min(bytes.len())]);
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.write_piece(piece);
        }
    }

    /// A piece has at most one line end, as its last byte.
    fn write_piece(&mut self, piece: &[u8]) {
        let room = LINE_BYTES_MAX - self.open.len();
        self.open.extend_from_slice(&piece[..room.min(piece.len())]);
        if piece.ends_with(b"\n") || self.open.len() == LINE_BYTES_MAX {
            self.end_line();
        }
    }

    fn end_line(&mut self) {
        let open = std::mem::take(&mut self.open);
        let text = open.trim_ascii_end();
        if !text.is_empty() {
            self.sink.write(self.level, || {
                clean(&String::from_utf8_lossy(text), LINE_BYTES_MAX)
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

    /// Only WASI 0.3 would ask for it, and that is not linked.
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(tokio::io::sink())
    }
}
