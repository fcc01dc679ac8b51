//! Threads for guests with long computations, so that they never hold up the threads of the network and the engine: they are few, they
//! have a lower priority, and no owner has all of them at once.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};

use parking_lot::Mutex;
use rustix::process::{getpriority_process, setpriority_process};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, JoinHandle};

/// How much lower guests' priority is than that of the host's own threads: at 10 a busy thread gets about a ninth of a contended core.
/// A guest's time does not advance while it waits for a core.
const NICER_BY: i32 = 10;

/// Owns the threads; dropping it ends them without waiting for guests.
pub(crate) struct GuestThreads {
    runtime: Option<Runtime>,
    count: usize,
    /// For each owner that has a lane.
    turns: Mutex<HashMap<String, Weak<Semaphore>>>,
}

impl GuestThreads {
    pub(crate) fn start(count: usize) -> std::io::Result<Self> {
        let count = count.max(1);
        let runtime = Builder::new_multi_thread()
            .worker_threads(count)
            .thread_name("guest")
            .on_thread_start(stand_behind)
            .enable_time()
            .build()?;
        Ok(Self {
            runtime: Some(runtime),
            count,
            turns: Mutex::default(),
        })
    }

    /// A lane to the threads for `owner`, which never occupies all of them, however many lanes and calls it has: with one thread per
    /// core, an endless guest leaves a core to the host, which would otherwise be late by a time slice now and then.
    pub(crate) fn lane(&self, owner: &str) -> Lane {
        let mut all = self.turns.lock();
        let known = all.get(owner).and_then(Weak::upgrade);
        let turns = known.unwrap_or_else(|| {
            all.retain(|_, turns| turns.strong_count() > 0);
            let turns = Arc::new(Semaphore::new((self.count - 1).max(1)));
            all.insert(owner.to_owned(), Arc::downgrade(&turns));
            turns
        });
        Lane {
            turns,
            is_slow: AtomicBool::new(false),
        }
    }

    /// Runs `future` to its end on a guest thread, when it is the owner's turn; dropping the answer ends it early. While it waits for
    /// the host it is another call's turn.
    pub(crate) async fn carry<F>(
        &self,
        lane: &Lane,
        future: Pin<Box<F>>,
    ) -> Result<F::Output, JoinError>
    where
        F: Carried<Output: Send> + Send + Unpin + 'static,
    {
        let in_turn = InTurn {
            future,
            // Never closed.
            turn: Arc::clone(&lane.turns).acquire_owned().await.ok(),
            turns: Arc::clone(&lane.turns),
            asked: None,
        };
        let runtime = self.runtime.as_ref().expect("taken only by drop");
        let mut task = AbortOnDrop(runtime.spawn(in_turn));
        (&mut task.0).await
    }
}

/// What the threads carry: a future that may wait for the host.
pub(crate) trait Carried: Future {
    /// Whether it waits for the host, and so needs no thread now.
    fn is_waiting(&self) -> bool;

    /// Says that the host has answered; from here on it waits for its turn.
    fn end_wait(&mut self);
}

type Asked = Pin<Box<dyn Future<Output = Result<OwnedSemaphorePermit, AcquireError>> + Send>>;

/// A future that runs only when it is its owner's turn.
struct InTurn<F> {
    future: Pin<Box<F>>,
    turns: Arc<Semaphore>,
    turn: Option<OwnedSemaphorePermit>,
    /// A turn that it waits for.
    asked: Option<Asked>,
}

impl<F: Carried + Unpin> Future for InTurn<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        if this.turn.is_none() {
            this.future.end_wait();
            let turns = &this.turns;
            let asked = this
                .asked
                .get_or_insert_with(|| Box::pin(Arc::clone(turns).acquire_owned()));
            this.turn = ready!(asked.as_mut().poll(context)).ok();
            this.asked = None;
        }
        let polled = this.future.as_mut().poll(context);
        if polled.is_pending() && this.future.is_waiting() {
            this.turn = None;
        }
        polled
    }
}

/// The lane of one owner's calls of one kind to the threads.
pub(crate) struct Lane {
    /// The owner's.
    turns: Arc<Semaphore>,
    /// Whether its recent calls were long: then they start on the threads.
    is_slow: AtomicBool,
}

impl Lane {
    pub(crate) fn is_slow(&self) -> bool {
        self.is_slow.load(Ordering::Relaxed)
    }

    pub(crate) fn set_slow(&self, is_slow: bool) {
        if self.is_slow() != is_slow {
            self.is_slow.store(is_slow, Ordering::Relaxed);
        }
    }
}

/// Lowers this thread's priority: on Linux, priorities belong to threads. If the system refuses,
/// guests compete as equals.
fn stand_behind() {
    let nicer = getpriority_process(None).and_then(|own| setpriority_process(None, own + NICER_BY));
    if let Err(error) = nicer {
        tracing::debug!(%error, "guest threads run at the host's own priority");
    }
}

struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Drop for GuestThreads {
    fn drop(&mut self) {
        // A runtime must not be dropped within another one, which may happen here.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(lane: &Lane) -> usize {
        lane.turns.available_permits()
    }

    #[test]
    fn an_owner_never_has_the_last_thread_however_many_lanes_it_has() {
        let threads = GuestThreads::start(4).unwrap();
        let (current, canary) = (threads.lane("p"), threads.lane("p"));
        let taken = current.turns.try_acquire_many(3).unwrap();
        assert_eq!((turns(&current), turns(&canary)), (0, 0));
        assert_eq!(turns(&threads.lane("q")), 3);
        drop(taken);
        assert_eq!(turns(&canary), 3);
    }

    #[test]
    fn one_core_is_for_guests_as_well() {
        for count in [0, 1, 2] {
            assert_eq!(turns(&GuestThreads::start(count).unwrap().lane("p")), 1);
        }
    }
}
