//! Threads for guests that compute for long, so that they never hold up the threads of the network and the engine.

use std::future::Future;

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

/// Owns the threads; dropping it ends them without waiting for a guest.
pub(crate) struct GuestThreads(Option<Runtime>);

impl GuestThreads {
    pub(crate) fn start(count: usize) -> std::io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(count.max(1))
            .thread_name("guest")
            .enable_time()
            .build()?;
        Ok(Self(Some(runtime)))
    }

    /// Carries `future` to its end on a guest thread; dropping the answer ends it early.
    pub(crate) async fn carry<F>(&self, future: F) -> Result<F::Output, tokio::task::JoinError>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let runtime = self.0.as_ref().expect("taken only by drop");
        let mut task = AbortOnDrop(runtime.spawn(future));
        (&mut task.0).await
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
        // A runtime must not be dropped within another one, and this may well happen there.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
