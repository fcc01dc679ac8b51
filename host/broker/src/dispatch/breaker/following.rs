//! What a breaker has to have written down of its revision, and what it takes over of that from other hosts: each of them saw some of it.

use millrace_model::Record;

use super::{Breaker, Now};

/// What is to be written down of a revision, as one host saw it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Noted {
    /// How it does, with what was written down before.
    pub(crate) record: Record,
    /// Whether it has processed anything, now or before.
    pub(crate) has_worked: bool,
    /// Messages that it processed here and that are not written down yet.
    pub(crate) fresh: u32,
    /// Whether it stood still here and has processed something since.
    pub(crate) goes_on: bool,
}

impl Breaker {
    /// How the revision does, as it is to be written down.
    pub(crate) fn noted(&self, now: Now) -> Noted {
        Noted {
            record: self.record(now),
            has_worked: self.proof.has_worked(),
            fresh: self.proof.fresh(),
            goes_on: self.goes_on,
        }
    }

    /// So many messages are written down; whoever [follows](Self::follow) counts them among all hosts'.
    pub(crate) fn written(&mut self, fresh: u32) {
        self.proof.written(fresh);
    }

    /// So much is written down of the revision by now, by whichever host.
    pub(crate) fn follow(&mut self, record: &Record) {
        self.proof.follow(record);
        self.usual.follow(record);
        if record.stopped.is_some() {
            return;
        }
        self.goes_on = false;
        match self.stopped_here {
            // Where it goes on nobody knows that it stands still here: that is said again.
            true => self.written.stopped = false,
            false => self.stopped = None,
        }
    }
}
