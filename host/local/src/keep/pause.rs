//! Rests of whoever works in the background, and their end.

use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// How somebody who works with rests is told to end, wherever he is.
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

    /// Waits so long; false if it is the end.
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
