//! A connection as a door sees it: its stream, its place, and a way to end it so that the other
//! side can read the last answer.
//!
//! Closing with unread bytes would destroy that answer. So incoming data is read and discarded for
//! a while.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use millrace_model::Clock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::bounds::{
    LINGER_MS_MAX, LINGER_SILENCE_MS_MAX, STOPPING_LINGER_MS_MAX, WRITE_SILENCE_MS_MAX,
};
use super::line::{Line, Phase};
use super::places::Place;
use super::stream::{Duplex, Impatient};
use super::tls::Tls;

/// Bytes of discarded data read at once.
const THROWN_AWAY_BYTES: usize = 64 << 10;

/// A connection that is being served.
pub(crate) struct Connection {
    pub(crate) stream: Impatient,
    pub(crate) seat: Seat,
}

/// A connection without its stream, which may be lent to a library meanwhile. Its place is returned
/// when it is dropped.
pub(crate) struct Seat {
    place: Place,
    peer: Option<IpAddr>,
    clock: Arc<dyn Clock>,
    stopping: CancellationToken,
}

impl Seat {
    /// What is happening on it.
    pub(crate) fn line(&self) -> &Arc<Line> {
        &self.place.line
    }

    /// Whether there is no place for it, so that it only gets a refusal.
    pub(crate) fn is_refused(&self) -> bool {
        self.place.refused
    }

    /// The address of the other side.
    pub(crate) fn peer(&self) -> Option<IpAddr> {
        self.peer
    }
}

/// A connection on which nothing has been said yet.
pub(super) struct Accepted {
    stream: TcpStream,
    seat: Seat,
}

impl Accepted {
    /// `None` if the other side has already disconnected.
    pub(super) fn new(
        stream: TcpStream,
        place: Place,
        clock: Arc<dyn Clock>,
        stopping: CancellationToken,
    ) -> Option<Self> {
        // Answers are written as a whole; waiting for more data would only add delay.
        stream.set_nodelay(true).ok()?;
        let peer = stream.peer_addr().ok().map(|address| address.ip());
        let seat = Seat {
            place,
            peer,
            clock,
            stopping,
        };
        Some(Self { stream, seat })
    }

    pub(super) fn plain(self) -> Connection {
        Connection::on(self.stream, self.seat)
    }

    /// After the beginning of TLS; `None` if there is none.
    pub(super) async fn encrypted(self, tls: &Tls) -> Option<Connection> {
        let Self { stream, seat } = self;
        let line = seat.line().clone();
        let stream = tokio::select! {
            stream = tls.begin(stream) => stream?,
            () = line.closing().cancelled() => return None,
            () = seat.stopping.cancelled() => return None,
        };
        Some(Connection::on(stream, seat))
    }
}

impl Connection {
    fn on(stream: impl Duplex + 'static, seat: Seat) -> Self {
        let patience = Duration::from_millis(WRITE_SILENCE_MS_MAX);
        let (line, time) = (seat.line().clone(), seat.clock.clone());
        Self {
            stream: Impatient::new(Box::new(stream), patience, time, line),
            seat,
        }
    }

    /// Writes the remaining bytes, and closes so that the other side can read them.
    pub(crate) async fn end(mut self, last_words: Option<&[u8]>) {
        let line = self.seat.line().clone();
        let lingers = last_words.is_some() || line.is_unfinished();
        line.enter(Phase::Ending, self.seat.clock.monotonic());
        if let Some(words) = last_words
            && self.stream.write_all(words).await.is_err()
        {
            return;
        }
        if self.stream.shutdown().await.is_err() || !lingers || line.gone().is_cancelled() {
            return;
        }
        let most = Duration::from_millis(LINGER_MS_MAX);
        tokio::select! {
            _ = timeout(most, throw_away(&mut self.stream)) => {}
            () = line.closing().cancelled() => {}
            () = stops(&self.seat.stopping) => {}
        }
    }
}

async fn stops(stopping: &CancellationToken) {
    stopping.cancelled().await;
    sleep(Duration::from_millis(STOPPING_LINGER_MS_MAX)).await;
}

/// Reads incoming data until there is no more.
async fn throw_away(stream: &mut Impatient) {
    let mut buffer = vec![0; THROWN_AWAY_BYTES];
    let silence = Duration::from_millis(LINGER_SILENCE_MS_MAX);
    while let Ok(Ok(1..)) = timeout(silence, stream.read(&mut buffer)).await {}
}
