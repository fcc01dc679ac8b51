//! A connection, and the received bytes that are not read yet.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// Bytes read at once; an inbox grows for a larger answer.
const INBOX_BYTES: usize = 1 << 20;
/// A larger answer cannot be valid.
const INBOX_BYTES_MAX: usize = 256 << 20;
/// A server that is silent for longer counts as failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Received bytes, from the first one that was not taken yet.
pub(crate) struct Inbox {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Inbox {
    pub(crate) fn new() -> Self {
        Self {
            bytes: vec![0; INBOX_BYTES],
            start: 0,
            end: 0,
        }
    }

    pub(crate) fn held(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    pub(crate) fn take(&mut self, bytes: usize) {
        self.start += bytes;
        assert!(self.start <= self.end, "only what is there can be taken");
    }

    /// The space for the next bytes; [`Inbox::came`] sets how many there are.
    pub(crate) fn space(&mut self) -> Result<&mut [u8]> {
        if self.start > 0 && self.end == self.bytes.len() || self.start == self.end {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == self.bytes.len() {
            let larger = self.bytes.len() * 2;
            ensure!(larger <= INBOX_BYTES_MAX, "an answer is too large");
            self.bytes.resize(larger, 0);
        }
        Ok(&mut self.bytes[self.end..])
    }

    pub(crate) fn came(&mut self, bytes: usize) -> Result<()> {
        ensure!(bytes > 0, "the server closed the connection");
        self.end += bytes;
        Ok(())
    }
}

/// A connection whose reads wait.
pub(crate) struct Line {
    stream: TcpStream,
    inbox: Inbox,
    /// The local port, which no other connection on this machine has at the time.
    pub(crate) port: u16,
}

impl Line {
    pub(crate) fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address);
        let stream = stream.with_context(|| format!("nobody answers at {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self {
            port: stream.local_addr()?.port(),
            stream,
            inbox: Inbox::new(),
        })
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.stream.write_all(bytes)?)
    }

    pub(crate) fn held(&self) -> &[u8] {
        self.inbox.held()
    }

    pub(crate) fn take(&mut self, bytes: usize) {
        self.inbox.take(bytes);
    }

    /// Waits for more bytes.
    pub(crate) fn more(&mut self) -> Result<()> {
        let came = match self.stream.read(self.inbox.space()?) {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                bail!("no answer within {} s", PATIENCE.as_secs())
            }
            came => came?,
        };
        self.inbox.came(came)
    }

    /// The connection itself; there must be no unread bytes.
    pub(crate) fn into_stream(self) -> Result<TcpStream> {
        ensure!(
            self.held().is_empty(),
            "the server said more than was expected"
        );
        Ok(self.stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(inbox: &mut Inbox, bytes: &[u8]) {
        inbox.space().unwrap()[..bytes.len()].copy_from_slice(bytes);
        inbox.came(bytes.len()).unwrap();
    }

    #[test]
    fn what_was_not_taken_stays_in_front_of_what_comes() {
        let mut inbox = Inbox::new();
        put(&mut inbox, b"one two");
        inbox.take(4);
        put(&mut inbox, b" three");
        assert_eq!(inbox.held(), b"two three");
        assert!(inbox.came(0).is_err(), "an end is no answer");
    }

    #[test]
    fn an_inbox_grows_for_an_answer_that_does_not_fit() {
        let mut inbox = Inbox::new();
        for _ in 0..3 {
            let space = inbox.space().unwrap();
            let length = space.len();
            space.fill(7);
            inbox.came(length).unwrap();
        }
        assert_eq!(inbox.held().len(), INBOX_BYTES * 4);
        assert!(inbox.held().iter().all(|&byte| byte == 7));
    }
}
