//! Stands between a host and the store: passes bytes on, and stops or cuts the connections when told.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::Result;

/// How often a stopped connection looks whether it may go on, and an idle one whether it is cut.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
const BUFFER_BYTES: usize = 64 << 10;

/// Where a store is.
#[derive(Clone, Debug)]
pub(super) enum Upstream {
    /// At a socket's path.
    Unix(PathBuf),
    /// At a port of the loopback.
    Tcp(u16),
}

/// What happens to connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Weather {
    /// Bytes pass.
    Clear,
    /// Nothing passes, and nobody is told.
    Still,
    /// Connections are reset, and new ones refused.
    Cut,
}

/// Listens on a port of the loopback for one host.
pub(super) struct Forwarder {
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    upstream: Mutex<Upstream>,
    weather: AtomicU8,
    /// Grows when all connections of the moment are cut.
    cuts: Mutex<u64>,
    is_over: AtomicBool,
}

impl Forwarder {
    pub(super) fn start(upstream: Upstream) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            upstream: Mutex::new(upstream),
            weather: AtomicU8::new(Weather::Clear as u8),
            cuts: Mutex::default(),
            is_over: AtomicBool::new(false),
        });
        let accepts = Arc::clone(&shared);
        thread::spawn(move || {
            for accepted in listener.incoming().flatten() {
                if accepts.is_over.load(Ordering::SeqCst) {
                    return;
                }
                let shared = Arc::clone(&accepts);
                thread::spawn(move || shared.pass(&accepted));
            }
        });
        Ok(Self { port, shared })
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// New connections go there.
    pub(super) fn lead_to(&self, upstream: Upstream) {
        *lock(&self.shared.upstream) = upstream;
    }

    pub(super) fn set(&self, weather: Weather) {
        self.shared.weather.store(weather as u8, Ordering::SeqCst);
        if weather == Weather::Cut {
            *lock(&self.shared.cuts) += 1;
        }
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        self.set(Weather::Cut);
        // Wakes the listener.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl Shared {
    fn is(&self, weather: Weather) -> bool {
        self.weather.load(Ordering::SeqCst) == weather as u8
    }

    /// Connects a host's connection to the store, until one of them ends.
    fn pass(&self, host: &TcpStream) {
        let cuts = *lock(&self.cuts);
        while self.is(Weather::Still) && !self.is_over.load(Ordering::SeqCst) {
            thread::sleep(LOOK_AGAIN);
        }
        if self.is(Weather::Cut) {
            return;
        }
        let upstream = lock(&self.upstream).clone();
        // Its errors show as ends of connections.
        let _ = match upstream {
            Upstream::Unix(path) => UnixStream::connect(path)
                .and_then(|store| self.join(cuts, (host, host), (&store, &store))),
            Upstream::Tcp(port) => TcpStream::connect(("127.0.0.1", port)).and_then(|store| {
                store.set_nodelay(true)?;
                self.join(cuts, (host, host), (&store, &store))
            }),
        };
    }

    fn join<S: Ends>(
        &self,
        cuts: u64,
        (host_in, host_out): (&TcpStream, &TcpStream),
        (store_in, store_out): (&S, &S),
    ) -> std::io::Result<()>
    where
        for<'a> &'a S: Read + Write,
    {
        host_in.set_nodelay(true)?;
        host_in.patient(LOOK_AGAIN)?;
        store_in.patient(LOOK_AGAIN)?;
        thread::scope(|scope| {
            scope.spawn(|| self.copy(cuts, host_in, store_out, || end_all(host_in, store_in)));
            self.copy(cuts, store_in, host_out, || end_all(host_in, store_in));
        });
        Ok(())
    }

    fn copy(&self, cuts: u64, mut from: impl Read, mut to: impl Write, end: impl Fn()) {
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            if *lock(&self.cuts) != cuts {
                break;
            }
            if self.is(Weather::Still) {
                thread::sleep(LOOK_AGAIN);
                continue;
            }
            match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => {
                    // What has just been read is on its way: it waits as well.
                    while self.is(Weather::Still) && *lock(&self.cuts) == cuts {
                        thread::sleep(LOOK_AGAIN);
                    }
                    if *lock(&self.cuts) != cuts || to.write_all(&buffer[..count]).is_err() {
                        break;
                    }
                }
                Err(error) if is_patience(&error) => {}
                Err(_) => break,
            }
        }
        end();
    }
}

fn is_patience(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
    )
}

/// A stream that ends for both sides.
trait Ends: Sync {
    fn end(&self);
    fn patient(&self, at_most: Duration) -> std::io::Result<()>;
}

impl Ends for TcpStream {
    fn end(&self) {
        let _ = self.shutdown(Shutdown::Both);
    }
    fn patient(&self, at_most: Duration) -> std::io::Result<()> {
        self.set_read_timeout(Some(at_most))
    }
}

impl Ends for UnixStream {
    fn end(&self) {
        let _ = self.shutdown(Shutdown::Both);
    }
    fn patient(&self, at_most: Duration) -> std::io::Result<()> {
        self.set_read_timeout(Some(at_most))
    }
}

fn end_all(one: &impl Ends, other: &impl Ends) {
    one.end();
    other.end();
}

fn lock<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// A store that answers with what it is told.
    fn echo(directory: &tempfile::TempDir) -> PathBuf {
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        thread::spawn(move || {
            for mut accepted in listener.incoming().flatten() {
                thread::spawn(move || {
                    let mut buffer = [0; 16];
                    while let Ok(count @ 1..) = accepted.read(&mut buffer) {
                        accepted.write_all(&buffer[..count]).unwrap();
                    }
                });
            }
        });
        path
    }

    fn answered(stream: &mut TcpStream) -> std::io::Result<Option<u8>> {
        let mut byte = [0];
        stream.set_read_timeout(Some(Duration::from_millis(200)))?;
        match stream.read(&mut byte) {
            Ok(0) => Err(std::io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => Ok(Some(byte[0])),
            Err(error) if is_patience(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    #[test]
    fn bytes_pass_wait_and_pass_again_and_a_cut_ends_the_connection() {
        let directory = tempfile::tempdir().unwrap();
        let way = Forwarder::start(Upstream::Unix(echo(&directory))).unwrap();
        let mut host = TcpStream::connect(("127.0.0.1", way.port())).unwrap();
        let answer =
            |host: &mut TcpStream| crate::wait_for("an answer", || Ok(answered(host)?)).unwrap();
        host.write_all(b"a").unwrap();
        assert_eq!(answer(&mut host), b'a');
        way.set(Weather::Still);
        host.write_all(b"b").unwrap();
        assert_eq!(answered(&mut host).unwrap(), None);
        way.set(Weather::Clear);
        assert_eq!(answer(&mut host), b'b');
        way.set(Weather::Cut);
        let ended = crate::wait_for("the end", || Ok(answered(&mut host).err().map(|_| ())));
        ended.unwrap();
        way.set(Weather::Clear);
        let mut host = TcpStream::connect(("127.0.0.1", way.port())).unwrap();
        host.write_all(b"c").unwrap();
        assert_eq!(answer(&mut host), b'c');
    }

    #[test]
    fn a_store_may_be_at_a_port_and_move_to_another() {
        let directory = tempfile::tempdir().unwrap();
        let inner = Forwarder::start(Upstream::Unix(echo(&directory))).unwrap();
        let closed = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = closed.local_addr().unwrap().port();
        drop(closed);
        let way = Forwarder::start(Upstream::Tcp(port)).unwrap();
        let mut host = TcpStream::connect(("127.0.0.1", way.port())).unwrap();
        let ended = crate::wait_for("the end", || Ok(answered(&mut host).err().map(|_| ())));
        ended.unwrap();
        way.lead_to(Upstream::Tcp(inner.port()));
        let mut host = TcpStream::connect(("127.0.0.1", way.port())).unwrap();
        host.write_all(b"a").unwrap();
        let answer = crate::wait_for("an answer", || Ok(answered(&mut host)?));
        assert_eq!(answer.unwrap(), b'a');
    }
}
