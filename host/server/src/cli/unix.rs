//! Requests to a host's Unix socket: the client's library speaks HTTP, and this opens the socket and passes bytes.

use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport,
};
use ureq::{Agent, Error};

/// How the name of a Unix socket begins.
pub(super) const UNIX: &str = "unix:";
/// How URLs at a Unix socket begin: a host goes by this name, too.
pub(super) const BASE: &str = "http://localhost";

/// An agent whose requests all go to this socket.
pub(super) fn agent(config: Config, file: &str) -> Agent {
    let connector = ToSocket(PathBuf::from(file));
    Agent::with_parts(config, connector, NoNames)
}

/// There is no name to look up.
#[derive(Debug)]
struct NoNames;

impl Resolver for NoNames {
    fn resolve(&self, _: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        // The library wants an address; nobody connects to this one.
        let mut addresses = self.empty();
        addresses.push(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        Ok(addresses)
    }
}

#[derive(Debug)]
struct ToSocket(PathBuf);

impl Connector for ToSocket {
    type Out = AtSocket;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        _: Option<()>,
    ) -> Result<Option<AtSocket>, Error> {
        let stream = UnixStream::connect(&self.0)?;
        let config = details.config;
        let buffers = LazyBuffers::new(config.input_buffer_size(), config.output_buffer_size());
        Ok(Some(AtSocket { stream, buffers }))
    }
}

/// A connection.
struct AtSocket {
    stream: UnixStream,
    buffers: LazyBuffers,
}

impl fmt::Debug for AtSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AtSocket(…)")
    }
}

impl Transport for AtSocket {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let within = timeout.for_write();
        let patience = within.not_zero().map(|patience| *patience);
        self.stream.set_write_timeout(patience)?;
        let output = self.buffers.output();
        let written = self.stream.write_all(&output[..amount]);
        written.map_err(|error| timed(error, within))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let within = timeout.for_read();
        let patience = within.not_zero().map(|patience| *patience);
        self.stream.set_read_timeout(patience)?;
        let input = self.buffers.input_append_buf();
        let read = loop {
            match self.stream.read(input) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read.map_err(|error| timed(error, within))?,
            }
        };
        self.buffers.input_appended(read);
        Ok(read > 0)
    }

    /// Whether the host has neither closed it nor sent anything that nobody asked for.
    fn is_open(&mut self) -> bool {
        let quiet = self.stream.set_nonblocking(true).and_then(|()| {
            let mut byte = [0];
            let read = self.stream.read(&mut byte);
            self.stream.set_nonblocking(false)?;
            read
        });
        quiet.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }
}

fn timed(error: io::Error, within: NextTimeout) -> Error {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Error::Timeout(within.reason),
        _ => error.into(),
    }
}
