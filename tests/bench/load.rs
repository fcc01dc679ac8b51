//! A load over HTTP that costs less than the host: requests are bytes made before the clock starts,
//! and of an answer only the status and the length are parsed. All connections of a load share one
//! thread.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures_util::future::try_join_all;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Size of the buffer into which answers are read.
const READ_BYTES: usize = 64 << 10;
/// The end of an answer's head.
const HEAD_END: &[u8] = b"\r\n\r\n";

/// The request that a load repeats, and its number of connections.
pub(crate) struct Load {
    /// The host's address.
    pub(crate) address: String,
    pub(crate) connections: usize,
    /// Each connection sends it again when it has been answered.
    pub(crate) request: Vec<u8>,
}

/// A produce request of `messages` messages of `bytes` bytes each: a single one as a raw body, more
/// as NDJSON.
pub(crate) fn produce_request(topic: &str, messages: usize, bytes: usize) -> Vec<u8> {
    let value = "x".repeat(bytes);
    let (content, body) = match messages {
        1 => ("application/octet-stream", value),
        _ => (
            "application/x-ndjson",
            format!("{{\"value\":\"{value}\"}}\n").repeat(messages),
        ),
    };
    let length = body.len();
    format!(
        "POST /v1/topics/{topic}/messages HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: {content}\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

impl Load {
    /// Runs for `time` and returns the milliseconds that each request took. A refused request ends
    /// the run with an error.
    pub(crate) fn run(&self, time: Duration) -> Result<Vec<f64>> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let until = Instant::now() + time;
        let connections = (0..self.connections).map(|_| self.one(until));
        Ok(runtime.block_on(try_join_all(connections))?.concat())
    }

    async fn one(&self, until: Instant) -> Result<Vec<f64>> {
        let mut connection = TcpStream::connect(&self.address).await?;
        connection.set_nodelay(true)?;
        let mut answer = Vec::with_capacity(READ_BYTES);
        let mut times = Vec::new();
        while Instant::now() < until {
            let began = Instant::now();
            connection.write_all(&self.request).await?;
            read_answer(&mut connection, &mut answer).await?;
            times.push(began.elapsed().as_secs_f64() * 1_000.0);
        }
        Ok(times)
    }
}

async fn read_answer(connection: &mut TcpStream, answer: &mut Vec<u8>) -> Result<()> {
    answer.clear();
    let mut whole = None;
    while whole.is_none_or(|whole| answer.len() < whole) {
        let read = connection.read_buf(answer).await?;
        ensure!(read > 0, "the host closed the connection");
        if whole.is_none() {
            whole = length(answer)?;
        }
    }
    Ok(())
}

/// Length of the whole answer, as soon as its head has arrived.
fn length(answer: &[u8]) -> Result<Option<usize>> {
    let ends = answer.windows(HEAD_END.len());
    let Some(head) = ends.into_iter().position(|bytes| bytes == HEAD_END) else {
        return Ok(None);
    };
    let text = std::str::from_utf8(&answer[..head])?;
    if !text.starts_with("HTTP/1.1 200") {
        bail!("refused: {}", String::from_utf8_lossy(answer));
    }
    let mut lines = text.lines().filter_map(|line| line.split_once(": "));
    let body = lines.find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let body: usize = body.context("an answer without a length")?.1.parse()?;
    Ok(Some(head + HEAD_END.len() + body))
}
