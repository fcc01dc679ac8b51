//! What the broker does by itself, beside the workers: tasks that end when it is stopped or gone.

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The tasks, and how they are told to end.
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
    /// Starts one; it ends when what it is given turns true, or is gone.
    pub(crate) fn start<T: Future<Output = ()> + Send + 'static>(
        &self,
        task: impl FnOnce(watch::Receiver<bool>) -> T,
    ) {
        let running = tokio::spawn(task(self.stop.subscribe()));
        self.running.lock().push(running);
    }

    /// Lets them end what they are at.
    pub(crate) async fn stop(&self) {
        self.stop.send_replace(true);
        let running = std::mem::take(&mut *self.running.lock());
        for task in running {
            // A panic was told where it happened.
            let _ = task.await;
        }
    }
}
