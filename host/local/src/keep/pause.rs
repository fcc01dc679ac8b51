//! Pauses of background threads, which can be ended early.

use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// Pauses for a background thread; ending them tells the thread to end.
#[derive(Default)]
pub(crate) struct Pause {
    ended: Mutex<bool>,
    changed: Condvar,
}

impl Pause {
    /// Ends the pause and all later ones.
    pub(crate) fn end(&self) {
        *self.ended.lock() = true;
        self.changed.notify_all();
    }

    /// Waits this long; false if the thread should end.
    pub(crate) fn wait(&self, duration: Duration) -> bool {
        let mut ended = self.ended.lock();
        if !*ended {
            self.changed.wait_for(&mut ended, duration);
        }
        !*ended
    }

    pub(crate) fn is_ended(&self) -> bool {
        *self.ended.lock()
    }
}
