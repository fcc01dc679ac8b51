//! One connection as whoever serves it has it: its stream, its place, and an end by which its other side reads the last answer.
//!
//! Closing on unread bytes would tear that answer up. So whatever is still being sent is taken and thrown away for a while.

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

/// What is read at once of what is thrown away.
const THROWN_AWAY_BYTES: usize = 64 << 10;

/// A connection under way.
pub(crate) struct Connection {
    pub(crate) stream: Impatient,
    pub(crate) seat: Seat,
}

/// All of a connection but its stream, which may be lent to a library meanwhile. Its place is given back when it is dropped.
pub(crate) struct Seat {
    place: Place,
    peer: Option<IpAddr>,
    clock: Arc<dyn Clock>,
    stopping: CancellationToken,
}

impl Seat {
    /// What happens on it.
    pub(crate) fn line(&self) -> &Arc<Line> {
        &self.place.line
    }

    /// Whether there is no place for it, and it is only told so.
    pub(crate) fn is_refused(&self) -> bool {
        self.place.refused
    }

    /// Who is at the other side.
    pub(crate) fn peer(&self) -> Option<IpAddr> {
        self.peer
    }
}

impl Connection {
    /// A connection that was accepted; `None` where its other side is gone already.
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

    /// Says what is still to be said, and closes so that it is read.
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

/// Takes what still comes until nothing does.
async fn throw_away(stream: &mut Impatient) {
    let mut buffer = vec![0; THROWN_AWAY_BYTES];
    let silence = Duration::from_millis(LINGER_SILENCE_MS_MAX);
    while let Ok(Ok(1..)) = timeout(silence, stream.read(&mut buffer)).await {}
}
