//! The broker's background tasks, besides the workers. They end when the broker is stopped or gone. A panic is a bug in the host and
//! ends none of them: the task is restarted.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use metrics::counter;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The longest sleep of a task that waits for a time by the wall clock, which may be set meanwhile.
pub(crate) const SLEEP_MAX: Duration = Duration::from_secs(60);

/// Delay after a panic: its cause may still be there.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// The tasks, and the signal that ends them.
pub(crate) struct Tasks {
    stop: watch::Sender<bool>,
    running: Mutex<Vec<JoinHandle<()>>>,
}

impl Default for Tasks {
    fn default() -> Self {
        Self {
            stop: watch::Sender::new(false),
            running: Mutex::default(),
        }
    }
}

impl Tasks {
    /// Starts a task. It ends when the value that it watches turns true or its sender is gone. A
    /// task that panics is started again.
    pub(crate) fn start<T: Future<Output = ()> + Send + 'static>(
        &self,
        name: &'static str,
        task: impl Fn(watch::Receiver<bool>) -> T + Send + 'static,
    ) {
        let mut stop = self.stop.subscribe();
        let running = tokio::spawn(async move {
            loop {
                if caught(name, task(stop.clone())).await.is_ok() {
                    return;
                }
                let told = stop.wait_for(|stop| *stop);
                // An error means that the sender is gone, which ends the task as well.
                if tokio::time::timeout(AGAIN_AFTER, told).await.is_ok() {
                    return;
                }
            }
        });
        self.running.lock().push(running);
    }

    /// Tells all tasks to end and waits for them.
    pub(crate) async fn stop(&self) {
        self.stop.send_replace(true);
        let running = std::mem::take(&mut *self.running.lock());
        for task in running {
            // A task neither panics nor is cancelled before the host itself ends.
            let _ = task.await;
        }
    }
}

/// A panic in the host, as reported to callers.
const PANICKED: &str =
    "there was an internal error, see the host's log; please report it. The host tries again";

/// The result of `work`, or the fact that it panicked. Panics are counted, and other tasks
/// continue.
pub(crate) async fn caught<T>(
    task: &'static str,
    work: impl Future<Output = T>,
) -> Result<T, &'static str> {
    let done = AssertUnwindSafe(work).catch_unwind().await;
    done.map_err(|_| {
        tracing::error!(task, "a task of the host panicked and is started again");
        counter!("millrace_task_panics_total", "task" => task).increment(1);
        PANICKED
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_task_that_panics_is_started_again_and_still_ends_when_it_is_told_to() {
        let (tasks, starts) = (Tasks::default(), Arc::new(AtomicU32::new(0)));
        let counted = Arc::clone(&starts);
        tasks.start("test", move |mut stop| {
            let start = counted.fetch_add(1, Ordering::SeqCst);
            async move {
                assert!(start > 0, "a panic that is meant to be");
                let _ = stop.wait_for(|stop| *stop).await;
            }
        });
        while starts.load(Ordering::SeqCst) < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tasks.stop().await;
        assert_eq!(starts.load(Ordering::SeqCst), 2);
    }
}
