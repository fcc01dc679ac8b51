//! The doors of one host, opened in turn and stopped in reverse order.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::budgets::Budgets;
use super::connection::Connection;
use super::listener::Listener;

/// The open doors, in the order of opening, and the memory that they share.
pub(crate) struct Doors {
    budgets: Budgets,
    open: Vec<Door>,
}

/// An open door.
struct Door {
    name: &'static str,
    address: Option<SocketAddr>,
    stopping: CancellationToken,
    closed: CancellationToken,
    serving: JoinHandle<()>,
}

impl Doors {
    pub(crate) fn new(budgets: Budgets) -> Self {
        let open = Vec::new();
        Self { budgets, open }
    }

    /// The memory that all doors share.
    pub(crate) fn budgets(&self) -> &Budgets {
        &self.budgets
    }

    /// Opens a door: from here on connections are served.
    pub(crate) fn open<Serve, Served>(
        &mut self,
        name: &'static str,
        listener: Listener,
        serve: Serve,
    ) where
        Serve: Fn(Connection) -> Served + Send + Sync + 'static,
        Served: Future<Output = ()> + Send + 'static,
    {
        self.open.push(Door {
            name,
            address: listener.address(),
            stopping: listener.stopping(),
            closed: listener.closed(),
            serving: tokio::spawn(listener.serve(serve)),
        });
    }

    /// The address of a door; `None` if there is none with this name, or it is a Unix socket.
    pub(crate) fn address(&self, name: &str) -> Option<SocketAddr> {
        let door = self.open.iter().find(|door| door.name == name);
        door.and_then(|door| door.address)
    }

    /// Stops accepting, the last door first, and waits for running requests of all doors. Requests
    /// still running at the deadline are cut off.
    pub(crate) async fn stop(mut self, deadline: Duration) {
        let ended = timeout(deadline, self.wind_down()).await;
        if ended.is_err() {
            tracing::warn!("requests were still under way at the deadline; they are cut off");
        }
    }

    async fn wind_down(&mut self) {
        for door in self.open.iter().rev() {
            door.stopping.cancel();
            door.closed.cancelled().await;
        }
        for door in self.open.iter_mut().rev() {
            // A panic was reported where it happened.
            let _ = (&mut door.serving).await;
        }
    }
}

/// Dropping the doors cuts off their connections.
impl Drop for Doors {
    fn drop(&mut self) {
        for door in self.open.iter().rev() {
            door.stopping.cancel();
            door.serving.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use millrace_model::SystemClock;
    use tokio::net::TcpListener;

    use super::*;
    use crate::net::DoorLimits;

    const DEADLINE: Duration = Duration::from_secs(10);

    async fn listener() -> Listener {
        let socket = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let limits = DoorLimits {
            regular_max: 1,
            reserved_max: 0,
            idle: DEADLINE,
        };
        Listener::new(socket, limits, None, Arc::new(SystemClock::new())).expect("a door")
    }

    #[tokio::test]
    async fn the_last_door_is_closed_before_the_first_one_is_told_to_stop() {
        let mut doors = Doors::new(Budgets::new(0, 0));
        let (first, last) = (listener().await, listener().await);
        let (first_stops, last_closed) = (first.stopping(), last.closed());
        doors.open("first", first, |connection| connection.end(None));
        doors.open("last", last, |connection| connection.end(None));
        let stopped = tokio::spawn(doors.stop(DEADLINE));
        first_stops.cancelled().await;
        assert!(last_closed.is_cancelled());
        stopped.await.expect("a stop");
    }

    #[tokio::test]
    async fn doors_that_are_dropped_are_closed() {
        let mut doors = Doors::new(Budgets::new(0, 0));
        let only = listener().await;
        let closed = only.closed();
        doors.open("only", only, |connection| connection.end(None));
        assert!(!closed.is_cancelled());
        drop(doors);
        timeout(DEADLINE, closed.cancelled()).await.expect("closed");
    }
}
