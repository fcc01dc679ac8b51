//! The doors of one host, opened one after the other and stopped in the reverse order.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::budgets::Budgets;
use super::connection::Connection;
use super::listener::Listener;

/// The doors that are open, the first one first, and the memory that they share.
pub(crate) struct Doors {
    budgets: Budgets,
    open: Vec<Door>,
}

/// A door that is open.
struct Door {
    name: &'static str,
    address: SocketAddr,
    stopping: CancellationToken,
    closed: CancellationToken,
    serving: JoinHandle<()>,
}

impl Doors {
    pub(crate) fn new(budgets: Budgets) -> Self {
        let open = Vec::new();
        Self { budgets, open }
    }

    /// What each door may hold in memory, together with the others.
    pub(crate) fn budgets(&self) -> &Budgets {
        &self.budgets
    }

    /// Opens a door: from here on whoever connects is served.
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

    /// Where a door listens; `None` if there is none of that name.
    pub(crate) fn address(&self, name: &str) -> Option<SocketAddr> {
        let door = self.open.iter().find(|door| door.name == name);
        door.map(|door| door.address)
    }

    /// Accepts nothing more, the last door first, and waits for what is under way on all of them. What is still under way at the deadline
    /// is cut off.
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
            // A panic was told where it happened.
            let _ = (&mut door.serving).await;
        }
    }
}

/// Doors that are dropped are cut off: nobody is left behind to serve.
impl Drop for Doors {
    fn drop(&mut self) {
        for door in self.open.iter().rev() {
            door.stopping.cancel();
            door.serving.abort();
        }
    }
}
