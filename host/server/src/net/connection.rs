//! A connection as a door sees it: its stream, its place, and a way to end it so that the other
//! side can read the last answer.
//!
//! Closing with unread bytes would destroy that answer. So incoming data is read and discarded for
//! a while.

use std::sync::Arc;
use std::time::Duration;

use millrace_model::Clock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::bounds::{
    LINGER_MS_MAX, LINGER_SILENCE_MS_MAX, STOPPING_LINGER_MS_MAX, WRITE_SILENCE_MS_MAX,
};
use super::line::{Line, Phase};
use super::peer::{Peer, Presented};
use super::places::Place;
use super::socket::Stream;
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
    peer: Peer,
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

    /// Who is on the other side.
    pub(crate) fn peer(&self) -> &Peer {
        &self.peer
    }
}

/// A connection on which nothing has been said yet.
pub(super) struct Accepted {
    stream: Box<dyn Duplex>,
    seat: Seat,
}

impl Accepted {
    /// `None` if the other side has already disconnected.
    pub(super) fn new(
        stream: Stream,
        place: Place,
        clock: Arc<dyn Clock>,
        stopping: CancellationToken,
    ) -> Option<Self> {
        let (stream, peer) = stream.known()?;
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
        let Self { stream, mut seat } = self;
        let line = seat.line().clone();
        let (stream, certificate) = tokio::select! {
            begun = tls.begin(stream) => begun?,
            () = line.closing().cancelled() => return None,
            () = seat.stopping.cancelled() => return None,
        };
        if let Some(certificate) = certificate {
            seat.peer.presented = Presented::Certificate(certificate);
        }
        Some(Connection::on(Box::new(stream), seat))
    }
}

impl Connection {
    fn on(stream: Box<dyn Duplex>, seat: Seat) -> Self {
        let patience = Duration::from_millis(WRITE_SILENCE_MS_MAX);
        let (line, time) = (seat.line().clone(), seat.clock.clone());
        Self {
            stream: Impatient::new(stream, patience, time, line),
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
