//! One connection as a door's protocol sees it: its stream, its place, and a way to close it that
//! lets the peer read the last answer.
//!
//! If a socket is closed while it holds unread data, the system resets the connection, and the peer
//! may lose that answer. So incoming data is read and discarded for a while first.

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
use super::stream::Impatient;

/// Bytes read at once while discarding.
const THROWN_AWAY_BYTES: usize = 64 << 10;

/// An open connection.
pub(crate) struct Connection {
    pub(crate) stream: Impatient,
    pub(crate) seat: Seat,
}

/// Everything about a connection except its stream, which may be lent to a library. Its place is
/// returned when this is dropped.
pub(crate) struct Seat {
    place: Place,
    peer: Option<IpAddr>,
    clock: Arc<dyn Clock>,
    stopping: CancellationToken,
}

impl Seat {
    /// Records what happens on the connection.
    pub(crate) fn line(&self) -> &Arc<Line> {
        &self.place.line
    }

    /// Whether there was no place for it, so that it gets only a refusal.
    pub(crate) fn is_refused(&self) -> bool {
        self.place.refused
    }

    /// The peer's address, if the system knows it.
    pub(crate) fn peer(&self) -> Option<IpAddr> {
        self.peer
    }
}

impl Connection {
    /// A new connection; `None` if the peer has already gone.
    pub(super) fn accepted(
        stream: TcpStream,
        place: Place,
        clock: Arc<dyn Clock>,
        stopping: CancellationToken,
    ) -> Option<Self> {
        // Answers are written whole; waiting for more to send would only add delay.
        stream.set_nodelay(true).ok()?;
        let peer = stream.peer_addr().ok().map(|address| address.ip());
        let patience = Duration::from_millis(WRITE_SILENCE_MS_MAX);
        let (line, time) = (place.line.clone(), clock.clone());
        Some(Self {
            stream: Impatient::new(Box::new(stream), patience, time, line),
            seat: Seat {
                place,
                peer,
                clock,
                stopping,
            },
        })
    }

    /// Sends `last_words`, if any, and closes the connection so that the peer can read them.
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

/// Reads and discards incoming data until the peer closes, fails or falls silent.
async fn throw_away(stream: &mut Impatient) {
    let mut buffer = vec![0; THROWN_AWAY_BYTES];
    let silence = Duration::from_millis(LINGER_SILENCE_MS_MAX);
    while let Ok(Ok(1..)) = timeout(silence, stream.read(&mut buffer)).await {}
}
